package replicator

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator/source"
	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Publication is a request to publish.
type Publication struct {
	Note     string
	Root     tree.Digest           // an uploaded tree's root object; zero: the source
	Origin   string                // where an uploaded tree came from: "host:/dir"
	Caller   string                // who asks; for the record
	Progress func(source.Progress) // told how far the scan is; may be nil

	automatic bool // nobody has asked for it
}

// Result is what a publish or a rollback did.
type Result struct {
	Generation tree.Generation // the head afterwards
	Changed    bool            // false: there was nothing to publish
	Added      int             // names
	Modified   int
	Removed    int
	Warnings   []string
	Took       time.Duration
}

// Publish makes the source's present state, or an uploaded tree, the next generation, and returns when the head has
// moved and this master serves it. When nothing differs from the head, nothing moves. A publish from the source adopts
// it: from then on its changes are published by themselves.
func (r *Replica) Publish(ctx context.Context, p Publication) (res Result, err error) {
	err = r.ask(ctx, func(ctx context.Context) error {
		if p.Root.IsZero() {
			res, err = r.publishSource(ctx, p)
		} else {
			res, err = r.publishUpload(ctx, p)
		}
		return err
	})
	return res, err
}

// Rollback publishes the tree of an earlier generation as the next one: number 0 means the one before the head. Of p only
// the note and the caller count.
// The source does not publish by itself afterwards, until Publish takes the shard back to it.
func (r *Replica) Rollback(ctx context.Context, number uint64, p Publication) (res Result, err error) {
	err = r.ask(ctx, func(ctx context.Context) error {
		g, err := r.retained(number)
		if err != nil {
			return err
		}
		res, err = r.publishTree(ctx, g.Root, change{source: RollbackSource + strconv.FormatUint(g.Number, 10), note: p.Note, caller: p.Caller})
		return err
	})
	return res, err
}

// RollbackSource begins the Source of a generation that a rollback made; the number of the generation whose tree it has
// follows.
const RollbackSource = "rollback:"

func (r *Replica) retained(number uint64) (tree.Generation, error) {
	if number == 0 {
		if len(r.generations) < 2 {
			return tree.Generation{}, fmt.Errorf("shard %s has no generation before its head: %w", r.cfg.Shard, ErrNoGeneration)
		}
		return r.generations[len(r.generations)-2], nil
	}
	for _, g := range r.generations {
		if g.Number == number {
			return g, nil
		}
	}
	return tree.Generation{}, fmt.Errorf("generation %d of shard %s is not retained: %w", number, r.cfg.Shard, ErrNoGeneration)
}

// publishIfAllowed publishes from the source when something is due and decide says that it may do so by itself.
func (r *Replica) publishIfAllowed(ctx context.Context) {
	state, _ := decide(r.sourceView())
	if !r.due || state != SourceWatching || !r.inStep() || !r.led || time.Now().Before(r.notBefore) {
		return
	}
	_, err := r.publishSource(ctx, Publication{automatic: true})
	if err == nil || ctx.Err() != nil {
		return
	}
	wait := min(30*time.Second, time.Second<<min(r.failures, 5))
	r.log.Error().Err(err).Dur("retry_ms", wait).Msg("publish failed")
	r.notBefore = time.Now().Add(wait)
	r.retry.Reset(wait)
}

func (r *Replica) publishSource(ctx context.Context, p Publication) (Result, error) {
	if r.cfg.Source == nil {
		return Result{}, fmt.Errorf("shard %s on master %s: %w; publish a directory with `nfs-fleet publish %s DIR`", r.cfg.Shard, r.cfg.Master, ErrNoSource, r.cfg.Shard)
	}
	publish := r.publishScan
	if r.leads() != nil && r.led && len(r.cfg.Peers.Others()) > 0 {
		publish = r.offer
	}
	res, err := publish(ctx, p)
	r.sourceError, r.due = err, err != nil
	if r.failures++; err == nil {
		r.failures = 0
	}
	return res, err
}

// publishScan reads the source and publishes it, as the leader.
func (r *Replica) publishScan(ctx context.Context, p Publication) (Result, error) {
	return r.lead(ctx, func(ctx context.Context, head seenHead) (Result, error) {
		full := r.base != head.generation.Root || r.base.IsZero()
		a := r.announce(ctx)
		defer r.stopAnnouncing(a)
		scan, err := r.cfg.Source.Scan(ctx, full, p.Progress)
		if err != nil {
			return Result{}, fmt.Errorf("scan %s: %w", r.cfg.Directory, err)
		}
		res, err := r.advance(ctx, head, scan, change{source: r.identity(), note: p.Note, caller: p.Caller, root: scan.Root()})
		if err != nil {
			scan.Abort()
			return res, err
		}
		r.base = res.Generation.Root
		r.finishScan(scan, &res)
		return res, nil
	})
}

// publishUpload publishes an uploaded tree. A source that published by itself until now holds from then on.
func (r *Replica) publishUpload(ctx context.Context, p Publication) (Result, error) {
	before, _ := decide(r.sourceView())
	res, err := r.publishTree(ctx, p.Root, change{source: "upload:" + p.Origin, note: p.Note, caller: p.Caller})
	if err == nil && before == SourceWatching {
		res.Warnings = append(res.Warnings, fmt.Sprintf("the source %s is on hold now: `nfs-fleet publish %s` takes the shard back to it", r.identity(), r.cfg.Shard))
	}
	return res, err
}

func (r *Replica) publishTree(ctx context.Context, root tree.Digest, c change) (Result, error) {
	return r.lead(ctx, func(ctx context.Context, head seenHead) (Result, error) {
		if err := r.whole(ctx, root); err != nil {
			return Result{}, err
		}
		lister, entry, err := tree.FromTree(r.objects(), root, head.generation.Root)
		if err != nil {
			return Result{}, fmt.Errorf("read tree %s: %w", root, err)
		}
		c.root = tree.Observed{Entry: entry}
		return r.advance(ctx, head, lister, c)
	})
}

// whole returns an error that wraps tree.ErrMissing unless the store holds everything that a tree needs, or other masters
// do.
func (r *Replica) whole(ctx context.Context, root tree.Digest) error {
	seen := map[tree.Digest]bool{}
	return tree.Reach(ctx, r.objects(), root, func(d tree.Digest) bool {
		was := seen[d]
		seen[d] = true
		return was
	}, func(d tree.Digest, f tree.Form, _ uint64) error {
		if f == tree.Blob && !r.cfg.Store.Has(d) && r.cfg.Store.Heal(ctx, d) != nil {
			return fmt.Errorf("tree %s needs %s: %w", root, d, tree.ErrMissing)
		}
		return nil
	})
}

// lead runs fn under the term, with the head as etcd has it and the store held against collection. An error that the end
// of the term brought about says so.
func (r *Replica) lead(ctx context.Context, fn func(context.Context, seenHead) (Result, error)) (Result, error) {
	began := time.Now()
	if err := r.leads(); err != nil {
		return Result{}, err
	}
	ctx, cancel := join(ctx, r.term.Context())
	defer cancel()
	res, err := r.leading(ctx, fn)
	res.Took = time.Since(began)
	if errors.Is(err, store.ErrFull) {
		r.makeRoom()
	}
	if ended := r.term.Check(); err != nil && ended != nil {
		return res, fmt.Errorf("shard %s: %w: %w (%v)", r.cfg.Shard, ErrNoTerm, ended, err)
	}
	if err == nil && res.Changed {
		r.tellPublished(res)
	}
	return res, err
}

// leads returns an error that wraps ErrNoTerm unless this master leads the shard now.
func (r *Replica) leads() error {
	if r.term == nil {
		return fmt.Errorf("shard %s: %w", r.cfg.Shard, ErrNoTerm)
	}
	if err := r.term.Check(); err != nil {
		return fmt.Errorf("shard %s: %w: %w", r.cfg.Shard, ErrNoTerm, err)
	}
	return nil
}

func (r *Replica) leading(ctx context.Context, fn func(context.Context, seenHead) (Result, error)) (Result, error) {
	g, revision, err := r.cfg.Heads.Head(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("read the head of %s: %w", r.cfg.Shard, err)
	}
	r.observe(ctx, seenHead{g, revision})
	if r.problem != nil && r.problem != r.unreadable {
		return Result{}, r.problem
	}
	if served := r.head().Number; served != g.Number {
		return Result{}, fmt.Errorf("shard %s: %w with generation %d: it serves %d", r.cfg.Shard, ErrBehind, g.Number, served)
	}
	defer r.cfg.Store.Hold()()
	return fn(ctx, seenHead{g, revision})
}

func (r *Replica) tellPublished(res Result) {
	g := res.Generation
	r.log.Info().Uint64("generation", g.Number).Str("source", g.Source).Int64("epoch", g.Epoch).Uint64("files", g.Files).Uint64("bytes", g.Bytes).
		Int("added", res.Added).Int("modified", res.Modified).Int("removed", res.Removed).Int64("took_ms", res.Took.Milliseconds()).Msg("published")
	if r.cfg.Published != nil {
		r.cfg.Published(res.Took)
	}
}

// change is what a new generation says of itself.
type change struct {
	source, note, caller string
	root                 tree.Observed
	instead              *tree.Digest // what to merge onto when the head's tree cannot be read
}

// advance merges what the lister wants onto the head and moves the head to the result.
func (r *Replica) advance(ctx context.Context, head seenHead, l tree.Lister, c change) (Result, error) {
	number, base := head.generation.Number+1, head.generation.Root
	if c.instead != nil {
		base = *c.instead
	}
	merged, err := tree.Merge(ctx, announced{r.objects(), r}, base, l, tree.MergeOptions{
		Generation: number, NextIno: max(head.generation.NextIno, r.maxima.NextIno, 1), Now: tree.TimeOf(r.cfg.Now()), Tag: r.cfg.Tag, Root: c.root,
	})
	if a := r.announcing.Load(); a != nil {
		a.end()
	}
	if err != nil {
		return Result{}, fmt.Errorf("merge: %w", err)
	}
	res := Result{Generation: head.generation, Warnings: dropped(merged.Dropped)}
	if !merged.Changed && head.generation.Source == c.source && c.instead == nil {
		return res, nil
	}
	if err := r.cfg.Store.Sync(ctx); err != nil {
		return Result{}, fmt.Errorf("make generation %d durable: %w", number, err)
	}
	next := tree.Generation{
		Number: number, Root: merged.Root, Files: merged.Files, Bytes: merged.Bytes, NextIno: merged.NextIno, PublishedAt: r.cfg.Now().UTC(),
		By: r.cfg.Master, Epoch: r.term.Epoch(), Era: r.cfg.Era(), Source: c.source, Copies: 1, Caller: c.caller, Note: c.note,
	}
	warnings, err := r.move(ctx, head, &next)
	if err != nil {
		return Result{}, err
	}
	res.Generation, res.Changed, res.Warnings = next, true, append(res.Warnings, warnings...)
	return res, r.count(ctx, base, next.Root, &res)
}

// move has the other masters fetch next, moves the head in etcd and flips. The numbers are remembered first: should
// neither etcd's answer nor this process survive, they are not issued again.
func (r *Replica) move(ctx context.Context, head seenHead, next *tree.Generation) (warnings []string, err error) {
	if err := r.cfg.Ledger.Raise(r.cfg.Shard, *next); err != nil {
		return nil, err
	}
	r.maxima = r.maxima.raise(tree.Generation{NextIno: next.NextIno, Era: next.Era, Epoch: next.Epoch})
	if next.Copies, warnings, err = r.stage(ctx, head, *next); err != nil {
		return nil, fmt.Errorf("generation %d: %w", next.Number, err)
	}
	if err := r.leads(); err != nil {
		return nil, err
	}
	r.held, r.moving = next.Root, next.Number
	err = r.cfg.Heads.Move(ctx, r.term.Epoch(), head.revision, *next, r.oldest(*next))
	now, revision, headErr := r.cfg.Heads.Head(ctx)
	switch {
	case headErr != nil && err != nil:
		r.undecided = true
		return nil, fmt.Errorf("generation %d may or may not be the head: %w", next.Number, err)
	case headErr != nil:
		now, revision = *next, 0 // the move was confirmed; the next observation brings its revision
	case err != nil && (now.Number != next.Number || now.Epoch != next.Epoch || now.Root != next.Root):
		return nil, err
	}
	r.observe(ctx, seenHead{now, revision})
	return warnings, r.problem
}

// oldest returns the lowest number that is retained once next has joined the history.
func (r *Replica) oldest(next tree.Generation) uint64 {
	all := append(r.generations[:len(r.generations):len(r.generations)], next)
	return all[r.settings.Expired(all, r.cfg.Now())].Number
}

func (r *Replica) count(ctx context.Context, before, after tree.Digest, res *Result) error {
	return tree.Diff(ctx, r.objects(), before, after, func(c tree.Change) error {
		switch {
		case c.Old == nil:
			res.Added++
		case c.New == nil:
			res.Removed++
		case c.Renumbered():
		default:
			res.Modified++
		}
		return nil
	})
}

// objects is the store, mended from other masters where it is found to be damaged.
func (r *Replica) objects() tree.Objects { return store.Healed{Store: r.cfg.Store} }

func (r *Replica) identity() string { return r.cfg.Master + ":" + r.cfg.Directory }

func dropped(names []string) []string {
	out := make([]string, len(names))
	for i, name := range names {
		out[i] = fmt.Sprintf("%q could not be read and has no earlier version: left out", name)
	}
	return out
}

// join returns a context that ends with either parent, with the cause of the first that ended.
func join(a, b context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(a)
	stop := context.AfterFunc(b, func() { cancel(context.Cause(b)) })
	return ctx, func() { stop(); cancel(nil) }
}

func randomTag() uint64 {
	for {
		if t := rand.Uint64(); t != 0 {
			return t
		}
	}
}

// rolledBackTo returns the generation that a head rolled back to.
func rolledBackTo(source string) (string, bool) { return strings.CutPrefix(source, RollbackSource) }
