package volume_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/exporter/volume"
	"github.com/nfs-fleet/nfs-fleet/exporter/volume/volumetest"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// walk calls fn for every name of a generation, as the tree's objects have it, and for the root, whose path is ".".
func walk(t testing.TB, objs tree.Objects, g tree.Generation, fn func(name string, e tree.Entry, below []tree.Entry)) {
	t.Helper()
	root, err := tree.LoadRoot(context.Background(), objs, g.Root)
	if err != nil {
		t.Fatal(err)
	}
	var visit func(name string, e tree.Entry)
	visit = func(name string, e tree.Entry) {
		if e.Type != tree.Directory {
			fn(name, e, nil)
			return
		}
		obj, err := tree.LoadDirectory(context.Background(), objs, e.Content.Digest)
		if err != nil {
			t.Fatal(err)
		}
		var below []tree.Entry
		for sub, err := range obj.All(context.Background(), objs) {
			if err != nil {
				t.Fatal(err)
			}
			below = append(below, sub)
		}
		fn(name, e, below)
		for _, sub := range below {
			visit(path.Join(name, sub.Name), sub)
		}
	}
	visit(".", root)
}

// model is what a volume has to answer: the entries of the served generation and those that have left the tree.
type model struct {
	present  map[uint64]tree.Entry // by ino; any of its names
	departed map[uint64]departure
}

type departure struct {
	tree.Entry
	generation uint64 // the first without it
}

func (m *model) flip(t testing.TB, objs tree.Objects, g tree.Generation) {
	was := m.present
	m.present = make(map[uint64]tree.Entry)
	walk(t, objs, g, func(_ string, e tree.Entry, _ []tree.Entry) { m.present[e.Ino] = e })
	if m.departed == nil {
		m.departed = make(map[uint64]departure)
	}
	for ino, e := range was {
		if _, ok := m.present[ino]; !ok {
			m.departed[ino] = departure{e, g.Number}
		}
	}
}

func (m *model) forget(before uint64) {
	for ino, d := range m.departed {
		if d.generation <= before {
			delete(m.departed, ino)
		}
	}
}

func handleOf(e tree.Entry) []byte {
	fh := []byte{1}
	for shift := 32; shift >= 0; shift -= 8 {
		fh = append(fh, byte(e.Born>>shift))
	}
	for shift := 40; shift >= 0; shift -= 8 {
		fh = append(fh, byte(e.Ino>>shift))
	}
	for _, v := range []uint64{volumetest.FSID, e.Tag} {
		for shift := 56; shift >= 0; shift -= 8 {
			fh = append(fh, byte(v>>shift))
		}
	}
	return fh
}

// checkNames holds every directory of a State against the generation's objects: names, order, attributes, "." and "..".
func checkNames(t testing.TB, s *volume.State, objs tree.Objects, g tree.Generation) {
	t.Helper()
	if s.Generation() != g.Number || s.Files() != g.Files || s.Bytes() != g.Bytes || s.FSID() != volumetest.FSID {
		t.Fatalf("generation %d with %d files, %d bytes, fsid %x; want %+v", s.Generation(), s.Files(), s.Bytes(), s.FSID(), g)
	}
	walk(t, objs, g, func(name string, e tree.Entry, below []tree.Entry) {
		n, ok := volumetest.Find(s, name)
		if !ok {
			t.Fatalf("generation %d: %s is not there", g.Number, name)
		}
		if got, want := decodeAttr(t, n.Attr()), wantAttr(e); got != want {
			t.Fatalf("generation %d: %s:\n%+v, want\n%+v", g.Number, name, got, want)
		}
		if fh := n.AppendHandle(nil); !bytes.Equal(fh, handleOf(e)) {
			t.Fatalf("generation %d: %s: handle %x, want %x", g.Number, name, fh, handleOf(e))
		}
		if string(n.Target()) != e.Target {
			t.Fatalf("generation %d: %s: target %q, want %q", g.Number, name, n.Target(), e.Target)
		}
		checkListing(t, s, n, below)
		if e.Type != tree.Directory {
			if _, ok := s.Lookup(n, []byte(".")); ok {
				t.Fatalf("%s/. is there", name)
			}
			return
		}
		self, _ := s.Lookup(n, []byte("."))
		up, _ := s.Lookup(n, []byte(".."))
		parent, _ := volumetest.Find(s, path.Dir(name))
		if self.Ino() != e.Ino || up.Ino() != parent.Ino() || !bytes.Equal(up.Attr(), parent.Attr()) {
			t.Fatalf("%s: ino %d has . with %d and .. with %d, want %d", name, e.Ino, self.Ino(), up.Ino(), parent.Ino())
		}
		for _, absent := range []string{"", "absent", "...", name + "?"} {
			if _, ok := s.Lookup(n, []byte(absent)); ok {
				t.Fatalf("%s: %q is there", name, absent)
			}
		}
	})
}

// checkListing holds the listing of dir against its entries: whole, and resumed at slots here and there.
func checkListing(t testing.TB, s *volume.State, dir volume.Node, want []tree.Entry) {
	t.Helper()
	cursor := s.List(dir, 0)
	for _, e := range want {
		slot, name, n, ok := cursor.Next()
		if !ok || slot != e.Slot || string(name) != e.Name || n.Ino() != e.Ino {
			t.Fatalf("listing of ino %d: slot %d %q %v, want %+v", dir.Ino(), slot, name, ok, e)
		}
		found, ok := s.Lookup(dir, []byte(e.Name))
		if !ok || found.Ino() != e.Ino || !bytes.Equal(found.Attr(), n.Attr()) {
			t.Fatalf("lookup of %q in ino %d: %v", e.Name, dir.Ino(), ok)
		}
	}
	for range 2 {
		if slot, name, _, ok := cursor.Next(); ok {
			t.Fatalf("listing of ino %d has slot %d %q behind its end", dir.Ino(), slot, name)
		}
	}
	step := len(want)/50 + 1
	for i := 0; i < len(want); i += step {
		for _, after := range []uint64{want[i].Slot - 1, want[i].Slot} {
			next := slices.IndexFunc(want, func(e tree.Entry) bool { return e.Slot > after })
			cursor := s.List(dir, after)
			slot, _, _, ok := cursor.Next()
			if ok != (next >= 0) || ok && slot != want[next].Slot {
				t.Fatalf("listing of ino %d after %d: slot %d %v", dir.Ino(), after, slot, ok)
			}
		}
	}
	for _, after := range []uint64{1 << 40, 1<<64 - 1} {
		cursor := s.List(dir, after)
		if slot, _, _, ok := cursor.Next(); ok {
			t.Fatalf("listing of ino %d after %d: slot %d", dir.Ino(), after, slot)
		}
	}
}

// checkInos resolves the handle of all that is or was in the tree.
func (m *model) checkInos(t testing.TB, s *volume.State) {
	t.Helper()
	for _, e := range m.present {
		n, err := s.Resolve(handleOf(e))
		if err != nil {
			t.Fatalf("ino %d: %v", e.Ino, err)
		}
		if got, want := decodeAttr(t, n.Attr()), wantAttr(e); got != want {
			t.Fatalf("ino %d:\n%+v, want\n%+v", e.Ino, got, want)
		}
	}
	for _, d := range m.departed {
		n, err := s.Resolve(handleOf(d.Entry))
		if err != nil {
			t.Fatalf("ino %d, gone in %d: %v", d.Ino, d.generation, err)
		}
		d.Links = 0
		if got, want := decodeAttr(t, n.Attr()), wantAttr(d.Entry); got != want {
			t.Fatalf("ino %d, gone in %d:\n%+v, want\n%+v", d.Ino, d.generation, got, want)
		}
		if string(n.Target()) != d.Target {
			t.Fatalf("ino %d, gone in %d: target %q, want %q", d.Ino, d.generation, n.Target(), d.Target)
		}
		checkListing(t, s, n, nil)
		if _, ok := s.Lookup(n, []byte("..")); ok {
			t.Fatalf("ino %d, gone in %d, is in a directory", d.Ino, d.generation)
		}
	}
}

// checkBytes reads all files that are or were in the tree.
func (m *model) checkBytes(t testing.TB, v *volume.Volume, objs tree.Objects) {
	t.Helper()
	check := func(e tree.Entry) {
		if e.Type != tree.Regular || e.Size == 0 {
			return
		}
		want, err := objs.Get(context.Background(), e.Content.Digest)
		if err != nil {
			t.Fatal(err)
		}
		n, err := v.State().Resolve(handleOf(e))
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, len(want)+1)
		count, eof, err := v.Read(context.Background(), n, p, 0)
		if err != nil || !eof || !bytes.Equal(p[:count], want) {
			t.Fatalf("ino %d: read %q, %v, %v; want %q", e.Ino, p[:count], eof, err, want)
		}
	}
	for _, e := range m.present {
		check(e)
	}
	for _, d := range m.departed {
		check(d.Entry)
	}
}

// forest is a wanted tree that is changed at random.
type forest struct {
	rand  *rand.Rand
	files map[string]volumetest.File
	drawn int
}

func (f *forest) list() []volumetest.File {
	var all []volumetest.File
	for _, file := range f.files {
		all = append(all, file)
	}
	slices.SortFunc(all, func(a, b volumetest.File) int { return strings.Compare(a.Name, b.Name) })
	return all
}

func (f *forest) any() (volumetest.File, bool) {
	all := f.list()
	if len(all) == 0 {
		return volumetest.File{}, false
	}
	return all[f.rand.IntN(len(all))], true
}

// remove takes a name away with all that is below it or a link to it.
func (f *forest) remove(name string) {
	for other, file := range f.files {
		if file.Link == name && file.Link != "" {
			delete(f.files, other)
		}
	}
	delete(f.files, name)
	for other := range f.files {
		if strings.HasPrefix(other, name+"/") {
			f.remove(other)
		}
	}
}

// add puts something new somewhere: below a directory that is there, or one that is made for it.
func (f *forest) add() {
	f.drawn++
	dir := "."
	if at, ok := f.any(); ok && f.rand.IntN(3) > 0 {
		if dir = at.Name; at.Type != tree.Directory {
			dir = path.Dir(at.Name)
		}
	}
	name := path.Join(dir, fmt.Sprintf("n%d", f.rand.IntN(40)))
	if _, ok := f.files[name]; ok {
		f.remove(name)
	}
	file := volumetest.File{Entry: tree.Entry{Name: name, Mtime: tree.Time{Sec: int64(f.drawn)}}}
	switch f.rand.IntN(8) {
	case 0, 1:
		file.Type = tree.Directory
	case 2:
		file.Type, file.Target = tree.Symlink, fmt.Sprintf("to %d", f.drawn)
	case 3:
		file.Type, file.Rdev.Minor = tree.Char, uint32(f.drawn)
	case 4:
		if other, ok := f.any(); ok && other.Type == tree.Regular && other.Link == "" && other.Name != name {
			file.Link = other.Name
			break
		}
		fallthrough
	default:
		file.Type, file.Data = tree.Regular, fmt.Sprintf("content %d", f.drawn)
	}
	f.files[name] = file
}

// change makes a few changes.
func (f *forest) change() {
	for range 1 + f.rand.IntN(12) {
		file, ok := f.any()
		switch what := f.rand.IntN(10); {
		case !ok || what < 5:
			f.add()
		case what < 7:
			f.remove(file.Name)
		case file.Link != "":
		case what < 8:
			file.Mode = uint32(f.rand.IntN(0o7777) + 1)
			f.files[file.Name] = file
		case file.Type == tree.Regular:
			f.drawn++
			file.Data = fmt.Sprintf("content %d", f.drawn)
			f.files[file.Name] = file
		}
	}
}

// transcript is everything that a State answers about a generation's tree and about some handles.
func transcript(s *volume.State, handles [][]byte) string {
	var b strings.Builder
	var visit func(dir volume.Node)
	visit = func(dir volume.Node) {
		for cursor := s.List(dir, 0); ; {
			slot, name, n, ok := cursor.Next()
			if !ok {
				return
			}
			found, ok := s.Lookup(dir, name)
			fmt.Fprintf(&b, "%d %d %q %x %x %q %v %v\n", dir.Ino(), slot, name, n.Attr(), n.AppendHandle(nil), n.Target(), ok, found.Ino())
			visit(n)
		}
	}
	fmt.Fprintf(&b, "%d %x\n", s.Generation(), s.Root().Attr())
	visit(s.Root())
	for _, fh := range handles {
		n, err := s.Resolve(fh)
		fmt.Fprintf(&b, "%x: %v", fh, err)
		if err == nil {
			fmt.Fprintf(&b, " %x %q", n.Attr(), n.Target())
		}
		fmt.Fprintln(&b)
	}
	return b.String()
}

// Whatever is published, the volume answers what the tree says; a State from before goes on answering as it did; and a
// master that starts anew answers the same.
func TestRandomGenerations(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			f := &forest{rand: rand.New(rand.NewPCG(seed, 1)), files: make(map[string]volumetest.File)}
			s := volumetest.NewShard(t)
			var m model
			seen := make(map[uint64][]byte) // handles, by ino
			type past struct {
				state *volume.State
				said  string
			}
			var before []past
			forgotten := uint64(0)
			for range 25 {
				f.change()
				handles := slices.Collect(maps.Values(seen))
				if state := s.Volume.State(); state != nil {
					before = append(before, past{state, transcript(state, handles)})
				}
				g := s.Publish(f.list()...)
				m.flip(t, s.Store, g)
				for _, e := range m.present {
					seen[e.Ino] = handleOf(e)
				}
				if g.Number > 10 && f.rand.IntN(2) == 0 {
					forgotten = g.Number - 5
					m.forget(forgotten)
					if err := s.Volume.Forget(t.Context(), forgotten); err != nil {
						t.Fatal(err)
					}
				}
				checkNames(t, s.Volume.State(), s.Store, g)
				m.checkInos(t, s.Volume.State())
				m.checkBytes(t, s.Volume, s.Store)
				if last := len(before) - 1; last >= 0 {
					if now := transcript(before[last].state, handles); now != before[last].said {
						t.Fatalf("a state changed its answers from\n%s to\n%s", before[last].said, now)
					}
				}
			}
			first := slices.IndexFunc(s.Generations, func(g tree.Generation) bool { return g.Number >= forgotten })
			checkRestore(t, s, s.Generations[first:], slices.Collect(maps.Values(seen)))
		})
	}
}

// checkRestore holds a volume that is restored from the retained generations against one that was flipped to each.
func checkRestore(t *testing.T, s *volumetest.Shard, retained []tree.Generation, handles [][]byte) {
	t.Helper()
	v := volume.New(volumetest.FSID, s.Store, zerolog.Nop())
	if err := v.Restore(t.Context(), retained); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(handles, bytes.Compare)
	if got, want := transcript(v.State(), handles), transcript(s.Volume.State(), handles); got != want {
		t.Fatalf("restored:\n%s\nflipped:\n%s", got, want)
	}
}
