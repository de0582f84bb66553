package relay

import "encoding/binary"

// framer follows the record marks (RFC 5531, section 11) of a stream of calls or replies, and keeps nothing of it.
type framer struct {
	mark [4]byte
	have int  // bytes of mark that have come
	left int  // bytes of the fragment that are to come
	last bool // the fragment is its record's last
	open bool // a record has begun and not ended
}

// feed takes the next bytes of the stream and returns how many records ended in them.
func (f *framer) feed(b []byte) (ended int) {
	for len(b) > 0 {
		if f.left > 0 {
			n := min(f.left, len(b))
			b = b[n:]
			ended += f.pass(n)
			continue
		}
		n := copy(f.mark[f.have:], b)
		b = b[n:]
		f.have += n
		f.open = true
		if f.have < len(f.mark) {
			break
		}
		f.have = 0
		mark := binary.BigEndian.Uint32(f.mark[:])
		f.last = mark&lastFragment != 0
		f.left = int(mark &^ lastFragment)
		ended += f.pass(0)
	}
	return ended
}

// pass takes n bytes of the present fragment, which has as many, without seeing them.
func (f *framer) pass(n int) (ended int) {
	f.left -= n
	if f.left > 0 || !f.last {
		return 0
	}
	f.open = false
	return 1
}

// between says that the stream stands between two records.
func (f *framer) between() bool { return !f.open }

// fresh says that the next byte is the first of a mark.
func (f *framer) fresh() bool { return f.left == 0 && f.have == 0 }

const lastFragment = 1 << 31
