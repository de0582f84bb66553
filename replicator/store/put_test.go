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

// A wrong digest is believed, and harms nobody who reads.
func TestPutHashedWrong(t *testing.T) {
	s := openStore(t, t.TempDir(), small)
	for i, b := range [][]byte{object(1, 200), object(2, 5000)} {
		d := tree.Sum(object(9+i, 10))
		if err := s.PutHashed(t.Context(), []Hashed{{d, b}}); err != nil {
			t.Fatal(err)
		}
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
