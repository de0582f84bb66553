package tree

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
)

// expandAll walks a tree by its parts and returns all that it named, without what is in base.
func expandAll(t testing.TB, objs Objects, root, baseRoot Digest) map[Digest]Part {
	t.Helper()
	all := make(map[Digest]Part)
	left := []Part{RootPart(root, baseRoot)}
	for len(left) > 0 {
		p := left[len(left)-1]
		left = left[:len(left)-1]
		if _, twice := all[p.Digest]; twice {
			continue
		}
		all[p.Digest] = p
		if p.Form == Blob {
			continue
		}
		b, err := objs.Get(context.Background(), p.Digest)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Expand(context.Background(), objs, b, func(q Part) error { left = append(left, q); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// reached returns what Reach says, with blobs' sizes.
func reached(t testing.TB, objs Objects, root Digest) map[Digest]uint64 {
	t.Helper()
	all := make(map[Digest]uint64)
	if root.IsZero() {
		return all
	}
	seen := func(d Digest) bool { _, ok := all[d]; return ok }
	if err := Reach(context.Background(), objs, root, seen, func(d Digest, _ Form, size uint64) error { all[d] = size; return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestPartsAreWhatReachFinds(t *testing.T) {
	for seed := range 20 {
		r := rand.New(rand.NewPCG(uint64(seed), 8))
		f, w := newFleet(t), newWorld()
		roots := []Digest{{}}
		for range 6 {
			for range 1 + r.IntN(8) {
				mutate(r, w)
			}
			w.dirty = nil
			roots = append(roots, f.publish(w).Root)
		}
		for _, base := range roots {
			have := reached(t, f.objs, base)
			for _, root := range roots[1:] {
				parts, want := expandAll(t, f.objs, root, base), reached(t, f.objs, root)
				for d, p := range parts {
					size, ok := want[d]
					if !ok {
						t.Fatalf("seed %d: %s is named, and not in the tree", seed, d)
					}
					if p.Form == Blob && p.Size != size {
						t.Fatalf("seed %d: blob %s of %d bytes, want %d", seed, d, p.Size, size)
					}
				}
				for d := range want {
					if _, named := parts[d]; !named {
						if _, inBase := have[d]; !inBase {
							t.Fatalf("seed %d: %s is neither named nor in the base", seed, d)
						}
					}
				}
			}
		}
	}
}

// TestPartsCostFollowsChange: what one change costs, in objects read and named, in a flat directory of 100,000 names and
// among 10,000 directories.
func TestPartsCostFollowsChange(t *testing.T) {
	for _, c := range []struct {
		name              string
		dirs, each        int
		path              string
		parts, gets, most int64
	}{
		// root, directory, page, file; and the first three of the base
		{"flat", 0, 100_000, "file-050000.txt", 4, 6, 6},
		// root, directory, page, directory, file; and the first four of the base
		{"directories", 10_000, 1, "dir-5000/file-000000.txt", 5, 8, 8},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, w := newFleet(t), bigWorld(c.dirs, c.each)
			first := f.publish(w).Root
			w.dirty = map[string]bool{}
			w.set(c.path, text("changed"))
			second := f.publish(w).Root
			n := &counter{Objects: f.objs}
			if got := expandAll(t, n, second, first); int64(len(got)) != c.parts || n.gets.Load() > c.gets {
				t.Errorf("%d objects named and %d read, want %d and %d", len(got), n.gets.Load(), c.parts, c.gets)
			}
			if got := expandAll(t, f.objs, second, Digest{}); len(got) < 10 {
				t.Errorf("only %d objects without a base", len(got))
			}
		})
	}
}

// TestPartsOfAGrownDirectory: a directory that was in one object and has pages now is compared with that object.
func TestPartsOfAGrownDirectory(t *testing.T) {
	f, w := newFleet(t), bigWorld(0, PageSlots)
	first := f.publish(w).Root
	w.dirty = map[string]bool{}
	w.set("new", text("new"))
	second := f.publish(w).Root
	if got := expandAll(t, f.objs, second, first); len(got) != 5 { // root, directory, two pages, the file
		t.Errorf("%d objects", len(got))
	}
	if got := expandAll(t, f.objs, first, second); len(got) != 2 { // and back: root and directory
		t.Logf("%d objects on the way back", len(got)) // it names what it cannot compare
	}
}

func TestPartsOfChunks(t *testing.T) {
	objs := NewMemory()
	var x []Extent
	for i := range 100 {
		x = append(x, Extent{ChunkSize, Sum([]byte{byte(i)})}, Extent{Length: uint64(i) + 1})
	}
	old, _ := objs.Put(t.Context(), EncodeChunks(x))
	x[40].Digest = Sum([]byte("changed"))
	x = append(x, Extent{7, Sum([]byte("more"))})
	fresh := EncodeChunks(x)
	p := Part{Digest: Sum(fresh), Form: Chunks, kind: kindChunks, base: base{digest: old}}
	var got []Part
	if err := p.Expand(t.Context(), objs, fresh, func(q Part) error { got = append(got, q); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].Digest != x[40].Digest || got[0].Size != ChunkSize || got[1].Size != 7 {
		t.Errorf("got %+v", got)
	}
}

// TestPartsWithoutTheirBase: a base that is not whole after all makes the walk longer, not wrong.
func TestPartsWithoutTheirBase(t *testing.T) {
	f, w := newFleet(t), bigWorld(3, 5000)
	first := f.publish(w).Root
	w.dirty = map[string]bool{}
	w.set("dir-0001/file-000007.txt", text("changed"))
	second := f.publish(w).Root
	want := reached(t, f.objs, second)
	lost := NewMemory() // has the second tree only
	for d, form := range forms(t, f.objs, second) {
		if form == Blob {
			continue
		}
		b, err := f.objs.Get(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = lost.Put(t.Context(), b)
	}
	for _, base := range []Digest{first, Sum([]byte("no such tree"))} {
		got := expandAll(t, lost, second, base)
		for d := range want {
			if _, ok := got[d]; !ok {
				t.Fatalf("%s is not named", d)
			}
		}
	}
}

func forms(t testing.TB, objs Objects, root Digest) map[Digest]Form {
	all := make(map[Digest]Form)
	seen := func(d Digest) bool { _, ok := all[d]; return ok }
	if err := Reach(context.Background(), objs, root, seen, func(d Digest, f Form, _ uint64) error { all[d] = f; return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestPartsRefuseWhatTheyAreNot(t *testing.T) {
	f, w := newFleet(t), bigWorld(0, 2*PageSlots)
	root := f.publish(w).Root
	parts := expandAll(t, f.objs, root, Digest{})
	none := func(Part) error { return nil }
	for d, p := range parts {
		if p.Form == Blob {
			continue
		}
		for other, q := range parts {
			if other == d || q.Form == Blob {
				continue
			}
			b, err := f.objs.Get(t.Context(), other)
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Expand(t.Context(), f.objs, b, none); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%c takes another %c: %v", p.kind, q.kind, err)
			}
		}
	}
	p := RootPart(root, Digest{})
	b, _ := f.objs.Get(t.Context(), root)
	mine := fmt.Errorf("mine")
	if err := p.Expand(t.Context(), f.objs, b, func(Part) error { return mine }); !errors.Is(err, mine) {
		t.Errorf("an error of fn: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(mine)
	if err := p.Expand(ctx, f.objs, b, none); !errors.Is(err, mine) {
		t.Errorf("a context that has ended: %v", err)
	}
}

func FuzzExpand(f *testing.F) {
	fl, w := newFleet(f), bigWorld(2, 100)
	root := fl.publish(w).Root
	x := EncodeChunks([]Extent{{5, Sum(nil)}, {Length: 9}, {ChunkSize, Sum([]byte("x"))}})
	f.Add(x, x, byte(3))
	for d, form := range forms(f, fl.objs, root) {
		if form == Blob {
			continue
		}
		b, _ := fl.objs.Get(context.Background(), d)
		if len(b) < 10_000 {
			f.Add(b, b, byte(0))
		}
	}
	f.Fuzz(func(t *testing.T, b, old []byte, which byte) {
		objs := NewMemory()
		was, _ := objs.Put(context.Background(), old)
		kind := []byte{kindRoot, kindDirectory, kindPage, kindChunks}[which%4]
		p := Part{kind: kind, base: base{was, which&16 != 0}, count: uint64(which >> 5), nextSlot: 2 * PageSlots}
		n := 0
		err := p.Expand(context.Background(), objs, b, func(q Part) error { n++; return nil })
		if n > len(b) || err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%d parts of %d bytes, %v", n, len(b), err)
		}
	})
}
