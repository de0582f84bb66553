package store

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// keep returns a mark that names these objects.
func keep(objects ...[]byte) func(context.Context, func(tree.Digest) bool) error {
	return func(_ context.Context, live func(tree.Digest) bool) error {
		for _, b := range objects {
			live(tree.Sum(b))
		}
		return nil
	}
}

func mustCollect(t testing.TB, s *Store, objects ...[]byte) Collected {
	t.Helper()
	c, err := s.Collect(context.Background(), keep(objects...))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// onDisk returns the bytes of all packs and large files below dir.
func onDisk(t *testing.T, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || filepath.Ext(path) == ".idx" {
			return err
		}
		info, err := e.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestCollect(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, small)
	var kept, gone [][]byte
	for i := range 80 {
		b := object(i, 300+i%4*500)
		if mustPut(t, s, b); i%5 == 0 {
			kept = append(kept, b)
		} else {
			gone = append(gone, b)
		}
	}
	mustSync(t, s)
	unsynced := object(500, 2000)
	mustPut(t, s, unsynced)
	gone = append(gone, unsynced)
	was := s.Stats()
	c := mustCollect(t, s, kept...)
	if c.Objects != int64(len(gone)) || c.Bytes <= 0 || c.Compacted == 0 || was.Disk-c.Freed != s.Stats().Disk {
		t.Errorf("collected: %+v of %+v, now %+v", c, was, s.Stats())
	}
	check := func() {
		t.Helper()
		for _, b := range kept {
			mustHold(t, s, b)
		}
		for _, b := range gone {
			mustLack(t, s, b)
		}
	}
	check()
	// The active pack may be dead to any part; each of the others is at least half alive.
	for _, p := range *s.packs.Load() {
		if p != nil && p != s.active && p.live.Load() < p.size.Load()/2 {
			t.Errorf("pack %d: %d of %d bytes live", p.id, p.live.Load(), p.size.Load())
		}
	}
	if n := onDisk(t, dir); n != s.Stats().Disk {
		t.Errorf("%d bytes on disk; stats: %+v", n, s.Stats())
	}
	mustSync(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, small)
	check()
	for _, b := range gone {
		mustPut(t, s, b)
		mustHold(t, s, b)
	}
}

func TestCollectTellsWhatIsNew(t *testing.T) {
	s := openStore(t, t.TempDir(), small)
	a, b := mustPut(t, s, object(1, 10)), mustPut(t, s, object(2, 2000))
	during := object(3, 10)
	_, err := s.Collect(t.Context(), func(ctx context.Context, live func(tree.Digest) bool) error {
		if !live(a) || live(a) || !live(b) || live(b) {
			t.Error("live does not say true the first time only")
		}
		for range 2 {
			if !live(tree.Sum([]byte("absent"))) {
				t.Error("what the store lacks is taken for seen")
			}
		}
		mustPut(t, s, during)
		mustPut(t, s, object(4, 2000))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, size := range []int{10, 2000, 10, 2000} {
		mustHold(t, s, object(i+1, size))
	}
}

func TestFailedMarkDeletesNothing(t *testing.T) {
	s := openStore(t, t.TempDir(), small)
	mustPut(t, s, object(1, 10))
	cause := errors.New("etcd is away")
	if _, err := s.Collect(t.Context(), func(context.Context, func(tree.Digest) bool) error { return cause }); !errors.Is(err, cause) {
		t.Errorf("collect: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := s.Collect(ctx, func(context.Context, func(tree.Digest) bool) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("collect: %v", err)
	}
	mustHold(t, s, object(1, 10))
	if c := mustCollect(t, s); c.Objects != 1 {
		t.Errorf("collected: %+v", c)
	}
}

func TestHold(t *testing.T) {
	s := openStore(t, t.TempDir(), small)
	mustPut(t, s, object(1, 10))
	first, second := s.Hold(), s.Hold()
	for _, release := range []func(){first, second} {
		if _, err := s.Collect(t.Context(), keep()); !errors.Is(err, ErrHeld) {
			t.Fatalf("collect while held: %v", err)
		}
		release()
		release()
	}
	// A Hold while mark runs ends it, even when it is released before mark is.
	_, err := s.Collect(t.Context(), func(ctx context.Context, _ func(tree.Digest) bool) error {
		release := s.Hold()
		defer release()
		<-ctx.Done()
		return nil
	})
	if !errors.Is(err, ErrHeld) {
		t.Fatalf("collect overtaken by a hold: %v", err)
	}
	mustHold(t, s, object(1, 10))
	mustCollect(t, s)
	mustLack(t, s, object(1, 10))
}

func TestCloseEndsCollect(t *testing.T) {
	s := openStore(t, t.TempDir(), small)
	mustPut(t, s, object(1, 10))
	closed := make(chan error)
	_, err := s.Collect(t.Context(), func(ctx context.Context, _ func(tree.Digest) bool) error {
		go func() { closed <- s.Close() }()
		<-ctx.Done()
		return nil
	})
	if !errors.Is(err, ErrClosed) {
		t.Errorf("collect: %v", err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

// A Blob stays readable when its object is collected, its pack compacted and removed, its file deleted.
func TestBlobOutlivesItsObject(t *testing.T) {
	s := openStore(t, t.TempDir(), small)
	blobs := make(map[int]Blob)
	for i := range 40 {
		size := []int{400, 2000}[i%2]
		blob, err := s.OpenBlob(mustPut(t, s, object(i, size)))
		if err != nil {
			t.Fatal(err)
		}
		blobs[i] = blob
	}
	mustSync(t, s)
	if c := mustCollect(t, s, object(2, 400)); c.Objects != 39 {
		t.Fatalf("collected: %+v", c)
	}
	for range 2 {
		runtime.GC() // closes the files of packs that nobody can reach
	}
	for i, blob := range blobs {
		p := make([]byte, blob.Size())
		if _, err := blob.ReadAt(p, 0); err != nil || !bytes.Equal(p, object(i, len(p))) {
			t.Errorf("blob %d: %v", i, err)
		}
		if err := blob.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestCollectUnderReadersAndWriters: readers read what is kept, writers put and sync, collections and verifications run
// one after the other, and no reader ever misses a byte.
func TestCollectUnderReadersAndWriters(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, small)
	var kept [][]byte
	for i := range 60 {
		kept = append(kept, object(i, 100+i%3*600))
		mustPut(t, s, kept[i])
		mustPut(t, s, object(1000+i, 700)) // garbage in between
	}
	mustSync(t, s)
	var done atomic.Bool
	var others sync.WaitGroup
	for g := range 4 {
		others.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 0))
			p := make([]byte, 4096)
			for !done.Load() {
				want := kept[r.IntN(len(kept))]
				blob, err := s.OpenBlob(tree.Sum(want))
				if err != nil {
					t.Error(err)
					return
				}
				n, ok := blob.ReadCached(p, 0)
				if !ok {
					n, _ = blob.ReadAt(p, 0)
				}
				blob.Close()
				if !bytes.Equal(p[:n], want) {
					t.Errorf("read %d other bytes, want %d", n, len(want))
					return
				}
			}
		})
	}
	for g := range 2 {
		others.Go(func() {
			for i := 0; !done.Load(); i++ {
				b := object(10_000*(g+1)+i%300, 50+i%3*700)
				release := s.Hold()
				mustPutHeld(t, s, b)
				release()
				runtime.Gosched()
			}
		})
	}
	others.Go(func() {
		for !done.Load() {
			if r, err := s.Verify(context.Background(), nil); err != nil || len(r.Bad) > 0 {
				t.Errorf("verify: %+v, %v", r, err)
				return
			}
		}
	})
	for collected := 0; collected < 15; {
		_, err := s.Collect(t.Context(), keep(kept...))
		if err == nil {
			collected++
		} else if !errors.Is(err, ErrHeld) {
			t.Error(err)
			break
		}
	}
	done.Store(true)
	others.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, small)
	for _, b := range kept {
		mustHold(t, s, b)
	}
}

// mustPutHeld puts b while the store is held and finds it, before and after a Sync. It may be called in any goroutine.
func mustPutHeld(t *testing.T, s *Store, b []byte) {
	ctx := context.Background()
	d, err := s.Put(ctx, b)
	if err != nil || !s.Has(d) {
		t.Errorf("put: %v", err)
		return
	}
	if err := s.Sync(ctx); err != nil {
		t.Error(err)
	}
	if got, err := s.Get(ctx, d); err != nil || !bytes.Equal(got, b) {
		t.Errorf("get of what was put while held: %v", err)
	}
}

// The pack that is being appended to gives its space back too, though nothing is put any more.
func TestCollectActivePack(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{PackSize: 1 << 20})
	var objects [][]byte
	for i := range 300 {
		objects = append(objects, object(i, 1000))
		mustPut(t, s, objects[i])
	}
	mustSync(t, s)
	mustPut(t, s, object(1000, 500)) // not durable yet
	if c := mustCollect(t, s, append(objects[50:], object(1000, 500))...); c.Compacted != 0 {
		t.Fatalf("collected %+v though most of it is alive", c)
	}
	c := mustCollect(t, s, objects[290], object(1000, 500))
	if c.Compacted != 1 || c.Freed < 200<<10 || onDisk(t, dir) > 20<<10 {
		t.Errorf("collected %+v, %d bytes are on disk", c, onDisk(t, dir))
	}
	mustHold(t, s, objects[290])
	mustPut(t, s, objects[7])
	mustSync(t, s)
	crashed := openStore(t, copyStore(t, dir), Options{})
	for _, b := range [][]byte{objects[7], objects[290], object(1000, 500)} {
		mustHold(t, s, b)
		mustHold(t, crashed, b)
	}
	mustLack(t, s, objects[8])
}
