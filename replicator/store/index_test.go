package store

import (
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

func digestOf(i int) (d tree.Digest) {
	r := rand.New(rand.NewPCG(uint64(i), 1))
	for j := 0; j < len(d); j += 8 {
		binary.LittleEndian.PutUint64(d[j:], r.Uint64())
	}
	return d
}

// valid checks what must always be true of an index that nobody changes.
func (x *index) valid(t *testing.T) {
	t.Helper()
	var objects, bytes int64
	for i := range x.shards {
		sh := &x.shards[i]
		tb := sh.table.Load()
		live := 0
		tb.each(func(_, n int, e *entry) {
			live++
			objects++
			bytes += int64(e.size)
			if n >= sh.used || int(e.digest[0]%indexShards) != i {
				t.Errorf("shard %d: entry %d of %d is %s", i, n, sh.used, e.digest)
			}
		})
		if live != sh.live || tb != nil && sh.used > tb.capacity() {
			t.Errorf("shard %d: %d live, counted %d, used %d", i, live, sh.live, sh.used)
		}
	}
	if objects != x.objects.Load() || bytes != x.bytes.Load() {
		t.Errorf("%d objects of %d bytes, counted %d of %d", objects, bytes, x.objects.Load(), x.bytes.Load())
	}
}

// TestIndexAgainstMap does the same to an index and to a map, collections included.
func TestIndexAgainstMap(t *testing.T) {
	var x index
	model := make(map[tree.Digest]place)
	marked := make(map[tree.Digest]bool)
	marking := false
	r := rand.New(rand.NewPCG(1, 2))
	for step := range 200_000 {
		d := digestOf(r.IntN(6000))
		at, known := model[d]
		p := place{uint32(r.IntN(9)), uint32(step), uint32(r.IntN(1000))}
		switch r.IntN(6) {
		case 0, 1:
			if x.insert(&d, p, 0) == known {
				t.Fatalf("step %d: insert", step)
			}
			if !known {
				model[d] = p
			}
			marked[d] = true
		case 2:
			if x.remove(&d, at) != known || x.remove(&d, p) {
				t.Fatalf("step %d: remove", step)
			}
			delete(model, d)
			delete(marked, d)
		case 3:
			if x.move(&d, at, p) != known || x.move(&d, place{1, 2, 3}, p) {
				t.Fatalf("step %d: move", step)
			}
			if known {
				x.bytes.Add(int64(p.size) - int64(at.size)) // the store never moves to another size
				model[d] = p
			}
		case 4:
			if got, ok := x.lookup(&d); ok != known || got != at {
				t.Fatalf("step %d: lookup: %v, %v; want %v, %v", step, got, ok, at, known)
			}
		case 5:
			if k, first := x.mark(&d); k != known || first != (marking && known && !marked[d]) {
				t.Fatalf("step %d: mark: %v, %v", step, k, first)
			}
			marked[d] = true
		}
		if step%9_000 == 0 {
			x.startMarks()
			clear(marked)
			marking = true
		}
		if step%9_000 == 2_000 && marking {
			want := maps.Clone(model)
			maps.DeleteFunc(want, func(d tree.Digest, _ place) bool { return !marked[d] })
			x.sweep(func(d tree.Digest, at place) {
				if model[d] != at || marked[d] {
					t.Fatalf("step %d: swept %s at %v", step, d, at)
				}
			})
			model, marking = want, false
			x.valid(t)
		}
		if step%9_000 == 8_999 {
			x.valid(t)
			got := make(map[tree.Digest]place)
			x.each(func(d *tree.Digest, p place) { got[*d] = p })
			if !maps.Equal(got, model) {
				t.Fatalf("step %d: %d entries, want %d", step, len(got), len(model))
			}
		}
	}
}

func TestIndexReadersSeeWhatIsThere(t *testing.T) {
	var x index
	for i := range 1000 {
		d := digestOf(i)
		x.insert(&d, place{1, uint32(i), 5}, 0)
	}
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				d := digestOf(i % 1000)
				if p, ok := x.lookup(&d); !ok || p.off != uint32(i%1000) || p.size != 5 {
					t.Errorf("lookup of %d: %v, %v", i%1000, p, ok)
					return
				}
			}
		})
	}
	for i := 1000; i < 30_000; i++ {
		d, other, still := digestOf(i), digestOf(i-500), digestOf(i%1000)
		x.insert(&d, place{1, uint32(i), 5}, 0)
		if i > 1500 {
			x.remove(&other, place{1, uint32(i - 500), 5})
		}
		if p, ok := x.lookup(&still); ok {
			x.move(&still, p, place{p.pack + 1, p.off, p.size})
		}
	}
	close(stop)
	readers.Wait()
	x.valid(t)
}

// TestIndexIsCompact holds the promise of the contract: 70 bytes an object, grown one by one or reserved.
func TestIndexIsCompact(t *testing.T) {
	const objects = 300_000
	digests := make([]tree.Digest, objects)
	for i := range digests {
		digests[i] = digestOf(i)
	}
	for _, reserve := range []int{0, objects} {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		x := new(index)
		if reserve > 0 {
			x.reserve(reserve)
		}
		for i := range digests {
			x.insert(&digests[i], place{1, uint32(i), 1}, 0)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		each := float64(after.HeapAlloc-before.HeapAlloc) / objects
		t.Logf("%.1f bytes an object, %d reserved", each, reserve)
		if each > 70 {
			t.Errorf("%.1f bytes an object", each)
		}
		runtime.KeepAlive(x)
	}
}
