package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestFirstGenerationNumbersInOrder(t *testing.T) {
	f, w := newFleet(t), newWorld()
	w.set("b", text("bytes"))
	w.set("a", folder())
	w.set("a/x", text(""))
	w.dirty = nil
	now := f.now
	m := f.publish(w)
	if !m.Changed || m.NextIno != 5 || m.Files != 2 || m.Bytes != 5 {
		t.Fatalf("merged %+v", m)
	}
	inos, slots := map[string]uint64{".": 1, "a": 2, "a/x": 3, "b": 4}, map[string]uint64{".": 0, "a": 1, "a/x": 1, "b": 2}
	for path, e := range f.entries(m.Root) {
		if e.Ino != inos[path] || e.Slot != slots[path] || e.Born != 1 || e.Ctime != now || e.Tag == 0 {
			t.Errorf("%q: %+v", path, e)
		}
	}
}

func TestWhatKeepsAnIno(t *testing.T) {
	cases := []struct {
		name     string
		from, to Entry
		kept     bool
	}{
		{"mode", text("a"), Entry{Type: Regular, Mode: 0o600, Size: 1, Used: 1, Content: text("a").Content}, true},
		{"bytes", text("a"), text("b"), false},
		{"emptied", text("a"), text(""), false},
		{"file to directory", text("a"), folder(), false},
		{"directory to file", folder(), text("a"), false},
		{"directory attributes", folder(), Entry{Type: Directory, Mode: 0o700}, true},
		{"symlink target", Entry{Type: Symlink, Target: "a"}, Entry{Type: Symlink, Target: "b"}, false},
		{"symlink mtime", Entry{Type: Symlink, Target: "a"}, Entry{Type: Symlink, Target: "a", Mtime: Time{5, 5}}, true},
		{"device", Entry{Type: Block, Rdev: Device{1, 2}}, Entry{Type: Block, Rdev: Device{1, 3}}, false},
		{"device kind", Entry{Type: Block, Rdev: Device{1, 2}}, Entry{Type: Char, Rdev: Device{1, 2}}, false},
		{"fifo owner", Entry{Type: FIFO}, Entry{Type: FIFO, UID: 5}, true},
		{"fifo to socket", Entry{Type: FIFO}, Entry{Type: Socket}, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f, w := newFleet(t), newWorld()
			w.set("other", text("other"))
			w.set("x", c.from)
			w.dirty = nil
			f.publish(w)
			before, root := f.get("x"), f.get(".")
			w.dirty = nil
			w.set("x", c.to)
			f.publish(w)
			e, dir := f.get("x"), f.get(".")
			if (e.Ino == before.Ino) != c.kept || (e.Tag == before.Tag) != c.kept || (e.Born == before.Born) != c.kept {
				t.Errorf("ino, tag, born %d %d %d became %d %d %d", before.Ino, before.Tag, before.Born, e.Ino, e.Tag, e.Born)
			}
			if e.Slot != before.Slot || !before.Ctime.Less(e.Ctime) {
				t.Errorf("slot %d became %d, ctime %v became %v", before.Slot, e.Slot, before.Ctime, e.Ctime)
			}
			if bumped := root.Ctime.Less(dir.Ctime); bumped == c.kept || dir.Mtime != root.Mtime {
				t.Errorf("the directory's ctime %v became %v, mtime %v became %v", root.Ctime, dir.Ctime, root.Mtime, dir.Mtime)
			}
		})
	}
}

func TestCtimeMovesWhenTheClockDoesNot(t *testing.T) {
	f, w := newFleet(t), newWorld()
	w.set("x", text("a"))
	w.dirty = nil
	f.publish(w)
	before := f.get("x").Ctime
	for i := range 3 {
		f.now = Time{before.Sec - 1000, 0}
		w.edit("x", func(e *Entry) { e.Mode ^= 0o100 })
		f.publish(w)
		if got := f.get("x").Ctime; got != (Time{before.Sec, before.Nsec + uint32(i) + 1}) {
			t.Fatalf("ctime %v after change %d, was %v", got, i+1, before)
		}
	}
	f.now = Time{before.Sec, 0}
	f.head.Root = rewritten(f, "x", func(e *Entry) { e.Ctime = Time{before.Sec, 999_999_999} })
	w.edit("x", func(e *Entry) { e.Mode ^= 0o100 })
	f.publish(w)
	if got := f.get("x").Ctime; got != (Time{before.Sec + 1, 0}) {
		t.Fatalf("ctime %v after the last nanosecond of a second", got)
	}
}

// rewritten returns the head's root with one entry of the root directory changed, as no Merge would.
func rewritten(f *fleet, name string, fn func(*Entry)) Digest {
	f.t.Helper()
	root := f.get(".")
	dir, err := LoadDirectory(f.t.Context(), f.objs, root.Content.Digest)
	if err != nil {
		f.t.Fatal(err)
	}
	for i := range dir.Pages[0].inline {
		if e := &dir.Pages[0].inline[i]; e.Name == name {
			fn(e)
		}
	}
	return f.install(root, dir)
}

// install puts a root directory that the test made, and returns its root object.
func (f *fleet) install(root Entry, dir *DirObject) Digest {
	f.t.Helper()
	d, err := f.objs.Put(f.t.Context(), appendDirectory(nil, dir))
	if err != nil {
		f.t.Fatal(err)
	}
	root.Content = Content{Dir, d}
	if d, err = f.objs.Put(f.t.Context(), EncodeRoot(root)); err != nil {
		f.t.Fatal(err)
	}
	return d
}

func TestDeepTreesAndStrangeNames(t *testing.T) {
	f, w := newFleet(t), newWorld()
	path := "."
	for i := range 60 {
		path = join(path, fmt.Sprintf("d\n%d\xff\xfe", i))
		w.set(path, folder())
	}
	name := strings.Repeat("\xf0", 254) + "\n"
	w.set(join(path, name), text("deep"))
	w.set("\\", text("1"))
	w.set("...", text("2"))
	w.set(" ", Entry{Type: Symlink, Target: strings.Repeat("../", 1365), Mode: 0o777})
	w.edit(" ", func(e *Entry) { e.Size, e.Used = 4095, 4095 })
	w.set("old", Entry{Type: FIFO, Mode: 0o7777, Mtime: Time{-1 << 40, 999_999_999}})
	w.set("late", Entry{Type: Char, UID: 1<<32 - 1, GID: 1<<32 - 1, Rdev: Device{1<<32 - 1, 1<<32 - 1}, Mtime: Time{1 << 40, 0}})
	w.dirty = nil
	f.publish(w)
	h := newHistory(f)
	h.check(w)
	w.edit(join(path, name), func(e *Entry) { *e = text("deeper") })
	counted := &counter{Objects: f.objs}
	f.objs = counted
	f.publish(w)
	if puts := counted.puts.Load(); puts != 62 { // 60 directories, the root directory, the root
		t.Errorf("%d puts for a change 60 levels deep", puts)
	}
	h.check(w)
}

func TestDirectoryReplacedByAnotherKeepsItsIno(t *testing.T) {
	f, w := newFleet(t), newWorld()
	w.set("d", folder())
	w.set("d/a", text("a"))
	w.set("d/b", text("b"))
	w.dirty = nil
	f.publish(w)
	dir, a := f.get("d"), f.get("d/a")
	w.set("d", Entry{Type: Directory, Mode: 0o700})
	w.set("d/a", text("a"))
	w.set("d/c", text("b"))
	w.dirty = nil
	f.publish(w)
	if e := f.get("d"); e.Ino != dir.Ino || e.Mode != 0o700 || !dir.Ctime.Less(e.Ctime) {
		t.Errorf("directory was %+v, is %+v", dir, e)
	}
	if e := f.get("d/a"); e != a {
		t.Errorf("the same file under the same name was %+v, is %+v", a, e)
	}
	if e := f.get("d/c"); e.Slot != 3 || e.Ino != f.head.NextIno-1 {
		t.Errorf("a new name has %+v", e)
	}
	if _, err := Lookup(t.Context(), f.objs, f.head.Root, "d/b"); !errors.Is(err, ErrNotFound) {
		t.Errorf("the old directory's file: %v", err)
	}
}

func TestSparsePagesUnderHugeSlots(t *testing.T) {
	f, w := newFleet(t), newWorld()
	w.set("a", text("a"))
	w.set("b", text("b"))
	w.dirty = nil
	f.publish(w)
	root := f.get(".")
	dir, err := LoadDirectory(t.Context(), f.objs, root.Content.Digest)
	if err != nil {
		t.Fatal(err)
	}
	entries := dir.Pages[0].inline
	far := uint64(MaxSlot) - 2
	entries[1].Slot = far
	dir.Pages, dir.NextSlot = nil, far+1
	for i := range entries {
		d, err := f.objs.Put(t.Context(), appendPage(nil, pageOf(entries[i].Slot), entries[i:i+1]))
		if err != nil {
			t.Fatal(err)
		}
		dir.Pages = append(dir.Pages, PageRef{Number: pageOf(entries[i].Slot), Count: 1, Digest: d})
	}
	f.head.Root = f.install(root, dir)
	w.set("c", text("c"))
	f.publish(w)
	if e := f.get("c"); e.Slot != far+1 {
		t.Errorf("new slot %d", e.Slot)
	}
	w.remove("b")
	w.set("d", text("d"))
	f.publish(w)
	newHistory(f).sameAs(w, f.entries(f.head.Root))
	if e := f.get("d"); e.Slot != MaxSlot {
		t.Errorf("the last slot is %d, want %d", e.Slot, uint64(MaxSlot))
	}
	w.set("e", text("e"))
	if _, err := Merge(t.Context(), f.objs, f.head.Root, w, f.options(w.observe(w.root, ""))); err == nil {
		t.Error("a slot beyond the last")
	}
	w.remove("e")
	w.remove("a")
	w.remove("c")
	w.remove("d")
	f.publish(w)
	empty, err := LoadDirectory(t.Context(), f.objs, f.get(".").Content.Digest)
	if err != nil || empty.NextSlot != MaxSlot+1 || len(empty.Pages) != 0 {
		t.Errorf("emptied directory: %+v, %v", empty, err)
	}
}

func TestKeptNames(t *testing.T) {
	f, w := newFleet(t), newWorld()
	w.set("file", text("old"))
	w.set("d", folder())
	w.set("d/x", text("x"))
	w.set("l1", text("linked"))
	w.link("l1", "l2")
	w.dirty = nil
	f.publish(w)
	before := f.entries(f.head.Root)

	w.set("file", text("new")).keep = true
	w.set("d", text("unreadable")).keep = true
	w.set("fresh", text("fresh")).keep = true
	w.set("l1", text("other")).keep = true
	w.link("l1", "l2")
	w.dirty = nil
	m := f.publish(w)
	if !slices.Equal(m.Dropped, []string{"fresh"}) || m.Changed {
		t.Errorf("dropped %q, changed %v", m.Dropped, m.Changed)
	}
	for path, e := range f.entries(m.Root) {
		if e != before[path] {
			t.Errorf("%q was %+v, is %+v", path, before[path], e)
		}
	}
}

func TestMergeRefusesNonsense(t *testing.T) {
	long := strings.Repeat("x", 256)
	some := func(e Entry) Observed { return Observed{Entry: e} }
	named := func(name string) []Observed {
		e := text("a")
		e.Name = name
		return []Observed{some(e)}
	}
	with := func(fn func(*Entry)) []Observed {
		o := named("x")
		fn(&o[0].Entry)
		return o
	}
	cases := map[string][]Observed{
		"empty name": named(""), "dot": named("."), "dot dot": named(".."), "slash": named("a/b"), "NUL": named("a\x00"), "long": named(long),
		"twice":            append(named("a"), named("a")...),
		"no type":          with(func(e *Entry) { e.Type = 0 }),
		"unknown type":     with(func(e *Entry) { e.Type = 8 }),
		"mode":             with(func(e *Entry) { e.Mode = 0o100644 }),
		"nanoseconds":      with(func(e *Entry) { e.Mtime.Nsec = 1e9 }),
		"form":             with(func(e *Entry) { e.Content.Form = Chunks }),
		"content of none":  with(func(e *Entry) { e.Size = 0 }),
		"no content":       with(func(e *Entry) { e.Content = Content{} }),
		"zero digest":      with(func(e *Entry) { e.Content.Digest = Digest{} }),
		"blob too large":   with(func(e *Entry) { e.Size = ChunkSize + 1 }),
		"no target":        with(func(e *Entry) { e.Type = Symlink }),
		"target with NUL":  with(func(e *Entry) { e.Type, e.Target = Symlink, "a\x00" }),
		"target too large": with(func(e *Entry) { e.Type, e.Target = Symlink, strings.Repeat("x", 4097) }),
	}
	for name, names := range cases {
		f := newFleet(t)
		root := some(folder())
		l := listerFunc(func(context.Context, string, *Entry) (Listing, error) {
			return Listing{Complete: true, Names: names}, nil
		})
		if m, err := Merge(t.Context(), f.objs, Digest{}, l, f.options(root)); err == nil {
			t.Errorf("%s: merged as %+v", name, m)
		}
	}
}

func TestMergeRefusesNumbersOutOfRange(t *testing.T) {
	f := newFleet(t)
	o := f.options(Observed{Entry: text("x")})
	if _, err := Merge(t.Context(), f.objs, Digest{}, newWorld(), o); err == nil {
		t.Error("a file as root")
	}
	o = f.options(Observed{Entry: folder()})
	o.Generation = 0
	if _, err := Merge(t.Context(), f.objs, Digest{}, newWorld(), o); err == nil {
		t.Error("generation 0")
	}
	w := newWorld()
	w.set("x", text("x"))
	f.publish(w)
	w.dirty = nil
	for _, bad := range []MergeOptions{{Generation: f.gen, NextIno: 3}, {Generation: f.gen + 1, NextIno: 2}, {Generation: f.gen + 1, NextIno: 1}} {
		bad.Root, bad.Now, bad.Tag = w.observe(w.root, ""), f.now, f.options(Observed{}).Tag
		if m, err := Merge(t.Context(), f.objs, f.head.Root, w, bad); err == nil {
			t.Errorf("generation %d from ino %d would issue numbers again: %+v", bad.Generation, bad.NextIno, m)
		}
	}
	o.Generation, o.NextIno = 1, MaxIno+1
	if _, err := Merge(t.Context(), f.objs, Digest{}, newWorld(), o); err == nil {
		t.Error("an ino beyond the last")
	}
}

// listerFunc is a Lister that is one function.
type listerFunc func(ctx context.Context, dir string, prev *Entry) (Listing, error)

func (fn listerFunc) List(ctx context.Context, dir string, prev *Entry) (Listing, error) {
	return fn(ctx, dir, prev)
}

// broken is an Objects that fails from the nth Get or Put on.
type broken struct {
	Objects
	gets, puts int
}

var errBroken = errors.New("broken")

func (b *broken) Get(ctx context.Context, d Digest) ([]byte, error) {
	if b.gets--; b.gets < 0 {
		return nil, errBroken
	}
	return b.Objects.Get(ctx, d)
}

func (b *broken) Put(ctx context.Context, p []byte) (Digest, error) {
	if b.puts--; b.puts < 0 {
		return Digest{}, errBroken
	}
	return b.Objects.Put(ctx, p)
}

func TestMergeReturnsEveryFailure(t *testing.T) {
	f, w := newFleet(t), newWorld()
	w.set("d", folder())
	for i := range 5 {
		w.set(fmt.Sprintf("d/%d", i), folder())
		w.set(fmt.Sprintf("d/%d/x", i), text("x"))
	}
	w.link("d/0/x", "d/1/y")
	w.dirty = nil
	f.publish(w)
	w.remove("d/2")
	w.set("d/3", text("now a file"))
	w.remove("d/1")
	w.edit("d/0/x", func(e *Entry) { e.Mode = 0 })
	w.edit("d/4/x", func(e *Entry) { e.Mode = 0 })
	const most = 100
	for _, kind := range []string{"get", "put"} {
		for n := 0; ; n++ {
			objs := &broken{f.objs, most, most}
			if kind == "get" {
				objs.gets = n
			} else {
				objs.puts = n
			}
			w.links = nil
			_, err := Merge(t.Context(), objs, f.head.Root, w, f.options(w.observe(w.root, "")))
			if err == nil {
				if n < 5 {
					t.Errorf("only %d %ss", n, kind)
				}
				break
			}
			if !errors.Is(err, errBroken) {
				t.Fatalf("%s %d: %v", kind, n, err)
			}
		}
	}
	failing := listerFunc(func(context.Context, string, *Entry) (Listing, error) { return Listing{}, errBroken })
	if _, err := Merge(t.Context(), f.objs, f.head.Root, failing, f.options(w.observe(w.root, ""))); !errors.Is(err, errBroken) {
		t.Errorf("failing Lister: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errBroken)
	if _, err := Merge(ctx, f.objs, f.head.Root, w, f.options(w.observe(w.root, ""))); !errors.Is(err, errBroken) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestMergeDoesNotTouchWhatGetReturns(t *testing.T) {
	f, w := newFleet(t), newWorld()
	w.set("x", text("x"))
	w.set("y", text("y"))
	w.dirty = nil
	f.publish(w)
	memory := f.objs.(*Memory)
	w.set("x", text("z"))
	w.remove("y")
	f.publish(w)
	for d, b := range memory.objects {
		if Sum(b) != d || !bytes.Equal(b, memory.objects[d]) {
			t.Fatalf("object %s was overwritten", d)
		}
	}
}
