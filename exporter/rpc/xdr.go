package rpc

import "encoding/binary"

// Decoder takes XDR values (RFC 4506) off the front of a byte slice without copying. The first value that is not whole or
// not valid makes every later one zero, so that a caller checks Err once, at the end. Slices alias the input.
type Decoder struct {
	b   []byte
	bad bool
}

// NewDecoder returns a decoder of b.
func NewDecoder(b []byte) Decoder { return Decoder{b: b} }

// Err is nil as long as everything asked for was there, else ErrGarbageArgs. Bytes left over are no error: RFC 5531 lets
// a server ignore them, and some clients pad.
func (d *Decoder) Err() error {
	if d.bad {
		return ErrGarbageArgs
	}
	return nil
}

// Len is the number of bytes not yet taken.
func (d *Decoder) Len() int { return len(d.b) }

// Uint32 takes an unsigned int.
func (d *Decoder) Uint32() uint32 {
	if len(d.b) < 4 {
		d.Fail()
		return 0
	}
	v := binary.BigEndian.Uint32(d.b)
	d.b = d.b[4:]
	return v
}

// Uint64 takes an unsigned hyper.
func (d *Decoder) Uint64() uint64 {
	if len(d.b) < 8 {
		d.Fail()
		return 0
	}
	v := binary.BigEndian.Uint64(d.b)
	d.b = d.b[8:]
	return v
}

// Bool takes a bool; anything but 0 and 1 is invalid.
func (d *Decoder) Bool() bool {
	v := d.Uint32()
	if v > 1 {
		d.Fail()
	}
	return v == 1
}

// Fixed takes n bytes of fixed-length opaque data and their padding.
func (d *Decoder) Fixed(n int) []byte {
	padded := n + pad(n)
	if n < 0 || len(d.b) < padded {
		d.Fail()
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[padded:]
	return v
}

// Opaque takes variable-length opaque data, or a string, of at most limit bytes. The padding's value is not looked at.
func (d *Decoder) Opaque(limit int) []byte {
	n := d.Uint32()
	if uint64(n) > uint64(limit) || uint64(n) > uint64(len(d.b)) {
		d.Fail()
		return nil
	}
	return d.Fixed(int(n))
}

// Fail makes the input invalid: for values that XDR allows and the protocol does not.
func (d *Decoder) Fail() {
	d.bad = true
	d.b = nil
}

// pad is how many bytes follow n bytes of opaque data.
func pad(n int) int { return -n & 3 }

var zeros [4]byte

// AppendOpaque appends b as variable-length opaque data or a string: length, bytes, padding.
func AppendOpaque[T []byte | string](dst []byte, b T) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(b)))
	dst = append(dst, b...)
	return append(dst, zeros[:pad(len(b))]...)
}

// AppendUint32 appends an unsigned int.
func AppendUint32(dst []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(dst, v) }

// AppendUint64 appends an unsigned hyper.
func AppendUint64(dst []byte, v uint64) []byte { return binary.BigEndian.AppendUint64(dst, v) }

// AppendBool appends a bool.
func AppendBool(dst []byte, v bool) []byte {
	if v {
		return append(dst, 0, 0, 0, 1)
	}
	return append(dst, 0, 0, 0, 0)
}
