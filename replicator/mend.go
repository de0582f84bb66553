package replicator

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// A master whose disk does not give back what its ledger names fetches it from the others, like one that is behind.

// startMending begins to fetch what this disk has lost, unless something is being fetched already.
func (r *Replica) startMending() {
	if r.chase != nil {
		return
	}
	r.again.Stop()
	ctx, cancel := context.WithCancel(r.life)
	release := r.cfg.Store.Hold()
	c := &chase{target: r.head(), mends: true, began: time.Now(), end: func() { cancel(); release() }}
	r.chase = c
	all := slices.Clone(r.generations)
	r.work.Go(func() { r.refetch(ctx, c, all) })
}

// refetch fetches every retained generation, the head first. An earlier one that nobody has any more is left as it is.
func (r *Replica) refetch(ctx context.Context, c *chase, all []tree.Generation) {
	var base tree.Digest
	for i, g := range slices.Backward(all) {
		err := r.cfg.Peers.Fetch(ctx, g.Root, base, "", c.got.set)
		if err != nil && (i == len(all)-1 || !errors.Is(err, tree.ErrMissing)) {
			r.bring(ctx, caught{chase: c, err: err})
			return
		}
		c.got.next()
		if i == len(all)-1 {
			base = g.Root
		}
	}
	r.bring(ctx, caught{chase: c})
}

// mended serves what was brought back, or tries again later.
func (r *Replica) mended(ctx context.Context, c caught) {
	got := c.chase.got.sum()
	r.endChase()
	err := c.err
	if err == nil {
		err = r.readBack(ctx)
	}
	if err != nil {
		r.log.Debug().Err(err).Msg("what the disk has lost cannot be brought back now")
		r.again.Reset(min(30*time.Second, time.Second<<min(r.mends, 5)))
		r.mends++
		return
	}
	r.log.Info().Uint64("generation", r.head().Number).Int64("objects", got.Objects).Int64("bytes", got.Bytes).
		Int64("took_ms", time.Since(c.chase.began).Milliseconds()).Msg("brought back what the disk had lost")
	r.observe(ctx, r.wanted)
}

// ReadBack serves the last generation again after the disk was repaired.
func (r *Replica) ReadBack(ctx context.Context) error {
	return r.ask(ctx, func(ctx context.Context) error {
		if r.unreadable == nil {
			return nil
		}
		return r.readBack(ctx)
	})
}

func (r *Replica) readBack(ctx context.Context) error {
	if err := r.cfg.Volume.Restore(ctx, r.generations); err != nil {
		return err
	}
	if r.problem == r.unreadable {
		r.problem = nil
	}
	r.unreadable, r.lacking, r.mends = nil, false, 0
	r.publishStatus()
	if r.cfg.Flipped != nil {
		r.cfg.Flipped()
	}
	return nil
}
