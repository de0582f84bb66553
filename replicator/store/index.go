package store

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

const (
	indexShards  = 64
	chunkEntries = 170 // 8,160 bytes: the allocator's 8 KiB class
	slotIndex    = 1<<24 - 1
	slotRemoved  = slotIndex // as the index part of a slot
)

// place is where an object is.
type place struct {
	pack uint32 // 0: a large file
	off  uint32 // of the record in the pack
	size uint32 // of the object
}

// entry is 48 bytes without a pointer, and never changes once a slot names it, but for its seal.
type entry struct {
	digest tree.Digest
	place
	seal uint32 // atomic: see seals; for large objects it says nothing
}

// index is the resident map from digest to place: at most about 65 bytes an object. Lookups take no lock; changes lock
// one shard of 64. It is also the collector's mark set, at a bit an object.
type index struct {
	shards  [indexShards]shard
	objects atomic.Int64
	bytes   atomic.Int64
}

// shard holds the digests that share the low bits of their first byte.
type shard struct {
	table atomic.Pointer[table] // nil until the first entry; replaced whole when its arena is full

	mu    sync.Mutex // guards everything below, and every store into the table
	used  int        // entries of the arena handed out, dead ones included
	live  int        // entries that a slot names
	marks []uint64   // a bit for each entry of the arena; nil when nobody is marking
}

// table is an open-addressing hash table of slots over an arena of entries. A slot is an eight-bit fingerprint and the
// entry's number + 1; 0 is a slot never used. An entry is written before the slot that names it is stored, which is what
// lets readers do without a lock. The arena holds three entries for four slots, so that every probe ends.
type table struct {
	slots []atomic.Uint32
	arena []*[chunkEntries]entry // each allocated when first needed
}

func newTable(entries int) *table {
	n := 64
	for n/4*3 < entries {
		n *= 2
	}
	return &table{slots: make([]atomic.Uint32, n), arena: make([]*[chunkEntries]entry, (n/4*3+chunkEntries-1)/chunkEntries)}
}

func (t *table) capacity() int { return len(t.slots) / 4 * 3 }

func (t *table) entry(i int) *entry { return &t.arena[i/chunkEntries][i%chunkEntries] }

// find returns the slot of d and its entry's number.
func (t *table) find(d *tree.Digest) (slot, number int, ok bool) {
	mask := len(t.slots) - 1
	for i := int(binary.LittleEndian.Uint64(d[8:])) & mask; ; i = (i + 1) & mask {
		v := t.slots[i].Load()
		if v == 0 {
			return 0, 0, false
		}
		if byte(v>>24) != d[1] || v&slotIndex == slotRemoved {
			continue
		}
		if n := int(v&slotIndex) - 1; t.entry(n).digest == *d {
			return i, n, true
		}
	}
}

// put names entry number n by the first free slot of its probe.
func (t *table) put(d *tree.Digest, n int) {
	mask := len(t.slots) - 1
	i := int(binary.LittleEndian.Uint64(d[8:])) & mask
	for t.slots[i].Load() != 0 {
		i = (i + 1) & mask
	}
	t.slots[i].Store(slotOf(d, n))
}

func slotOf(d *tree.Digest, n int) uint32 { return uint32(d[1])<<24 | uint32(n+1) }

func (x *index) shard(d *tree.Digest) *shard { return &x.shards[d[0]%indexShards] }

// lookup returns the place of d, without a lock and without allocation.
func (x *index) lookup(d *tree.Digest) (place, bool) {
	e := x.find(d)
	if e == nil {
		return place{}, false
	}
	return e.place, true
}

// find is lookup for the entry itself, nil when there is none. It stays as it is when the object moves or goes.
func (x *index) find(d *tree.Digest) *entry {
	t := x.shard(d).table.Load()
	if t == nil {
		return nil
	}
	_, n, ok := t.find(d)
	if !ok {
		return nil
	}
	return t.entry(n)
}

// touch is lookup for a writer that counts on finding d: a collection that is under way keeps d.
func (x *index) touch(d *tree.Digest) bool {
	known, _ := x.mark(d)
	return known
}

// insert adds d unless it is there, and reports whether it added it. seal is 0 when nobody has hashed it.
func (x *index) insert(d *tree.Digest, p place, seal uint32) bool {
	sh := x.shard(d)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if t := sh.table.Load(); t != nil {
		if _, n, ok := t.find(d); ok {
			sh.setMark(n)
			return false
		}
	}
	n := sh.add(entry{*d, p, seal})
	sh.table.Load().put(d, n)
	sh.live++
	sh.setMark(n)
	x.objects.Add(1)
	x.bytes.Add(int64(p.size))
	return true
}

// move changes the place of d if it is at from.
func (x *index) move(d *tree.Digest, from, to place) bool {
	sh := x.shard(d)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if _, ok := sh.at(d, from); !ok {
		return false
	}
	number := sh.add(entry{digest: *d, place: to}) // may rebuild, so the slot and the mark are looked up after it
	t := sh.table.Load()
	slot, old, _ := t.find(d)
	if sh.marks != nil && sh.marks[old/64]&(1<<(old%64)) != 0 {
		sh.setMark(number)
	}
	t.slots[slot].Store(slotOf(d, number))
	return true
}

// remove forgets d if it is at from.
func (x *index) remove(d *tree.Digest, from place) bool {
	sh := x.shard(d)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	slot, ok := sh.at(d, from)
	if ok {
		x.clear(sh, sh.table.Load(), slot, from)
	}
	return ok
}

func (x *index) clear(sh *shard, t *table, slot int, p place) {
	t.slots[slot].Store(slotRemoved)
	sh.live--
	x.objects.Add(-1)
	x.bytes.Add(-int64(p.size))
}

// at returns the slot of d if d is at p. sh.mu is held.
func (sh *shard) at(d *tree.Digest, p place) (slot int, ok bool) {
	t := sh.table.Load()
	if t == nil {
		return 0, false
	}
	slot, n, ok := t.find(d)
	return slot, ok && t.entry(n).place == p
}

// add writes a new entry into the arena and returns its number; no slot names it yet. sh.mu is held.
func (sh *shard) add(e entry) int {
	if t := sh.table.Load(); t == nil || sh.used == t.capacity() {
		sh.rebuild(sh.live + sh.live/4 + 1)
	}
	t, n := sh.table.Load(), sh.used
	sh.used++
	if t.arena[n/chunkEntries] == nil {
		t.arena[n/chunkEntries] = new([chunkEntries]entry)
	}
	*t.entry(n) = e
	return n
}

// rebuild copies the living entries into a table with room for so many. sh.mu is held.
func (sh *shard) rebuild(entries int) {
	old, marks := sh.table.Load(), sh.marks
	t := newTable(max(entries, sh.live+1))
	if marks != nil {
		sh.marks = make([]uint64, (t.capacity()+63)/64)
	}
	n := 0
	old.each(func(_, number int, e *entry) {
		if t.arena[n/chunkEntries] == nil {
			t.arena[n/chunkEntries] = new([chunkEntries]entry)
		}
		*t.entry(n) = entry{e.digest, e.place, atomic.LoadUint32(&e.seal)}
		t.put(&e.digest, n)
		if marks != nil && marks[number/64]&(1<<(number%64)) != 0 {
			sh.setMark(n)
		}
		n++
	})
	sh.used, sh.live = n, n
	sh.table.Store(t)
}

// each calls fn for every entry that a slot names.
func (t *table) each(fn func(slot, number int, e *entry)) {
	if t == nil {
		return
	}
	for i := range t.slots {
		if v := t.slots[i].Load(); v != 0 && v&slotIndex != slotRemoved {
			n := int(v&slotIndex) - 1
			fn(i, n, t.entry(n))
		}
	}
}

// each calls fn for every object, without a lock: one that comes or goes meanwhile may be missed or seen.
func (x *index) each(fn func(d *tree.Digest, p place)) {
	for i := range x.shards {
		x.shards[i].table.Load().each(func(_, _ int, e *entry) { fn(&e.digest, e.place) })
	}
}

// reserve makes room for so many objects in all, so that filling the index copies nothing.
func (x *index) reserve(objects int) {
	each := objects / indexShards
	each += each/32 + 64
	for i := range x.shards {
		sh := &x.shards[i]
		sh.mu.Lock()
		if t := sh.table.Load(); t == nil || t.capacity() < each {
			sh.rebuild(each)
		}
		sh.mu.Unlock()
	}
}

func (sh *shard) setMark(n int) (first bool) {
	if sh.marks == nil {
		return false
	}
	word, bit := &sh.marks[n/64], uint64(1)<<(n%64)
	first = *word&bit == 0
	*word |= bit
	return first
}

// startMarks begins a collection: everything that exists is unmarked, everything that is inserted or touched from here
// on is marked.
func (x *index) startMarks() {
	for i := range x.shards {
		sh := &x.shards[i]
		sh.mu.Lock()
		sh.marks = []uint64{}
		if t := sh.table.Load(); t != nil {
			sh.marks = make([]uint64, (t.capacity()+63)/64)
		}
		sh.mu.Unlock()
	}
}

// mark marks d, and reports whether it is known and was not marked before.
func (x *index) mark(d *tree.Digest) (known, first bool) {
	sh := x.shard(d)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	t := sh.table.Load()
	if t == nil {
		return false, false
	}
	_, n, ok := t.find(d)
	return ok, ok && sh.setMark(n)
}

// stopMarks ends a collection without removing anything.
func (x *index) stopMarks() {
	for i := range x.shards {
		sh := &x.shards[i]
		sh.mu.Lock()
		sh.marks = nil
		sh.mu.Unlock()
	}
}

// sweep removes what is not marked, tells fn of each, and ends the collection.
func (x *index) sweep(fn func(d tree.Digest, p place)) {
	for i := range x.shards {
		sh := &x.shards[i]
		sh.mu.Lock()
		t, before := sh.table.Load(), sh.live
		t.each(func(slot, n int, e *entry) {
			if sh.marks[n/64]&(1<<(n%64)) == 0 {
				x.clear(sh, t, slot, e.place)
				fn(e.digest, e.place)
			}
		})
		sh.marks = nil
		if sh.live < before/2 {
			sh.rebuild(sh.live + sh.live/4)
		}
		sh.mu.Unlock()
	}
}
