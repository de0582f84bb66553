package replicator

import (
	"context"
	"fmt"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator/source"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Offer is a tree that a master has read from its source and wants the shard's leader to publish.
type Offer struct {
	Master    string      `json:"master"` // who holds the tree
	Root      tree.Digest `json:"root"`
	Source    string      `json:"source"` // the identity of the source: "master:/path"
	Note      string      `json:"note,omitempty"`
	Caller    string      `json:"caller,omitempty"`    // who asked for it
	Automatic bool        `json:"automatic,omitempty"` // nobody has asked for it: only the source that the head came from may
}

// offered is what reading the source for the leader has come to.
type offered struct {
	scan *source.Scan // nil: there was none
	res  Result
	err  error
}

// offer reads this master's source and has the leader publish what is new in it. That takes its time: the shard goes on
// following its head meanwhile.
func (r *Replica) offer(ctx context.Context, p Publication) (Result, error) {
	began := time.Now()
	if !r.inStep() {
		return Result{}, fmt.Errorf("shard %s: %w", r.cfg.Shard, ErrBehind)
	}
	defer r.cfg.Store.Hold()() // the leader fetches what is put here
	head, full, done := r.head(), r.base != r.head().Root || r.base.IsZero(), make(chan offered, 1)
	go func() { done <- r.readForLeader(ctx, head, full, p) }()
	o := r.followUntil(ctx, done)
	o.res.Took = time.Since(began)
	if o.err != nil {
		if o.scan != nil {
			o.scan.Abort()
		}
		return o.res, o.err
	}
	r.base = o.res.Generation.Root
	r.finishScan(o.scan, &o.res)
	return o.res, nil
}

// followUntil keeps the shard at its head until done.
func (r *Replica) followUntil(ctx context.Context, done <-chan offered) offered {
	for {
		select {
		case o := <-done:
			return o
		case <-r.wake:
			r.listen(ctx)
		case c := <-r.caught:
			r.arrive(ctx, c)
		case <-r.again.C:
			r.observe(ctx, r.wanted)
		}
		r.publishStatus()
	}
}

// readForLeader merges the source onto head and has the leader publish the result. It is no part of the owner's turn.
func (r *Replica) readForLeader(ctx context.Context, head tree.Generation, full bool, p Publication) offered {
	scan, err := r.cfg.Source.Scan(ctx, full, p.Progress)
	if err != nil {
		return offered{err: fmt.Errorf("scan %s: %w", r.cfg.Directory, err)}
	}
	merged, err := tree.Merge(ctx, r.objects(), head.Root, scan, tree.MergeOptions{
		Generation: head.Number + 1, NextIno: max(head.NextIno, 1), Now: tree.TimeOf(r.cfg.Now()), Tag: r.cfg.Tag, Root: scan.Root(),
	})
	o := offered{scan: scan, res: Result{Generation: head}, err: err}
	if err == nil && (merged.Changed || head.Source != r.identity()) {
		o.res, o.err = r.cfg.Peers.Offer(ctx, r.cfg.Shard, Offer{
			Master: r.cfg.Master, Root: merged.Root, Source: r.identity(), Note: p.Note, Caller: p.Caller, Automatic: p.automatic,
		})
	}
	return o
}

// finishScan takes note of what a scan has to say once what it read is published.
func (r *Replica) finishScan(scan *source.Scan, res *Result) {
	res.Warnings = append(res.Warnings, scan.Warnings()...)
	if n := scan.Skipped(); n != (source.Skipped{}) {
		r.log.Info().Int("xattrs", n.Xattrs).Int("acls", n.ACLs).Msg("NFSv3 cannot carry these attributes")
	}
	if err := scan.Commit(); err != nil {
		res.Warnings = append(res.Warnings, fmt.Sprintf("the next scan reads every file again: %v", err))
	}
	if r.warnings = res.Warnings; len(r.warnings) > 0 {
		r.log.Warn().Strs("warnings", r.warnings[:min(len(r.warnings), 10)]).Int("count", len(r.warnings)).Msg("the source was not read in full")
	}
}

// Accept publishes what another master offers. The content is fetched first, without a turn of the shard's owner.
func (r *Replica) Accept(ctx context.Context, o Offer) (Result, error) {
	st := r.Status()
	if st.Epoch == 0 {
		return Result{}, fmt.Errorf("shard %s: %w", r.cfg.Shard, ErrNoTerm)
	}
	defer r.cfg.Store.Hold()()
	if err := r.cfg.Peers.Fetch(ctx, o.Root, st.Head.Root, o.Master, func(Fetched) {}); err != nil {
		return Result{}, fmt.Errorf("fetch what master %s offers: %w", o.Master, err)
	}
	var res Result
	err := r.ask(ctx, func(ctx context.Context) (err error) {
		if from := r.head().Source; o.Automatic && from != "" && from != o.Source {
			return fmt.Errorf("shard %s: the head came from %s meanwhile: %w", r.cfg.Shard, from, ErrHolding)
		}
		if o.Automatic && r.settings.Paused {
			return fmt.Errorf("shard %s: the source is paused: %w", r.cfg.Shard, ErrHolding)
		}
		res, err = r.publishTree(ctx, o.Root, change{source: o.Source, note: o.Note, caller: o.Caller})
		return err
	})
	return res, err
}
