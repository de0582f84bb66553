package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Blob is an object opened for reading: a small value that refers to a file which others use too. It is safe for
// concurrent use, and readable until it is closed, also when its object was collected or its store closed meanwhile. Only
// a quarantine, of whichever object, ends all that were opened before: see ErrReopen.
type Blob struct {
	file  *file
	off   int64
	size  int64
	since uint64 // how many quarantines there had been when it was looked up
}

// current reports whether nothing was quarantined since b was opened.
func (b Blob) current() bool { return b.file.disk.quarantines.Load() == b.since }

// OpenBlob opens the object d. It makes no system call, and allocates nothing, when d is in a pack or its file is open
// already. It wraps tree.ErrMissing when the store does not have d.
func (s *Store) OpenBlob(d tree.Digest) (Blob, error) {
	if s.closed.Load() {
		return Blob{}, fmt.Errorf("open object: %w", ErrClosed)
	}
	b, _, err := s.locate(d)
	return b, err
}

// locate opens d and says where it was found.
func (s *Store) locate(d tree.Digest) (Blob, place, error) {
	since := s.disk.quarantines.Load()
	for range 100 { // each round but the first means that the object moved after the lookup
		at, ok := s.index.lookup(&d)
		if !ok {
			return Blob{}, at, fmt.Errorf("object %s: %w", d, tree.ErrMissing)
		}
		if at.pack != 0 {
			if p := s.pack(at.pack); p != nil {
				return Blob{p.file, int64(at.off) + recordHeader, int64(at.size), since}, at, nil
			}
			if s.closed.Load() {
				return Blob{}, at, fmt.Errorf("open object: %w", ErrClosed)
			}
			runtime.Gosched()
			continue
		}
		f, err := s.large.get(d, at.size)
		if err == nil {
			return Blob{f, 0, int64(at.size), since}, at, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return Blob{}, at, fmt.Errorf("object %s: %w", d, err)
		}
		if s.vanished(d, at) {
			s.log.Error().Stringer("object", d).Msg("the file of a large object is gone")
		}
	}
	return Blob{}, place{}, fmt.Errorf("object %s: its place is gone: %w", d, tree.ErrCorrupt)
}

// OpenCached is OpenBlob when that takes no system call: ok is false when d is missing, or a file to be opened first.
func (s *Store) OpenCached(d tree.Digest) (b Blob, ok bool) {
	since := s.disk.quarantines.Load()
	at, ok := s.index.lookup(&d)
	if !ok || s.closed.Load() {
		return Blob{}, false
	}
	if at.pack == 0 {
		f, _ := s.large.cached(d)
		return Blob{f, 0, int64(at.size), since}, f != nil
	}
	p := s.pack(at.pack)
	if p == nil {
		return Blob{}, false
	}
	return Blob{p.file, int64(at.off) + recordHeader, int64(at.size), since}, true
}

// Size returns the object's size in bytes.
func (b Blob) Size() int64 { return b.size }

// ReadAt reads as io.ReaderAt says. It does not hash: a damaged byte is returned as it is. An object whose file ends too
// early is tree.ErrCorrupt; ErrReopen says that something was quarantined since the Blob was opened.
func (b Blob) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read object: negative offset %d", off)
	}
	if off >= b.size {
		return 0, io.EOF
	}
	if !b.current() {
		return 0, fmt.Errorf("read object: %w", ErrReopen)
	}
	want := p
	if int64(len(want)) > b.size-off {
		want = want[:b.size-off]
	}
	n, err := b.file.pread(want, b.off+off)
	if err != nil {
		return n, fmt.Errorf("read object: %w", err)
	}
	if n < len(want) {
		return n, fmt.Errorf("read object: its file ends early: %w", tree.ErrCorrupt)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// ReadRaw is ReadAt without hashing: a damaged byte is returned as it is. It is for those who hash by themselves what
// they read, as the receiver of a transfer does.
func (b Blob) ReadRaw(p []byte, off int64) (int, error) { return b.ReadAt(p, off) }

// ReadCached is ReadAt without ever waiting for the disk. ok means that n is all that p, or the object from off on, can
// hold; otherwise some of it is not in the page cache, or the file system cannot tell, and ReadAt must be asked.
func (b Blob) ReadCached(p []byte, off int64) (n int, ok bool) {
	if off < 0 || !b.current() {
		return 0, false
	}
	if int64(len(p)) > b.size-off {
		p = p[:max(0, b.size-off)]
	}
	if len(p) == 0 {
		return 0, true
	}
	n = b.file.preadCached(p, b.off+off)
	return n, n == len(p)
}

// Close lets go of the object. Copies of a Blob are one Blob: the last user closes it, once.
func (b Blob) Close() error {
	if b.file == nil || !b.file.counted {
		return nil
	}
	return b.file.release()
}

// Get returns the object d, hashed. It wraps tree.ErrMissing when the store does not have d, and tree.ErrCorrupt when what
// it has is not d any more; it is quarantined then, so that putting d again mends the store. The slice is the caller's.
func (s *Store) Get(ctx context.Context, d tree.Digest) ([]byte, error) {
	if err := s.usable(ctx); err != nil {
		return nil, fmt.Errorf("get: %w", err)
	}
	p, at, err := s.read(d, nil)
	if errors.Is(err, tree.ErrCorrupt) {
		if moved := s.quarantine(d, at, p); moved != nil {
			err = errors.Join(err, moved)
		} else {
			s.reindex(at.pack)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("object %s: %w", d, err)
	}
	return p, nil
}

// read returns the object d and where it was found, hashed, in buf if that is long enough. It reads twice before it says
// that d is damaged. Together with an error it returns the bytes that could be read.
func (s *Store) read(d tree.Digest, buf []byte) ([]byte, place, error) {
	var again error
	for {
		b, at, err := s.locate(d)
		if err != nil {
			return nil, at, err
		}
		buf = slices.Grow(buf[:0], int(b.size))[:b.size]
		n, err := b.file.pread(buf, b.off)
		_ = b.Close()
		if err == nil && (n < len(buf) || tree.Sum(buf) != d) {
			err = tree.ErrCorrupt
		}
		if err == nil || again != nil {
			return buf[:n], at, err
		}
		again = err
	}
}

// Has reports whether the store holds d, without looking at its bytes.
func (s *Store) Has(d tree.Digest) bool {
	_, ok := s.index.lookup(&d)
	return ok && !s.closed.Load()
}
