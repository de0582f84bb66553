package store

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Hold keeps Collect from deleting anything until release is called, once or more often. A publish, an upload and a fetch
// hold the store from before their first Has until what they stored is named by something that a collection marks.
func (s *Store) Hold() (release func()) {
	s.holdMu.Lock()
	defer s.holdMu.Unlock()
	s.holds++
	if s.collecting != nil {
		s.collecting(ErrHeld)
	}
	return sync.OnceFunc(func() {
		s.holdMu.Lock()
		defer s.holdMu.Unlock()
		if s.holds--; s.holds == 0 {
			s.failed = nil
		}
	})
}

// worthRetiring is how many dead bytes the active pack may have without being compacted.
const worthRetiring = 8 << 20

// Collected is what a Collect did.
type Collected struct {
	Objects   int64 // deleted
	Bytes     int64 // the sum of their sizes
	Freed     int64 // bytes of disk given back; those of a file still open for a Blob come back when it is closed
	Compacted int   // packs rewritten or removed
}

// Collect deletes every object that mark does not name, and gives back their space: large files at once, packs once they
// are less than half alive, by copying what lives into a new one, also the one that is being appended to. mark calls live with each digest that must stay; live
// says whether to look into that object, which is true the first time. What is put while mark runs stays.
//
// Readers go on meanwhile. An error of mark deletes nothing. Collect wraps ErrHeld, and has deleted nothing, when the
// store is held, or came to be while mark ran, whose context ends then. A later error, in giving back space, leaves
// objects deleted and space for the next Collect to give back.
func (s *Store) Collect(ctx context.Context, mark func(ctx context.Context, live func(tree.Digest) bool) error) (Collected, error) {
	if err := s.usable(ctx); err != nil {
		return Collected{}, fmt.Errorf("collect: %w", err)
	}
	select {
	case s.upkeep <- struct{}{}:
		defer func() { <-s.upkeep }()
	case <-ctx.Done():
		return Collected{}, fmt.Errorf("collect: %w", ctx.Err())
	}
	if s.closed.Load() {
		return Collected{}, fmt.Errorf("collect: %w", ErrClosed)
	}
	var c Collected
	gone, changed, err := s.markAndSweep(ctx, mark, &c)
	if err == nil {
		err = s.giveBack(ctx, gone, changed, &c)
	}
	if err != nil {
		return c, fmt.Errorf("collect: %w", full(err))
	}
	return c, nil
}

// markAndSweep makes the index forget what mark does not name. It returns the large objects among it and the packs of
// the others.
func (s *Store) markAndSweep(ctx context.Context, mark func(ctx context.Context, live func(tree.Digest) bool) error, c *Collected) (gone []record, changed map[uint32]bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.holdMu.Lock()
	if s.holds > 0 {
		s.holdMu.Unlock()
		return nil, nil, ErrHeld
	}
	s.collecting = cancel
	s.index.startMarks()
	s.holdMu.Unlock()

	err = mark(ctx, func(d tree.Digest) bool {
		known, first := s.index.mark(&d)
		return first || !known
	})

	s.holdMu.Lock()
	defer s.holdMu.Unlock()
	s.collecting = nil
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if s.closed.Load() {
		err = ErrClosed
	}
	if err != nil {
		s.index.stopMarks()
		return nil, nil, err
	}
	changed = make(map[uint32]bool)
	s.index.sweep(func(d tree.Digest, p place) {
		c.Objects++
		c.Bytes += int64(p.size)
		s.left(p)
		if p.pack == 0 {
			gone = append(gone, record{digest: d, size: p.size})
		} else {
			changed[p.pack] = true
		}
	})
	return gone, changed, nil
}

// retireActive seals the active pack when so much of it is dead that it should be compacted: a master where little is
// published would keep it for ever otherwise. writeMu is held.
func (s *Store) retireActive() error {
	a := s.active
	if a == nil || s.closed.Load() {
		return nil
	}
	live, size := a.live.Load(), a.size.Load()
	if live >= size/2 || size-live < min(s.o.PackSize/8, worthRetiring) {
		return nil
	}
	if err := s.syncActive(); err != nil {
		return fmt.Errorf("seal the active pack: %w", err)
	}
	s.checkpoint(a, true)
	s.active = nil
	return nil
}

// giveBack makes disk space of what was deleted.
func (s *Store) giveBack(ctx context.Context, gone []record, changed map[uint32]bool, c *Collected) error {
	gone = append(gone, s.leftovers...)
	s.leftovers = nil
	err := s.removeLarge(ctx, gone, c)
	s.writeMu.Lock()
	err = errors.Join(err, s.retireActive())
	active, packs := s.active, *s.packs.Load() // together, so that no younger active pack is taken for a sealed one
	s.writeMu.Unlock()
	var group []*pack // to be compacted into one
	room := s.o.PackSize
	for _, p := range packs {
		if p == nil || p == active {
			continue
		}
		live := p.live.Load()
		if live == 0 {
			err = errors.Join(err, s.removePack(p, c))
			continue
		}
		if live >= p.size.Load()/2 {
			if changed[p.id] {
				s.reindex(p.id)
			}
			continue
		}
		if live > room {
			err = errors.Join(err, s.compact(ctx, group, c))
			group, room = nil, s.o.PackSize
		}
		group, room = append(group, p), room-live
	}
	if active != nil && changed[active.id] {
		s.reindex(active.id)
	}
	return errors.Join(err, s.compact(ctx, group, c))
}
