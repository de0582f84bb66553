package source

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// appended is an Objects that keeps directories in memory, as a test needs them, and appends all else to one file, as
// a pack does.
type appended struct {
	*tree.Memory
	mu   sync.Mutex
	has  map[tree.Digest]struct{}
	file *os.File
}

func newAppended(b *testing.B) *appended {
	b.Helper()
	f, err := os.CreateTemp(b.TempDir(), "pack")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	return &appended{Memory: tree.NewMemory(), has: map[tree.Digest]struct{}{}, file: f}
}

func (a *appended) Put(ctx context.Context, p []byte) (tree.Digest, error) {
	if len(p) > 4 && string(p[:4]) == "nfsf" || len(p) < 256 {
		return a.Memory.Put(ctx, p)
	}
	d := tree.Sum(p)
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.has[d]; ok {
		return d, nil
	}
	a.has[d] = struct{}{}
	_, err := a.file.Write(p)
	a.Memory.Put(ctx, nil)
	return d, err
}

func (a *appended) Has(d tree.Digest) bool {
	a.mu.Lock()
	_, ok := a.has[d]
	a.mu.Unlock()
	return ok || a.Memory.Has(d)
}

func benchSource(b *testing.B, dir string, objs tree.Objects) *Source {
	b.Helper()
	fsys, err := OpenRoot(dir)
	if err != nil {
		b.Fatal(err)
	}
	s, err := New(Config{FS: fsys, Objects: objs, State: filepath.Join(b.TempDir(), "state"), Racy: time.Nanosecond, Quiet: time.Millisecond, Logger: zerolog.Nop()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}

func benchScan(b *testing.B, s *Source, full bool) int {
	b.Helper()
	sc, err := s.Scan(b.Context(), full, nil)
	if err != nil {
		b.Fatal(err)
	}
	n := walkAll(b, sc, ".", &tree.Entry{})
	if err := sc.Commit(); err != nil {
		b.Fatal(err)
	}
	return n
}

// walkAll lists what a merge would list, without the cost of merging.
func walkAll(b *testing.B, l tree.Lister, dir string, prev *tree.Entry) int {
	li, err := l.List(b.Context(), dir, prev)
	if err != nil {
		b.Fatal(err)
	}
	n := len(li.Names)
	for _, o := range li.Names {
		if o.Descend {
			n += walkAll(b, l, join(dir, o.Name), &o.Entry)
		}
	}
	return n
}

// BenchmarkFirstScan reads everything: NFS_FLEET_BENCH_DIR, or the Go source tree.
func BenchmarkFirstScan(b *testing.B) {
	dir := os.Getenv("NFS_FLEET_BENCH_DIR")
	if dir == "" {
		dir = filepath.Join(os.Getenv("GOROOT"), "src")
		if dir == "src" {
			dir = "/usr/local/go/src"
		}
	}
	if _, err := os.Stat(dir); err != nil {
		b.Skip(err)
	}
	for b.Loop() {
		b.StopTimer()
		s := benchSource(b, dir, newAppended(b))
		b.StartTimer()
		b.ReportMetric(float64(benchScan(b, s, true)), "names")
	}
}

// bigTree makes 100,000 small files in so many directories.
func bigTree(b *testing.B, dirs int) string {
	b.Helper()
	dir := b.TempDir()
	for i := range 100_000 {
		d := filepath.Join(dir, fmt.Sprint("d", i%dirs))
		if i < dirs {
			os.Mkdir(d, 0o755)
		}
		if err := os.WriteFile(filepath.Join(d, fmt.Sprint("f", i)), fmt.Append(nil, i), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	return dir
}

// BenchmarkScan100k scans a tree of 100,000 files that is known: all of it, and one dirty name of it.
func BenchmarkScan100k(b *testing.B) {
	for _, dirs := range []int{1000, 1} {
		dir := bigTree(b, dirs)
		s := benchSource(b, dir, tree.NewMemory())
		s.cfg.Watch = dir
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		<-s.Due()
		benchScan(b, s, false)
		b.Run(fmt.Sprintf("full/dirs=%d", dirs), func(b *testing.B) {
			for b.Loop() {
				benchScan(b, s, true)
			}
		})
		b.Run(fmt.Sprintf("one/dirs=%d", dirs), func(b *testing.B) {
			n := 0
			for b.Loop() {
				b.StopTimer()
				n++
				if err := os.WriteFile(filepath.Join(dir, "d0", "f0"), fmt.Append(nil, "v", n), 0o644); err != nil {
					b.Fatal(err)
				}
				time.Sleep(tick) // the quiet period is longer
				b.StartTimer()
				if got := benchScan(b, s, false); got > 10 {
					b.Fatalf("%d names", got)
				}
			}
		})
		cancel()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
}
