package replicator

import (
	"context"
	"fmt"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Recover makes what this master served last the shard's head again, in an etcd that has lost it or holds an older one:
// as a new generation, numbered above everything that this disk has seen, with no ino issued twice. It needs a term.
// When etcd's head is at least as new, nothing moves.
func (r *Replica) Recover(ctx context.Context) (before, after tree.Generation, err error) {
	err = r.ask(ctx, func(ctx context.Context) error {
		before, after, err = r.recover(ctx)
		return err
	})
	return before, after, err
}

func (r *Replica) recover(ctx context.Context) (before, after tree.Generation, err error) {
	if err := r.leads(); err != nil {
		return before, after, err
	}
	before, revision, err := r.cfg.Heads.Head(ctx)
	if err != nil {
		return before, after, fmt.Errorf("read the head of %s: %w", r.cfg.Shard, err)
	}
	served := r.head()
	same := before.Number == served.Number && before.Root == served.Root
	if served.Number == 0 || before.NextIno >= served.NextIno && (before.Number > served.Number || same) {
		return before, before, nil
	}
	next := served
	next.Number = max(r.maxima.Generation, before.Number) + 1
	next.NextIno = max(r.maxima.NextIno, before.NextIno)
	next.PublishedAt, next.By, next.Epoch = r.cfg.Now().UTC(), r.cfg.Master, r.term.Epoch()
	next.Note = fmt.Sprintf("recovered from generation %d on the disk of %s", served.Number, r.cfg.Master)
	return before, next, r.move(ctx, seenHead{before, revision}, next)
}
