package volume

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// lookupAll returns the slots that an index has for a hash.
func lookupAll(x names, hash uint64) (slots []uint64) {
	for p := x.probe(hash); ; {
		slot, ok := p.next()
		if !ok {
			slices.Sort(slots)
			return slots
		}
		slots = append(slots, slot)
	}
}

// The index against a map, growing to many buckets and shrinking to none, also where many names share a hash.
func TestNames(t *testing.T) {
	for _, hashes := range []uint64{3, 1 << 62} {
		r := rand.New(rand.NewPCG(hashes, 1))
		var x names
		model := make(map[uint64]uint64) // slot to hash
		check := func() {
			t.Helper()
			byHash := make(map[uint64][]uint64)
			for slot, hash := range model {
				byHash[hash&^maxSlot] = append(byHash[hash&^maxSlot], slot)
			}
			if got := len(x.all()); got != len(model) {
				t.Fatalf("%d entries, want %d", got, len(model))
			}
			for hash, want := range byHash {
				slices.Sort(want)
				if got := lookupAll(x, hash|r.Uint64()&maxSlot); !slices.Equal(got, want) {
					t.Fatalf("hash %x: slots %d, want %d", hash, got, want)
				}
			}
			for range 100 {
				hash := r.Uint64()
				if got := lookupAll(x, hash); !slices.Equal(got, slices.Sorted(slices.Values(byHash[hash&^maxSlot]))) {
					t.Fatalf("hash %x: slots %d", hash, got)
				}
			}
		}
		next := uint64(1)
		for _, step := range [...]struct{ come, gone int }{
			{0, 0}, {1, 0}, {0, 1}, {400, 0}, {300, 20}, {5000, 0}, {0, 1}, {1, 1}, {10, 50}, {4000, 3000}, {0, 5500}, {3, 300}, {2000, 0}, {0, 1 << 30},
		} {
			var gone, come []uint64
			for _, slot := range slices.Sorted(maps.Keys(model)) {
				if len(gone) < step.gone && r.IntN(8) > 0 || step.gone == 1<<30 {
					gone = append(gone, nameEntry(model[slot], slot))
					delete(model, slot)
				}
			}
			for range step.come {
				hash := r.Uint64N(hashes) * (1<<62/hashes + 1) << 2
				come = append(come, nameEntry(hash, next))
				model[next] = hash
				next++
				if next == 1000 {
					next = 1<<35 - 100 // slots that need all their bits
				}
			}
			before, was := x, slices.Sorted(slices.Values(x.all()))
			x = x.update(gone, come, len(model))
			if !slices.Equal(slices.Sorted(slices.Values(before.all())), was) {
				t.Fatal("the index from before has changed")
			}
			check()
		}
		if len(x.buckets) != 1 {
			t.Errorf("%d buckets for nothing", len(x.buckets))
		}
	}
}

// What a change copies must not grow with the directory.
func TestNamesShareBuckets(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	var entries []uint64
	for slot := range uint64(100_000) {
		entries = append(entries, nameEntry(r.Uint64(), slot+1))
	}
	x := newNames(entries)
	y := x.update(nil, []uint64{nameEntry(r.Uint64(), 100_001)}, 100_001)
	copied := 0
	for i := range x.buckets {
		if len(x.buckets[i]) > 4*bucketNames {
			t.Errorf("a bucket of %d", len(x.buckets[i]))
		}
		if &x.buckets[i][0] != &y.buckets[i][0] {
			copied++
		}
	}
	if copied != 1 {
		t.Errorf("%d buckets copied for a name", copied)
	}
}

// The ino table against a map, with inos as close and as far apart as they come.
func TestInoTable(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	var table inoTable
	model := make(map[uint64]location)
	draw := func() uint64 {
		return []uint64{1 + r.Uint64N(2000), 1 + r.Uint64N(1<<21), 1<<33 + r.Uint64N(1<<20)}[r.IntN(3)]
	}
	check := func(t inoTable, model map[uint64]location) bool {
		for ino, want := range model {
			if t.get(ino) != want {
				return false
			}
		}
		for range 1000 {
			if ino := draw(); t.get(ino) != model[ino] {
				return false
			}
		}
		return t.get(1<<47) == 0 && t.get(0) == 0
	}
	for range 30 {
		before, was := table, maps.Clone(model)
		e := table.edit()
		for range r.IntN(500) {
			ino, at := draw(), location(1+r.Uint64N(1<<44))
			if r.IntN(3) == 0 {
				at = 0
				for ino = range model {
					break
				}
			}
			e.set(ino, at)
			if model[ino] = at; at == 0 {
				delete(model, ino)
			}
			if e.get(ino) != at {
				t.Fatalf("ino %d is at %d in the edit, want %d", ino, e.get(ino), at)
			}
		}
		table = e.done()
		if !check(table, model) {
			t.Fatal("the table is not what was set")
		}
		if !check(before, was) {
			t.Fatal("the table from before has changed")
		}
	}
	e := table.edit()
	for ino := range model {
		e.set(ino, 0)
	}
	for _, mid := range e.done().mids {
		if mid != nil {
			t.Fatal("memory is kept for inos that are gone")
		}
	}
}

// A page's number is given again, but not in the edit that it was given back in.
func TestPageNumbers(t *testing.T) {
	e := pageTable{}.edit()
	var numbers []uint32
	for range 3 * pageLeafSize {
		n := e.number()
		e.set(n, &page{n: int(n)})
		numbers = append(numbers, n)
	}
	first := e.done()
	if slices.Contains(numbers, 0) || len(slices.Compact(slices.Sorted(slices.Values(numbers)))) != len(numbers) {
		t.Fatalf("numbers %d", numbers)
	}
	e = first.edit()
	e.drop(7)
	e.drop(500)
	if n := e.number(); n == 7 || n == 500 {
		t.Errorf("number %d is given again at once", n)
	}
	second := e.done()
	e = second.edit()
	again := []uint32{e.number(), e.number()}
	if slices.Sort(again); !slices.Equal(again, []uint32{7, 500}) {
		t.Errorf("numbers %d, want those that were given back", again)
	}
	e.drop(8)
	e.done() // and thrown away
	e = second.edit()
	again = []uint32{e.number(), e.number()}
	if slices.Sort(again); !slices.Equal(again, []uint32{7, 500}) {
		t.Errorf("numbers %d after an edit that was thrown away", again)
	}
	for _, n := range numbers {
		if first.get(n).n != int(n) {
			t.Fatalf("page %d has changed in the table from before", n)
		}
		if p := second.get(n); n == 7 || n == 500 {
			if p != nil {
				t.Errorf("page %d is kept", n)
			}
		} else if p.n != int(n) {
			t.Fatalf("page %d", n)
		}
	}
}

func TestRanks(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 50 {
		n := 1 + r.IntN(4096)
		s, members := newRanks(n), make(map[uint32]bool)
		for range r.IntN(n + 1) {
			i := uint32(r.IntN(n))
			s.add(i)
			members[i] = true
		}
		if got := s.seal(); got != len(members) {
			t.Fatalf("%d members, want %d", got, len(members))
		}
		below := 0
		for i := range uint32(n + 200) {
			if got, ok := s.rank(i); ok != members[i] || ok && got != below {
				t.Fatalf("rank of %d: %d, %v; want %d, %v", i, got, ok, below, members[i])
			}
			if got := s.below(i, len(members)); got != below {
				t.Fatalf("%d below %d, want %d", got, i, below)
			}
			if members[i] {
				below++
			}
		}
	}
}
