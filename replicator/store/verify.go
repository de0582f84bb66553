package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Report is what a Verify found.
type Report struct {
	Objects int64         // read and hashed
	Bytes   int64         // the sum of their sizes
	Bad     []tree.Digest // damaged or unreadable; quarantined, so that the store is without them now
	Mended  []tree.Digest // damaged on disk, but whole in the page cache: written anew
}

// progressBytes is how many bytes Verify reads between two reports of its progress.
const progressBytes = 4 << 20

// Verify reads every object that the store held when it began from the disk, also when the page cache has it, hashes it,
// and quarantines the bad ones. What it reads takes no room in the page cache. progress, which may be nil, is told now and
// then how many bytes of how many are done. Verify gives up when a bad object cannot be written to the quarantine: then it
// is the disk that is broken, and forgetting everything on it would help nobody.
func (s *Store) Verify(ctx context.Context, progress func(done, total int64)) (Report, error) {
	if err := s.usable(ctx); err != nil {
		return Report{}, fmt.Errorf("verify: %w", err)
	}
	s.verifying.Lock()
	defer s.verifying.Unlock()
	window, err := unix.Mmap(-1, 0, directWindow, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return Report{}, fmt.Errorf("verify: room to read: %w", err)
	}
	defer unix.Munmap(window) //nolint:errcheck // it was just mapped
	v := verification{s: s, progress: progress, total: s.index.bytes.Load(), window: window}
	if progress == nil {
		v.progress = func(int64, int64) {}
	}
	v.progress(0, v.total)
	type part struct {
		id  uint32
		end int64 // what is appended from here on was put since
	}
	parts := []part{{0, 1}} // the large objects
	for _, p := range *s.packs.Load() {
		if p != nil {
			parts = append(parts, part{p.id, p.size.Load()})
		}
	}
	for _, p := range parts {
		if err := v.pack(ctx, p.id, p.end); err != nil {
			return v.report, fmt.Errorf("verify: %w", err)
		}
	}
	if len(v.report.Mended) > 0 {
		if err := s.Sync(ctx); err != nil {
			return v.report, fmt.Errorf("verify: %w", err)
		}
	}
	v.progress(v.total, v.total)
	return v.report, nil
}

type verification struct {
	s           *Store
	progress    func(done, total int64)
	done, total int64
	told        int64 // done when progress was last called
	window      []byte
	buf         []byte
	report      Report
}

// pack verifies the objects of one pack that are before end, or for 0 the large ones.
func (v *verification) pack(ctx context.Context, id uint32, end int64) error {
	found := len(v.report.Bad) + len(v.report.Mended)
	defer func() {
		if len(v.report.Bad)+len(v.report.Mended) > found {
			v.s.reindex(id)
		}
	}()
	var file *directFile
	if id != 0 {
		var err error
		file, err = v.s.disk.openDirect(v.s.pathOf(id), v.window, func(off, length int64) {
			sp := v.s.page(id, off)
			sp.stride, sp.n = 1, int(length>>v.s.pageShift)
			v.s.seals.load(sp)
		})
		if err == nil {
			defer file.close()
		}
	}
	for _, r := range v.s.gatherOne(id) {
		if err := v.s.usable(ctx); err != nil {
			return err
		}
		if int64(r.off) >= end {
			break
		}
		if err := v.object(file, r); err != nil {
			return err
		}
		v.done = min(v.done+int64(r.size), v.total)
		if v.done-v.told >= progressBytes {
			v.told = v.done
			v.progress(v.done, v.total)
		}
	}
	return nil
}

// object verifies one object. file is its pack; nil for a large object, or when the pack cannot be opened.
func (v *verification) object(file *directFile, r record) error {
	b, err := v.s.OpenBlob(r.digest)
	if err != nil {
		if errors.Is(err, tree.ErrMissing) {
			return nil // collected meanwhile
		}
		return err
	}
	defer b.Close()
	if b.e.off != r.off && b.e.pack != 0 {
		return nil // it was moved, and hashed for that
	}
	v.report.Objects++
	v.report.Bytes += int64(r.size)
	v.buf = slices.Grow(v.buf[:0], int(r.size))[:r.size]
	n, err := v.fromDisk(file, b)
	if err == nil {
		return nil
	}
	whole := make([]byte, r.size)
	if m, again := b.readWhole(whole); again == nil {
		return v.mend(b, v.buf[:n], whole)
	} else if m > n {
		v.buf, n, err = whole, m, again
	}
	v.s.log.Error().Err(err).Str("event", "quarantined").Stringer("object", r.digest).Msg("an object is damaged on disk")
	if err := v.s.quarantine(b, v.buf[:n]); err != nil {
		return err
	}
	v.report.Bad = append(v.report.Bad, r.digest)
	return nil
}

// fromDisk reads b from the disk to v.buf, twice before it says that b is damaged. It returns how many bytes could be read.
func (v *verification) fromDisk(file *directFile, b Blob) (n int, err error) {
	if b.e.pack == 0 {
		k := b.file.blocks
		file, err = v.s.disk.openDirect(v.s.large.path(b.e.digest, b.e.size), v.window, func(off, length int64) {
			v.s.seals.load(k.span(off/blockSize, (off+length-1)/blockSize))
		})
		if errors.Is(err, os.ErrNotExist) {
			return b.readWhole(v.buf) // it waits for a Sync
		}
		if err != nil {
			return 0, err
		}
		defer file.close()
	}
	if file == nil {
		return b.readWhole(v.buf)
	}
	for again := range 2 {
		n, err = file.readAt(v.buf, b.start(), again > 0)
		if err == nil && tree.Sum(v.buf) == b.e.digest {
			return n, nil
		}
	}
	if err == nil {
		err = tree.ErrCorrupt
	}
	return n, err
}

// mend writes an object anew that is damaged on disk, as the bytes read from there show, but that the page cache still has.
func (v *verification) mend(b Blob, bad, good []byte) error {
	if err := v.s.quarantine(b, bad); err != nil {
		return err
	}
	if err := v.s.put(context.Background(), []Hashed{{b.e.digest, good}}); err != nil {
		v.report.Bad = append(v.report.Bad, b.e.digest)
		return full(err)
	}
	v.s.log.Error().Str("event", "mended").Stringer("object", b.e.digest).Msg("an object is damaged on disk; written anew from memory")
	v.report.Mended = append(v.report.Mended, b.e.digest)
	return nil
}
