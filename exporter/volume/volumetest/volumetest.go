// Package volumetest makes volumes in memory for the tests of those who serve them: from a list of files, through the
// objects and the merge that a publish uses, so that inos, slots and ctimes are what they would be.
//
// A Shard owns its Store and its Volume, and is used from one goroutine; its Volume and Store may be used from any.
package volumetest

import (
	"cmp"
	"context"
	"path"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/exporter/volume"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// FSID is the fsid of a Shard's volume.
const FSID = 0x6e66_735f_666c_7431

// File is a name in the wanted tree. Of the Entry, Name is the path from the root without a leading slash ("." for the
// root); Type is regular when it is 0, Mode 0755 for directories and else 0644; Size and Used follow from what else is
// given. Directories that are only named in paths need not be listed.
type File struct {
	tree.Entry
	Data    string   // what a regular file holds, or
	Extents []Extent // the same, with holes
	Link    string   // the path of another File, which this is a further name of; all else is taken from there
}

// Extent is a stretch of a file: Data, or as many zeros as Hole says that take no space.
type Extent struct {
	Data string
	Hole uint64
}

// Shard is a shard with its history.
type Shard struct {
	Volume      *volume.Volume
	Store       *Store
	Generations []tree.Generation // in ascending order; the last is the head

	tb  testing.TB
	tag uint64
}

// New returns a Shard whose first generation holds files, and whose Volume serves it.
func New(tb testing.TB, files ...File) *Shard {
	tb.Helper()
	s := NewShard(tb)
	s.Publish(files...)
	return s
}

// NewShard returns a Shard without a generation.
func NewShard(tb testing.TB) *Shard {
	store := NewStore()
	v := volume.New(FSID, store, zerolog.Nop())
	return &Shard{Volume: v, Store: store, tb: tb}
}

// Head returns the last generation.
func (s *Shard) Head() tree.Generation {
	if len(s.Generations) == 0 {
		return tree.Generation{NextIno: 1}
	}
	return s.Generations[len(s.Generations)-1]
}

// Publish makes a generation that holds files, and nothing else, and flips the volume to it.
func (s *Shard) Publish(files ...File) tree.Generation {
	s.tb.Helper()
	g := s.Stage(files...)
	if err := s.Volume.Flip(context.Background(), g); err != nil {
		s.tb.Fatalf("flip: %v", err)
	}
	return g
}

// Stage makes a generation that holds files, and nothing else; it is not served.
func (s *Shard) Stage(files ...File) tree.Generation {
	s.tb.Helper()
	l := &lister{dirs: map[string][]tree.Observed{".": nil}}
	l.root.Entry = tree.Entry{Type: tree.Directory, Mode: 0o755}
	links := make(map[string]int)
	for i := range files {
		if files[i].Link != "" {
			links[files[i].Link] = 0
		}
	}
	byPath := make(map[string]*File, len(links))
	for i := range files {
		if _, ok := links[files[i].Name]; ok {
			byPath[files[i].Name], links[files[i].Name] = &files[i], i+1
		}
	}
	for i := range files {
		f, link := &files[i], files[i].Name
		if f.Link != "" {
			other := byPath[f.Link]
			if other == nil {
				s.tb.Fatalf("%s is a link to %s, which is not there", f.Name, f.Link)
			}
			to := *other
			to.Name = f.Name
			f, link = &to, f.Link
		}
		o := s.observe(f)
		if n := links[link]; n > 0 {
			o.Link = tree.LinkID{Dev: 1, Ino: uint64(n)}
		}
		l.add(f.Name, o)
	}
	head := s.Head()
	number := head.Number + 1
	m, err := tree.Merge(context.Background(), s.Store, head.Root, l, tree.MergeOptions{
		Generation: number, NextIno: head.NextIno, Now: tree.Time{Sec: 1_700_000_000 + int64(number)},
		Tag: s.draw, Root: l.root,
	})
	if err != nil {
		s.tb.Fatalf("merge: %v", err)
	}
	g := tree.Generation{Number: number, Root: m.Root, Files: m.Files, Bytes: m.Bytes, NextIno: m.NextIno}
	s.Generations = append(s.Generations, g)
	return g
}

// draw returns tags that are the same in every run.
func (s *Shard) draw() uint64 {
	s.tag++
	return s.tag * 0x9e37_79b9_7f4a_7c15
}

// Node returns what is at a path in the served generation.
func (s *Shard) Node(name string) volume.Node {
	s.tb.Helper()
	n, ok := Find(s.Volume.State(), name)
	if !ok {
		s.tb.Fatalf("%s is not there", name)
	}
	return n
}

// Handle returns the handle of what is at a path in the served generation.
func (s *Shard) Handle(name string) []byte {
	s.tb.Helper()
	return s.Node(name).AppendHandle(nil)
}

// Find returns what is at a slash-separated path in a State; "." is the root.
func Find(s *volume.State, name string) (n volume.Node, ok bool) {
	n, ok = s.Root(), true
	if name == "." {
		return n, true
	}
	for part := range strings.SplitSeq(name, "/") {
		if n, ok = s.Lookup(n, []byte(part)); !ok {
			return n, false
		}
	}
	return n, true
}

// observe stores a file's content and says what a scan would.
func (s *Shard) observe(f *File) tree.Observed {
	e := f.Entry
	e.Type = cmp.Or(e.Type, tree.Regular)
	e.Mode = cmp.Or(e.Mode, map[bool]uint32{true: 0o755, false: 0o644}[e.Type == tree.Directory])
	e.Name = path.Base(f.Name)
	switch e.Type {
	case tree.Regular:
		extents := f.Extents
		if f.Data != "" {
			extents = append([]Extent{{Data: f.Data}}, extents...)
		}
		s.content(&e, extents)
	case tree.Symlink:
		e.Size, e.Used = uint64(len(e.Target)), uint64(len(e.Target))
	}
	return tree.Observed{Entry: e, Descend: true}
}

// content stores extents and says so in e.
func (s *Shard) content(e *tree.Entry, extents []Extent) {
	var list []tree.Extent
	e.Size, e.Used = 0, 0
	for _, x := range extents {
		e.Size += uint64(len(x.Data)) + x.Hole
		e.Used += uint64(len(x.Data))
	}
	if e.Size == 0 {
		return
	}
	if e.Size <= tree.ChunkSize {
		var whole strings.Builder
		for _, x := range extents {
			whole.WriteString(x.Data)
			whole.Write(make([]byte, x.Hole))
		}
		e.Content = tree.Content{Form: tree.Blob, Digest: s.put([]byte(whole.String()))}
		return
	}
	for _, x := range extents {
		for data := x.Data; len(data) > 0; {
			n := min(len(data), tree.ChunkSize)
			list = append(list, tree.Extent{Length: uint64(n), Digest: s.put([]byte(data[:n]))})
			data = data[n:]
		}
		if x.Hole > 0 {
			list = append(list, tree.Extent{Length: x.Hole})
		}
	}
	e.Content = tree.Content{Form: tree.Chunks, Digest: s.put(tree.EncodeChunks(list))}
}

func (s *Shard) put(b []byte) tree.Digest {
	d, err := s.Store.Put(context.Background(), b)
	if err != nil {
		s.tb.Fatalf("put: %v", err)
	}
	return d
}

// lister is a tree.Lister that lists everything.
type lister struct {
	root tree.Observed
	dirs map[string][]tree.Observed
}

// List is tree.Lister's.
func (l *lister) List(_ context.Context, dir string, _ *tree.Entry) (tree.Listing, error) {
	return tree.Listing{Complete: true, Names: l.dirs[dir]}, nil
}

// add puts o at a path, and directories above it where there are none.
func (l *lister) add(name string, o tree.Observed) {
	if name == "." {
		o.Name = ""
		l.root = o
		return
	}
	parent := path.Dir(name)
	l.need(parent)
	if o.Type == tree.Directory {
		if _, ok := l.dirs[name]; ok { // made by something below it
			for i := range l.dirs[parent] {
				if l.dirs[parent][i].Name == o.Name {
					l.dirs[parent][i] = o
				}
			}
			return
		}
		l.dirs[name] = nil
	}
	l.dirs[parent] = append(l.dirs[parent], o)
}

// need makes a directory if it is not there.
func (l *lister) need(dir string) {
	if _, ok := l.dirs[dir]; ok {
		return
	}
	parent := path.Dir(dir)
	l.need(parent)
	l.dirs[dir] = nil
	l.dirs[parent] = append(l.dirs[parent], tree.Observed{
		Entry: tree.Entry{Name: path.Base(dir), Type: tree.Directory, Mode: 0o755}, Descend: true,
	})
}
