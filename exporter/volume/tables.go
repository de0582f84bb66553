package volume

import "slices"

// location is where an entry is: its page's number above its slot's place in the page. 0 is nowhere. It stays the same
// while the name lives, however often the page is made anew.
type location uint64

const placeBits = 12

func locate(page uint32, place uint32) location { return location(page)<<placeBits | location(place) }

func (l location) page() uint32 { return uint32(l >> placeBits) }

func (l location) place() uint32 { return uint32(l) & (1<<placeBits - 1) }

const (
	inoLeafBits = 9
	inoMidBits  = 12
	inoLeafSize = 1 << inoLeafBits
	inoMidSize  = 1 << inoMidBits
)

// inoTable leads from inos to locations. It is immutable. Leaves have room for the inos that are there and no others:
// inos are never issued again, and after years those of a tree lie far apart.
type inoTable struct{ mids []*inoMid }

type inoMid [inoMidSize]*inoLeaf

type inoLeaf struct {
	there ranks
	at    []location
}

func (t inoTable) get(ino uint64) location {
	m := ino >> (inoLeafBits + inoMidBits)
	if m >= uint64(len(t.mids)) || t.mids[m] == nil {
		return 0
	}
	leaf := t.mids[m][ino>>inoLeafBits%inoMidSize]
	if leaf == nil {
		return 0
	}
	i, ok := leaf.there.rank(uint32(ino % inoLeafSize))
	if !ok {
		return 0
	}
	return leaf.at[i]
}

// inoEdit makes the next inoTable. It unpacks the leaves that it changes.
type inoEdit struct {
	base inoTable
	open map[uint64]*[inoLeafSize]location // by ino / inoLeafSize
	last *[inoLeafSize]location            // the leaf that was asked for last
	at   uint64                            // and its number
}

func (t inoTable) edit() *inoEdit {
	return &inoEdit{base: t, open: make(map[uint64]*[inoLeafSize]location)}
}

func (e *inoEdit) get(ino uint64) location {
	if leaf := e.opened(ino >> inoLeafBits); leaf != nil {
		return leaf[ino%inoLeafSize]
	}
	return e.base.get(ino)
}

func (e *inoEdit) opened(n uint64) *[inoLeafSize]location {
	if e.last == nil || e.at != n {
		leaf := e.open[n]
		if leaf == nil {
			return nil
		}
		e.last, e.at = leaf, n
	}
	return e.last
}

// set changes where an ino is; 0 removes it.
func (e *inoEdit) set(ino uint64, l location) {
	n := ino >> inoLeafBits
	leaf := e.opened(n)
	if leaf == nil {
		leaf = new([inoLeafSize]location)
		for i := range leaf {
			leaf[i] = e.base.get(n<<inoLeafBits + uint64(i))
		}
		e.open[n] = leaf
		e.last, e.at = leaf, n
	}
	leaf[ino%inoLeafSize] = l
}

// done returns the next table.
func (e *inoEdit) done() inoTable {
	next := inoTable{mids: slices.Clone(e.base.mids)}
	own := make(map[uint64]bool)
	for n, leaf := range e.open {
		m := n >> inoMidBits
		for m >= uint64(len(next.mids)) {
			next.mids = append(next.mids, nil)
		}
		if !own[m] {
			mid := new(inoMid)
			if old := next.mids[m]; old != nil {
				*mid = *old
			}
			next.mids[m], own[m] = mid, true
		}
		next.mids[m][n%inoMidSize] = packLeaf(leaf)
	}
	for m := range own {
		if *next.mids[m] == (inoMid{}) {
			next.mids[m] = nil
		}
	}
	return next
}

func packLeaf(open *[inoLeafSize]location) *inoLeaf {
	leaf := &inoLeaf{there: newRanks(inoLeafSize)}
	for i, l := range open {
		if l != 0 {
			leaf.there.add(uint32(i))
		}
	}
	n := leaf.there.seal()
	if n == 0 {
		return nil
	}
	leaf.at = make([]location, 0, n)
	for _, l := range open {
		if l != 0 {
			leaf.at = append(leaf.at, l)
		}
	}
	return leaf
}

const pageLeafSize = 256

// pageTable leads from the numbers of pages to the pages. It is immutable. Number 0 is never given.
type pageTable struct {
	leaves []*[pageLeafSize]*page
	next   uint32   // the lowest number never given
	free   []uint32 // numbers that were given back
}

func (t pageTable) get(number uint32) *page {
	return t.leaves[number/pageLeafSize][number%pageLeafSize]
}

// pageEdit makes the next pageTable.
type pageEdit struct {
	next pageTable
	own  map[uint32]bool // leaves that are not the base's
	back []uint32        // given back; not given again in this edit, so that a location means one entry throughout
}

func (t pageTable) edit() *pageEdit {
	t.leaves = slices.Clone(t.leaves)
	t.free = slices.Clip(t.free)
	t.next = max(t.next, 1)
	return &pageEdit{next: t, own: make(map[uint32]bool)}
}

// number gives a number to a page to come.
func (e *pageEdit) number() uint32 {
	if n := len(e.next.free); n > 0 {
		number := e.next.free[n-1]
		e.next.free = e.next.free[: n-1 : n-1]
		return number
	}
	e.next.next++
	return e.next.next - 1
}

func (e *pageEdit) set(number uint32, p *page) {
	l := number / pageLeafSize
	for l >= uint32(len(e.next.leaves)) {
		e.next.leaves = append(e.next.leaves, new([pageLeafSize]*page))
		e.own[uint32(len(e.next.leaves)-1)] = true
	}
	if !e.own[l] {
		leaf := *e.next.leaves[l]
		e.next.leaves[l], e.own[l] = &leaf, true
	}
	e.next.leaves[l][number%pageLeafSize] = p
}

// drop gives a page's number back.
func (e *pageEdit) drop(number uint32) {
	e.set(number, nil)
	e.back = append(e.back, number)
}

func (e *pageEdit) done() pageTable {
	e.next.free = append(e.next.free, e.back...)
	return e.next
}
