package tree

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// thing is a file or a directory of a world: what a source file system would hold. A file with several names is one
// thing in several places.
type thing struct {
	id   uint64
	e    Entry // attributes, content, target, rdev; no name, no numbers
	kids map[string]*thing
	keep bool // cannot be read just now
}

// world is the model that Merge is checked against: an in-memory tree that edits are made to, and a Lister of it.
type world struct {
	root   *thing
	lastID uint64
	// dirty are the paths that have changed since the last merge; nil lists everything.
	dirty   map[string]bool
	shuffle *rand.Rand // order of listings; nil: byte order
	links   map[*thing][]string
	listed  []string // directories that were asked for
}

func newWorld() *world {
	w := &world{}
	w.root = w.thing(Entry{Type: Directory, Mode: 0o755, Mtime: Time{1, 2}})
	return w
}

func (w *world) thing(e Entry) *thing {
	w.lastID++
	t := &thing{id: w.lastID, e: e}
	if e.Type == Directory {
		t.kids = make(map[string]*thing)
	}
	return t
}

// text returns the entry of a regular file with these bytes.
func text(content string) Entry {
	e := Entry{Type: Regular, Mode: 0o644, UID: 1000, GID: 100, Mtime: Time{1_700_000_000, 5}, Size: uint64(len(content)), Used: uint64(len(content))}
	if content != "" {
		e.Content = Content{Blob, Sum([]byte(content))}
	}
	return e
}

func folder() Entry { return Entry{Type: Directory, Mode: 0o755, Mtime: Time{1_600_000_000, 7}} }

func split(path string) (dir, name string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return ".", path
}

// at returns the thing at a path, nil when there is none.
func (w *world) at(path string) *thing {
	t := w.root
	if path == "." {
		return t
	}
	for name := range strings.SplitSeq(path, "/") {
		if t == nil || t.kids == nil {
			return nil
		}
		t = t.kids[name]
	}
	return t
}

func (w *world) mark(paths ...string) {
	if w.dirty == nil {
		w.dirty = make(map[string]bool)
	}
	for _, p := range paths {
		w.dirty[p] = true
	}
}

// touch marks a thing's names: all of them, as a source does.
func (w *world) touch(t *thing) { w.mark(w.names()[t]...) }

// set puts a new thing at path, in the place of what is there.
func (w *world) set(path string, e Entry) *thing {
	t := w.thing(e)
	w.put(path, t)
	return t
}

func (w *world) put(path string, t *thing) {
	w.remove(path)
	dir, name := split(path)
	w.at(dir).kids[name] = t
	w.touch(t)
	w.mark(path)
}

func (w *world) remove(path string) {
	dir, name := split(path)
	t := w.at(path)
	if t == nil {
		return
	}
	for p, inside := range w.paths() {
		if p == path || strings.HasPrefix(p, path+"/") {
			w.touch(inside)
		}
	}
	delete(w.at(dir).kids, name)
	w.mark(path)
}

func (w *world) link(from, to string) { w.put(to, w.at(from)) }

func (w *world) edit(path string, fn func(*Entry)) {
	t := w.at(path)
	fn(&t.e)
	w.touch(t)
	w.mark(path)
}

// paths returns everything in the world.
func (w *world) paths() map[string]*thing {
	all := make(map[string]*thing)
	var walk func(path string, t *thing)
	walk = func(path string, t *thing) {
		all[path] = t
		for name, kid := range t.kids {
			walk(join(path, name), kid)
		}
	}
	walk(".", w.root)
	return all
}

// names returns the paths of each thing, sorted.
func (w *world) names() map[*thing][]string {
	out := make(map[*thing][]string)
	for path, t := range w.paths() {
		out[t] = append(out[t], path)
	}
	for _, paths := range out {
		slices.Sort(paths)
	}
	return out
}

// clone returns an independent copy.
func (w *world) clone() *world {
	copies := make(map[*thing]*thing)
	var dup func(*thing) *thing
	dup = func(t *thing) *thing {
		if c := copies[t]; c != nil {
			return c
		}
		c := &thing{id: t.id, e: t.e, keep: t.keep}
		copies[t] = c
		if t.kids != nil {
			c.kids = make(map[string]*thing)
			for name, kid := range t.kids {
				c.kids[name] = dup(kid)
			}
		}
		return c
	}
	return &world{root: dup(w.root), lastID: w.lastID, dirty: maps.Clone(w.dirty), shuffle: w.shuffle}
}

// observe returns the thing as a Lister tells of it, with numbers that must be ignored.
func (w *world) observe(t *thing, name string) Observed {
	o := Observed{Entry: t.e, Keep: t.keep}
	o.Name, o.Ino, o.Tag, o.Slot, o.Born, o.Ctime = name, 999_999, 7, 888, 777, Time{666, 5}
	o.Links = 3 // a hint, and a wrong one
	if t.kids == nil && len(w.links[t]) > 1 {
		o.Link = LinkID{3, t.id}
	}
	return o
}

// inside reports whether anything below a directory is dirty.
func (w *world) inside(dir string) bool {
	for p := range w.dirty {
		if dir == "." || strings.HasPrefix(p, dir+"/") {
			return true
		}
	}
	return false
}

// List is the Lister: complete, or of the dirty names only.
func (w *world) List(_ context.Context, dir string, prev *Entry) (Listing, error) {
	if w.links == nil {
		w.links = w.names()
	}
	w.listed = append(w.listed, dir)
	t := w.at(dir)
	if t == nil || t.kids == nil {
		return Listing{}, fmt.Errorf("asked for %q", dir)
	}
	l := Listing{Complete: w.dirty == nil || prev == nil}
	for _, name := range slices.Sorted(maps.Keys(t.kids)) {
		path := join(dir, name)
		o := w.observe(t.kids[name], name)
		o.Descend = l.Complete || w.inside(path)
		if l.Complete || w.dirty[path] || o.Type == Directory && o.Descend {
			l.Names = append(l.Names, o)
		}
	}
	if !l.Complete {
		for p := range w.dirty {
			if in, name := split(p); in == dir && p != "." && t.kids[name] == nil {
				l.Gone = append(l.Gone, name)
			}
		}
	}
	if w.shuffle != nil {
		w.shuffle.Shuffle(len(l.Names), func(i, j int) { l.Names[i], l.Names[j] = l.Names[j], l.Names[i] })
	}
	return l, nil
}

// fleet is one shard in a test: its objects and the head.
type fleet struct {
	t    testing.TB
	objs Objects
	head Merged
	gen  uint64
	now  Time
}

func newFleet(t testing.TB) *fleet {
	return &fleet{t: t, objs: NewMemory(), now: Time{1_800_000_000, 0}}
}

// options are those of the next merge. The tags are the same each time.
func (f *fleet) options(root Observed) MergeOptions {
	tag := f.gen * 1_000_003
	return MergeOptions{Generation: f.gen + 1, NextIno: f.head.NextIno, Now: f.now, Root: root, Tag: func() uint64 { tag++; return tag }}
}

// publish merges a world onto the head.
func (f *fleet) publish(w *world) Merged {
	f.t.Helper()
	w.links, w.listed = nil, nil
	return f.advance(w, w.observe(w.root, ""))
}

// rollBack merges an older root onto the head.
func (f *fleet) rollBack(root Digest) Merged {
	f.t.Helper()
	l, e, err := FromTree(f.objs, root, f.head.Root)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.advance(l, Observed{Entry: e})
}

func (f *fleet) advance(l Lister, root Observed) Merged {
	f.t.Helper()
	m, err := Merge(f.t.Context(), f.objs, f.head.Root, l, f.options(root))
	if err != nil {
		f.t.Fatal(err)
	}
	if m.Changed != (m.Root != f.head.Root) {
		f.t.Fatalf("changed %v from %s to %s", m.Changed, f.head.Root, m.Root)
	}
	if m.Changed {
		f.gen++
	}
	f.head = m
	f.now.Sec++
	return m
}

// get returns the entry at a path of the head.
func (f *fleet) get(path string) Entry {
	f.t.Helper()
	e, err := Lookup(f.t.Context(), f.objs, f.head.Root, path)
	if err != nil {
		f.t.Fatal(err)
	}
	return e
}

// entries returns the whole tree, and checks the header of every directory on the way.
func (f *fleet) entries(root Digest) map[string]Entry {
	f.t.Helper()
	e, err := LoadRoot(f.t.Context(), f.objs, root)
	if err != nil {
		f.t.Fatal(err)
	}
	all := make(map[string]Entry)
	f.walk(all, ".", e)
	return all
}

func (f *fleet) walk(all map[string]Entry, path string, e Entry) (sum totals) {
	f.t.Helper()
	all[path] = e
	if e.Type != Directory {
		return totals{1, e.Size}
	}
	dir, err := LoadDirectory(f.t.Context(), f.objs, e.Content.Digest)
	if err != nil {
		f.t.Fatal(err)
	}
	var entries, subdirs uint64
	for kid, err := range dir.All(f.t.Context(), f.objs) {
		if err != nil {
			f.t.Fatal(err)
		}
		if _, twice := all[join(path, kid.Name)]; twice {
			f.t.Fatalf("%q is there twice", join(path, kid.Name))
		}
		below := f.walk(all, join(path, kid.Name), kid)
		sum.files, sum.bytes = sum.files+below.files, sum.bytes+below.bytes
		entries++
		if kid.Type == Directory {
			subdirs++
		}
	}
	if dir.Entries != entries || dir.Subdirs != subdirs || dir.Files != sum.files || dir.Bytes != sum.bytes || uint64(e.Links) != 2+subdirs {
		f.t.Fatalf("%q: header %+v, links %d; it has %d entries, %d directories, %+v", path, dir, e.Links, entries, subdirs, sum)
	}
	return sum
}
