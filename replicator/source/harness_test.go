package source

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/go-git/go-billy/v5"
	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// world is what a published tree looks like: every path with what was observed of it.
type world map[string]tree.Observed

// publish merges what a scan lists into w, as tree.Merge does, and returns the result. asked collects the directories
// that were listed.
func (w world) publish(ctx context.Context, l tree.Lister, asked *[]string) (world, error) {
	next := maps.Clone(w)
	return next, next.dir(ctx, l, ".", w, asked)
}

func (w world) dir(ctx context.Context, l tree.Lister, dir string, old world, asked *[]string) error {
	var prev *tree.Entry
	if o, ok := old[dir]; ok && o.Type == tree.Directory || dir == "." && len(old) > 0 {
		prev = &o.Entry
	}
	li, err := l.List(ctx, dir, prev)
	if err != nil {
		return err
	}
	if asked != nil {
		*asked = append(*asked, dir)
	}
	if li.Complete {
		wanted := map[string]bool{}
		for _, o := range li.Names {
			wanted[o.Name] = true
		}
		for path := range w {
			if d, name := split(path); d == dir && path != "." && !wanted[name] {
				w.remove(path)
			}
		}
	}
	for _, name := range li.Gone {
		w.remove(join(dir, name))
	}
	for _, o := range li.Names {
		path := join(dir, o.Name)
		was, had := old[path]
		if o.Keep {
			continue
		}
		if o.Type != tree.Directory || had && was.Type != tree.Directory {
			w.remove(path)
		}
		w[path] = o
		if o.Type == tree.Directory && (o.Descend || !had || was.Type != tree.Directory) {
			if err := w.dir(ctx, l, path, old, asked); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w world) remove(path string) {
	for p := range w {
		if p == path || strings.HasPrefix(p, path+"/") {
			delete(w, p)
		}
	}
}

// rig is a Source on a real directory.
type rig struct {
	t     *testing.T
	dir   string
	src   *Source
	objs  *counting
	world world
}

// counting is a tree.Memory that counts and can fail.
type counting struct {
	*tree.Memory
	puts count
	fail func() error
}

func (c *counting) Put(ctx context.Context, b []byte) (tree.Digest, error) {
	c.puts.add(1)
	if c.fail != nil {
		if err := c.fail(); err != nil {
			return tree.Digest{}, err
		}
	}
	return c.Memory.Put(ctx, b)
}

func newRig(t *testing.T, change ...func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir(), objs: &counting{Memory: tree.NewMemory()}, world: world{}}
	fs, err := OpenRoot(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Shard: "www", FS: fs, Objects: r.objs, Racy: time.Nanosecond, Quiet: time.Millisecond, MaxWait: time.Second, Logger: zerolog.Nop()}
	for _, f := range change {
		f(&c)
	}
	r.src, err = New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.src.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return r
}

// watch runs the Source with real events.
func (r *rig) watch() *rig {
	r.t.Helper()
	r.src.cfg.Watch = r.dir
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan error, 1)
	go func() { done <- r.src.Run(ctx) }()
	r.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
	})
	<-r.src.Due() // the first scan
	return r
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

func (r *rig) write(name, content string) {
	r.t.Helper()
	r.do(os.MkdirAll(filepath.Dir(r.path(name)), 0o755))
	r.do(os.WriteFile(r.path(name), []byte(content), 0o644))
}

func (r *rig) do(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// scan publishes what a scan finds and commits it. It returns the directories that were listed and the scan.
func (r *rig) scan(full bool) ([]string, *Scan) {
	r.t.Helper()
	sc, err := r.src.Scan(r.t.Context(), full, nil)
	r.do(err)
	var asked []string
	next, err := r.world.publish(r.t.Context(), sc, &asked)
	r.do(err)
	r.world = next
	r.do(sc.Commit())
	return asked, sc
}

// content returns the bytes of a published file.
func (r *rig) content(path string) string {
	r.t.Helper()
	o, ok := r.world[path]
	if !ok {
		r.t.Fatalf("%s is not published; there are %q", path, slices.Sorted(maps.Keys(r.world)))
	}
	b, err := contentOf(r.objs, o.Entry)
	r.do(err)
	return b
}

func contentOf(objs tree.Objects, e tree.Entry) (string, error) {
	ctx := context.Background()
	switch e.Content.Form {
	case tree.NoContent:
		return "", nil
	case tree.Blob:
		b, err := objs.Get(ctx, e.Content.Digest)
		return string(b), err
	}
	list, err := objs.Get(ctx, e.Content.Digest)
	if err != nil {
		return "", err
	}
	extents, err := tree.DecodeChunks(list)
	if err != nil {
		return "", err
	}
	var all strings.Builder
	for _, x := range extents {
		if x.Digest.IsZero() {
			all.WriteString(strings.Repeat("\x00", int(x.Length)))
			continue
		}
		b, err := objs.Get(ctx, x.Digest)
		if err != nil {
			return "", err
		}
		all.Write(b)
	}
	return all.String(), nil
}

// age sets a file's times back. Its ctime stays now: tests that want old files wait for the clock tick by reading.
func (r *rig) age(name string) {
	r.t.Helper()
	old := time.Unix(1_000_000_000, 0)
	r.do(os.Chtimes(r.path(name), old, old))
}

// wantWorld compares what is published with what is in the directory.
func (r *rig) wantWorld() {
	r.t.Helper()
	if diff := diffWorld(r.world, r.fresh()); diff != "" {
		r.t.Fatal(diff)
	}
}

// fresh is what a new Source makes of the directory.
func (r *rig) fresh() world {
	r.t.Helper()
	fs, err := OpenRoot(r.dir)
	r.do(err)
	src, err := New(Config{Shard: "fresh", FS: fs, Objects: r.objs, Quiet: time.Millisecond, Logger: zerolog.Nop()})
	r.do(err)
	defer src.Close()
	sc, err := src.Scan(r.t.Context(), true, nil)
	r.do(err)
	w, err := world{}.publish(r.t.Context(), sc, nil)
	r.do(err)
	r.do(sc.Commit())
	return w
}

func diffWorld(got, want world) string {
	var out []string
	for path, w := range want {
		g, ok := got[path]
		if !ok {
			out = append(out, fmt.Sprintf("%q is not published", path))
			continue
		}
		g.Descend, w.Descend = false, false
		if g != w {
			out = append(out, fmt.Sprintf("%q is published as\n  %+v, is\n  %+v", path, g, w))
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			out = append(out, fmt.Sprintf("%q is published, and is not there", path))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// faulty wraps a source file system: each hook sees an operation before it is done, with the path from the root.
type faulty struct {
	billy.Filesystem
	dir    string
	hooks  *hooks
	counts *counts
}

type hooks struct {
	open    func(path string) error
	read    func(path string) // after the first bytes were read
	readDir func(path string) error
	chroot  func(path string) error
}

// counts tells what a scan asked of the file system.
type counts struct{ lstats, opens, dirs count }

func (f *faulty) Close() error { return closeFS(f.Filesystem) }

func (f *faulty) Reopen() (billy.Filesystem, error) {
	fs, err := f.Filesystem.(interface {
		Reopen() (billy.Filesystem, error)
	}).Reopen()
	return &faulty{fs, ".", f.hooks, f.counts}, err
}

func (f *faulty) Chroot(name string) (billy.Filesystem, error) {
	path := join(f.dir, name)
	if f.hooks.chroot != nil {
		if err := f.hooks.chroot(path); err != nil {
			return nil, err
		}
	}
	sub, err := f.Filesystem.Chroot(name)
	return &faulty{sub, path, f.hooks, f.counts}, err
}

func (f *faulty) Lstat(name string) (os.FileInfo, error) {
	if name != "." {
		f.counts.lstats.add(1)
	}
	return f.Filesystem.Lstat(name)
}

func (f *faulty) ReadDir(name string) ([]os.FileInfo, error) {
	f.counts.dirs.add(1)
	if f.hooks.readDir != nil {
		if err := f.hooks.readDir(f.dir); err != nil {
			return nil, err
		}
	}
	return f.Filesystem.ReadDir(name)
}

func (f *faulty) Open(name string) (billy.File, error) {
	f.counts.opens.add(1)
	path := join(f.dir, name)
	if f.hooks.open != nil {
		if err := f.hooks.open(path); err != nil {
			return nil, err
		}
	}
	file, err := f.Filesystem.Open(name)
	if err != nil {
		return nil, err
	}
	return &faultyFile{file.(rootFile), path, f.hooks}, nil
}

type faultyFile struct {
	rootFile
	path  string
	hooks *hooks
}

func (f *faultyFile) Read(p []byte) (int, error) {
	n, err := f.rootFile.Read(p[:min(len(p), 100)])
	if n > 0 && f.hooks.read != nil {
		f.hooks.read(f.path)
	}
	return n, err
}

func (f *faultyFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.rootFile.ReadAt(p, off)
	if n > 0 && f.hooks.read != nil {
		f.hooks.read(f.path)
	}
	return n, err
}

// withFaults is a Config change that puts hooks between the Source and its directory.
func withFaults(h *hooks, n *counts) func(*Config) {
	return func(c *Config) { c.FS = &faulty{c.FS, ".", h, n} }
}

// stub is a notifier that a test drives.
type stub struct {
	events chan fsnotify.Event
	errs   chan error
	add    func(path string) error
	n      int
}

func newStub() *stub {
	return &stub{events: make(chan fsnotify.Event, 1000), errs: make(chan error, 10)}
}

func (s *stub) Events() <-chan fsnotify.Event { return s.events }
func (s *stub) Errors() <-chan error          { return s.errs }
func (s *stub) Remove(string) error           { return nil }
func (s *stub) Close() error                  { return nil }
func (s *stub) Add(path string) error {
	if s.add != nil {
		return s.add(path)
	}
	return nil
}

func (s *stub) Barrier() (string, error) {
	s.n++
	name := fmt.Sprintf("/barrier/%d", s.n)
	s.events <- fsnotify.Event{Name: name, Op: fsnotify.Create}
	return name, nil
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// count is a counter.
type count struct{ atomic.Int64 }

func (c *count) add(n int64) { c.Add(n) }
