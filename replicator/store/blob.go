package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Blob is an object opened for reading: a small value that refers to a file which others use too. It is safe for
// concurrent use, and readable until it is closed, also when its object was collected or its store closed meanwhile.
type Blob struct {
	s    *Store
	file *file
	e    *entry // as it was when the object was opened
}

// OpenBlob opens the object d. It makes no system call, and allocates nothing, when d is in a pack or its file is open
// already. It wraps tree.ErrMissing when the store does not have d.
func (s *Store) OpenBlob(d tree.Digest) (Blob, error) {
	if s.closed.Load() {
		return Blob{}, fmt.Errorf("open object: %w", ErrClosed)
	}
	for range 100 { // each round but the first means that the object moved after the lookup
		e := s.index.find(&d)
		if e == nil {
			return Blob{}, fmt.Errorf("object %s: %w", d, tree.ErrMissing)
		}
		if e.pack != 0 {
			if p := s.pack(e.pack); p != nil {
				return Blob{s, p.file, e}, nil
			}
			if s.closed.Load() {
				return Blob{}, fmt.Errorf("open object: %w", ErrClosed)
			}
			runtime.Gosched()
			continue
		}
		f, err := s.large.get(d, e.size)
		if err == nil {
			return Blob{s, f, e}, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return Blob{}, fmt.Errorf("object %s: %w", d, err)
		}
		if s.vanished(d, e.place) {
			s.log.Error().Stringer("object", d).Msg("the file of a large object is gone")
		}
	}
	return Blob{}, fmt.Errorf("object %s: its place is gone: %w", d, tree.ErrCorrupt)
}

// OpenCached is OpenBlob when that takes no system call: ok is false when d is missing, or a file to be opened first.
func (s *Store) OpenCached(d tree.Digest) (b Blob, ok bool) {
	e := s.index.find(&d)
	if e == nil || s.closed.Load() {
		return Blob{}, false
	}
	if e.pack == 0 {
		f, _ := s.large.cached(d)
		return Blob{s, f, e}, f != nil
	}
	p := s.pack(e.pack)
	if p == nil {
		return Blob{}, false
	}
	return Blob{s, p.file, e}, true
}

// Size returns the object's size in bytes.
func (b Blob) Size() int64 { return int64(b.e.size) }

// start returns where in its file the object begins.
func (b Blob) start() int64 {
	if b.e.pack == 0 {
		return 0
	}
	return int64(b.e.off) + recordHeader
}

// span returns the words for the pages of length bytes of the object, of which there is one at the least, from off on.
func (b Blob) span(off, length int64) span {
	if b.e.pack == 0 {
		return b.file.blocks.span(off/blockSize, (off+length-1)/blockSize)
	}
	return b.s.ends(b.e.place)
}

// ends returns the words for the first and the last page of an object in a pack.
func (s *Store) ends(at place) span {
	first := int64(at.off) + recordHeader
	last := first + max(int64(at.size), 1) - 1
	sp := s.page(at.pack, first)
	if more := last>>s.pageShift - first>>s.pageShift; more > 0 {
		sp.stride, sp.n = uint64(more), 2
	}
	return sp
}

// page returns the word for the page that has byte off of a pack.
func (s *Store) page(pack uint32, off int64) span {
	return span{first: uint64(pack)*0x9e37_79b9_7f4a_7c15>>20 + uint64(off>>s.pageShift), n: 1}
}

// ReadAt reads as io.ReaderAt says. Every byte that it returns was hashed since it last came from the disk. When the object
// turns out to be damaged it is quarantined and the error wraps tree.ErrCorrupt: opening the object again finds a copy that
// was put since, or none.
func (b Blob) ReadAt(p []byte, off int64) (int, error) {
	want, eof, err := b.clip(p, off)
	if err != nil || len(want) == 0 {
		return 0, err
	}
	for range 3 {
		ok, busy := b.readSealed(want, off)
		if ok {
			return len(want), eof
		}
		if !busy {
			break
		}
		time.Sleep(settleRest) // some thread was stopped by the system in the middle of its read
	}
	if err := b.readChecked(want, off); err != nil {
		return 0, fmt.Errorf("read object %s: %w", b.e.digest, err)
	}
	return len(want), eof
}

// ReadRaw is ReadAt without hashing: a damaged byte is returned as it is. It is for those who hash by themselves what
// they read, as the receiver of a transfer does. An object whose file ends too early is tree.ErrCorrupt.
func (b Blob) ReadRaw(p []byte, off int64) (int, error) {
	want, eof, err := b.clip(p, off)
	if err != nil || len(want) == 0 {
		return 0, err
	}
	n, err := b.fetch(want, off)
	if err != nil {
		return n, fmt.Errorf("read object %s: %w", b.e.digest, err)
	}
	return n, eof
}

// clip cuts p to what the object has from off on. eof is io.EOF when that is less than p.
func (b Blob) clip(p []byte, off int64) (want []byte, eof, err error) {
	if off < 0 {
		return nil, nil, fmt.Errorf("read object: negative offset %d", off)
	}
	left := b.Size() - off
	if left <= 0 {
		return nil, nil, io.EOF
	}
	if int64(len(p)) > left {
		return p[:left], io.EOF, nil
	}
	return p, nil, nil
}

// ReadCached is ReadAt without ever waiting for the disk or hashing. ok means that n is all that p, or the object from off
// on, can hold; otherwise some of it is not in the page cache, or was not hashed since it came there, or the file system
// cannot tell, and ReadAt must be asked.
func (b Blob) ReadCached(p []byte, off int64) (n int, ok bool) {
	if off < 0 {
		return 0, false
	}
	if left := b.Size() - off; int64(len(p)) > left {
		p = p[:max(0, left)]
	}
	if len(p) == 0 {
		return 0, true
	}
	if ok, _ = b.readSealed(p, off); !ok {
		return 0, false
	}
	return len(p), true
}

// settleRest is how long a read that may wait lets others end who read the same pages, before it hashes them instead.
const settleRest = 300 * time.Microsecond

// readSealed fills p from the page cache, with bytes that were hashed since they came there; else ok is false. busy means
// that they may well be, but for others who are reading them.
func (b Blob) readSealed(p []byte, off int64) (ok, busy bool) {
	if b.e.pack != 0 {
		return b.readSealedSpan(p, off, &b.e.seal)
	}
	sums := b.file.blocks.sums.Load()
	if sums == nil {
		return false, false
	}
	for len(p) > 0 {
		part := p[:min(int64(len(p)), blockSize-off%blockSize)]
		if ok, busy := b.readSealedSpan(part, off, &(*sums)[off/blockSize].seal); !ok {
			return false, busy
		}
		p, off = p[len(part):], off+int64(len(part))
	}
	return true, false
}

// readSealedSpan is readSealed for pages that have one seal.
func (b Blob) readSealedSpan(p []byte, off int64, seal *uint32) (ok, busy bool) {
	x, sp := &b.s.seals, b.span(off, int64(len(p)))
	if atomic.LoadUint32(seal) != x.now(sp) {
		return false, false
	}
	ok, alone := b.cached(p, off, sp)
	ok = ok && (alone || x.settle(sp))
	intact := atomic.LoadUint32(seal) == x.now(sp)
	return ok && intact, !ok && intact
}

// cached fills p from the page cache, and says whether that could be done without asking the disk. alone: no other read
// was under way that may have asked for these pages and not counted it yet.
func (b Blob) cached(p []byte, off int64, sp span) (ok, alone bool) {
	x := &b.s.seals
	joined := x.enter(sp)
	if b.file.preadCached(p, b.start()+off) < len(p) {
		x.missed(sp, joined)
		return false, false
	}
	return true, x.leave(sp, joined)
}

// Close lets go of the object. Copies of a Blob are one Blob: the last user closes it, once.
func (b Blob) Close() error {
	if b.file == nil || !b.file.counted {
		return nil
	}
	return b.file.release()
}
