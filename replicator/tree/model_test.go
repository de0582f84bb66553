package tree

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// history holds what must be true from one generation to the next, over all of them.
type history struct {
	f       *fleet
	entries map[string]Entry // of the head
	nextIno uint64
	files   map[uint64]Entry             // every ino ever, as it was first
	left    map[uint64]bool              // inos that are no more
	slots   map[uint64]map[uint64]string // by directory ino: every slot ever, and its name
	freed   map[uint64]map[uint64]bool   // slots that are no more
}

func newHistory(f *fleet) *history {
	return &history{
		f: f, entries: map[string]Entry{}, nextIno: 1, files: map[uint64]Entry{}, left: map[uint64]bool{},
		slots: map[uint64]map[uint64]string{}, freed: map[uint64]map[uint64]bool{},
	}
}

// check holds the head against the world that was published and against the generation before.
func (h *history) check(w *world) {
	t := h.f.t
	t.Helper()
	now := h.f.entries(h.f.head.Root)
	h.sameAs(w, now)
	h.inos(now)
	h.slotsOf(now)
	for path, e := range now {
		if before, ok := h.entries[path]; ok {
			h.step(path, before, e, now)
		}
	}
	h.entries, h.nextIno = now, h.f.head.NextIno
}

// sameAs checks names, attributes, bytes and links.
func (h *history) sameAs(w *world, now map[string]Entry) {
	t := h.f.t
	t.Helper()
	things := w.paths()
	for path := range now {
		if things[path] == nil {
			t.Fatalf("%q should be gone", path)
		}
	}
	names := w.names()
	var files, size uint64
	for path, thing := range things {
		got, ok := now[path]
		if !ok {
			t.Fatalf("%q is not there", path)
		}
		want := thing.e
		want.Name, want.Ino, want.Tag, want.Slot, want.Born, want.Ctime = got.Name, got.Ino, got.Tag, got.Slot, got.Born, got.Ctime
		want.Links = uint32(len(names[thing]))
		if want.Type == Directory {
			want.Links, want.Size, want.Used, want.Content = got.Links, got.Size, got.Used, got.Content
		} else {
			files, size = files+1, size+got.Size
		}
		if got != want {
			t.Fatalf("%q:\ngot  %+v\nwant %+v", path, got, want)
		}
		for _, other := range names[thing] {
			o := now[other]
			if o.Name, o.Slot = got.Name, got.Slot; o != got {
				t.Fatalf("%q and %q are one file:\n%+v\n%+v", path, other, got, o)
			}
		}
	}
	if h.f.head.Files != files || h.f.head.Bytes != size {
		t.Fatalf("%d files of %d bytes, want %d of %d", h.f.head.Files, h.f.head.Bytes, files, size)
	}
	owner := make(map[uint64]*thing)
	for path, e := range now {
		if o := owner[e.Ino]; o != nil && o != things[path] {
			t.Fatalf("%q shares ino %d with another file", path, e.Ino)
		}
		owner[e.Ino] = things[path]
	}
}

// inos checks that each is new or was there just before, with the same bytes.
func (h *history) inos(now map[string]Entry) {
	t := h.f.t
	t.Helper()
	present := make(map[uint64]bool)
	for path, e := range now {
		present[e.Ino] = true
		first, known := h.files[e.Ino]
		switch {
		case h.left[e.Ino]:
			t.Fatalf("%q has ino %d, which had left the tree", path, e.Ino)
		case known && (first.Tag != e.Tag || first.Born != e.Born || first.Type != Directory && !sameFile(&e, &first)):
			t.Fatalf("%q: ino %d was\n%+v, is\n%+v", path, e.Ino, first, e)
		case !known && (e.Ino < h.nextIno || e.Ino >= h.f.head.NextIno || e.Born != h.f.gen):
			t.Fatalf("%q: new ino %d born %d in generation %d, from %d to %d", path, e.Ino, e.Born, h.f.gen, h.nextIno, h.f.head.NextIno)
		}
		if !known {
			h.files[e.Ino] = e
		}
	}
	for ino := range h.files {
		if !present[ino] {
			h.left[ino] = true
		}
	}
}

// slotsOf checks that none is used again, and that all are below the directory's next.
func (h *history) slotsOf(now map[string]Entry) {
	t := h.f.t
	t.Helper()
	used := make(map[uint64]map[uint64]bool)
	for path, e := range now {
		if path == "." {
			continue
		}
		dir, name := split(path)
		ino := now[dir].Ino
		if h.slots[ino] == nil {
			h.slots[ino], h.freed[ino] = map[uint64]string{}, map[uint64]bool{}
		}
		if used[ino] == nil {
			used[ino] = map[uint64]bool{}
		}
		if was, ok := h.slots[ino][e.Slot]; e.Slot == 0 || ok && was != name || h.freed[ino][e.Slot] || used[ino][e.Slot] {
			t.Fatalf("%q has slot %d, which was %q's", path, e.Slot, was)
		}
		h.slots[ino][e.Slot], used[ino][e.Slot] = name, true
	}
	for ino, slots := range h.slots {
		for slot := range slots {
			if !used[ino][slot] {
				h.freed[ino][slot] = true
			}
		}
	}
}

// step checks what happened to one name that lived on.
func (h *history) step(path string, before, e Entry, now map[string]Entry) {
	t := h.f.t
	t.Helper()
	dir, _ := split(path)
	lived := path == "." || h.entries[dir].Ino == now[dir].Ino
	if lived && before.Slot != e.Slot {
		t.Fatalf("%q: slot %d became %d", path, before.Slot, e.Slot)
	}
	if lived && e.Ino != before.Ino {
		switch {
		case before.Type == Directory && e.Type == Directory:
			t.Fatalf("directory %q got ino %d for %d", path, e.Ino, before.Ino)
		case before.Links == 1 && e.Links == 1 && sameFile(&e, &before):
			t.Fatalf("%q got ino %d for %d with the same bytes", path, e.Ino, before.Ino)
		}
	}
	// A file that was and stays itself in a directory that came anew has had its name taken away and given again.
	if !lived && e.Links == 1 && before.Links == 1 && e.Ino == before.Ino {
		t.Fatalf("%q kept its ino across another directory", path)
	}
	_, known := h.files[e.Ino]
	moved := e.Links > 1 && e.Ino != before.Ino && known && e.Born != h.f.gen // another name of a file that was there already
	if e.Ctime.Less(before.Ctime) && lived && !moved {
		t.Fatalf("%q: ctime went back from %v to %v", path, before.Ctime, e.Ctime)
	}
	if e.Ino != before.Ino {
		return
	}
	if bumped := e.Ctime != before.Ctime; bumped != h.changed(path, before, e, now) && !(bumped && h.joined(e, before.Ctime, now)) {
		t.Fatalf("%q: ctime %v became %v:\n%+v\n%+v", path, before.Ctime, e.Ctime, before, e)
	}
}

// joined says whether a name that was another file, changed at ctime or later, is now one of e: no name's ctime goes back.
func (h *history) joined(e Entry, ctime Time, now map[string]Entry) bool {
	for path, other := range now {
		if before, ok := h.entries[path]; ok && other.Ino == e.Ino && before.Ino != e.Ino && ctime.Less(before.Ctime) {
			return true
		}
	}
	return false
}

// changed says whether a file or directory that kept its ino had a change that its ctime must tell.
func (h *history) changed(path string, before, e Entry, now map[string]Entry) bool {
	if e.Type == Directory {
		if children(h.entries, path) != children(now, path) {
			return true
		}
		before.Content, before.Size, before.Used = e.Content, e.Size, e.Used
	}
	before.Ctime, before.Slot, before.Name = e.Ctime, e.Slot, e.Name
	return before != e
}

// children renders the names in a directory with their inos.
func children(all map[string]Entry, dir string) string {
	var lines []string
	for path, e := range all {
		if in, name := split(path); in == dir && path != "." {
			lines = append(lines, fmt.Sprintf("%q %d\n", name, e.Ino))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// mutate makes one random edit.
func mutate(r *rand.Rand, w *world) {
	paths := slices.Sorted(maps.Keys(w.paths()))
	pick := func() string { return paths[r.IntN(len(paths))] }
	names := []string{"a", "b", "c", "d\n\xff", strings.Repeat("n", 255), "e"}
	dir := pick()
	for w.at(dir).kids == nil {
		dir, _ = split(dir)
	}
	path := join(dir, names[r.IntN(len(names))])
	contents := []string{"", "one", "two", "three"}
	some := contents[r.IntN(len(contents))]
	times := []Time{{-5_000_000_000, 1}, {0, 0}, {5_000_000_000, 999_999_999}, {1_700_000_000, 3}}
	switch r.IntN(12) {
	case 0, 1, 2:
		w.set(path, text(some))
	case 3, 4:
		if strings.Count(path, "/") < 4 {
			w.set(path, folder())
		}
	case 5:
		if p := pick(); p != "." {
			w.remove(p)
		}
	case 6, 7:
		if from := pick(); w.at(from).kids == nil && from != path && !strings.HasPrefix(from, path+"/") {
			w.link(from, path)
		}
	case 8:
		w.edit(pick(), func(e *Entry) { e.Mode = uint32(r.IntN(0o10000)); e.UID = r.Uint32() })
	case 9:
		w.edit(pick(), func(e *Entry) { e.Mtime = times[r.IntN(len(times))] })
	case 10:
		if p := pick(); w.at(p).e.Type == Regular {
			w.edit(p, func(e *Entry) { f := text(some); e.Size, e.Used, e.Content = f.Size, f.Used, f.Content })
		}
	case 11:
		odd := []Entry{
			{Type: Symlink, Target: "x\xfe\n", Size: 3, Used: 3}, {Type: FIFO}, {Type: Socket}, {Type: Char, Rdev: Device{1, 1 << 31}},
			{Type: Symlink, Target: "y", Size: 1, Used: 1, Mode: 0o777}, {Type: Block, Rdev: Device{8, 1}},
		}
		w.set(path, odd[r.IntN(len(odd))])
	}
}

// atPageEdge fills a directory's first page but for a few slots and empties it again.
func atPageEdge(f *fleet, h *history, w *world, path string) {
	w.set(path, folder())
	for i := range PageSlots - 6 {
		w.at(path).kids[fmt.Sprintf("%05d", i)] = w.thing(text("x"))
	}
	f.publish(w)
	h.check(w)
	w.at(path).kids = map[string]*thing{}
	w.dirty = nil
	f.publish(w)
	h.check(w)
}

func TestRandomHistoriesKeepEveryRule(t *testing.T) {
	seeds := 150
	if testing.Short() {
		seeds = 40
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(uint64(seed), 1))
			f, w := newFleet(t), newWorld()
			h := newHistory(f)
			if seed%50 == 0 {
				atPageEdge(f, h, w, "a")
			}
			randomHistory(r, f, h, w)
		})
	}
}

// randomHistory publishes random edits, in full and by what is dirty, and rolls back now and then.
func randomHistory(r *rand.Rand, f *fleet, h *history, w *world) {
	type past struct {
		root  Digest
		world *world
	}
	var pasts []past
	for range 25 {
		if len(pasts) > 0 && r.IntN(5) == 0 {
			p := pasts[r.IntN(len(pasts))]
			f.rollBack(p.root)
			w = p.world.clone()
		} else {
			w.dirty = map[string]bool{}
			for range r.IntN(6) {
				mutate(r, w)
			}
			if r.IntN(8) == 0 { // the clock may stand still or go back
				f.now.Sec -= 10
			}
			checkAgree(r, f, w)
		}
		h.check(w)
		checkIdle(f, w)
		pasts = append(pasts, past{f.head.Root, w.clone()})
	}
}

// checkAgree publishes w, and demands that a full listing in any order and one of the dirty names give the same objects.
func checkAgree(r *rand.Rand, f *fleet, w *world) {
	f.t.Helper()
	full := w.clone()
	full.dirty, full.shuffle = nil, r
	other := *f
	want := other.publish(full)
	if f.head.Root.IsZero() {
		w.dirty = nil
	}
	got := f.publish(w)
	if got.Root != want.Root || got.NextIno != want.NextIno {
		f.t.Fatalf("incremental listing of %q gave %s next %d, complete one %s next %d", slices.Sorted(maps.Keys(w.dirty)), got.Root, got.NextIno, want.Root, want.NextIno)
	}
}

// checkIdle publishes the same again: nothing may change and nothing be put.
func checkIdle(f *fleet, w *world) {
	f.t.Helper()
	again := w.clone()
	again.dirty, again.links = nil, nil
	counted := &counter{Objects: f.objs}
	m, err := Merge(f.t.Context(), counted, f.head.Root, again, f.options(again.observe(again.root, "")))
	if err != nil {
		f.t.Fatal(err)
	}
	if m.Changed || m.Root != f.head.Root || m.NextIno != f.head.NextIno || counted.puts.Load() != 0 {
		f.t.Fatalf("publishing the same again: changed %v, next ino %d for %d, %d puts", m.Changed, m.NextIno, f.head.NextIno, counted.puts.Load())
	}
}
