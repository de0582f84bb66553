package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// rot changes a byte in the middle of an object on disk.
func rot(t *testing.T, s *Store, b []byte) tree.Digest {
	t.Helper()
	d := tree.Sum(b)
	at, ok := s.index.lookup(&d)
	if !ok {
		t.Fatal("no such object")
	}
	path, off := s.large.path(d, at.size), int64(at.size/2)
	if at.pack != 0 {
		path, off = s.pathOf(at.pack), int64(at.off)+recordHeader+off
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{b[len(b)/2] ^ 0x10}, off); err != nil {
		t.Fatal(err)
	}
	return d
}

// filled returns a store with 40 synced objects, small and large, in several packs.
func filled(t *testing.T, dir string, k *disk) (*Store, [][]byte) {
	t.Helper()
	s := openDisk(t, dir, small, k)
	var objects [][]byte
	for i := range 40 {
		objects = append(objects, object(i, []int{300, 900, 2000, 0}[i%4]+i))
		mustPut(t, s, objects[i])
	}
	mustSync(t, s)
	return s, objects
}

func TestVerify(t *testing.T) {
	dir := t.TempDir()
	s, objects := filled(t, dir, &disk{})
	var calls []int64
	r, err := s.Verify(t.Context(), func(done, total int64) {
		if total != s.Stats().Bytes {
			t.Errorf("total %d, want %d", total, s.Stats().Bytes)
		}
		calls = append(calls, done)
	})
	if err != nil || r.Objects != 40 || r.Bytes != s.Stats().Bytes || len(r.Bad) > 0 {
		t.Fatalf("verify of a good store: %+v, %v", r, err)
	}
	if len(calls) < 2 || calls[0] != 0 || !slices.IsSorted(calls) || calls[len(calls)-1] != r.Bytes {
		t.Errorf("progress: %v", calls)
	}

	// A small one in a sealed pack, a large one, and the last one of the active pack.
	bad := [][]byte{objects[0], objects[2], objects[37]}
	var want []tree.Digest
	for _, b := range bad {
		want = append(want, rot(t, s, b))
	}
	r, err = s.Verify(t.Context(), nil)
	if err != nil || r.Objects != 40 || len(r.Bad) != len(want) {
		t.Fatalf("verify of a rotten store: %+v, %v", r, err)
	}
	for _, d := range want {
		if !slices.Contains(r.Bad, d) {
			t.Errorf("%s was not found", d)
		}
		if kept, _ := filepath.Glob(filepath.Join(dir, "quarantine", d.String()+"*")); len(kept) != 1 {
			t.Errorf("%s in quarantine: %v", d, kept)
		}
	}
	check := func(s *Store) {
		t.Helper()
		for i, b := range objects {
			if i == 0 || i == 2 || i == 37 {
				mustLack(t, s, b)
			} else {
				mustHold(t, s, b)
			}
		}
	}
	check(s)
	check(openStore(t, copyStore(t, dir), small)) // a restart does not bring them back
	for _, b := range bad {
		mustPut(t, s, b)
	}
	mustSync(t, s)
	for _, b := range objects {
		mustHold(t, s, b)
	}
	if st := s.Stats(); st.Objects != 40 || st.LargeFiles != 10 {
		t.Errorf("stats: %+v", st)
	}
}

// Get finds rot by itself, and what it found can be mended at once.
func TestGetQuarantines(t *testing.T) {
	dir := t.TempDir()
	s, objects := filled(t, dir, &disk{})
	for _, b := range [][]byte{objects[0], objects[2], objects[37]} {
		d := rot(t, s, b)
		if _, err := s.Get(t.Context(), d); !errors.Is(err, tree.ErrCorrupt) {
			t.Fatalf("Get of a rotten object: %v", err)
		}
		mustLack(t, s, b)
		mustPut(t, s, b)
		mustHold(t, s, b)
	}
	mustSync(t, s)
	crashed := openStore(t, copyStore(t, dir), small)
	for _, b := range objects {
		mustHold(t, crashed, b)
	}
}

// A sector that cannot be read is a bad object; a disk of which nothing can be read or written is no reason to forget.
func TestVerifyUnreadable(t *testing.T) {
	f := new(faults)
	s, objects := filled(t, t.TempDir(), f.disk())
	f.set("read", unix.EIO, packName(1))
	r, err := s.Verify(t.Context(), nil)
	f.heal(t)
	if err != nil || len(r.Bad) == 0 || len(r.Bad) == 40 {
		t.Fatalf("verify: %+v, %v", r, err)
	}
	for _, b := range objects {
		if d := tree.Sum(b); s.Has(d) == slices.Contains(r.Bad, d) {
			t.Errorf("%s: Has is %v", d, s.Has(d))
		}
		mustPut(t, s, b)
	}
	f.mu.Lock()
	f.errs = map[string]error{"read": unix.EIO, "create": unix.EIO, "rename": unix.EIO}
	f.path = ""
	f.mu.Unlock()
	if _, err := s.Verify(t.Context(), nil); !errors.Is(err, unix.EIO) {
		t.Errorf("verify of a broken disk: %v", err)
	}
	f.heal(t)
	for _, b := range objects {
		mustHold(t, s, b)
	}
}

// Compaction copies nothing that is rotten.
func TestCompactionQuarantines(t *testing.T) {
	dir := t.TempDir()
	s, objects := filled(t, dir, &disk{})
	d := rot(t, s, objects[0])
	c := mustCollect(t, s, objects[0], objects[1], objects[16])
	if c.Compacted == 0 {
		t.Fatalf("collected: %+v", c)
	}
	mustLack(t, s, objects[0])
	mustHold(t, s, objects[1])
	mustHold(t, s, objects[16])
	if kept, _ := filepath.Glob(filepath.Join(dir, "quarantine", d.String()+"*")); len(kept) != 1 {
		t.Errorf("in quarantine: %v", kept)
	}
}

// Verify reads the disk and not the page cache, and leaves the page cache to those who read.
func TestVerifyGoesAroundThePageCache(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	objects := [][]byte{object(1, 5000), object(2, 700_000), object(3, 200_000)}
	var blobs []Blob
	for _, o := range objects {
		mustPut(t, s, o)
		mustSync(t, s)
		blobs = append(blobs, sealed(t, s, o))
	}
	for _, b := range blobs {
		dropCache(t, b)
	}
	if r, err := s.Verify(t.Context(), nil); err != nil || r.Objects != 3 || len(r.Bad) > 0 {
		t.Fatalf("verify: %+v, %v", r, err)
	}
	for i, b := range blobs {
		if resident(t, b.file, b.start()) {
			t.Errorf("object %d is in the page cache", i)
		}
	}
	for _, o := range objects {
		rotOnDisk(t, s, tree.Sum(o), 1000)
	}
	if r, err := s.Verify(t.Context(), nil); err != nil || r.Objects != 3 || len(r.Bad) != 3 {
		t.Fatalf("verify of rot: %+v, %v", r, err)
	}
}

// What the disk has lost and the page cache still has is written anew.
func TestVerifyMends(t *testing.T) {
	f, dir := new(faults), t.TempDir()
	s, objects := filled(t, dir, f.disk())
	for _, o := range objects {
		sealed(t, s, o)
	}
	f.set("direct read", unix.EIO, packName(1))
	r, err := s.Verify(t.Context(), nil)
	f.heal(t)
	if err != nil || len(r.Bad) > 0 || len(r.Mended) == 0 || len(r.Mended) == 40 || r.Objects != 40 {
		t.Fatalf("verify: %+v, %v", r, err)
	}
	crashed := openStore(t, copyStore(t, dir), small)
	for _, o := range objects {
		mustHold(t, s, o)
		mustHold(t, crashed, o)
		if b := sealed(t, crashed, o); b.e.pack == 1 {
			t.Errorf("%s is still in its place", b.e.digest)
		}
	}
}

// A disk that fails does not fill up with what it has lost.
func TestQuarantineIsBounded(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	q := filepath.Join(dir, "quarantine")
	for i := range quarantineFiles + 5 {
		name := filepath.Join(q, fmt.Sprint(i))
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if i == quarantineFiles { // too large by itself, and younger than the others
			if err := os.Truncate(name, quarantineBytes); err != nil {
				t.Fatal(err)
			}
		}
		at := time.Now().Add(time.Duration(i-2*quarantineFiles) * time.Minute)
		if err := os.Chtimes(name, at, at); err != nil {
			t.Fatal(err)
		}
	}
	mustPut(t, s, object(1, 500))
	if _, err := s.Get(t.Context(), rot(t, s, object(1, 500))); !errors.Is(err, tree.ErrCorrupt) {
		t.Fatal(err)
	}
	left, err := os.ReadDir(q)
	found := slices.ContainsFunc(left, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), tree.Sum(object(1, 500)).String()) })
	if err != nil || len(left) != 5 || !found {
		t.Errorf("%d files are left, %v: want the last, and the four that came after the large one", len(left), err)
	}
}

func TestVerifyEnds(t *testing.T) {
	s, _ := filled(t, t.TempDir(), &disk{})
	ctx, cancel := context.WithCancel(t.Context())
	r, err := s.Verify(ctx, func(int64, int64) { cancel() })
	if !errors.Is(err, context.Canceled) || r.Objects != 0 {
		t.Errorf("verify with an ended context: %+v, %v", r, err)
	}
}

// A damaged object that is open somewhere is not read from: who has it open opens it again, and finds the copy that was
// put since.
func TestQuarantineReachesOpenBlobs(t *testing.T) {
	for name, size := range map[string]int{"in a pack": 900, "a file": 4000} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, t.TempDir(), small)
			good := object(1, size)
			mustPut(t, s, good)
			mustSync(t, s)
			d := rot(t, s, good)
			b, err := s.OpenBlob(d)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			p := make([]byte, size)
			if r, err := s.Verify(t.Context(), nil); err != nil || len(r.Bad) != 1 {
				t.Fatalf("verify: %+v, %v", r, err)
			}
			mustPut(t, s, good)
			mustHold(t, s, good)
			if n, ok := b.ReadCached(p, 0); ok {
				t.Errorf("%d cached bytes of a damaged object", n)
			}
			if _, err := b.ReadAt(p, 0); !errors.Is(err, tree.ErrCorrupt) {
				t.Errorf("read of a damaged object: %v", err)
			}
			mustHold(t, s, good) // and that condemned the damaged copy only
			again, err := s.OpenBlob(d)
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			if _, err := again.ReadAt(p, 0); err != nil || !bytes.Equal(p, good) {
				t.Errorf("after it was put again: %v", err)
			}
		})
	}
}
