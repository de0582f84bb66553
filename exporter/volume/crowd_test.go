package volume_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/exporter/volume"
	"github.com/nfs-fleet/nfs-fleet/exporter/volume/volumetest"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// crowd is a flat directory of n files.
func crowd(n int) []volumetest.File {
	all := make([]volumetest.File, n)
	for i := range all {
		all[i] = file(fmt.Sprintf("crowd/file-%06d.txt", i), fmt.Sprintf("content %d", i))
	}
	return all
}

// A directory of many pages, through all that happens to one: names come and go here and there, pages empty, it shrinks to
// almost nothing and grows again.
func TestManyPages(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	files := crowd(3*tree.PageSlots + 100)
	s := volumetest.New(t, files...)
	var m model
	check := func(what string) {
		t.Helper()
		m.flip(t, s.Store, s.Head())
		checkNames(t, s.Volume.State(), s.Store, s.Head())
		m.checkInos(t, s.Volume.State())
		if t.Failed() {
			t.Fatal(what)
		}
	}
	check("first")
	files[5000].Data = "changed"
	s.Publish(files...)
	check("one changed")
	files = append(files, file("crowd/new", "new"))
	s.Publish(files...)
	check("one added")
	files = append(files[:6000], files[6001:]...)
	s.Publish(files...)
	check("one removed")
	files = append(files[:100], files[2*tree.PageSlots+100:]...) // the second page is empty now, the first almost
	s.Publish(files...)
	check("a page emptied")
	r.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
	files = files[:10]
	s.Publish(files...)
	check("few left")
	s.Publish()
	check("none left")
	s.Publish(crowd(2 * tree.PageSlots)...)
	check("many again")
	if err := s.Volume.Forget(t.Context(), s.Head().Number); err != nil {
		t.Fatal(err)
	}
	m.forget(s.Head().Number)
	check("forgotten")
	checkRestore(t, s, s.Generations[len(s.Generations)-1:], nil)
}

// Every answer belongs to one generation, whole, while generations come and go as fast as they can.
func TestReadersDuringFlips(t *testing.T) {
	const generations, files = 60, 40
	want := func(g, i int) string { return fmt.Sprintf("file %d of generation %d", i, g) }
	version := func(g int) (all []volumetest.File) {
		for i := range files {
			all = append(all, file(fmt.Sprintf("d%d/f%d", i%4, i), want(g, i)))
		}
		return append(all, file(fmt.Sprintf("only-in-%d", g), ""))
	}
	s := volumetest.New(t, version(1)...)
	var done atomic.Bool
	var readers sync.WaitGroup
	for w := range 4 {
		readers.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 3))
			var fh, p []byte
			for last := uint64(0); !done.Load(); {
				state := s.Volume.State()
				g := int(state.Generation())
				if state.Generation() < last {
					t.Errorf("generation %d after %d", g, last)
					return
				}
				last = state.Generation()
				i := r.IntN(files)
				n, ok := volumetest.Find(state, fmt.Sprintf("d%d/f%d", i%4, i))
				_, old := state.Lookup(state.Root(), fmt.Appendf(nil, "only-in-%d", g-1))
				_, own := state.Lookup(state.Root(), fmt.Appendf(nil, "only-in-%d", g))
				if !ok || old || !own {
					t.Errorf("generation %d: %v, %v, %v", g, ok, old, own)
					return
				}
				fh = n.AppendHandle(fh[:0])
				p = append(p[:0], make([]byte, 100)...)
				count, _, err := s.Volume.Read(context.Background(), n, p, 0)
				if err != nil || string(p[:count]) != want(g, i) {
					t.Errorf("generation %d: read %q, %v", g, p[:count], err)
					return
				}
				if _, err := s.Volume.State().Resolve(fh); err != nil && !errors.Is(err, volume.ErrStale) {
					t.Errorf("generation %d: resolve: %v", g, err)
					return
				}
			}
		})
	}
	for g := 2; g <= generations && !t.Failed(); g++ {
		s.Publish(version(g)...)
		if g%10 == 0 {
			if err := s.Volume.Forget(t.Context(), uint64(g-5)); err != nil {
				t.Error(err)
			}
		}
	}
	done.Store(true)
	readers.Wait()
}

func TestAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := volumetest.NewShard(t)
		v := s.Volume
		got := make(chan uint64, 3)
		for _, generation := range []uint64{0, 2, 2} {
			go func() {
				state, err := v.Await(t.Context(), generation)
				if err != nil {
					t.Error(err)
					got <- 0
					return
				}
				got <- state.Generation()
			}()
		}
		synctest.Wait()
		if len(got) != 0 || v.State() != nil {
			t.Fatal("a generation before the first")
		}
		s.Publish(file("a", "1"))
		synctest.Wait()
		if len(got) != 1 || <-got != 1 {
			t.Fatal("generation 1 did not end the wait for any")
		}
		s.Publish(file("a", "2"))
		synctest.Wait()
		if len(got) != 2 || <-got != 2 || <-got != 2 {
			t.Fatal("generation 2 did not end the wait for it")
		}
		if state, err := v.Await(t.Context(), 1); err != nil || state.Generation() != 2 {
			t.Fatalf("await what is past: %v", err)
		}
		cause := errors.New("had enough")
		ended, end := context.WithCancelCause(t.Context())
		end(cause)
		if _, err := v.Await(ended, 3); !errors.Is(err, cause) {
			t.Errorf("ended: %v", err)
		}
		if _, err := v.Await(ended, 2); err != nil {
			t.Errorf("ended, but there: %v", err)
		}
	})
}

func TestFlipRefuses(t *testing.T) {
	s := volumetest.New(t, file("a", "1"))
	first, second := s.Head(), s.Publish(file("a", "1"), file("b", "2"))
	v := s.Volume
	state := v.State()
	if err := v.Flip(t.Context(), first); err == nil {
		t.Error("flipped back")
	}
	other := second
	other.Root = first.Root
	if err := v.Flip(t.Context(), other); err == nil {
		t.Error("flipped to another tree of the same number")
	}
	if err := v.Flip(t.Context(), second); err != nil {
		t.Errorf("flip to what is served: %v", err)
	}
	third := s.Stage(file("d/a", "1"), file("d/b", "2"))
	less := third
	less.NextIno = second.NextIno
	if err := v.Flip(t.Context(), less); !errors.Is(err, tree.ErrCorrupt) {
		t.Errorf("inos that were never allotted: %v", err)
	}
	early, late := third, third
	early.Number, late.Number = 1, 1<<40
	if err := volume.New(volumetest.FSID, s.Store, zerolog.Nop()).Flip(t.Context(), early); !errors.Is(err, tree.ErrCorrupt) {
		t.Errorf("inos born later: %v", err)
	}
	if err := v.Flip(t.Context(), late); err == nil {
		t.Error("flipped to a generation that no handle can name")
	}
	e, err := tree.Lookup(t.Context(), s.Store, third.Root, "d")
	if err != nil {
		t.Fatal(err)
	}
	object, err := s.Store.Get(t.Context(), e.Content.Digest)
	if err != nil {
		t.Fatal(err)
	}
	s.Store.Delete(e.Content.Digest)
	if err := v.Flip(t.Context(), third); !errors.Is(err, tree.ErrMissing) {
		t.Errorf("missing directory: %v", err)
	}
	cause := errors.New("term over")
	ended, end := context.WithCancelCause(t.Context())
	end(cause)
	if err := v.Flip(ended, third); !errors.Is(err, cause) {
		t.Errorf("ended: %v", err)
	}
	if v.State() != state {
		t.Error("a flip that failed changed the state")
	}
	checkNames(t, v.State(), s.Store, second)
	if _, err := s.Store.Put(t.Context(), object); err != nil {
		t.Fatal(err)
	}
	if err := v.Flip(t.Context(), third); err != nil {
		t.Errorf("mended: %v", err)
	}
	checkNames(t, v.State(), s.Store, third)
}

// A publish that changed nothing but the number, as a rollback to the present tree would be.
func TestFlipToTheSameTree(t *testing.T) {
	s := volumetest.New(t, file("a", "1"))
	fh := s.Handle("a")
	g := s.Head()
	g.Number++
	if err := s.Volume.Flip(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	n, err := s.Volume.State().Resolve(fh)
	if err != nil || !bytes.Equal(n.AppendHandle(nil), fh) || s.Volume.State().Generation() != g.Number {
		t.Errorf("generation %d, %v", s.Volume.State().Generation(), err)
	}
}

func TestRestoreLeavesOutWhatIsLost(t *testing.T) {
	s := volumetest.New(t, file("a", "1"), file("gone", "x"))
	gone := s.Handle("gone")
	s.Publish(file("a", "2"), file("gone", "x"))
	lost := s.Head()
	s.Publish(file("a", "3"))
	s.Store.Delete(lost.Root)
	var log bytes.Buffer
	v := volume.New(volumetest.FSID, s.Store, zerolog.New(&log))
	if err := v.Restore(t.Context(), s.Generations); err != nil {
		t.Fatal(err)
	}
	checkNames(t, v.State(), s.Store, s.Head())
	if n, err := v.State().Resolve(gone); err != nil || decodeAttr(t, n.Attr()).Nlink != 0 {
		t.Errorf("what left the tree: %v", err)
	}
	if !bytes.Contains(log.Bytes(), []byte(`"generation":2`)) {
		t.Errorf("log: %s", log.Bytes())
	}
	s.Store.Delete(s.Head().Root)
	v = volume.New(volumetest.FSID, s.Store, zerolog.Nop())
	if err := v.Restore(t.Context(), s.Generations); !errors.Is(err, tree.ErrMissing) || v.State() != nil {
		t.Errorf("the head is lost: %v", err)
	}
	if err := v.Restore(t.Context(), nil); err == nil {
		t.Error("nothing restored")
	}
	if err := v.Restore(t.Context(), []tree.Generation{s.Generations[0], s.Generations[0]}); err == nil {
		t.Error("restored out of order")
	}
	if err := v.Forget(t.Context(), 1); err != nil {
		t.Errorf("nothing to forget: %v", err)
	}
}

// Two histories in one store, as when a shard is made again after its etcd was lost: what is served is still the tree that
// was asked for, though the same numbers mean other files.
func TestFlipToAnotherHistory(t *testing.T) {
	for seed := range uint64(5) {
		grow := func(stream uint64) (s *volumetest.Shard) {
			f := &forest{rand: rand.New(rand.NewPCG(seed, stream)), files: make(map[string]volumetest.File)}
			s = volumetest.NewShard(t)
			for range 8 {
				f.change()
				s.Stage(f.list()...)
			}
			return s
		}
		here, there := grow(1), grow(2)
		for _, g := range there.Generations {
			err := tree.Reach(t.Context(), there.Store, g.Root, here.Store.Has, func(d tree.Digest, _ tree.Form, _ uint64) error {
				b, err := there.Store.Get(t.Context(), d)
				if err == nil {
					_, err = here.Store.Put(t.Context(), b)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		var m model
		for i := range here.Generations {
			for j, s := range []*volumetest.Shard{here, there} {
				g := s.Generations[i]
				g.Number = g.Number*10 + uint64(j)
				if err := here.Volume.Flip(t.Context(), g); err != nil {
					t.Fatal(err)
				}
				checkNames(t, here.Volume.State(), here.Store, g)
				m = model{}
				m.flip(t, here.Store, g)
				m.checkInos(t, here.Volume.State())
			}
		}
	}
}
