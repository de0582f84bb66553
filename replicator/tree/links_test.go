package tree

import (
	"context"
	"testing"
)

// linkedFleet has one file as a/f and b/f, and a lone c/g.
func linkedFleet(t *testing.T) (*fleet, *world, *history) {
	f, w := newFleet(t), newWorld()
	for _, dir := range []string{"a", "b", "c", "d", "e"} {
		w.set(dir, folder())
	}
	w.set("a/f", text("one"))
	w.link("a/f", "b/f")
	w.set("c/g", text("lone"))
	w.dirty = nil
	f.publish(w)
	h := newHistory(f)
	h.check(w)
	w.dirty = map[string]bool{}
	return f, w, h
}

func (f *fleet) expect(path string, ino uint64, links uint32) {
	f.t.Helper()
	if e := f.get(path); e.Ino != ino || e.Links != links {
		f.t.Errorf("%q has ino %d and %d links, want %d and %d", path, e.Ino, e.Links, ino, links)
	}
}

func TestLinksComeAndGo(t *testing.T) {
	f, w, h := linkedFleet(t)
	ino := f.get("a/f").Ino
	f.expect("b/f", ino, 2)

	w.link("a/f", "c/f")
	f.publish(w)
	h.check(w)
	f.expect("c/f", ino, 3)
	f.expect("a/f", ino, 3)

	w.remove("a/f")
	f.publish(w)
	h.check(w)
	f.expect("b/f", ino, 2)

	w.link("c/g", "b/f") // a name goes from one file to another
	f.publish(w)
	h.check(w)
	f.expect("c/f", ino, 1)
	f.expect("b/f", f.get("c/g").Ino, 2)
}

func TestNewNameBeforeTheOldOneGetsItsIno(t *testing.T) {
	f, w, h := linkedFleet(t)
	ino, next := f.get("c/g").Ino, f.head.NextIno
	w.link("c/g", "a/a")
	f.publish(w)
	h.check(w)
	f.expect("a/a", ino, 2)
	if f.head.NextIno != next {
		t.Errorf("next ino %d became %d for another name of a file", next, f.head.NextIno)
	}
}

func TestCopyThatReplacesALinkGetsTheNewIno(t *testing.T) {
	f, w, h := linkedFleet(t)
	ino := f.get("a/f").Ino
	w.link("b/f", "c/f")
	f.publish(w)
	h.check(w)
	w.set("a/f", text("one")) // the same bytes, its own file now
	f.publish(w)
	h.check(w)
	f.expect("b/f", ino, 2)
	f.expect("c/f", ino, 2)
	f.expect("a/f", f.head.NextIno-1, 1)
}

func TestLinkLeavesWithADeepDirectory(t *testing.T) {
	f, w, h := linkedFleet(t)
	ino := f.get("a/f").Ino
	w.set("d/1", folder())
	w.set("d/1/2", folder())
	w.link("a/f", "d/1/2/f")
	f.publish(w)
	h.check(w)
	f.expect("a/f", ino, 3)
	w.remove("d/1")
	f.publish(w)
	h.check(w)
	f.expect("a/f", ino, 2)
	f.expect("b/f", ino, 2)
	w.remove("b")
	f.publish(w)
	h.check(w)
	f.expect("a/f", ino, 1)
}

// A source that has not yet heard of a change to one of the names lists the others only. The name that it did not list
// still has the old ino, so the listed one must not.
func TestNameThatWasNotListedKeepsItsInoToItself(t *testing.T) {
	f, w, _ := linkedFleet(t)
	ino := f.get("a/f").Ino
	w.remove("b/f")
	w.dirty = map[string]bool{"a/f": true}
	f.publish(w)
	f.expect("b/f", ino, 2)
	f.expect("a/f", f.head.NextIno-1, 1)
	w.dirty = map[string]bool{"b/f": true}
	f.publish(w)
	f.expect("a/f", f.head.NextIno-1, 1)
}

func TestRollbackOfARenamedLink(t *testing.T) {
	f, w, h := linkedFleet(t)
	ino := f.get("a/f").Ino
	first, old := f.head.Root, w.clone()
	lone := w.set("e/x", text("one")) // the same bytes, another file
	f.publish(w)
	h.check(w)
	w.link("b/f", "c/f")
	w.remove("b/f")
	w.remove("e/x")
	w.put("d/f", lone)
	f.publish(w)
	h.check(w)
	before := f.get("a")
	f.expect("c/f", ino, 2)

	// a is the same object in both and is not listed: the file's other name in it decides about the ino of b/f.
	counted := &counter{Objects: f.objs}
	f.objs = counted
	f.rollBack(first)
	f.objs = counted.Objects
	h.check(old)
	f.expect("b/f", ino, 2)
	if after := f.get("a"); after != before {
		t.Errorf("directory a was %+v, is %+v", before, after)
	}
}

func TestRollbackToATimeBeforeALink(t *testing.T) {
	f, w, h := linkedFleet(t)
	g := f.get("c/g").Ino
	first, old := f.head.Root, w.clone()
	w.link("c/g", "a/g")
	w.link("a/f", "c/f")
	f.publish(w)
	h.check(w)
	second, linked := f.head.Root, w.clone()
	f.expect("a/g", g, 2)
	f.rollBack(first)
	h.check(old)
	f.expect("c/g", g, 1)
	f.rollBack(second)
	h.check(linked)
	f.expect("c/g", g, 2)
	f.expect("a/g", g, 2)
}

// The inos of an uploaded tree mean nothing here, nor do its link counts, should they be wrong.
func TestUploadedTreeBringsNoNumbers(t *testing.T) {
	f, w, h := linkedFleet(t)
	up := newFleet(t)
	up.objs = f.objs
	up.gen, up.head.NextIno = 40, f.get("a/f").Ino-1 // inos that clash with those of the shard
	upload := w.clone()
	upload.dirty = nil
	upload.set("a/new", text("new"))
	upload.link("a/f", "a/more")
	upload.dirty = nil
	up.publish(upload)
	f.rollBack(up.head.Root)
	h.check(upload)

	up.gen++
	ino := f.get("a/f").Ino
	up.head.Root = up.lying(ino, 7)
	f.rollBack(up.head.Root)
	f.expect("f", f.head.NextIno-1, 1)
}

// lying returns a tree of one file that claims to have more names than it has.
func (f *fleet) lying(ino uint64, links uint32) Digest {
	f.t.Helper()
	e := text("one")
	e.Name, e.Ino, e.Born, e.Slot, e.Links = "f", ino, 1, 1, links
	dir := &DirObject{NextSlot: 2, Entries: 1, Files: 1, Bytes: 3, Pages: []PageRef{{Count: 1, inline: []Entry{e}}}}
	return f.install(f.get("."), dir)
}

// Files with names outside of the shard: the hint is always wrong, and must cost nothing once it is known.
func TestWrongHintsCostNothingWhenNothingChanges(t *testing.T) {
	f, w, _ := linkedFleet(t)
	again := w.clone()
	again.dirty = nil
	checkIdle(f, again)
	odd := listerFunc(func(ctx context.Context, dir string, prev *Entry) (Listing, error) {
		l, err := again.List(ctx, dir, prev)
		for i := range l.Names {
			if l.Names[i].Type != Directory && l.Names[i].Link == (LinkID{}) {
				l.Names[i].Links, l.Names[i].Link = 2, LinkID{9, uint64(len(dir)*1000 + i)}
			}
		}
		return l, err
	})
	counted := &counter{Objects: f.objs}
	m, err := Merge(t.Context(), counted, f.head.Root, odd, f.options(again.observe(again.root, "")))
	if err != nil || m.Changed || counted.puts.Load() != 0 {
		t.Errorf("changed %v, %d puts, %v", m.Changed, counted.puts.Load(), err)
	}
	f.expect("c/g", f.get("c/g").Ino, 1)
}
