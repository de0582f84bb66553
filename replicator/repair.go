package replicator

import (
	"context"
	"fmt"
	"slices"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Repair brings back from the source what the store has lost. Every file is read again, so that content that is missing
// is put back. When the head's own tree cannot be read any more, the source is published as a new generation, merged
// onto the newest one that is whole: what both have in common keeps its inos.
func (r *Replica) Repair(ctx context.Context) error {
	if r.cfg.Source == nil {
		return fmt.Errorf("shard %s: %w", r.cfg.Shard, ErrNoSource)
	}
	return r.ask(ctx, func(ctx context.Context) error {
		if err := r.reread(ctx); err != nil || r.head().Number == 0 || r.whole(ctx, r.head().Root) == nil {
			return err
		}
		_, err := r.rebuild(ctx)
		return err
	})
}

// reread merges the source onto nothing, for the content that is put while it is listed.
func (r *Replica) reread(ctx context.Context) error {
	defer r.cfg.Store.Hold()()
	scan, err := r.cfg.Source.Scan(ctx, true, nil)
	if err != nil {
		return fmt.Errorf("scan %s: %w", r.cfg.Directory, err)
	}
	defer scan.Abort() // nothing is published: what was dirty stays so
	_, err = tree.Merge(ctx, r.cfg.Store, tree.Digest{}, scan, tree.MergeOptions{
		Generation: 1, NextIno: 1, Now: tree.TimeOf(r.cfg.Now()), Tag: r.cfg.Tag, Root: scan.Root(),
	})
	if err != nil {
		return fmt.Errorf("read %s again: %w", r.cfg.Directory, err)
	}
	return r.cfg.Store.Sync(ctx)
}

// rebuild publishes the source although the head's tree cannot be read.
func (r *Replica) rebuild(ctx context.Context) (Result, error) {
	var base tree.Digest
	for _, g := range slices.Backward(r.generations) {
		if r.whole(ctx, g.Root) == nil {
			base = g.Root
			break
		}
	}
	return r.lead(ctx, func(ctx context.Context, head seenHead) (Result, error) {
		scan, err := r.cfg.Source.Scan(ctx, true, nil)
		if err != nil {
			return Result{}, fmt.Errorf("scan %s: %w", r.cfg.Directory, err)
		}
		note := fmt.Sprintf("rebuilt from the source: the tree of generation %d was damaged", head.generation.Number)
		res, err := r.advance(ctx, head, scan, change{source: r.identity(), note: note, root: scan.Root(), instead: &base})
		if err != nil {
			scan.Abort()
			return res, err
		}
		r.base = res.Generation.Root
		return res, scan.Commit()
	})
}
