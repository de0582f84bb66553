package load

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"time"

	"github.com/nfs-fleet/nfs-fleet/e2e/nfs"
)

// Numbers of RFC 1813.
const (
	program         = 100003
	version         = 3
	procNull        = 0
	procGetattr     = 1
	procLookup      = 3
	procAccess      = 4
	procRead        = 6
	procReaddirplus = 17
	attrSize        = 84
)

const (
	// replyHead is an accepted reply's header with an empty verifier, after the record mark.
	replyHead = 24
	// readData is where the data of a READ's reply begins: after mark, header, status, attributes, count, eof and length.
	readData = 4 + replyHead + 4 + 4 + attrSize + 4 + 4 + 4
)

func u32(b []byte, values ...uint32) []byte {
	for _, v := range values {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}

func u64(b []byte, v uint64) []byte { return binary.BigEndian.AppendUint64(b, v) }

func opaque[T ~string](b []byte, s T) []byte {
	b = append(u32(b, uint32(len(s))), s...)
	return append(b, make([]byte, -len(s)&3)...)
}

// record makes a call's record, root's, with an XID to be filled in.
func record(procedure uint32, args []byte) []byte {
	cred := u32(opaque(u32(nil, 0), "load"), 0, 0, 0)
	b := u32(nil, 0, 0, 0, 2, program, version, procedure, 1)
	b = append(opaque(b, string(cred)), 0, 0, 0, 0, 0, 0, 0, 0)
	b = append(b, args...)
	binary.BigEndian.PutUint32(b, 1<<31|uint32(len(b)-4))
	return b
}

var readHead = record(procRead, nil)

var errListing = errors.New("a listing that cannot be read")

// listing takes a READDIRPLUS result, queues what is in it, and says whether and where the listing goes on.
func (c *conn) listing(b []byte) (more bool, cookie uint64, err error) {
	defer func() {
		if recover() != nil { // beyond the end
			err = errListing
		}
	}()
	be, r := binary.BigEndian, c.run
	b = b[4:]
	attr := func(at int) (fields []byte) {
		follows := be.Uint32(b[at:])
		b = b[at+4:]
		if follows != 0 {
			fields, b = b[:attrSize], b[attrSize:]
		}
		return fields
	}
	attr(0)
	b = b[8:]
	for be.Uint32(b) != 0 {
		size := int(be.Uint32(b[12:]))
		name := b[16 : 16+size]
		b = b[16+size+-size&3:]
		cookie = be.Uint64(b)
		fields := attr(8)
		var h nfs.Handle
		follows := be.Uint32(b)
		if b = b[4:]; follows != 0 {
			size := int(be.Uint32(b))
			h, b = nfs.Handle(b[4:4+size]), b[4+size+-size&3:]
		}
		if string(name) == "." || string(name) == ".." {
			continue
		}
		r.result.Entries++
		r.names = append(r.names, string(name))
		switch {
		case fields == nil || h == "":
			r.result.Errors++
		case be.Uint32(fields) == nfs.Dir:
			r.queue = append(r.queue, node{handle: h, dir: true})
		case be.Uint32(fields) == nfs.Reg && r.op.Name == Slurp:
			r.queue = append(r.queue, node{handle: h, size: be.Uint64(fields[20:])})
		}
	}
	return be.Uint32(b[4:]) == 0, cookie, nil
}

// delays is how often a call took how long: 16 counters for every power of two of nanoseconds.
type delays struct {
	n       uint64
	buckets [64 * 16]uint64
}

func (d *delays) add(took int64) {
	v := uint64(max(took, 16))
	top := bits.Len64(v) - 5
	d.buckets[top*16+int(v>>top)-16]++
	d.n++
}

// at returns the delay that a share of the calls did not exceed, to a sixteenth.
func (d *delays) at(share float64) time.Duration {
	left := uint64(share * float64(d.n))
	for i, n := range d.buckets {
		if n >= left && n > 0 {
			return time.Duration(uint64(i%16+17) << (i / 16))
		}
		left -= n
	}
	return 0
}
