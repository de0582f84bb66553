package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// dropCache makes the kernel forget the pages of a synced blob's file.
func dropCache(t *testing.T, b Blob) {
	t.Helper()
	if err := unix.Fadvise(b.file.fd, 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
}

// faults makes operations on a disk fail: all of those named, on paths that contain the given text.
type faults struct {
	mu   sync.Mutex
	errs map[string]error // by operation
	path string
	hits int
}

func (f *faults) disk() *disk {
	return &disk{fault: func(op, path string) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		short := filepath.Base(filepath.Dir(path)) + "/" + filepath.Base(path) // the test's directory has names too
		if err := f.errs[op]; err != nil && strings.Contains(short, f.path) {
			f.hits++
			return err
		}
		return nil
	}}
}

func (f *faults) set(op string, err error, path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.errs, f.path, f.hits = map[string]error{op: err}, path, 0
}

func (f *faults) heal(t *testing.T) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hits == 0 {
		t.Errorf("no operation failed: %v on %q", f.errs, f.path)
	}
	f.errs = nil
}

// Whatever step of a Put fails, the store is as it was, and the same Put succeeds when the disk is well again.
func TestPutFails(t *testing.T) {
	for _, c := range []struct {
		op, path string
		size     int
		err      error
	}{
		{"create", "packs", 100, unix.ENOSPC}, {"write", "packs", 100, unix.ENOSPC}, {"write", "packs", 100, unix.EDQUOT},
		{"write", "packs", 100, unix.EIO}, {"create", "tmp", 3000, unix.ENOSPC}, {"write", "tmp", 3000, unix.ENOSPC},
		{"write", "tmp", 3000, unix.EIO},
	} {
		for _, before := range []int{0, 3} {
			t.Run(c.op+" "+c.err.Error(), func(t *testing.T) {
				f, dir := new(faults), t.TempDir()
				s := openDisk(t, dir, small, f.disk())
				for i := range before {
					mustPut(t, s, object(i, 50))
				}
				if c.op == "create" && c.path == "packs" && before > 0 {
					for i := 10; s.active.size.Load() < small.PackSize; i++ {
						mustPut(t, s, object(i, 500))
					}
				}
				was := s.Stats()
				b := object(99, c.size)
				f.set(c.op, c.err, c.path)
				_, err := s.Put(t.Context(), b)
				if !errors.Is(err, c.err) || errors.Is(err, ErrFull) != (c.err != unix.EIO) {
					t.Errorf("Put: %v", err)
				}
				f.heal(t)
				mustLack(t, s, b)
				if now := s.Stats(); now.Objects != was.Objects || now.Disk != was.Disk || now.LargeFiles != was.LargeFiles {
					t.Errorf("stats: %+v, were %+v", now, was)
				}
				if names, _ := readNames(filepath.Join(dir, "tmp")); len(names) > 0 {
					t.Errorf("left in tmp: %v", names)
				}
				mustPut(t, s, b)
				mustSync(t, s)
				s = openStore(t, copyStore(t, dir), small)
				mustHold(t, s, b)
				for i := range before {
					mustHold(t, s, object(i, 50))
				}
			})
		}
	}
}

// After a failed Sync what was put since the one before is missing, not doubtful, and can be put again.
func TestSyncFails(t *testing.T) {
	for _, c := range []struct{ op, path string }{
		{"fsync", "packs"}, {"syncdir", "packs"}, {"fsync", "tmp"}, {"rename", "large"}, {"syncdir", "large"},
	} {
		t.Run(c.op+" "+c.path, func(t *testing.T) {
			f, dir := new(faults), t.TempDir()
			s := openDisk(t, dir, small, f.disk())
			older := object(0, 2000)
			if c.op != "syncdir" {
				older = object(0, 100)
			}
			mustPut(t, s, older)
			mustSync(t, s)
			size := 100
			if c.path != "packs" {
				size = 3000
			}
			blob, err := s.OpenBlob(mustPut(t, s, object(1, size)))
			if err != nil {
				t.Fatal(err)
			}
			f.set(c.op, unix.EIO, c.path)
			if err := s.Sync(t.Context()); !errors.Is(err, unix.EIO) {
				t.Fatalf("Sync: %v", err)
			}
			f.heal(t)
			mustLack(t, s, object(1, size))
			mustHold(t, s, older)
			if n, err := blob.ReadAt(make([]byte, size), 0); n != size || err != nil {
				t.Errorf("a Blob opened before: %d, %v", n, err)
			}
			blob.Close()
			mustSync(t, s)
			mustPut(t, s, object(1, size))
			mustSync(t, s)
			if st := s.Stats(); st.Objects != 2 {
				t.Errorf("stats: %+v", st)
			}
			s = openStore(t, copyStore(t, dir), small)
			mustHold(t, s, object(1, size))
			mustHold(t, s, older)
		})
	}
}

// Everyone who holds the store hears that somebody's sync failed: it may have been his objects.
func TestSyncFailureReachesAllHolders(t *testing.T) {
	f := new(faults)
	s := openDisk(t, t.TempDir(), small, f.disk())
	mine, other := s.Hold(), s.Hold()
	mustPut(t, s, object(1, 100))
	f.set("fsync", unix.EIO, "packs")
	if err := s.Sync(t.Context()); !errors.Is(err, unix.EIO) {
		t.Fatalf("Sync: %v", err)
	}
	f.heal(t)
	for range 2 {
		if err := s.Sync(t.Context()); !errors.Is(err, unix.EIO) {
			t.Fatalf("Sync of another: %v", err)
		}
	}
	mine()
	mine()
	if err := s.Sync(t.Context()); !errors.Is(err, unix.EIO) {
		t.Fatalf("Sync while one still holds: %v", err)
	}
	other()
	defer s.Hold()()
	mustSync(t, s)
}

// An index file that cannot be written is no reason to fail: the next Open scans.
func TestIndexFileFails(t *testing.T) {
	f, dir := new(faults), t.TempDir()
	s := openDisk(t, dir, small, f.disk())
	f.set("create", unix.ENOSPC, "tmp")
	for i := range 40 {
		mustPut(t, s, object(i, 400))
	}
	mustSync(t, s)
	f.heal(t)
	s = openStore(t, copyStore(t, dir), small)
	for i := range 40 {
		mustHold(t, s, object(i, 400))
	}
}

func TestReadFails(t *testing.T) {
	f := new(faults)
	s := openDisk(t, t.TempDir(), small, f.disk())
	for _, size := range []int{100, 3000} {
		d := mustPut(t, s, object(1, size))
		blob, err := s.OpenBlob(d)
		if err != nil {
			t.Fatal(err)
		}
		f.set("read", unix.EIO, "")
		if _, err := s.Get(t.Context(), d); !errors.Is(err, unix.EIO) || errors.Is(err, tree.ErrMissing) {
			t.Errorf("Get: %v", err)
		}
		if _, err := blob.ReadAt(make([]byte, 10), 0); !errors.Is(err, unix.EIO) {
			t.Errorf("ReadAt: %v", err)
		}
		f.heal(t)
		blob.Close()
		mustHold(t, s, object(1, size)) // a failed read condemns nothing
	}
}

// Faults in every step of giving back space lose no object that is alive.
func TestCollectFails(t *testing.T) {
	for _, c := range []struct{ op, path string }{
		{"create", "tmp"}, {"write", "tmp"}, {"fsync", "tmp"}, {"truncate", "tmp"}, {"rename", ".idx"}, {"rename", ".pack"},
		{"syncdir", "packs"}, {"remove", "packs"}, {"remove", "large"}, {"read", "packs"},
	} {
		t.Run(c.op+" "+c.path, func(t *testing.T) {
			f, dir := new(faults), t.TempDir()
			s := openDisk(t, dir, small, f.disk())
			for i := range 60 {
				mustPut(t, s, object(i, 400+i%3*600))
			}
			mustSync(t, s)
			keep := func(_ context.Context, live func(tree.Digest) bool) error {
				for i := 0; i < 60; i += 7 {
					live(tree.Sum(object(i, 400+i%3*600)))
				}
				return nil
			}
			f.set(c.op, unix.EIO, c.path)
			_, err := s.Collect(t.Context(), keep)
			f.heal(t)
			if err == nil && c.op != "read" {
				t.Error("nobody heard of the fault")
			}
			for _, s := range []*Store{s, openStore(t, copyStore(t, dir), small)} {
				for range 2 {
					for i := 0; i < 60; i += 7 {
						mustHold(t, s, object(i, 400+i%3*600))
					}
					if _, err := s.Collect(t.Context(), keep); err != nil {
						t.Fatal(err)
					}
				}
				if st := s.Stats(); st.Objects != 9 || st.Disk != onDisk(t, s.dir) {
					t.Errorf("%d bytes on disk; stats: %+v", onDisk(t, s.dir), st)
				}
			}
		})
	}
}

// TestFullDisk fills a real file system of 4 MiB, makes room, and fills it again.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("a small tmpfs cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	o := Options{PackSize: 1 << 20, LargeSize: 100_000, Reserve: 1} // to the last byte
	s := openStore(t, dir, o)
	size := func(i int) int { return []int{30_000, 5_000, 150_000}[i%3] }
	next := 0
	for round := range 4 {
		var held []int
		var err error
		for ; err == nil; next++ {
			if _, err = s.Put(t.Context(), object(next, size(next))); err == nil {
				if err = s.Sync(t.Context()); err == nil {
					held = append(held, next)
				}
			}
		}
		if !errors.Is(err, ErrFull) || !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("round %d: a full disk: %v", round, err)
		}
		if len(held) < 10 {
			t.Fatalf("round %d: full after %d objects", round, len(held))
		}
		for range 2 {
			for _, i := range held {
				mustHold(t, s, object(i, size(i)))
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = openStore(t, dir, o)
		}
		if _, err := s.Collect(t.Context(), func(context.Context, func(tree.Digest) bool) error { return nil }); err != nil {
			t.Fatalf("round %d: collecting on a full disk: %v", round, err)
		}
		for _, i := range held {
			mustLack(t, s, object(i, size(i)))
		}
	}
}

// A file of a large object that somebody deleted is a missing object, which can be put again.
func TestVanishedFile(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, small)
	b := object(1, 3000)
	d := mustPut(t, s, b)
	mustSync(t, s)
	s.large.drop(d)
	if err := os.Remove(s.large.path(d, uint32(len(b)))); err != nil {
		t.Fatal(err)
	}
	mustLack(t, s, b)
	mustPut(t, s, b)
	mustHold(t, s, b)
	if st := s.Stats(); st.Objects != 1 || st.LargeFiles != 1 || st.Disk != 3000 {
		t.Errorf("stats: %+v", st)
	}
}
