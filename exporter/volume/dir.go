package volume

import (
	"hash/maphash"
	"sort"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// dir is a directory of the tree. It is immutable.
type dir struct {
	parent uint64      // the ino of the directory that it is in; its own for the root
	digest tree.Digest // of its directory object
	pages  []dirPage   // in ascending order of number
	names  names
	live   int // entries
}

// dirPage is a page's place in a directory.
type dirPage struct {
	*page
	number uint64      // as in the directory object: slots number*tree.PageSlots+1 and up
	id     uint32      // in the page table
	digest tree.Digest // of the page object; zero when the entries are in the directory object
}

// pageAt returns which of d's pages has a number, or else would come before the first with a greater one.
func (d *dir) pageAt(number uint64) (i int, ok bool) {
	if len(d.pages) == 0 {
		return 0, false
	}
	// Page numbers seldom have gaps.
	if i := number - d.pages[0].number; i < uint64(len(d.pages)) && d.pages[i].number == number {
		return int(i), true
	}
	i = sort.Search(len(d.pages), func(i int) bool { return d.pages[i].number >= number })
	return i, i < len(d.pages) && d.pages[i].number == number
}

// find returns the entry called name.
func (d *dir) find(seed maphash.Seed, name []byte) (Node, bool) {
	probe := d.names.probe(maphash.Bytes(seed, name))
	for {
		slot, ok := probe.next()
		if !ok {
			return Node{}, false
		}
		i, ok := d.pageAt((slot - 1) / tree.PageSlots)
		if !ok {
			continue
		}
		p := d.pages[i].page
		if i, ok := p.find(uint32(slot - p.first)); ok && string(p.name(i)) == string(name) {
			return Node{p: p, i: i}, true
		}
	}
}

// Cursor goes through a directory in slot order. The zero Cursor is at the end.
type Cursor struct {
	pages []dirPage // what is left; the first from entry i
	i     int
}

// List returns a Cursor before the first entry of dir whose slot is greater than after. There is none when dir is no
// directory or has left the tree. "." and ".." are not among the entries.
func (s *State) List(dir Node, after uint64) Cursor {
	d := dir.dir()
	if d == nil {
		return Cursor{}
	}
	number := after / tree.PageSlots // of the page with slot after+1
	at, ok := d.pageAt(number)
	c := Cursor{pages: d.pages[at:]}
	if ok {
		c.i = c.pages[0].from(uint32(after % tree.PageSlots))
	}
	return c
}

// Next returns the next entry: its slot, its name, which the caller must not modify, and its node. ok is false after the
// last.
func (c *Cursor) Next() (slot uint64, name []byte, n Node, ok bool) {
	for len(c.pages) > 0 {
		p := c.pages[0].page
		if c.i < p.n {
			n := Node{p: p, i: c.i}
			c.i++
			r := n.record()
			return p.first + uint64(recordPlace(r)), recordName(p.buf, r), n, true
		}
		c.pages, c.i = c.pages[1:], 0
	}
	return 0, nil, Node{}, false
}
