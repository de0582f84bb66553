package replicator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Recovery says how to make a shard's head anew. The zero value takes this disk's word alone.
type Recovery struct {
	// Floor is what all living masters have seen: the new head is numbered above it.
	Floor Maxima
	// Newer are generations that master From has served and this one has not, oldest first: they are fetched first.
	Newer []tree.Generation
	From  string
	// AcceptLoss makes what this master serves the head although etcd names a later one, which nobody has any more.
	AcceptLoss bool
	Note       string // "": one that says where the head came from
	Caller     string // who asks; for the record
}

// Recover makes what this master served last the shard's head again, in an etcd that has lost it or holds an older one:
// as a new generation, numbered above everything that was seen, with no ino issued twice. It needs a term. When etcd's
// head is at least as new, nothing moves, unless loss is accepted.
func (r *Replica) Recover(ctx context.Context, how Recovery) (before, after tree.Generation, err error) {
	err = r.ask(ctx, func(ctx context.Context) error {
		before, after, err = r.recover(ctx, how)
		return err
	})
	return before, after, err
}

func (r *Replica) recover(ctx context.Context, how Recovery) (before, after tree.Generation, err error) {
	if err := r.leads(); err != nil {
		return before, after, err
	}
	before, revision, err := r.cfg.Heads.Head(ctx)
	if err != nil {
		return before, after, fmt.Errorf("read the head of %s: %w", r.cfg.Shard, err)
	}
	if err := r.adopt(ctx, how); err != nil {
		return before, after, err
	}
	served := r.head()
	seen := r.maxima
	seen.Generation, seen.NextIno = max(seen.Generation, how.Floor.Generation), max(seen.NextIno, how.Floor.NextIno)
	ahead := before.Number > served.Number || before.Number == served.Number && before.Root == served.Root
	if served.Number == 0 || !how.AcceptLoss && ahead && before.NextIno >= served.NextIno && !fenceOf(before).before(fenceOf(served)) {
		return before, before, nil
	}
	next := served
	next.Number = max(seen.Generation, before.Number) + 1
	next.NextIno = max(seen.NextIno, before.NextIno)
	next.PublishedAt, next.By, next.Epoch, next.Era = r.cfg.Now().UTC(), r.cfg.Master, r.term.Epoch(), r.cfg.Era()
	next.Caller = how.Caller
	if next.Note = how.Note; next.Note == "" {
		next.Note = fmt.Sprintf("recovered from generation %d on the disk of %s", served.Number, r.cfg.Master)
	}
	r.stopChase() // of a head that nobody has
	_, err = r.move(ctx, seenHead{before, revision}, &next)
	return before, next, err
}

// adopt fetches and serves generations that another master has served.
func (r *Replica) adopt(ctx context.Context, how Recovery) error {
	defer r.cfg.Store.Hold()()
	newer := slices.SortedFunc(slices.Values(how.Newer), func(a, b tree.Generation) int { return cmp.Compare(a.Number, b.Number) })
	for i, g := range newer {
		if g.Number <= r.head().Number {
			continue
		}
		err := r.cfg.Peers.Fetch(ctx, g.Root, r.wholeRoot(), how.From, func(Fetched) {})
		if errors.Is(err, tree.ErrMissing) && i < len(newer)-1 {
			r.log.Warn().Err(err).Uint64("generation", g.Number).Msg("a generation before the head cannot be fetched from any master: left out")
			continue
		}
		if err != nil {
			return fmt.Errorf("fetch generation %d from master %s: %w", g.Number, how.From, err)
		}
		if err := r.serve(ctx, g); err != nil {
			return err
		}
	}
	return nil
}
