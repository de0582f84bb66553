package store

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// borrower writes what it is lent to a pipe, as others write it to a socket, and reads it from there.
type borrower struct {
	t    testing.TB
	r, w *os.File
	got  []byte
	fail error
}

func newBorrower(t testing.TB) *borrower {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 2*blockSize); err != nil {
		t.Skipf("no pipe of that size: %v", err)
	}
	return &borrower{t: t, r: r, w: w}
}

func (w *borrower) use(mem []byte) {
	n, err := unix.Write(int(w.w.Fd()), mem)
	if err != nil {
		w.fail = err
		return
	}
	p := make([]byte, n)
	if _, err := w.r.Read(p); err != nil {
		w.t.Fatal(err)
	}
	w.got = append(w.got, p...)
}

// lent is a sealed large object, nothing of which has been lent yet.
func lent(t testing.TB, size int) (*Store, []byte, Blob) {
	t.Helper()
	s := openStore(t, t.TempDir(), Options{})
	good := object(1, size)
	mustPut(t, s, good)
	mustSync(t, s)
	b := sealed(t, s, good)
	if !b.Lendable(0, b.Size()) {
		if block, _ := b.lendable(0); block != nil && !inMemory(block) {
			t.Skip("the system does not tell what is in memory")
		}
		t.Fatal("an object that was just read and hashed is not lendable")
	}
	return s, good, b
}

func TestLentBytesAreTheObjects(t *testing.T) {
	_, good, b := lent(t, 700_001)
	for _, off := range []int{0, 1, blockSize - 1, blockSize, 5*blockSize + 77, len(good) - 1} {
		w := newBorrower(t)
		for at := off; at < len(good); {
			n, ok := b.Lend(int64(at), int64(len(good)-at), w.use)
			if n == 0 || !ok || w.fail != nil {
				t.Fatalf("lent %d at %d, good %v: %v", n, at, ok, w.fail)
			}
			at += n
		}
		if !bytes.Equal(w.got, good[off:]) {
			t.Errorf("from %d on: other bytes than the object's", off)
		}
	}
	if n, _ := b.Lend(int64(len(good)), 1, func([]byte) { t.Error("used") }); n != 0 {
		t.Errorf("%d bytes beyond the end", n)
	}
}

func TestSmallAndUnhashedObjectsAreNotLent(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	small, large := object(1, 9000), object(2, 700_000)
	mustPut(t, s, small)
	mustPut(t, s, large)
	mustSync(t, s)
	if sealed(t, s, small).Lendable(0, 9000) {
		t.Error("an object in a pack is lendable")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, Options{})
	b, err := s.OpenBlob(tree.Sum(large))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if b.Lendable(0, 1) {
		t.Error("an object that nobody has hashed since the start is lendable")
	}
	if n, _ := b.Lend(0, 1, func([]byte) { t.Error("used") }); n != 0 {
		t.Errorf("%d bytes of it were lent", n)
	}
}

// What was lent leaves the page cache when the store says so, though it is mapped, and is not lent before it was hashed.
func TestWhatLeftMemoryIsNotLent(t *testing.T) {
	_, good, b := lent(t, 700_000)
	w := newBorrower(t)
	b.Lend(0, blockSize, w.use) // has pages in the mapping
	b.file.dropCached(0, b.Size())
	if b.Lendable(0, 1) {
		t.Fatal("lendable without being in memory")
	}
	if n, _ := b.Lend(0, 1, func([]byte) { t.Error("used") }); n != 0 {
		t.Fatalf("%d bytes were lent", n)
	}
	p := make([]byte, len(good))
	if _, err := b.ReadAt(p, 0); err != nil || !bytes.Equal(p, good) {
		t.Fatal(err)
	}
	if !b.Lendable(0, b.Size()) {
		t.Error("not lendable after it was read again")
	}
}

// A READ that needs one block from the disk leaves those alone that others may be lending.
func TestAColdBlockBreaksNoOthersSeals(t *testing.T) {
	s, good, b := lent(t, 700_000)
	seals := func() (all []uint32) {
		for i := range int64(3) {
			all = append(all, s.seals.now(b.span(i*blockSize, 1)))
		}
		return all
	}
	b.file.dropCached(0, b.Size()) // all: the page cache may hold much in one piece
	for _, off := range []int64{blockSize, 2 * blockSize} {
		if _, err := b.ReadAt(make([]byte, 1), off); err != nil {
			t.Fatal(err)
		}
	}
	if b.Lendable(0, 1) || !b.Lendable(blockSize, 1) || !b.Lendable(2*blockSize, 1) {
		t.Skip("the page cache does not let go, or takes in more than it is asked for")
	}
	before := seals()
	p := make([]byte, 3*blockSize)
	if _, err := b.ReadAt(p, 0); err != nil || !bytes.Equal(p, good[:len(p)]) {
		t.Fatalf("ReadAt: %v", err)
	}
	after := seals()
	if before[0] == after[0] {
		t.Error("what came from the disk was not counted")
	}
	if before[1] != after[1] || before[2] != after[2] {
		t.Errorf("seals before %v, after %v: those of blocks that were in memory are broken", before, after)
	}
	if !b.Lendable(0, int64(len(p))) {
		t.Error("not lendable after it was read")
	}
}

func TestRotIsNotLent(t *testing.T) {
	s, good, b := lent(t, 700_000)
	b.Lend(2*blockSize, blockSize, newBorrower(t).use)
	rotOnDisk(t, s, tree.Sum(good), 2*blockSize+5)
	if b.Lendable(2*blockSize, 1) {
		t.Fatal("a damaged block is lendable")
	}
	if n, err := b.ReadAt(make([]byte, 10), 2*blockSize); !errors.Is(err, tree.ErrCorrupt) {
		t.Fatalf("ReadAt: %d, %v", n, err)
	}
	if b.Lendable(2*blockSize, 1) {
		t.Error("lendable though in quarantine")
	}
}

// A page that leaves memory after it was found there comes from the disk by the borrower's own write: he is told.
func TestALoadByTheBorrowerIsFound(t *testing.T) {
	_, _, b := lent(t, 700_000)
	w := newBorrower(t)
	n, good := b.Lend(blockSize, blockSize, func(mem []byte) {
		b.file.dropCached(0, b.Size()) // all: the page cache may hold much in one piece
		if inMemory(mem) {
			t.Skip("the page cache does not let go")
		}
		w.use(mem)
	})
	if n == 0 || w.fail != nil || len(w.got) == 0 {
		t.Fatalf("lent %d, %d written: %v", n, len(w.got), w.fail)
	}
	if good {
		t.Error("bytes that came from the disk unhashed were called good")
	}
	if b.Lendable(blockSize, 1) {
		t.Error("lendable though nobody has hashed what came from the disk")
	}
}

// Others who read the same pages at the time may have had some loaded: the lender waits until he knows.
func TestALoadByOthersIsFound(t *testing.T) {
	s, _, b := lent(t, 700_000)
	sp := b.span(0, 1)
	for name, c := range map[string]struct {
		during func() func() // returns what happens some time after
		good   bool
	}{
		"a load":          {func() func() { s.seals.load(sp); return nil }, false},
		"another block's": {func() func() { s.seals.load(b.span(blockSize, 1)); return nil }, true},
		"one that missed": {func() func() { j := s.seals.enter(sp); return func() { s.seals.missed(sp, j) } }, false},
		"one that hit":    {func() func() { j := s.seals.enter(sp); return func() { s.seals.leave(sp, j) } }, true},
	} {
		if err := b.readLarge(make([]byte, 2*blockSize), 0); err != nil { // seals them again
			t.Fatal(err)
		}
		ended := make(chan struct{})
		n, good := b.Lend(0, 10, func([]byte) {
			later := c.during()
			go func() {
				defer close(ended)
				if later != nil {
					later()
				}
			}()
		})
		<-ended
		if n != 10 || good != c.good {
			t.Errorf("%s: lent %d, good %v, want 10 and %v", name, n, good, c.good)
		}
	}
}

func TestLendingAllocatesNothing(t *testing.T) {
	_, _, b := lent(t, 700_000)
	use := func([]byte) {}
	allocs := testing.AllocsPerRun(100, func() {
		if !b.Lendable(0, blockSize) {
			t.Fatal("not lendable")
		}
		if n, good := b.Lend(0, blockSize, use); n != blockSize || !good {
			t.Fatal(n, good)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}
