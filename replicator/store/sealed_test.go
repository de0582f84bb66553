package store

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// aligned returns n bytes as O_DIRECT wants them.
func aligned(n int) []byte {
	const page = 4096
	b := make([]byte, n+page)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (page - 1)
	return b[skip : skip+n]
}

// rotOnDisk changes byte i of an object on the disk, as a failing disk does: the page cache does not hear of it, but that it
// has to read these bytes again.
func rotOnDisk(t testing.TB, s *Store, d tree.Digest, i int64) {
	t.Helper()
	b, err := s.OpenBlob(d)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	path := s.pathOf(b.e.pack)
	if b.e.pack == 0 {
		path = s.large.path(d, b.e.size)
	}
	rotFile(t, path, b.start()+i)
}

func rotFile(t testing.TB, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Skipf("no O_DIRECT here: %v", err)
	}
	defer f.Close()
	const page = 4096
	at := off / page * page
	p := aligned(page)
	n, err := f.ReadAt(p, at)
	if n == 0 {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	p[off-at] ^= 0x10
	if _, err := f.WriteAt(p, at); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(info.Size()); err != nil { // a whole page was written
		t.Fatal(err)
	}
}

// sealed opens an object and makes sure that it is read from the page cache.
func sealed(t testing.TB, s *Store, object []byte) Blob {
	t.Helper()
	b, err := s.OpenBlob(tree.Sum(object))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	p := make([]byte, len(object))
	if _, err := b.ReadAt(p, 0); err != nil || !bytes.Equal(p, object) {
		t.Fatalf("ReadAt: %v", err)
	}
	clear(p)
	if _, ok := b.ReadCached(p, 0); !ok || !bytes.Equal(p, object) {
		t.Skip("the file system does not tell what is in the page cache")
	}
	return b
}

// Rot is found by whoever reads first after the bytes have left the page cache, wherever in the object he reads.
func TestRotReachesNoReader(t *testing.T) {
	for name, size := range map[string]int{"small": 900, "pages": 20_000, "large": 700_000} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir, Options{})
			good := object(1, size)
			d := mustPut(t, s, good)
			mustPut(t, s, object(2, 5000))
			mustSync(t, s)
			for round, i := range []int{0, size / 2, size - 1} {
				b := sealed(t, s, good)
				rotOnDisk(t, s, d, int64(i))
				p := make([]byte, 10)
				at := int64(min(i, size-len(p)))
				if n, ok := b.ReadCached(p, at); ok {
					t.Fatalf("%d damaged bytes from the page cache: %x, want %x", n, p, good[at:at+10])
				}
				if n, err := b.ReadAt(p, at); !errors.Is(err, tree.ErrCorrupt) {
					t.Fatalf("ReadAt of damaged bytes: %d, %v", n, err)
				}
				if n, err := b.ReadAt(p, at); !errors.Is(err, tree.ErrCorrupt) {
					t.Fatalf("once more: %d, %v", n, err)
				}
				mustLack(t, s, good)
				if kept, _ := filepath.Glob(filepath.Join(dir, "quarantine", d.String()+"*")); len(kept) == 0 {
					t.Error("nothing is in quarantine")
				}
				mustPut(t, s, good)
				mustSync(t, s)
				mustHold(t, s, good)
				if st := s.Stats(); st.Objects != 2 || st.LargeFiles != len(good)/(256<<10)/2 {
					t.Errorf("round %d: %+v", round, st)
				}
			}
		})
	}
}

// What rotted while nobody served is found by the first read.
func TestRotWhileClosed(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	objects := [][]byte{object(1, 100), object(2, 300_000), object(3, 9000)}
	for _, o := range objects {
		mustPut(t, s, o)
	}
	mustSync(t, s)
	at := sealed(t, s, objects[2])
	path, off := s.pathOf(at.e.pack), at.start()+5000
	s.Close()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("rot"), off); err != nil {
		t.Fatal(err)
	}

	s = openStore(t, dir, Options{})
	b, err := s.OpenBlob(tree.Sum(objects[2]))
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1)
	if n, ok := b.ReadCached(p, 0); ok {
		t.Errorf("%d bytes that nobody has hashed", n)
	}
	if _, err := b.ReadAt(p, 0); !errors.Is(err, tree.ErrCorrupt) {
		t.Errorf("ReadAt: %v", err)
	}
	mustHold(t, s, objects[0])
	mustHold(t, s, objects[1])
	mustLack(t, s, objects[2])
}

// Objects share pages: who reads one brings part of its neighbours into the page cache, where nobody has hashed it.
func TestNeighboursAreNotTrusted(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	var objects [][]byte
	for i := range 30 {
		objects = append(objects, object(i, 1000))
		mustPut(t, s, objects[i])
	}
	mustSync(t, s)
	for _, o := range objects {
		mustHold(t, s, o)
	}
	bad := 15
	blob := sealed(t, s, objects[bad])
	rotOnDisk(t, s, tree.Sum(objects[bad]), 500) // and the page is out of the cache
	for i, o := range objects {
		if i != bad {
			mustHold(t, s, o)
		}
	}
	p := make([]byte, 1000)
	if n := blob.file.preadCached(p, blob.start()); n != len(p) || bytes.Equal(p, objects[bad]) {
		t.Fatalf("the damage is not in the page cache: %d bytes", n) // else this test shows nothing
	}
	if n, ok := blob.ReadCached(p, 0); ok {
		t.Errorf("%d damaged bytes", n)
	}
	if _, err := blob.ReadAt(p, 0); !errors.Is(err, tree.ErrCorrupt) {
		t.Errorf("ReadAt: %v", err)
	}
}

// resident reports whether the page cache has the page of a byte, without making it fetch that.
func resident(t *testing.T, f *file, off int64) bool {
	t.Helper()
	page := int64(os.Getpagesize())
	m, err := unix.Mmap(f.fd, off/page*page, int(page), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m) //nolint:errcheck // it was just mapped
	var in [1]byte
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(unsafe.SliceData(m))), uintptr(page), uintptr(unsafe.Pointer(&in)))
	if errno != 0 {
		t.Skipf("mincore: %v", errno)
	}
	return in[0]&1 != 0
}

// Objects that are read one after the other come from the disk together, and are hashed all the same.
func TestReadingOn(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	var objects [][]byte
	for i := range 40 {
		objects = append(objects, object(i, 30_000))
		mustPut(t, s, objects[i])
	}
	mustSync(t, s)
	first := sealed(t, s, objects[0])
	dropCache(t, first)
	p := make([]byte, 30_000)
	is := func(i int) bool { return resident(t, first.file, first.start()+int64(i)*(30_000+recordHeader)+4096) }
	for _, i := range []int{10, 30} {
		mustHold(t, s, objects[i])
	}
	if is(31) || is(11) {
		t.Error("what nobody asked for was read")
	}
	mustHold(t, s, objects[31])
	for end := time.Now().Add(20 * time.Second); !is(36); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("what comes next was not read")
		}
	}
	b, err := s.OpenBlob(tree.Sum(objects[36]))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := b.ReadCached(p, 0); ok {
		t.Error("it was not hashed")
	}
	mustHold(t, s, objects[36])
	if _, ok := b.ReadCached(p, 0); !ok {
		t.Error("it was hashed, and is not believed")
	}
}

// A block of a large object is checked without reading the others, and damage in it condemns the object.
func TestBlocksAreCheckedAlone(t *testing.T) {
	f := new(faults)
	s := openDisk(t, t.TempDir(), Options{}, f.disk())
	good := object(1, 5*blockSize+1234)
	mustPut(t, s, good)
	mustSync(t, s)
	b := sealed(t, s, good)
	for i := range int64(6) {
		dropCache(t, b)
		p := make([]byte, 1000)
		if n, ok := b.ReadCached(p, i*blockSize); ok {
			t.Fatalf("block %d: %d bytes though they are not in the cache", i, n)
		}
		if _, err := b.ReadAt(p, i*blockSize); err != nil || !bytes.Equal(p, good[i*blockSize:][:1000]) {
			t.Fatalf("block %d: %v", i, err)
		}
		if _, ok := b.ReadCached(p, i*blockSize); !ok {
			t.Errorf("block %d was not kept", i)
		}
		if next := (i + 3) % 6; resident(t, b.file, next*blockSize) {
			t.Errorf("reading block %d has read block %d", i, next)
		}
	}
	// across blocks, up to the end
	p := make([]byte, len(good))
	if n, err := b.ReadAt(p, blockSize-10); err != io.EOF || !bytes.Equal(p[:n], good[blockSize-10:]) {
		t.Errorf("%d bytes, %v", n, err)
	}
	rotOnDisk(t, s, tree.Sum(good), 4*blockSize+77)
	if _, err := b.ReadAt(p[:100], 0); err != nil {
		t.Errorf("a good block: %v", err)
	}
	if _, err := b.ReadAt(p[:100], 4*blockSize); !errors.Is(err, tree.ErrCorrupt) {
		t.Errorf("a damaged block: %v", err)
	}
	mustLack(t, s, good)
}

// Readers by every way, of objects that rot and are put again and again, never see a wrong byte.
func TestRotUnderReaders(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	sizes := []int{500, 700, 3000, 40_000, 300_000, 600_000}
	objects := make([][]byte, len(sizes))
	for i, size := range sizes {
		objects[i] = object(i, size)
		mustPut(t, s, objects[i])
	}
	mustSync(t, s)
	var stop atomic.Bool
	var fromCache, hashed, refused atomic.Int64
	var readers sync.WaitGroup
	for r := range 6 {
		readers.Go(func() {
			p := make([]byte, 64<<10)
			for i := r; !stop.Load(); i++ {
				o := objects[i%len(objects)]
				off := i * 4099 % len(o)
				want := o[off:min(len(o), off+len(p))]
				b, err := s.OpenBlob(tree.Sum(o))
				if err != nil {
					refused.Add(1)
					continue
				}
				n, ok := b.ReadCached(p, int64(off))
				if ok {
					fromCache.Add(1)
				} else if n, err = b.ReadAt(p, int64(off)); err == nil || err == io.EOF {
					hashed.Add(1)
				} else {
					refused.Add(1)
					b.Close()
					continue
				}
				b.Close()
				if !bytes.Equal(p[:n], want) {
					t.Errorf("object of %d bytes: %d wrong bytes at %d, cached %v", len(o), n, off, ok)
					return
				}
			}
		})
	}
	rounds := 40
	if testing.Short() {
		rounds = 10
	}
	for i := range rounds {
		o := objects[i%len(objects)]
		rotOnDisk(t, s, tree.Sum(o), int64(i*7919%len(o)))
		for s.Has(tree.Sum(o)) {
			if _, err := s.Get(t.Context(), tree.Sum(o)); err != nil {
				break
			}
		}
		mustPut(t, s, o)
		mustSync(t, s)
	}
	stop.Store(true)
	readers.Wait()
	t.Logf("%d from the cache, %d hashed, %d refused", fromCache.Load(), hashed.Load(), refused.Load())
}
