package volume

import "slices"

// names is a directory's index from hashed names to slots: buckets of open addressing, each immutable, so that a change
// copies the buckets it falls in and shares the others. An entry of a bucket is 28 bits of hash above 36 bits of slot; 0 is
// none, for slots begin at 1. The first bits of the hash choose the bucket, the next the place in it: a bucket can be made
// anew, or split, from its entries alone.
type names struct {
	shift   uint8 // 64 less the number of bits that choose the bucket
	buckets [][]uint64
}

const (
	slotBits = 36
	maxSlot  = 1<<slotBits - 1
	// bucketNames is about how many names a bucket of a large directory holds: what a flip copies for a name that comes or
	// goes.
	bucketNames = 512
)

// nameEntry combines the hash of a name and its slot.
func nameEntry(hash, slot uint64) uint64 { return hash&^maxSlot | slot }

// newNames indexes entries.
func newNames(entries []uint64) names {
	bits := 0
	for len(entries)>>bits > bucketNames {
		bits++
	}
	x := names{shift: uint8(64 - bits), buckets: make([][]uint64, 1<<bits)}
	if bits == 0 {
		x.buckets[0] = x.bucket(entries)
		return x
	}
	for b, group := range x.group(entries) {
		x.buckets[b] = x.bucket(group)
	}
	return x
}

// group sorts entries by bucket. It reorders them.
func (x names) group(entries []uint64) map[int][]uint64 {
	slices.Sort(entries)
	groups := make(map[int][]uint64)
	for len(entries) > 0 {
		b, n := entries[0]>>x.shift, 1
		for n < len(entries) && entries[n]>>x.shift == b {
			n++
		}
		groups[int(b)] = entries[:n]
		entries = entries[n:]
	}
	return groups
}

// bucket makes a bucket, a quarter of it free.
func (x names) bucket(entries []uint64) []uint64 {
	if len(entries) == 0 {
		return nil
	}
	b := make([]uint64, len(entries)+len(entries)/3+1)
	for _, e := range entries {
		i := x.start(e, len(b))
		for b[i] != 0 {
			if i++; i == len(b) {
				i = 0
			}
		}
		b[i] = e
	}
	return b
}

// start returns where in a bucket of size entries the search for e begins.
func (x names) start(e uint64, size int) int {
	rest := (e &^ maxSlot) << (64 - x.shift) >> 32
	return int(rest * uint64(size) >> 32)
}

// update returns the index without the entries gone and with the entries come. It reorders both. live is how many names
// there will be.
func (x names) update(gone, come []uint64, live int) names {
	if x.buckets == nil || live > 2*bucketNames*len(x.buckets) || len(x.buckets) > 1 && live < bucketNames*len(x.buckets)/4 {
		return newNames(x.apply(x.all(), gone, come))
	}
	next := names{shift: x.shift, buckets: slices.Clone(x.buckets)}
	goneIn, comeIn := x.group(gone), x.group(come)
	for b, g := range goneIn {
		next.buckets[b] = x.bucket(x.apply(entriesOf(x.buckets[b]), g, comeIn[b]))
	}
	for b, c := range comeIn {
		if _, done := goneIn[b]; !done {
			next.buckets[b] = x.bucket(x.apply(entriesOf(x.buckets[b]), nil, c))
		}
	}
	return next
}

// apply returns entries, which it modifies, without gone and with come.
func (x names) apply(entries, gone, come []uint64) []uint64 {
	if len(gone) > 0 {
		slices.Sort(gone)
		entries = slices.DeleteFunc(entries, func(e uint64) bool {
			_, found := slices.BinarySearch(gone, e)
			return found
		})
	}
	return append(entries, come...)
}

func (x names) all() []uint64 {
	var all []uint64
	for _, b := range x.buckets {
		all = append(all, entriesOf(b)...)
	}
	return all
}

// entriesOf returns the entries of a bucket, in a slice of their own.
func entriesOf(b []uint64) []uint64 {
	return slices.DeleteFunc(slices.Clone(b), func(e uint64) bool { return e == 0 })
}

// probe is a search for the slots whose names have a hash.
type probe struct {
	bucket []uint64
	hash   uint64
	i      int
}

func (x names) probe(hash uint64) probe {
	if len(x.buckets) == 0 {
		return probe{}
	}
	hash &^= maxSlot
	b := x.buckets[hash>>x.shift]
	return probe{bucket: b, hash: hash, i: x.start(hash, len(b))}
}

// next returns the next slot; ok is false after the last.
func (p *probe) next() (slot uint64, ok bool) {
	if len(p.bucket) == 0 {
		return 0, false
	}
	for {
		e := p.bucket[p.i]
		if e == 0 {
			return 0, false
		}
		if p.i++; p.i == len(p.bucket) {
			p.i = 0
		}
		if e&^maxSlot == p.hash {
			return e & maxSlot, true
		}
	}
}
