package store

import (
	"bytes"
	"errors"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// hashed makes a batch of objects.
func hashed(objects ...[]byte) (all []Hashed) {
	for _, o := range objects {
		all = append(all, Hashed{tree.Sum(o), o})
	}
	return all
}

// A batch of objects, some of them there already, some twice in it, of every size, is there afterwards, also after a crash.
func TestPutHashed(t *testing.T) {
	for name, o := range map[string]Options{"one pack": {}, "many packs": small} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir, o)
			var objects [][]byte
			bytes := int64(0)
			for i := range 400 {
				objects = append(objects, object(i, []int{0, 5, 900, 3000, 12_000}[i%5]+i/5*(min(i%5, 1))))
			}
			mustPut(t, s, objects[7])
			if err := s.PutHashed(t.Context(), hashed(append(objects, objects[:50]...)...)); err != nil {
				t.Fatal(err)
			}
			if err := s.PutHashed(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			mustSync(t, s)
			crashed := openStore(t, copyStore(t, dir), o)
			seen := map[tree.Digest]bool{}
			for _, o := range objects {
				mustHold(t, s, o)
				mustHold(t, crashed, o)
				if d := tree.Sum(o); !seen[d] {
					seen[d] = true
					bytes += int64(len(o))
				}
			}
			if st := s.Stats(); st.Objects != int64(len(seen)) || st.Bytes != bytes {
				t.Errorf("stats %+v, want %d objects of %d bytes", st, len(seen), bytes)
			}
			mustCollect(t, s, objects[1:]...)
			mustHold(t, s, objects[9])
		})
	}
}

// A wrong digest is believed for no longer than the bytes stay in memory.
func TestPutHashedWrong(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, small)
	var wrong []tree.Digest
	for i, b := range [][]byte{object(1, 200), object(2, 5000)} {
		wrong = append(wrong, tree.Sum(object(9+i, 10)))
		if err := s.PutHashed(t.Context(), []Hashed{{wrong[i], b}}); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	s = openStore(t, dir, small)
	for _, d := range wrong {
		blob, err := s.OpenBlob(d)
		if err != nil {
			t.Fatal(err)
		}
		defer blob.Close()
		if _, ok := blob.ReadCached(make([]byte, 10), 0); ok {
			t.Error("read without being hashed")
		}
		if _, err := blob.ReadAt(make([]byte, 10), 0); !errors.Is(err, tree.ErrCorrupt) {
			t.Errorf("ReadAt: %v", err)
		}
		if s.Has(d) {
			t.Error("it is still there")
		}
	}
	if err := s.PutHashed(t.Context(), []Hashed{{Bytes: make([]byte, MaxObject+1)}}); err == nil {
		t.Error("an object beyond all sizes was taken")
	}
}

// A write that fails in the middle of a batch leaves whole objects only, and the batch can be put again.
func TestPutHashedFails(t *testing.T) {
	f := new(faults)
	s := openDisk(t, t.TempDir(), small, f.disk())
	var objects [][]byte
	for i := range 30 {
		objects = append(objects, object(i, 500))
	}
	mustPut(t, s, objects[0])
	f.set("write", unix.ENOSPC, "packs")
	if err := s.PutHashed(t.Context(), hashed(objects...)); !errors.Is(err, ErrFull) {
		t.Errorf("PutHashed on a full disk: %v", err)
	}
	f.heal(t)
	mustHold(t, s, objects[0])
	if s.Has(tree.Sum(objects[1])) {
		t.Error("what could not be written is there")
	}
	if err := s.PutHashed(t.Context(), hashed(objects...)); err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		mustHold(t, s, o)
	}
}

func TestPutHashedSideBySide(t *testing.T) {
	s := openStore(t, t.TempDir(), small)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := range 50 {
				b := object(i, 100+i*40)
				if err := s.PutHashed(t.Context(), hashed(b, object(i+1, 100+(i+1)*40))); err != nil {
					t.Error(err)
				}
				if got, err := s.Get(t.Context(), tree.Sum(b)); err != nil || !bytes.Equal(got, b) {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if n := s.Stats().Objects; n != 51 {
		t.Errorf("%d objects", n)
	}
}

// What was just put is read from the page cache without being hashed once more; what was reopened is not.
func TestPutSeals(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	var objects [][]byte
	for i := range 50 {
		objects = append(objects, object(i, []int{100, 3000, 400_000, 0, 70_000}[i%5]+i))
	}
	for _, o := range objects[:25] {
		mustPut(t, s, o)
	}
	if err := s.PutHashed(t.Context(), hashed(objects[25:]...)); err != nil {
		t.Fatal(err)
	}
	count := func(s *Store) (n int) {
		for _, o := range objects {
			b, err := s.OpenBlob(tree.Sum(o))
			if err != nil {
				t.Fatal(err)
			}
			p := make([]byte, len(o))
			if _, ok := b.ReadCached(p, 0); ok && bytes.Equal(p, o) {
				n++
			}
			b.Close()
		}
		return n
	}
	sealed(t, s, objects[0])
	if n := count(s); n != len(objects) {
		t.Errorf("%d of %d objects can be read at once", n, len(objects))
	}
	mustSync(t, s)
	if n := count(s); n != len(objects) {
		t.Errorf("after Sync %d of %d objects", n, len(objects))
	}
	s.Close()
	if n := count(openStore(t, dir, Options{})); n != 0 {
		t.Errorf("after a restart %d objects are believed", n)
	}
}

// To append behind an object whose last page has left the page cache, the kernel brings that page back.
func TestAppendBreaksTheSealBefore(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	good := object(1, 6000)
	mustPut(t, s, good)
	mustSync(t, s)
	b := sealed(t, s, good)
	rotOnDisk(t, s, tree.Sum(good), 5900)
	mustPut(t, s, object(2, 100))
	p := make([]byte, 100)
	if n := b.file.preadCached(p, b.start()+5900); n != 100 || bytes.Equal(p, good[5900:]) {
		t.Fatalf("the damage is not in the page cache: %d bytes", n) // else this test shows nothing
	}
	if n, ok := b.ReadCached(p, 5900); ok {
		t.Errorf("%d damaged bytes", n)
	}
	if _, err := b.ReadAt(p, 0); !errors.Is(err, tree.ErrCorrupt) {
		t.Errorf("ReadAt: %v", err)
	}
}
