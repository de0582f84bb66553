package tree

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// diffs returns what Diff reports, by path.
func (f *fleet) diffs(a, b Digest) (map[string]Change, []string) {
	f.t.Helper()
	all := make(map[string]Change)
	var order []string
	err := Diff(f.t.Context(), f.objs, a, b, func(c Change) error {
		if _, twice := all[c.Path]; twice {
			f.t.Fatalf("%q is reported twice", c.Path)
		}
		all[c.Path] = c
		order = append(order, c.Path)
		return nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return all, order
}

// expectedDiff compares two trees the long way.
func (f *fleet) expectedDiff(a, b Digest) map[string]Change {
	f.t.Helper()
	all := make(map[string]Change)
	before, after := map[string]Entry{}, f.entries(b)
	if !a.IsZero() {
		before = f.entries(a)
	}
	for path, e := range before {
		now, ok := after[path]
		switch {
		case !ok:
			all[path] = Change{path, &e, nil}
		case visible(e) != visible(now):
			all[path] = Change{path, &e, &now}
		}
	}
	for path, e := range after {
		if _, ok := before[path]; !ok {
			all[path] = Change{path, nil, &e}
		}
	}
	return all
}

func TestDiffAgreesWithTheLongWay(t *testing.T) {
	for seed := range 30 {
		r := rand.New(rand.NewPCG(uint64(seed), 2))
		f, w := newFleet(t), newWorld()
		roots := []Digest{{}}
		for range 8 {
			for range r.IntN(8) {
				mutate(r, w)
			}
			w.dirty = nil
			roots = append(roots, f.publish(w).Root)
		}
		for _, a := range roots {
			for _, b := range roots[1:] {
				got, order := f.diffs(a, b)
				if want := f.expectedDiff(a, b); !reflect.DeepEqual(got, want) {
					t.Fatalf("seed %d: got %q\nwant %q", seed, order, slices.Sorted(maps.Keys(want)))
				}
				for i, path := range order {
					if dir, _ := split(path); slices.Contains(order[i:], dir) && path != "." {
						t.Fatalf("%q is reported before its directory", path)
					}
				}
			}
		}
	}
}

func TestDiffAcrossPages(t *testing.T) {
	f, w := newFleet(t), bigWorld(0, 3*PageSlots)
	first := f.publish(w).Root
	w.dirty = map[string]bool{}
	w.remove("file-000000.txt")
	w.set("file-004500.txt", text("changed"))
	f.publish(w)
	w.set("file-000000.txt", text("0")) // the same bytes, but a new name: in the last page now
	for i := range PageSlots {
		delete(w.root.kids, fmt.Sprintf("file-%06d.txt", PageSlots+i)) // the second page goes
	}
	w.dirty = nil
	f.publish(w)
	got, _ := f.diffs(first, f.head.Root)
	if len(got) != 2+PageSlots {
		t.Fatalf("%d changes", len(got))
	}
	if c := got["file-000000.txt"]; c.Old == nil || c.New == nil || c.Old.Ino == c.New.Ino || c.New.Slot != 3*PageSlots+1 {
		t.Errorf("name that went and came: %+v", c)
	}
	back, _ := f.diffs(f.head.Root, first)
	for path, c := range got {
		if b := back[path]; !reflect.DeepEqual(b.Old, c.New) || !reflect.DeepEqual(b.New, c.Old) {
			t.Fatalf("%q: %+v forwards, %+v back", path, c, b)
		}
	}
	h := newHistory(f)
	f.rollBack(first)
	h.sameAs(bigWorld(0, 3*PageSlots), f.entries(f.head.Root))
}

func TestDiffStopsAndFails(t *testing.T) {
	f, w := newFleet(t), bigWorld(2, 2)
	root := f.publish(w).Root
	calls := 0
	err := Diff(t.Context(), f.objs, Digest{}, root, func(Change) error { calls++; return errBroken })
	if err != errBroken || calls != 1 { //nolint:errorlint // as it is, not wrapped
		t.Errorf("%v after %d calls", err, calls)
	}
	for n := range 4 {
		objs := &broken{f.objs, n, 0}
		if err := Diff(t.Context(), objs, Digest{}, root, func(Change) error { return nil }); !errors.Is(err, errBroken) {
			t.Errorf("get %d: %v", n, err)
		}
	}
}

func TestReachNamesEveryObjectOnce(t *testing.T) {
	f, w := newFleet(t), bigWorld(3, 4)
	big := w.thing(folder())
	for i := range PageSlots + 1 {
		big.kids[fmt.Sprint(i)] = w.thing(text("same"))
	}
	w.root.kids["big"] = big
	chunk := strings.Repeat("c", 100)
	list := EncodeChunks([]Extent{{100, Sum([]byte(chunk))}, {Length: ChunkSize}, {100, Sum([]byte("other"))}})
	if _, err := f.objs.Put(t.Context(), list); err != nil {
		t.Fatal(err)
	}
	w.set("chunked", Entry{Type: Regular, Size: ChunkSize + 200, Used: 200, Content: Content{Chunks, Sum(list)}})
	w.set("empty", text(""))
	w.dirty = nil
	root := f.publish(w).Root

	sizes := make(map[Digest]uint64)
	forms := make(map[Form]int)
	err := Reach(t.Context(), f.objs, root, func(d Digest) bool { _, ok := sizes[d]; return ok }, func(d Digest, form Form, size uint64) error {
		sizes[d] = size
		forms[form]++
		return nil
	})
	// root object, root directory, three directories, big with two pages; contents 0 to 3, "same" and two chunks
	if want := map[Form]int{Dir: 8, Chunks: 1, Blob: 7}; err != nil || !maps.Equal(forms, want) {
		t.Errorf("%v, %v, want %v", forms, err, want)
	}
	memory := f.objs.(*Memory)
	if len(sizes) != memory.Len()+7 {
		t.Errorf("%d objects reached, %d stored beside 7 contents", len(sizes), memory.Len())
	}
	for d, b := range memory.objects {
		if size, ok := sizes[d]; !ok || size != uint64(len(b)) {
			t.Errorf("object %s of %d bytes: %d", d, len(b), size)
		}
	}
	if sizes[Sum([]byte("same"))] != 4 || sizes[Sum([]byte(chunk))] != 100 {
		t.Error("sizes of contents")
	}
	calls := 0
	if err := Reach(t.Context(), f.objs, root, func(Digest) bool { return true }, func(Digest, Form, uint64) error { calls++; return nil }); err != nil || calls != 0 {
		t.Errorf("all seen: %d calls, %v", calls, err)
	}
	for n := range 8 {
		if err := Reach(t.Context(), &broken{f.objs, n, 0}, root, nil, func(Digest, Form, uint64) error { return nil }); !errors.Is(err, errBroken) {
			t.Errorf("get %d: %v", n, err)
		}
		left := n
		err := Reach(t.Context(), f.objs, root, nil, func(Digest, Form, uint64) error {
			if left--; left < 0 {
				return errBroken
			}
			return nil
		})
		if err != errBroken { //nolint:errorlint // as it is, not wrapped
			t.Errorf("call %d: %v", n, err)
		}
	}
}

func TestReachNoticesWhatIsMissing(t *testing.T) {
	f, w := newFleet(t), bigWorld(2, 2)
	root := f.publish(w).Root
	f.objs.(*Memory).Delete(f.get("dir-0001").Content.Digest)
	err := Reach(t.Context(), f.objs, root, nil, func(Digest, Form, uint64) error { return nil })
	if !errors.Is(err, ErrMissing) {
		t.Errorf("%v", err)
	}
}

func TestLookup(t *testing.T) {
	f, w := newFleet(t), bigWorld(2, 3)
	w.set("dir-0000/sub", folder())
	w.set("dir-0000/sub/x\n\xff", text("here"))
	w.dirty = nil
	root := f.publish(w).Root
	for path, e := range f.entries(root) {
		if got, err := Lookup(t.Context(), f.objs, root, path); err != nil || got != e {
			t.Errorf("%q: %+v, %v", path, got, err)
		}
	}
	if e, err := Lookup(t.Context(), f.objs, root, ""); err != nil || e.Type != Directory || e.Slot != 0 {
		t.Errorf("root: %+v, %v", e, err)
	}
	for _, path := range []string{"nope", "dir-0000/nope", "dir-0000/file-000000.txt/x", "dir-0000/", "/dir-0000", "dir-0000//sub", "dir-0000/..", "./dir-0000"} {
		if e, err := Lookup(t.Context(), f.objs, root, path); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %+v, %v", path, e, err)
		}
	}
	if _, err := Lookup(t.Context(), f.objs, Sum(nil), "x"); !errors.Is(err, ErrMissing) {
		t.Errorf("no such tree: %v", err)
	}
	for n := range 3 {
		if _, err := Lookup(t.Context(), &broken{f.objs, n, 0}, root, "dir-0000/sub"); !errors.Is(err, errBroken) {
			t.Errorf("get %d: %v", n, err)
		}
	}
}

// A chain of directories deeper than any path is refused, not followed until the stack is gone.
func TestBottomlessTreesAreRefused(t *testing.T) {
	f := newFleet(t)
	put := func(dir *DirObject) Digest {
		d, err := f.objs.Put(t.Context(), appendDirectory(nil, dir))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	e := Entry{Name: "d", Type: Directory, Links: 2, Ino: 1, Born: 1, Slot: 1, Size: 4096, Used: 4096, Content: Content{Dir, put(directoryOf(nil))}}
	for range maxDepth + 2 {
		e.Content.Digest = put(directoryOf([]Entry{e}))
	}
	root, err := f.objs.Put(t.Context(), EncodeRoot(e))
	if err != nil {
		t.Fatal(err)
	}
	if err := Reach(t.Context(), f.objs, root, nil, func(Digest, Form, uint64) error { return nil }); !errors.Is(err, ErrCorrupt) {
		t.Errorf("reach: %v", err)
	}
	if err := Diff(t.Context(), f.objs, Digest{}, root, func(Change) error { return nil }); !errors.Is(err, ErrCorrupt) {
		t.Errorf("diff: %v", err)
	}
	l, entry, err := FromTree(f.objs, root, Digest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Merge(t.Context(), f.objs, Digest{}, l, f.options(Observed{Entry: entry})); err == nil {
		t.Error("merged")
	}
}

func TestMemory(t *testing.T) {
	m := NewMemory()
	b := []byte("abc")
	d, err := m.Put(t.Context(), b)
	if err != nil || d != Sum(b) || !m.Has(d) || m.Len() != 1 {
		t.Fatalf("%s, %v", d, err)
	}
	b[0] = 'x' // Put does not keep what it is given
	if got, err := m.Get(t.Context(), d); err != nil || string(got) != "abc" {
		t.Errorf("%q, %v", got, err)
	}
	m.Delete(d)
	if _, err := m.Get(t.Context(), d); !errors.Is(err, ErrMissing) || m.Has(d) || m.Len() != 0 {
		t.Errorf("after delete: %v", err)
	}
}
