package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// bulk makes every large object of a mebibyte go past the page cache but the first.
var bulk = Options{Bulk: 1}

// mustPutAround puts an object that goes past the page cache, in memory as readers of files have it.
func mustPutAround(t *testing.T, s *Store, size int) (object []byte) {
	t.Helper()
	object = aligned(size)
	for i := range object {
		object[i] = byte(i*7 + i>>12)
	}
	mustPut(t, s, fmt.Appendf(aligned(aroundLeast), "%d", size)) // what waits for a Sync makes it bulk
	b := opened(t, s, mustPut(t, s, object))
	if !b.file.blocks.around.Load() {
		t.Skip("the file system does not know O_DIRECT")
	}
	return object
}

func opened(t *testing.T, s *Store, d tree.Digest) Blob {
	t.Helper()
	b, err := s.OpenBlob(d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// readRaw reads an object in pieces, as a transfer does.
func readRaw(t *testing.T, b Blob) []byte {
	t.Helper()
	r := b.Raw()
	defer r.Close()
	var got bytes.Buffer
	for p, off := aligned(1<<20), int64(0); off < b.Size(); {
		n, err := r.ReadAt(p, off)
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		got.Write(p[:n])
		off += int64(n)
	}
	return got.Bytes()
}

// Objects that went past the page cache are whole, before they are durable, after, and after a start; a transfer reads them
// without bringing them into the page cache.
func TestBulkGoesPastThePageCache(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, bulk)
	var objects [][]byte
	for _, size := range []int{aroundLeast, aroundLeast + 1, 2*aroundLeast - 1, 3*aroundLeast + 4095, tree.ChunkSize} {
		o := mustPutAround(t, s, size)
		objects = append(objects, o)
		b := opened(t, s, tree.Sum(o))
		for range 2 {
			if !bytes.Equal(readRaw(t, b), o) {
				t.Fatalf("%d bytes: others than were put", size)
			}
			if !b.file.blocks.around.Load() {
				t.Errorf("%d bytes: a transfer has brought them into the page cache", size)
			}
			if _, ok := b.ReadCached(aligned(4096), 8192); ok {
				t.Errorf("%d bytes: they are in the page cache", size)
			}
			mustSync(t, s)
		}
		mustHold(t, s, o)
		if b.file.blocks.around.Load() {
			t.Errorf("%d bytes: a reader has them in the page cache, and a transfer does not know", size)
		}
		if !bytes.Equal(readRaw(t, b), o) {
			t.Fatalf("%d bytes: others than were put, from the page cache", size)
		}
	}
	s.Close()
	s = openStore(t, dir, bulk)
	for _, o := range objects {
		mustHold(t, s, o)
	}
}

// A raw read that cannot go past the page cache goes through it.
func TestRawReadOfAnyKind(t *testing.T) {
	s := openStore(t, t.TempDir(), bulk)
	o := mustPutAround(t, s, aroundLeast+100)
	for _, c := range []struct{ skew, off, size int }{{1, 0, 5000}, {0, 1, 5000}, {0, 4096, 17}, {0, aroundLeast, 4096}, {3, 77, aroundLeast}} {
		r := opened(t, s, tree.Sum(o)).Raw()
		p := aligned(c.size + 4096)[c.skew:][:c.size]
		n, err := r.ReadAt(p, int64(c.off))
		want := o[c.off:min(len(o), c.off+c.size)]
		if err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(p[:n], want) {
			t.Errorf("%+v: %d bytes, %v; want %d", c, n, err, len(want))
		}
		if _, err := r.ReadAt(p, int64(len(o))); !errors.Is(err, io.EOF) {
			t.Errorf("behind the end: %v", err)
		}
		r.Close()
	}
}

// What rots before anybody has read it is found by the first who does.
func TestBulkThatRots(t *testing.T) {
	s := openStore(t, t.TempDir(), bulk)
	o := mustPutAround(t, s, 2*aroundLeast)
	mustSync(t, s)
	b := opened(t, s, tree.Sum(o))
	rotOnDisk(t, s, tree.Sum(o), aroundLeast+5)
	if _, err := b.ReadAt(make([]byte, 100), aroundLeast); !errors.Is(err, tree.ErrCorrupt) {
		t.Fatalf("read of a rotten block: %v", err)
	}
	mustPut(t, s, o)
	mustHold(t, s, o)
}

// A disk that fails or is full says so, and the object is not there; one that does not do O_DIRECT after all is used as it
// can be.
func TestBulkWriteFails(t *testing.T) {
	for _, c := range []struct {
		op    string
		err   error
		works bool
	}{{"direct write", unix.EIO, false}, {"direct write", unix.ENOSPC, false}, {"direct write", unix.EINVAL, true}, {"write", unix.ENOSPC, false}} {
		f := new(faults)
		s := openDisk(t, t.TempDir(), bulk, f.disk())
		mustPut(t, s, aligned(aroundLeast))
		o := aligned(aroundLeast + 1)
		f.set(c.op, c.err, "tmp")
		_, err := s.Put(context.Background(), o)
		if (err == nil) != c.works || errors.Is(err, ErrFull) != (c.err == unix.ENOSPC) {
			t.Errorf("%s: %v, got %v", c.op, c.err, err)
		}
		f.heal(t)
		if !c.works && s.Has(tree.Sum(o)) {
			t.Errorf("%s: %v: the store has the object", c.op, c.err)
		}
		mustPut(t, s, o)
		mustSync(t, s)
		mustHold(t, s, o)
	}
}
