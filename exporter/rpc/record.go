package rpc

import (
	"encoding/binary"
	"errors"
)

// errRecordTooLong ends a connection: without the rest of the record there is no finding the next one.
var errRecordTooLong = errors.New("record longer than allowed")

// lastFragment is the top bit of a fragment header (RFC 5531 section 11).
const lastFragment = 1 << 31

// input is what a connection has sent and nobody has answered yet. Records are taken out of it in place; the bodies of
// a record's fragments are moved together as they become whole, each byte once. The zero value holds no memory.
//
//	buf[start:body]  the fragments of the record under way, moved together
//	buf[scan:end]    what follows, beginning with a fragment header
type input struct {
	pooled                 *buffer // of buf, when it is from the pool
	buf                    []byte
	start, body, scan, end int
	open                   bool // a fragment of the record under way has been taken
}

// next returns the next record when it is whole. The slice is valid until space is called. limit is the most bytes a
// record may have.
func (in *input) next(limit int) (rec []byte, ok bool, err error) {
	for in.end-in.scan >= 4 {
		header := binary.BigEndian.Uint32(in.buf[in.scan:])
		size := int(header &^ lastFragment)
		if !in.open {
			in.start, in.body = in.scan+4, in.scan+4
		}
		if in.body-in.start+size > limit {
			return nil, false, errRecordTooLong
		}
		from := in.scan + 4
		if in.end-from < size {
			return nil, false, nil
		}
		if in.body != from {
			copy(in.buf[in.body:], in.buf[from:from+size])
		}
		in.body += size
		in.scan = from + size
		in.open = header&lastFragment == 0
		if !in.open {
			return in.buf[in.start:in.body:in.body], true, nil
		}
	}
	return nil, false, nil
}

// partial reports whether a record has begun and is not whole.
func (in *input) partial() bool { return in.open || in.scan < in.end }

// space returns where the next bytes are to be read to; never empty. All whole records must have been taken. The memory
// grows with what was sent, not with what a header announces: a record of n bytes is held in less than 4n, or in
// inputSize.
func (in *input) space() []byte {
	if in.buf == nil {
		in.pooled = inputs.Get().(*buffer)
		in.buf = in.pooled.b
	}
	in.compact()
	if in.end == len(in.buf) {
		bigger := make([]byte, 2*len(in.buf))
		copy(bigger, in.buf[:in.end])
		in.giveBack()
		in.buf = bigger
	}
	return in.buf[in.end:]
}

// compact moves what is still wanted to the front, when the room behind it is getting short and that gains enough of it:
// a peer that sends a byte at a time must not make each of them cost a move.
func (in *input) compact() {
	if !in.partial() {
		in.start, in.body, in.scan, in.end = 0, 0, 0, 0
		return
	}
	if !in.open {
		in.start, in.body = in.scan, in.scan
	}
	gain, enough := in.start+in.scan-in.body, len(in.buf)/4
	if len(in.buf)-in.end > enough || gain < enough {
		return
	}
	n := copy(in.buf, in.buf[in.start:in.body])
	in.start, in.body = 0, n
	in.end = n + copy(in.buf[n:], in.buf[in.scan:in.end])
	in.scan = n
}

// release gives the memory back when nothing is held.
func (in *input) release() {
	if in.buf == nil || in.partial() {
		return
	}
	in.giveBack()
	*in = input{}
}

func (in *input) giveBack() {
	if in.pooled != nil {
		inputs.Put(in.pooled)
		in.pooled = nil
	}
}
