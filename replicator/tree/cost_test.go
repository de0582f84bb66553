package tree

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
)

// counter counts what reaches an Objects.
type counter struct {
	Objects
	gets, puts, putBytes atomic.Int64
}

func (c *counter) Get(ctx context.Context, d Digest) ([]byte, error) {
	c.gets.Add(1)
	return c.Objects.Get(ctx, d)
}

func (c *counter) Put(ctx context.Context, b []byte) (Digest, error) {
	c.puts.Add(1)
	c.putBytes.Add(int64(len(b)))
	return c.Objects.Put(ctx, b)
}

// bigWorld returns a world of dirs directories with each files in it; no directory at all for dirs 0.
func bigWorld(dirs, each int) *world {
	w := newWorld()
	fill := func(t *thing) {
		for i := range each {
			t.kids[fmt.Sprintf("file-%06d.txt", i)] = w.thing(text(fmt.Sprint(i)))
		}
	}
	if dirs == 0 {
		fill(w.root)
	}
	for i := range dirs {
		d := w.thing(folder())
		fill(d)
		w.root.kids[fmt.Sprintf("dir-%04d", i)] = d
	}
	return w
}

// changes lists what is given for each directory, and nothing else.
func changes(listings map[string]Listing) Lister {
	return listerFunc(func(_ context.Context, dir string, _ *Entry) (Listing, error) {
		l, ok := listings[dir]
		if !ok {
			return l, fmt.Errorf("asked for %q", dir)
		}
		return l, nil
	})
}

func changedFile(name, content string) Observed {
	e := text(content)
	e.Name = name
	return Observed{Entry: e}
}

// mergeCounted merges onto the head, which stays, and returns what it took.
func mergeCounted(f *fleet, l Lister, root Observed) (*counter, Merged) {
	f.t.Helper()
	c := &counter{Objects: f.objs}
	m, err := Merge(f.t.Context(), c, f.head.Root, l, f.options(root))
	if err != nil {
		f.t.Fatal(err)
	}
	return c, m
}

func TestOneChangeAmongManyDirectoriesCostsItsPath(t *testing.T) {
	f, w := newFleet(t), bigWorld(1000, 100)
	f.publish(w)
	d := folder()
	d.Name = "dir-0500"
	l := changes(map[string]Listing{
		".":        {Names: []Observed{{Entry: d, Descend: true}}},
		"dir-0500": {Names: []Observed{changedFile("file-000050.txt", "changed")}},
	})
	c, m := mergeCounted(f, l, w.observe(w.root, ""))
	if gets, puts := c.gets.Load(), c.puts.Load(); gets != 3 || puts != 3 {
		t.Errorf("%d gets and %d puts, want 3 of each: root object, root directory, directory", gets, puts)
	}
	if m.Files != 100_000 || !m.Changed {
		t.Errorf("merged %+v", m)
	}
	c = &counter{Objects: f.objs}
	seen := 0
	if err := Diff(t.Context(), c, f.head.Root, m.Root, func(Change) error { seen++; return nil }); err != nil {
		t.Fatal(err)
	}
	if c.gets.Load() != 6 || seen != 2 { // the file, and its directory's ctime
		t.Errorf("diff: %d gets, %d changes", c.gets.Load(), seen)
	}
	back, root, err := FromTree(f.objs, f.head.Root, m.Root)
	if err != nil {
		t.Fatal(err)
	}
	before := f.head
	f.head, f.gen = m, f.gen+1
	c, m = mergeCounted(f, back, Observed{Entry: root})
	if puts := c.puts.Load(); puts != 3 || c.gets.Load() > 6 || m.Entry.Ino != before.Entry.Ino {
		t.Errorf("rollback: %d gets, %d puts", c.gets.Load(), puts)
	}
}

func TestOneChangeInAFlatDirectoryCostsItsPage(t *testing.T) {
	f, w := newFleet(t), bigWorld(0, 100_000)
	f.publish(w)
	root := w.observe(w.root, "")
	pages := int64((100_000 + PageSlots - 1) / PageSlots)
	cases := map[string]struct {
		l     Listing
		pages int64 // written
	}{
		"change": {Listing{Names: []Observed{changedFile("file-050000.txt", "changed")}}, 1},
		"add":    {Listing{Names: []Observed{changedFile("new", "new")}}, 1},
		"remove": {Listing{Gone: []string{"file-000000.txt"}}, 1},
		"rename": {Listing{Names: []Observed{changedFile("new", "0")}, Gone: []string{"file-000000.txt"}}, 2},
		"same":   {Listing{Names: []Observed{changedFile("file-050000.txt", "50000")}}, 0},
		"none":   {Listing{Gone: []string{"never was"}}, 0},
	}
	for name, c := range cases {
		count, m := mergeCounted(f, changes(map[string]Listing{".": c.l}), root)
		puts := c.pages
		if c.pages > 0 {
			puts += 2 // the directory and the root
		}
		if count.puts.Load() != puts || count.gets.Load() > pages+3 || m.Changed != (c.pages > 0) {
			t.Errorf("%s: %d gets, %d puts, changed %v; want %d puts", name, count.gets.Load(), count.puts.Load(), m.Changed, puts)
		}
		if size := count.putBytes.Load(); size > c.pages*PageSlots*110+4096 {
			t.Errorf("%s: %d bytes put", name, size)
		}
	}
	full := w.clone()
	full.dirty = nil
	if c, m := mergeCounted(f, full, root); c.puts.Load() != 0 || m.Changed {
		t.Errorf("full listing of the same: %d puts", c.puts.Load())
	}
}

func TestUntouchedDirectoriesAreNotRead(t *testing.T) {
	f, w := newFleet(t), bigWorld(100, 10)
	f.publish(w)
	d := folder()
	d.Name, d.Mode = "dir-0007", 0o700
	c, m := mergeCounted(f, changes(map[string]Listing{".": {Names: []Observed{{Entry: d}}}}), w.observe(w.root, ""))
	if c.gets.Load() != 2 || c.puts.Load() != 2 || m.Files != 1000 {
		t.Errorf("a directory's mode: %d gets, %d puts, %d files", c.gets.Load(), c.puts.Load(), m.Files)
	}
	c, m = mergeCounted(f, changes(map[string]Listing{".": {Gone: []string{"dir-0007"}}}), w.observe(w.root, ""))
	if c.gets.Load() != 3 || c.puts.Load() != 2 || m.Files != 990 {
		t.Errorf("a directory removed: %d gets, %d puts, %d files", c.gets.Load(), c.puts.Load(), m.Files)
	}
	l, root, err := FromTree(f.objs, f.head.Root, f.head.Root)
	if err != nil {
		t.Fatal(err)
	}
	if c, m := mergeCounted(f, l, Observed{Entry: root}); c.gets.Load() != 2 || c.puts.Load() != 0 || m.Changed {
		t.Errorf("rollback to the head: %d gets, %d puts", c.gets.Load(), c.puts.Load())
	}
}

func BenchmarkDecodePage(b *testing.B) {
	page := appendPage(nil, 0, manyFiles(PageSlots))
	b.ReportAllocs()
	b.SetBytes(int64(len(page)))
	for b.Loop() {
		if _, err := DecodePage(page); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/PageSlots, "ns/entry")
	b.ReportMetric(float64(len(page))/PageSlots, "B/entry")
}

func BenchmarkEncodePage(b *testing.B) {
	entries := manyFiles(PageSlots)
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = appendPage(buf[:0], 0, entries)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/PageSlots, "ns/entry")
}

// manyFiles returns entries as a source with ordinary files gives them.
func manyFiles(n int) []Entry {
	entries := make([]Entry, n)
	for i := range entries {
		e := text(fmt.Sprint("content ", i))
		e.Name, e.Slot, e.Ino, e.Tag, e.Born, e.Links = fmt.Sprintf("file-%06d.txt", i), uint64(i+1), uint64(i+100_000), 1<<60, 12, 1
		e.Size, e.Mtime.Nsec, e.Ctime = uint64(i*10+1), 123_456_789, Time{1_800_000_000, 987_654_321}
		entries[i] = e
	}
	return entries
}

func benchmarkMerge(b *testing.B, w *world, l Lister) {
	f := newFleet(b)
	f.publish(w)
	root := w.observe(w.root, "")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Merge(b.Context(), f.objs, f.head.Root, l, f.options(root)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMergeOneChangeFlat100k(b *testing.B) {
	benchmarkMerge(b, bigWorld(0, 100_000), changes(map[string]Listing{".": {Names: []Observed{changedFile("file-050000.txt", "changed")}}}))
}

func BenchmarkMergeOneChangeDirs100k(b *testing.B) {
	d := folder()
	d.Name = "dir-0500"
	benchmarkMerge(b, bigWorld(1000, 100), changes(map[string]Listing{
		".": {Names: []Observed{{Entry: d, Descend: true}}}, "dir-0500": {Names: []Observed{changedFile("file-000050.txt", "changed")}},
	}))
}

// listed returns a Lister of everything in w that costs nothing itself.
func listed(w *world) Lister {
	w.dirty = nil
	w.links = w.names()
	all := make(map[string]Listing)
	for path, t := range w.paths() {
		if t.kids != nil {
			all[path], _ = w.List(context.Background(), path, nil)
		}
	}
	return changes(all)
}

func BenchmarkMergeNothingNewFull100k(b *testing.B) {
	w := bigWorld(1000, 100)
	benchmarkMerge(b, w, listed(w))
}

func BenchmarkMergeFirst100k(b *testing.B) {
	w := bigWorld(1000, 100)
	l := listed(w)
	root := w.observe(w.root, "")
	f := newFleet(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Merge(b.Context(), NewMemory(), Digest{}, l, f.options(root)); err != nil {
			b.Fatal(err)
		}
	}
}
