package peer

import (
	"math"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// item is one object that is wanted. It is small because there are so many of them.
type item struct {
	digest  tree.Digest
	size    uint32 // bytes of a blob; of others a guess
	form    tree.Form
	part    *tree.Part // of an object that names others
	partial *partial   // of a large object that is known to be one; nil before
}

func newItem(p tree.Part) item {
	it := item{digest: p.Digest, form: p.Form, size: uint32(min(p.Size, math.MaxUint32))}
	if !it.leaf() {
		it.part = &p
	}
	return it
}

// leaf says whether the object is not known to name others.
func (it *item) leaf() bool { return it.form == tree.Blob || it.form == tree.NoContent }

// cost is what an item counts for when a batch is cut to size: its bytes, as far as they are known, and what goes with it.
func (it *item) cost() int64 { return int64(min(it.size, largeObject)) + 512 }

// set is a set of sources, by their numbers: a bit string, canonical, so that it can be compared.
type set string

func (s set) has(i int) bool { return i/8 < len(s) && s[i/8]&(1<<(i%8)) != 0 }

func (s set) with(i int) set {
	b := make([]byte, max(len(s), i/8+1))
	copy(b, s)
	b[i/8] |= 1 << (i % 8)
	return set(b)
}

// group is the wanted objects that the same sources lack. Each list is taken from its end, so that a tree is walked into
// its depth before its breadth: that bounds what is known and not yet fetched.
type group struct {
	lacks set
	meta  []item
	blobs []item
	large []item
	costs int64 // of meta and blobs
}

func (g *group) len() int { return len(g.meta) + len(g.blobs) + len(g.large) }

func (g *group) add(it item) {
	switch {
	case it.partial != nil || it.form == tree.Blob && it.size >= largeObject:
		g.large = append(g.large, it)
		return
	case it.leaf():
		g.blobs = append(g.blobs, it)
	default:
		g.meta = append(g.meta, it)
	}
	g.costs += it.cost()
}

// batch takes objects for one request. Objects that name others come first, unless more than enough blobs wait already.
func (g *group) batch(limit int64) []item {
	lists := [...]*[]item{&g.meta, &g.blobs}
	if len(g.blobs) >= backlog {
		lists[0], lists[1] = lists[1], lists[0]
	}
	items := make([]item, 0, min(len(g.meta)+len(g.blobs), maxBatch, int(limit/512)+1))
	for _, list := range lists {
		for len(*list) > 0 && limit > 0 && len(items) < maxBatch {
			last := len(*list) - 1
			it := (*list)[last]
			(*list)[last] = item{}
			*list = (*list)[:last]
			limit -= it.cost()
			g.costs -= it.cost()
			items = append(items, it)
		}
	}
	return items
}

const (
	maxBatch = 16384 // objects of one request
	backlog  = 65536 // blobs that may wait before objects that name more of them have to
)

// queue is everything that is wanted and that nobody has been asked for just now.
type queue struct {
	groups []*group // none is empty
}

func (q *queue) add(lacks set, items ...item) {
	if len(items) == 0 {
		return
	}
	var g *group
	for _, other := range q.groups {
		if other.lacks == lacks {
			g = other
		}
	}
	if g == nil {
		g = &group{lacks: lacks}
		q.groups = append(q.groups, g)
	}
	for i := range items {
		g.add(items[i])
	}
}

// drop takes a group out when it is empty.
func (q *queue) drop(g *group) {
	if g.len() > 0 {
		return
	}
	for i := range q.groups {
		if q.groups[i] == g {
			q.groups = append(q.groups[:i], q.groups[i+1:]...)
			return
		}
	}
}

func (q *queue) len() int {
	n := 0
	for _, g := range q.groups {
		n += g.len()
	}
	return n
}
