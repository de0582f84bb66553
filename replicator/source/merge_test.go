package source

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// merger publishes scans with tree.Merge, one generation after the other.
type merger struct {
	objs tree.Objects
	root tree.Digest
	gen  uint64
	ino  uint64
}

func newMerger(objs tree.Objects) *merger { return &merger{objs: objs, ino: 1} }

func (m *merger) publish(ctx context.Context, sc *Scan) (tree.Merged, error) {
	out, err := tree.Merge(ctx, m.objs, m.root, sc, tree.MergeOptions{
		Generation: m.gen + 1, NextIno: m.ino, Now: tree.TimeOf(time.Now()), Tag: rand.Uint64, Root: sc.Root(),
	})
	if err == nil {
		m.root, m.ino, m.gen = out.Root, out.NextIno, m.gen+1
	}
	return out, err
}

// scan publishes and commits.
func (m *merger) scan(t *testing.T, s *Source, full bool) (tree.Merged, *Scan) {
	t.Helper()
	sc, err := s.Scan(t.Context(), full, nil)
	if err != nil {
		t.Fatal(err)
	}
	out, err := m.publish(t.Context(), sc)
	if err != nil {
		sc.Abort()
		t.Fatal(err)
	}
	if err := sc.Commit(); err != nil {
		t.Fatal(err)
	}
	return out, sc
}

// describe lists what a reader of the tree sees, a line a path. Names of one file share the first of their paths in
// place of the ino.
func (m *merger) describe(t *testing.T) []string {
	t.Helper()
	var lines []string
	first := map[uint64]string{}
	line := func(path string, e tree.Entry) {
		content, err := contentOf(m.objs, e)
		if e.Type != tree.Regular {
			content, err = "", nil
		}
		if err != nil {
			t.Fatal(path, err)
		}
		if first[e.Ino] == "" {
			first[e.Ino] = path
		}
		size := e.Size
		if e.Type == tree.Directory {
			size = 0
		}
		lines = append(lines, fmt.Sprintf("%q file %q type %d mode %o owner %d:%d links %d size %d mtime %d.%d target %q rdev %v %x",
			path, first[e.Ino], e.Type, e.Mode, e.UID, e.GID, e.Links, size, e.Mtime.Sec, e.Mtime.Nsec, e.Target, e.Rdev, tree.Sum([]byte(content))))
	}
	root, err := tree.LoadRoot(t.Context(), m.objs, m.root)
	if err != nil {
		t.Fatal(err)
	}
	var walk func(path string, e tree.Entry)
	walk = func(path string, e tree.Entry) {
		line(path, e)
		if e.Type != tree.Directory {
			return
		}
		dir, err := tree.LoadDirectory(t.Context(), m.objs, e.Content.Digest)
		if err != nil {
			t.Fatal(path, err)
		}
		var kids []tree.Entry
		for kid, err := range dir.All(t.Context(), m.objs) {
			if err != nil {
				t.Fatal(path, err)
			}
			kids = append(kids, kid)
		}
		slices.SortFunc(kids, func(a, b tree.Entry) int { return strings.Compare(a.Name, b.Name) })
		for _, kid := range kids {
			walk(join(path, kid.Name), kid)
		}
	}
	walk(".", root)
	return lines
}

// editor makes random edits to a directory.
type editor struct {
	t    *testing.T
	r    *rand.Rand
	dir  string
	step int
}

// pick returns a random path of a kind in the directory; "" when there is none.
func (e *editor) pick(want func(fs.DirEntry) bool) string {
	var all []string
	err := filepath.WalkDir(e.dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && want(d) {
			all = append(all, p)
		}
		return err
	})
	if err != nil {
		e.t.Fatal(err)
	}
	if len(all) == 0 {
		return ""
	}
	return all[e.r.IntN(len(all))]
}

func (e *editor) dirPath() string { return e.pick(fs.DirEntry.IsDir) }

func (e *editor) inner() string {
	if d := e.dirPath(); d != e.dir {
		return d
	}
	return ""
}

func (e *editor) file() string {
	return e.pick(func(d fs.DirEntry) bool { return d.Type().IsRegular() })
}

func (e *editor) name() string { return filepath.Join(e.dirPath(), fmt.Sprint("n", e.r.IntN(12))) }

// edit does one thing; that it may fail, or have nothing to do, is part of the game.
func (e *editor) edit() string {
	e.step++
	content := []byte(strings.Repeat(fmt.Sprint(e.step, " "), e.r.IntN(200)))
	switch e.r.IntN(15) {
	case 0, 1, 2:
		p := e.name()
		return fmt.Sprint("write ", p, os.WriteFile(p, content, 0o644))
	case 3:
		p := e.file()
		return fmt.Sprint("overwrite ", p, os.WriteFile(p, content, 0o644))
	case 4:
		p := e.name()
		return fmt.Sprint("mkdir ", p, os.Mkdir(p, 0o755))
	case 5:
		p := e.file()
		return fmt.Sprint("remove ", p, os.Remove(p))
	case 6:
		if p := e.inner(); p != "" && e.r.IntN(3) == 0 {
			return fmt.Sprint("remove tree ", p, os.RemoveAll(p))
		}
		return "nothing"
	case 7:
		p, q := e.file(), e.name()
		return fmt.Sprint("rename ", p, q, os.Rename(p, q))
	case 8:
		p, q := e.inner(), e.name()
		return fmt.Sprint("rename dir ", p, q, os.Rename(p, q))
	case 9:
		p, q := e.file(), e.name()
		return fmt.Sprint("link ", p, q, os.Link(p, q))
	case 10:
		p := e.name()
		return fmt.Sprint("symlink ", p, os.Symlink(fmt.Sprint("to", e.step), p))
	case 11:
		p := e.pick(func(d fs.DirEntry) bool { return d.Type()&fs.ModeSymlink == 0 })
		return fmt.Sprint("chmod ", p, os.Chmod(p, os.FileMode(0o700|e.r.IntN(0o100))))
	case 12:
		p := e.pick(func(d fs.DirEntry) bool { return d.Type()&fs.ModeSymlink == 0 })
		at := time.Unix(e.r.Int64N(1<<31), e.r.Int64N(1e9))
		return fmt.Sprint("touch ", p, os.Chtimes(p, at, at))
	case 13:
		p, q := e.inner(), e.inner()
		return fmt.Sprint("exchange ", p, q, exchange(p, q))
	default:
		p, q := e.file(), filepath.Join(e.dirPath(), "large")
		_ = p
		f, err := os.Create(q)
		if err == nil {
			f.WriteAt(content, int64(e.r.IntN(3))*tree.ChunkSize)
			f.Close()
		}
		return fmt.Sprint("large ", q, err)
	}
}

// Random edits, published by watching and looking at what is dirty, give the tree that a first look at everything
// gives.
func TestIncrementalScansEqualFreshOnes(t *testing.T) {
	rounds, seeds := 20, 4
	if testing.Short() {
		rounds, seeds = 10, 2
	}
	for n := range seeds {
		seed := uint64(time.Now().UnixNano()) + uint64(n)
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(c *Config) { c.Quiet = time.Millisecond; c.State = filepath.Join(t.TempDir(), "state") }).watch()
			e := &editor{t: t, r: rand.New(rand.NewPCG(seed, 1)), dir: r.dir}
			m := newMerger(r.objs)
			incremental := 0
			for round := range rounds {
				var did []string
				for range e.r.IntN(8) {
					did = append(did, e.edit())
				}
				_, sc := m.scan(t, r.src, false)
				if !sc.Full() {
					incremental++
				}
				want := newMerger(r.objs)
				sourceOf(t, r, func(s *Source) { want.scan(t, s, true) })
				if got, want := m.describe(t), want.describe(t); !slices.Equal(got, want) {
					t.Fatalf("seed %d, round %d (full: %q), after\n%s\n%s", seed, round, sc.full, strings.Join(did, "\n"), firstDifference(got, want))
				}
				if w := sc.Warnings(); len(w) > 0 {
					t.Fatalf("seed %d: %q", seed, w)
				}
			}
			if incremental < rounds/4 {
				t.Errorf("seed %d: only %d of %d scans were incremental", seed, incremental, rounds)
			}
		})
	}
}

// sourceOf lends a Source that knows nothing yet of r's directory.
func sourceOf(t *testing.T, r *rig, use func(*Source)) {
	t.Helper()
	fsys, err := OpenRoot(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	c := r.src.cfg
	c.FS, c.Watch, c.State = fsys, "", ""
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	use(s)
}

func firstDifference(got, want []string) string {
	for i := range max(len(got), len(want)) {
		g, w := "(nothing)", "(nothing)"
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			return "got  " + g + "\nwant " + w
		}
	}
	return "no difference"
}

func TestNothingChangedIsTheSameTree(t *testing.T) {
	r := newRig(t, quick).watch()
	for i := range 100 {
		r.write(fmt.Sprintf("d%d/%d", i%7, i), fmt.Sprint(i))
	}
	r.do(os.Link(r.path("d1/1"), r.path("d2/one")))
	m := newMerger(r.objs)
	first, _ := m.scan(t, r.src, false)
	if !first.Changed || first.Files != 101 {
		t.Fatalf("%+v", first)
	}
	puts := r.objs.puts.Load()
	for _, full := range []bool{true, false} {
		again, sc := m.scan(t, r.src, full)
		if again.Changed || again.Root != first.Root || sc.Full() != full {
			t.Fatalf("full %v: changed %v", full, again.Changed)
		}
	}
	if got := r.objs.puts.Load(); got != puts {
		t.Fatalf("%d objects were put for nothing", got-puts)
	}
}

func TestWriterUnderTheScannerIsNeverTorn(t *testing.T) {
	r := newRig(t, quick).watch()
	m := newMerger(r.objs)
	stop, done := make(chan struct{}), make(chan struct{})
	const size = 300_000
	go func() { // a writer that rewrites whole files in place, in pieces
		defer close(done)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			f, err := os.OpenFile(r.path(fmt.Sprint("f", n%5)), os.O_CREATE|os.O_WRONLY, 0o644)
			if err != nil {
				return
			}
			piece := []byte(strings.Repeat(string(rune('a'+n%26)), size/10))
			for range 10 {
				f.Write(piece)
			}
			f.Close()
		}
	}()
	for range 15 {
		m.scan(t, r.src, true)
		root, err := tree.LoadRoot(t.Context(), r.objs, m.root)
		r.do(err)
		dir, err := tree.LoadDirectory(t.Context(), r.objs, root.Content.Digest)
		r.do(err)
		for e, err := range dir.All(t.Context(), r.objs) {
			r.do(err)
			content, err := contentOf(r.objs, e)
			r.do(err)
			if uint64(len(content)) != e.Size {
				t.Fatalf("%s: %d bytes, size %d", e.Name, len(content), e.Size)
			}
		}
	}
	close(stop)
	<-done
	m.scan(t, r.src, true)
	want := newMerger(r.objs)
	sourceOf(t, r, func(s *Source) { want.scan(t, s, true) })
	if got, want := m.describe(t), want.describe(t); !slices.Equal(got, want) {
		t.Fatal(firstDifference(got, want))
	}
}
