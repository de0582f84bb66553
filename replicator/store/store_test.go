package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

var _ tree.Objects = (*Store)(nil)

// small makes every rule of the store bite within a few objects.
var small = Options{PackSize: 4 << 10, LargeSize: 1 << 10, MaxOpen: 4}

func openStore(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	return openDisk(t, dir, o, &disk{})
}

func openDisk(t testing.TB, dir string, o Options, k *disk) *Store {
	t.Helper()
	s, err := open(dir, o, k)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// object returns the i-th of a series of different objects.
func object(i, size int) []byte {
	b := make([]byte, size)
	r := rand.New(rand.NewPCG(uint64(i), uint64(size)))
	for j := 0; j < len(b); j += 8 {
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], r.Uint64())
		copy(b[j:], word[:])
	}
	return b
}

func mustPut(t testing.TB, s *Store, b []byte) tree.Digest {
	t.Helper()
	d, err := s.Put(context.Background(), b)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func mustSync(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// mustHold fails the test unless s gives back b by every way of reading.
func mustHold(t testing.TB, s *Store, b []byte) {
	t.Helper()
	d := tree.Sum(b)
	got, err := s.Get(context.Background(), d)
	if err != nil || !bytes.Equal(got, b) {
		t.Fatalf("Get(%s): %d bytes, %v; want %d bytes", d, len(got), err, len(b))
	}
	blob, err := s.OpenBlob(d)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	got, err = io.ReadAll(io.NewSectionReader(blob, 0, blob.Size()))
	if err != nil || !bytes.Equal(got, b) {
		t.Fatalf("Blob %s: %d bytes, %v; want %d bytes", d, len(got), err, len(b))
	}
	if n, ok := blob.ReadCached(got, 0); ok && (n != len(b) || !bytes.Equal(got, b)) {
		t.Fatalf("ReadCached of %s: %d other bytes", d, n)
	}
	if !s.Has(d) {
		t.Fatalf("Has(%s) is false", d)
	}
}

// mustLack fails the test unless s says that b is missing, by every way of reading.
func mustLack(t testing.TB, s *Store, b []byte) {
	t.Helper()
	d := tree.Sum(b)
	if _, err := s.Get(context.Background(), d); !errors.Is(err, tree.ErrMissing) {
		t.Fatalf("Get of a missing object: %v", err)
	}
	if _, err := s.OpenBlob(d); !errors.Is(err, tree.ErrMissing) {
		t.Fatalf("OpenBlob of a missing object: %v", err)
	}
	if _, ok := s.OpenCached(d); ok {
		t.Fatal("OpenCached of a missing object")
	}
	if s.Has(d) {
		t.Fatal("Has of a missing object is true")
	}
}

// sizes are those at which something changes.
var sizes = []int{0, 1, 7, 100, 1023, 1024, 1025, 5000}

// TestObjects is what every tree.Objects must do; the memory one of package tree passes it too.
func TestObjects(t *testing.T) {
	for name, objs := range map[string]tree.Objects{"memory": tree.NewMemory(), "store": openStore(t, t.TempDir(), small)} {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			if _, err := objs.Get(ctx, tree.Sum([]byte("absent"))); !errors.Is(err, tree.ErrMissing) {
				t.Errorf("Get of what was never put: %v", err)
			}
			for i, size := range sizes {
				b := object(i, size)
				for range 2 {
					if d, err := objs.Put(ctx, b); err != nil || d != tree.Sum(b) {
						t.Fatalf("Put of %d bytes: %s, %v", size, d, err)
					}
				}
				want := bytes.Clone(b)
				clear(b) // Put has not kept it
				if got, err := objs.Get(ctx, tree.Sum(want)); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("Get of %d bytes: %d bytes, %v", size, len(got), err)
				}
			}
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					for i := range 50 {
						b := object(i, 900+i*5)
						d, err := objs.Put(ctx, b)
						if err != nil {
							t.Error(err)
							return
						}
						if got, err := objs.Get(ctx, d); err != nil || !bytes.Equal(got, b) {
							t.Errorf("Get of what was just put: %v", err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

func TestReopenHasEverything(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, small)
	for i := range 100 {
		mustPut(t, s, object(i, i*17))
	}
	before := s.Stats()
	if before.Packs < 3 || before.LargeFiles == 0 || before.Objects != 100 || before.Free <= 0 || before.Disk < before.Bytes {
		t.Fatalf("stats: %+v", before)
	}
	for round := range 3 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, dir, small)
		after := s.Stats()
		after.Free, before.Free = 0, 0
		if after != before {
			t.Fatalf("stats of round %d: %+v, want %+v", round, after, before)
		}
		for i := range 100 {
			mustHold(t, s, object(i, i*17))
		}
	}
	mustPut(t, s, object(1000, 10))
	mustHold(t, s, object(1000, 10))
}

func TestLargeFileIsItsOwnName(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, small)
	b := object(1, 3000)
	d := mustPut(t, s, b)
	mustHold(t, s, b) // before it is durable
	mustSync(t, s)
	mustHold(t, s, b)
	got, err := os.ReadFile(filepath.Join(dir, "large", fmt.Sprintf("%s-%d", d, len(b))))
	if err != nil || !bytes.Equal(got, b) {
		t.Fatalf("the file of a large object: %d bytes, %v", len(got), err)
	}
	if names, _ := readNames(filepath.Join(dir, "tmp")); len(names) > 0 {
		t.Fatalf("left in tmp: %v", names)
	}
}

func TestBlobReads(t *testing.T) {
	s := openStore(t, t.TempDir(), small)
	for _, size := range []int{100, 5000} {
		b := object(1, size)
		blob, err := s.OpenBlob(mustPut(t, s, b))
		if err != nil || blob.Size() != int64(size) {
			t.Fatalf("size %d, %v", blob.Size(), err)
		}
		for _, c := range []struct{ off, want, n int }{{0, size, size}, {10, 20, 20}, {size - 5, 10, 5}, {size, 1, 0}, {size + 9, 1, 0}, {3, 0, 0}} {
			p := make([]byte, c.want)
			n, err := blob.ReadAt(p, int64(c.off))
			if n != c.n || n < c.want != (err == io.EOF) || err != nil && err != io.EOF {
				t.Errorf("ReadAt(%d at %d) of %d = %d, %v", c.want, c.off, size, n, err)
			}
			if !bytes.Equal(p[:n], b[min(c.off, size):min(c.off+c.n, size)]) {
				t.Errorf("ReadAt(%d at %d) of %d: other bytes", c.want, c.off, size)
			}
			clear(p)
			n, ok := blob.ReadCached(p, int64(c.off))
			if ok && n != c.n || ok && !bytes.Equal(p[:n], b[min(c.off, size):min(c.off+c.n, size)]) {
				t.Errorf("ReadCached(%d at %d) of %d = %d, %v", c.want, c.off, size, n, ok)
			}
		}
		if _, err := blob.ReadAt(make([]byte, 1), -1); err == nil {
			t.Error("a negative offset is no error")
		}
		if _, ok := blob.ReadCached(make([]byte, 1), -1); ok {
			t.Error("a negative offset is ok")
		}
		if err := blob.Close(); err != nil {
			t.Error(err)
		}
	}
}

// What is in no page cache is not read by ReadCached; when the file system can say so.
func TestReadCachedDoesNotWait(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	b := object(1, 1<<20)
	blob, err := s.OpenBlob(mustPut(t, s, b))
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	mustSync(t, s)
	p := make([]byte, len(b))
	if n, ok := blob.ReadCached(p, 0); !ok {
		t.Skipf("preadv2 with RWF_NOWAIT reads %d of %d cached bytes here", n, len(b))
	}
	dropCache(t, blob)
	n, ok := blob.ReadCached(p, 0)
	if ok || !bytes.Equal(p[:n], b[:n]) {
		t.Fatalf("ReadCached after the cache was dropped: %d, %v", n, ok)
	}
	if n, err := blob.ReadAt(p, 0); n != len(b) || err != nil || !bytes.Equal(p, b) {
		t.Fatalf("ReadAt: %d, %v", n, err)
	}
	if n, ok := blob.ReadCached(p, 0); n != len(b) || !ok {
		t.Fatalf("ReadCached after ReadAt: %d, %v", n, ok)
	}
}

func TestOneProcess(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, small)
	if _, err := Open(dir, small); !errors.Is(err, ErrLocked) {
		t.Fatalf("a second Open: %v", err)
	}
	mustHold(t, s, func() []byte { b := object(1, 10); mustPut(t, s, b); return b }())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	openStore(t, dir, small)
}

func TestClosed(t *testing.T) {
	ctx := context.Background()
	s := openStore(t, t.TempDir(), small)
	var blobs []Blob
	for _, size := range []int{100, 3000} {
		blob, err := s.OpenBlob(mustPut(t, s, object(1, size)))
		if err != nil {
			t.Fatal(err)
		}
		blobs = append(blobs, blob)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	d := tree.Sum(object(1, 100))
	_, get := s.Get(ctx, d)
	_, put := s.Put(ctx, []byte("x"))
	_, blob := s.OpenBlob(d)
	_, collect := s.Collect(ctx, func(context.Context, func(tree.Digest) bool) error { return nil })
	_, verify := s.Verify(ctx, nil)
	for what, err := range map[string]error{"get": get, "put": put, "sync": s.Sync(ctx), "open": blob, "collect": collect, "verify": verify} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s of a closed store: %v", what, err)
		}
	}
	for _, b := range blobs {
		p := make([]byte, b.Size())
		if _, err := b.ReadAt(p, 0); err != nil || !bytes.Equal(p, object(1, len(p))) {
			t.Errorf("a Blob opened before Close: %v", err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestLimits(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	s := openStore(t, t.TempDir(), Options{})
	if _, err := s.Put(ctx, make([]byte, MaxObject+1)); err == nil {
		t.Error("an object over MaxObject was stored")
	}
	b := make([]byte, MaxObject)
	if got, err := s.Get(ctx, mustPut(t, s, b)); err != nil || !bytes.Equal(got, b) {
		t.Errorf("Get of the largest object: %d bytes, %v", len(got), err)
	}
	cancel()
	if _, err := s.Put(ctx, []byte("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("Put with an ended context: %v", err)
	}
}

// More large objects are read at once than the cache keeps open, and the descriptors stay bounded.
func TestLargeFilesOpenAreBounded(t *testing.T) {
	s := openStore(t, t.TempDir(), small)
	for i := range 40 {
		mustPut(t, s, object(i, 2000))
	}
	mustSync(t, s)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 400 {
				want := object((i*7+g)%40, 2000)
				if got, err := s.Get(context.Background(), tree.Sum(want)); err != nil || !bytes.Equal(got, want) {
					t.Errorf("Get: %d bytes, %v", len(got), err)
				}
			}
		})
	}
	wg.Wait()
	if n := len(s.large.open); n > small.MaxOpen || n != len(s.large.ring) {
		t.Fatalf("%d files are open, ring of %d; at most %d are allowed", n, len(s.large.ring), small.MaxOpen)
	}
	for d, f := range s.large.open {
		if f.refs.Load() != 1 {
			t.Errorf("%s has %d holders when nobody reads", d, f.refs.Load())
		}
	}
}

// OpenCached opens what is in a pack, and of large files what is open already.
func TestOpenCached(t *testing.T) {
	s := openStore(t, t.TempDir(), small)
	for _, size := range []int{100, 2000} {
		b := object(1, size)
		d := mustPut(t, s, b)
		mustSync(t, s)
		s.large.closeAll()
		for _, want := range []bool{size < small.LargeSize, true} {
			blob, ok := s.OpenCached(d)
			if ok != want {
				t.Fatalf("OpenCached of %d bytes: %v, want %v", size, ok, want)
			}
			if p := make([]byte, size); ok {
				if _, err := blob.ReadAt(p, 0); err != nil || !bytes.Equal(p, b) || blob.Close() != nil {
					t.Errorf("OpenCached of %d bytes: %v", size, err)
				}
			}
			mustHold(t, s, b)
		}
	}
}

// A file that is read again and again stays open while others come and go.
func TestCacheKeepsWhatIsUsed(t *testing.T) {
	s := openStore(t, t.TempDir(), small)
	for i := range 20 {
		mustPut(t, s, object(i, 2000))
	}
	mustSync(t, s)
	hot := tree.Sum(object(0, 2000))
	s.large.closeAll()
	mustHold(t, s, object(0, 2000))
	first := s.large.open[hot]
	for i := 1; i < 20; i++ {
		once, err := s.OpenBlob(tree.Sum(object(i, 2000)))
		if err != nil {
			t.Fatal(err)
		}
		once.Close()
		mustHold(t, s, object(0, 2000))
	}
	if s.large.open[hot] != first {
		t.Error("the file that was read all the time was closed in between")
	}
}
