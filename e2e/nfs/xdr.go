package nfs

import (
	"encoding/binary"
	"errors"
)

// errShort is what a reply that ends too early is refused with.
var errShort = errors.New("nfs: the reply ends too early")

// reply reads XDR. After the first error everything reads as zero, and err says what was wrong.
type reply struct {
	b   []byte
	err error
}

// take returns the next n bytes, nil when there are fewer.
func (r *reply) take(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.b = nil
		if r.err == nil {
			r.err = errShort
		}
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reply) u32() uint32 {
	b := r.take(4)
	if b == nil {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

func (r *reply) u64() uint64 {
	b := r.take(8)
	if b == nil {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

func (r *reply) bool() bool { return r.u32() != 0 }

// opaque reads bytes with their length before and padding behind them. They are a part of the reply's buffer.
func (r *reply) opaque() []byte {
	n := int(r.u32())
	b := r.take(n)
	r.take(-n & 3)
	return b
}

// AppendOpaque appends bytes with their length before and padding behind them.
func AppendOpaque(b, data []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	b = append(b, data...)
	return append(b, make([]byte, -len(data)&3)...)
}

// AppendU32 appends unsigned integers.
func AppendU32(b []byte, values ...uint32) []byte {
	for _, v := range values {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}
