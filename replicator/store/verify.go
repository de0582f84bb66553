package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Report is what a Verify found.
type Report struct {
	Objects int64         // read and hashed
	Bytes   int64         // the sum of their sizes
	Bad     []tree.Digest // damaged or unreadable; quarantined, so that the store is without them now
}

// progressBytes is how many bytes Verify reads between two reports of its progress.
const progressBytes = 4 << 20

// Verify reads and hashes every object that the store held when it began, and quarantines the bad ones. progress, which
// may be nil, is told now and then how many bytes of how many are done. Verify gives up when a bad object cannot be
// written to the quarantine: then it is the disk that is broken, and forgetting everything on it would help nobody.
func (s *Store) Verify(ctx context.Context, progress func(done, total int64)) (Report, error) {
	if err := s.usable(ctx); err != nil {
		return Report{}, fmt.Errorf("verify: %w", err)
	}
	s.verifying.Lock()
	defer s.verifying.Unlock()
	v := verification{s: s, progress: progress, total: s.index.bytes.Load()}
	if progress == nil {
		v.progress = func(int64, int64) {}
	}
	v.progress(0, v.total)
	ids := []uint32{0} // the large objects
	for _, p := range *s.packs.Load() {
		if p != nil {
			ids = append(ids, p.id)
		}
	}
	for _, id := range ids {
		if err := v.pack(ctx, id); err != nil {
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
	buf         []byte
	report      Report
}

// pack verifies the objects of one pack, or for 0 the large ones.
func (v *verification) pack(ctx context.Context, id uint32) error {
	bad := len(v.report.Bad)
	defer func() {
		if len(v.report.Bad) > bad {
			v.s.reindex(id)
		}
	}()
	for _, r := range v.s.gatherOne(id) {
		if err := v.s.usable(ctx); err != nil {
			return err
		}
		if err := v.object(r); err != nil {
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

func (v *verification) object(r record) error {
	p, b, err := v.s.read(r.digest, v.buf)
	defer b.Close()
	if cap(p) > 0 {
		v.buf = p
	}
	if errors.Is(err, tree.ErrMissing) {
		return nil // collected meanwhile
	}
	if errors.Is(err, ErrClosed) {
		return err
	}
	v.report.Objects++
	v.report.Bytes += int64(r.size)
	if err == nil {
		return nil
	}
	v.s.log.Error().Err(err).Stringer("object", r.digest).Msg("object is damaged: quarantined")
	if err := v.s.quarantine(b, p); err != nil {
		return err
	}
	v.report.Bad = append(v.report.Bad, r.digest)
	return nil
}
