package source

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Commit ends the scan: the head has moved to what it was merged into, or nothing had changed. What was still changing
// is dirty again. An error says that fingerprints could not be written: the next scan hashes more than it must.
func (sc *Scan) Commit() error {
	if !sc.end() {
		return nil
	}
	total := sc.meter.end()
	sum := summary{Dev: sc.dev.Dev, Ino: sc.dev.Ino, Files: sc.last.Files, Bytes: sc.last.Bytes}
	if sc.plan == nil {
		sum.Files, sum.Bytes = uint64(total.Files), uint64(total.Bytes)
	}
	err := sc.src.facts.commit(sum, sc.seen)
	sc.relink()
	sc.src.committed(sc)
	return err
}

// Abort ends the scan and gives the dirty set back; a scan is due again after a while that grows with each failure.
// After Commit it does nothing.
func (sc *Scan) Abort() {
	if !sc.end() {
		return
	}
	sc.meter.end()
	if err := sc.src.facts.flush(); err != nil {
		sc.src.log.Warn().Err(err).Msg("fingerprints are not kept")
	}
	sc.src.aborted(sc)
}

// end stops reading ahead; false: the scan had ended before.
func (sc *Scan) end() bool {
	sc.mu.Lock()
	ended := sc.ended
	sc.ended = true
	sc.mu.Unlock()
	if ended {
		return false
	}
	if sc.ahead != nil {
		sc.ahead.stop()
	}
	sc.src.reader.rest()
	return true
}

// relink brings the link index up to what the scan has found.
func (sc *Scan) relink() {
	l := sc.src.links
	if sc.plan == nil {
		l = newLinks()
	} else {
		for _, path := range l.below(sc.plan.lost) {
			l.drop(path)
		}
		for dir, pd := range sc.plan.dirs {
			for name := range pd.names {
				l.drop(join(dir, name))
			}
		}
	}
	for _, x := range sc.linked {
		l.add(x.path, x.id, x.nlink)
	}
	sc.src.links = l
}

func (s *Source) committed(sc *Scan) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scanning, s.failures, s.lastErr, s.lastScan = false, 0, "", sc.began
	s.pending.notBefore = time.Time{}
	if sc.plan == nil {
		s.lastFull, s.fullTook = sc.began, time.Since(sc.began)
		switch {
		case s.watch != nil && s.watch != sc.watch:
			s.markAll("watching began during the last scan")
		case s.watch != nil && s.full == "":
			s.watch.complete = true
		}
		if s.cfg.Watch != "" && !s.sees() && s.full == "" {
			s.pending.notBefore = time.Now().Add(s.rescanEvery())
		}
	}
	if sc.late != "" {
		s.markAll(fmt.Sprintf("%q has several names, and not all are known", sc.late))
	}
	if sc.left.below() {
		s.dirty += s.dirt.merge(sc.left)
		s.changed()
	}
	poke(s.kick)
}

func (s *Source) aborted(sc *Scan) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scanning = false
	s.failures++
	if sc.err != nil && !errors.Is(sc.err, context.Canceled) {
		s.lastErr = sc.err.Error()
	}
	if s.full == "" {
		s.full = sc.full
	}
	s.dirty += s.dirt.merge(sc.taken)
	s.dirty += s.dirt.merge(sc.left)
	if s.dirty > 0 || s.dirt.deep || s.full != "" {
		s.changed()
		s.pending.urgent = false
	}
	s.pending.notBefore = time.Now().Add(backoff(s.failures, s.cfg.Quiet, s.cfg.MaxWait))
	poke(s.kick)
}

// remember keeps a fact, in time to be written with its batch.
func (s *Source) remember(id tree.LinkID, f fact) error {
	if err := s.facts.put(id, f); err != nil {
		return &storeError{err}
	}
	return nil
}

// present reports whether everything that a content names is still there.
func (s *Source) present(ctx context.Context, c tree.Content) (bool, error) {
	has, cheap := s.cfg.Objects.(interface{ Has(tree.Digest) bool })
	if cheap && !has.Has(c.Digest) {
		return false, nil
	}
	if cheap && c.Form != tree.Chunks {
		return true, nil
	}
	b, err := s.cfg.Objects.Get(ctx, c.Digest)
	if err != nil || c.Form != tree.Chunks {
		return err == nil, absent(err)
	}
	extents, err := tree.DecodeChunks(b)
	for _, x := range extents {
		if err != nil || x.Digest.IsZero() {
			continue
		}
		if !cheap {
			_, err = s.cfg.Objects.Get(ctx, x.Digest)
		} else if !has.Has(x.Digest) {
			return false, nil
		}
	}
	return err == nil, absent(err)
}

// absent turns an object's absence into no error: the file is there to be read again, and a damaged object too is
// replaced by doing so.
func absent(err error) error {
	if errors.Is(err, tree.ErrMissing) || errors.Is(err, tree.ErrCorrupt) {
		return nil
	}
	return err
}
