package volume

import (
	"encoding/binary"
	"math/bits"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// page is up to tree.PageSlots entries of a directory. It is immutable; so is what dirs point to.
type page struct {
	buf   []byte // n records in slot order, then names and targets
	dirs  []*dir // of those records that are directories, in their order; nil for one that has left the tree
	holes ranks  // which slots have an entry; nil when all from the first to the last of n have
	first uint64 // the slot of place 0
	n     int    // entries
}

func (p *page) record(i int) []byte { return p.buf[i*recSize : (i+1)*recSize] }

// find returns which entry is at a place, if one is.
func (p *page) find(place uint32) (i int, ok bool) {
	if p.holes == nil {
		return int(place), int(place) < p.n
	}
	return p.holes.rank(place)
}

// from returns the first entry whose place is place or greater; n when there is none.
func (p *page) from(place uint32) int {
	if p.holes == nil {
		return min(int(place), p.n)
	}
	return p.holes.below(place, p.n)
}

func (p *page) name(i int) []byte { return recordName(p.buf, p.record(i)) }

// recordName returns the name that belongs to the record r of the page buf.
func recordName(buf, r []byte) []byte {
	at := binary.BigEndian.Uint32(r[recName:])
	return buf[at : at+uint32(r[recNameLen])]
}

// recordTarget returns the symlink target that belongs to the record r of the page buf.
func recordTarget(buf, r []byte) []byte {
	at := binary.BigEndian.Uint32(r[recName:]) + uint32(r[recNameLen])
	return buf[at : at+uint32(binary.BigEndian.Uint16(r[recTargetLen:]))]
}

// dir returns the directory that r, a record of p, is; nil when it is none or has left the tree.
func (p *page) dir(r []byte) *dir {
	if recordType(r) != tree.Directory {
		return nil
	}
	return p.dirs[binary.BigEndian.Uint32(r[recDigest:])]
}

// ranks is a set of small numbers that knows how many of them are below any other: for each 64 numbers a word of bits and
// a word that counts the members before them.
type ranks []uint64

// newRanks makes room for the numbers below n.
func newRanks(n int) ranks { return make(ranks, (n+63)/64*2) }

func (s ranks) add(i uint32) { s[i/64*2] |= 1 << (i % 64) }

// seal counts; after it, nothing is added.
func (s ranks) seal() (members int) {
	for w := 0; w < len(s); w += 2 {
		s[w+1] = uint64(members)
		members += bits.OnesCount64(s[w])
	}
	return members
}

// rank returns how many members are below i; ok says whether i is one.
func (s ranks) rank(i uint32) (below int, ok bool) {
	w := int(i / 64 * 2)
	if w+1 >= len(s) {
		return 0, false
	}
	bit := uint64(1) << (i % 64)
	return int(s[w+1]) + bits.OnesCount64(s[w]&(bit-1)), s[w]&bit != 0
}

// below returns how many of the set's n members are below i.
func (s ranks) below(i uint32, n int) int {
	if int(i/64*2) >= len(s) {
		return n
	}
	below, _ := s.rank(i)
	return below
}

// pageWriter writes a page. How much there will be of what is said to newPageWriter, so that nothing is allocated twice.
type pageWriter struct {
	p    *page
	fsid uint64
	name int // where the next name goes
}

// newPageWriter begins the page of entries whose slots are at least first. Entries with holes between them are told apart
// by the last entry's slot.
func newPageWriter(fsid, first uint64, entries []tree.Entry) *pageWriter {
	size, dirs := len(entries)*recSize, 0
	for i := range entries {
		size += len(entries[i].Name) + len(entries[i].Target)
		if entries[i].Type == tree.Directory {
			dirs++
		}
	}
	p := &page{buf: make([]byte, size), first: first}
	if dirs > 0 {
		p.dirs = make([]*dir, 0, dirs)
	}
	if span := int(entries[len(entries)-1].Slot-first) + 1; span != len(entries) {
		p.holes = newRanks(span)
	}
	return &pageWriter{p: p, fsid: fsid, name: len(entries) * recSize}
}

// add appends an entry; d is the directory that it is.
func (w *pageWriter) add(e *tree.Entry, d *dir) {
	p := w.p
	place := int(e.Slot - p.first)
	r := p.record(p.n)
	putRecord(r, e, w.fsid, place, w.name)
	if e.Type == tree.Directory {
		binary.BigEndian.PutUint32(r[recDigest:], uint32(len(p.dirs)))
		p.dirs = append(p.dirs, d)
	}
	w.name += copy(p.buf[w.name:], e.Name)
	w.name += copy(p.buf[w.name:], e.Target)
	if p.holes != nil {
		p.holes.add(uint32(place))
	}
	p.n++
}

// done returns the page.
func (w *pageWriter) done() *page {
	if w.p.holes != nil {
		w.p.holes.seal()
	}
	return w.p
}
