package replicator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// fence orders leaders: by the fleet's era, then by epoch. A fleet that was recovered has an etcd whose revisions, and
// with them its epochs, may have begun anew.
type fence struct {
	era   int
	epoch int64
}

func fenceOf(g tree.Generation) fence { return fence{g.Era, g.Epoch} }

func (f fence) before(g fence) bool { return f.era < g.era || f.era == g.era && f.epoch < g.epoch }

// chase is the catching up with a head whose content is not here yet, in a goroutine of its own.
type chase struct {
	target tree.Generation
	began  time.Time
	end    func() // cancels it, and lets go of what it has fetched
	mends  bool   // it brings back what this disk has lost of the generations that it should have
	got    fetchMeter
}

// caught is what a chase has brought: the next generation, whole in the store, or why there is none.
type caught struct {
	chase      *chase
	generation tree.Generation
	err        error
}

// observe compares the head in etcd with what is served. When etcd is ahead it flips, at once if the content is known to
// be here, and otherwise as soon as it has been fetched.
func (r *Replica) observe(ctx context.Context, h seenHead) {
	served, next := r.head(), h.generation
	r.undecided, r.wanted = false, h
	switch {
	case regressed(next, served):
		r.setProblem(fmt.Errorf("%w: etcd has generation %d of shard %s (epoch %d), this disk %d (epoch %d): run `nfs-fleet recover`",
			ErrRegressed, next.Number, r.cfg.Shard, next.Epoch, served.Number, served.Epoch))
		return
	case next.Number > served.Number && next.Root == r.held && (next.Number == served.Number+1 || next.Number == r.moving):
		if err := r.serve(ctx, next); err != nil {
			r.fellShort(next, err)
			return
		}
	case next.Number > served.Number:
		r.startChase()
		return
	}
	r.confirmed, r.misses, r.cramped = true, 0, 0
	r.setProblem(r.unreadable)
	if r.unreadable != nil || r.lacking {
		r.startMending()
	}
}

// regressed reports whether etcd could not name next its head if it had not forgotten something.
func regressed(next, served tree.Generation) bool {
	return next.Number < served.Number || next.NextIno < served.NextIno || next.Number > 0 && fenceOf(next).before(fenceOf(served)) ||
		next.Number == served.Number && next.Root != served.Root
}

// confirm asks etcd itself when it is said to have forgotten something: a watch may tell late of a head from before this
// master moved it. ok is false when etcd does not answer: then nothing is known.
func (r *Replica) confirm(ctx context.Context, h seenHead) (now seenHead, ok bool) {
	if !regressed(h.generation, r.head()) || errors.Is(r.problem, ErrRegressed) && h.revision == r.wanted.revision {
		return h, true
	}
	g, revision, err := r.cfg.Heads.Head(ctx)
	return seenHead{g, revision}, err == nil
}

// startChase begins to catch up with the wanted head unless that is under way. A chase of an older head goes on: what it
// brings is needed first.
func (r *Replica) startChase() {
	if r.chase != nil {
		return
	}
	r.again.Stop()
	ctx, cancel := context.WithCancel(r.life)
	release := r.cfg.Store.Hold() // until what was fetched is served
	c := &chase{target: r.wanted.generation, began: time.Now(), end: func() { cancel(); release() }}
	r.chase = c
	served, base, cramped := r.head(), r.wholeRoot(), r.cramped != 0
	r.log.Debug().Uint64("generation", c.target.Number).Uint64("served", served.Number).Msg("catching up")
	r.work.Go(func() { r.pursue(ctx, c, served, base, cramped) })
}

func (r *Replica) endChase() {
	r.chase.end()
	r.chase = nil
}

// wholeRoot is a tree that the store holds whole; zero when there is none.
func (r *Replica) wholeRoot() tree.Digest {
	if r.unreadable != nil {
		return tree.Digest{}
	}
	return r.head().Root
}

// stopChase ends the chase and waits for it.
func (r *Replica) stopChase() {
	if r.chase != nil {
		r.endChase()
	}
	r.work.Wait()
}

// pursue fetches every generation after the served one, up to the target, in order: an ino that lived in between only
// is still open somewhere. One of them that no master has any more is left out, and all of them are when the disk has no
// room: the head may need less.
func (r *Replica) pursue(ctx context.Context, c *chase, served tree.Generation, base tree.Digest, cramped bool) {
	missed, err := r.missed(ctx, served, c.target)
	if err != nil {
		r.bring(ctx, caught{chase: c, err: err})
		return
	}
	for i := 0; i < len(missed); i++ {
		g := missed[i]
		err := r.cfg.Peers.Fetch(ctx, g.Root, base, g.By, c.got.set)
		if cramped && errors.Is(err, store.ErrFull) && i < len(missed)-1 {
			r.log.Warn().Err(err).Uint64("generation", g.Number).Msg("the disk has no room for the generations in between: they are left out")
			i = len(missed) - 2
			continue
		}
		if errors.Is(err, tree.ErrMissing) && g.Number != c.target.Number {
			r.log.Warn().Err(err).Uint64("generation", g.Number).Msg("a generation in between cannot be fetched from any master: left out")
			continue
		}
		if err != nil {
			r.bring(ctx, caught{chase: c, err: fmt.Errorf("fetch: %w", err)})
			return
		}
		c.got.next()
		if !r.bring(ctx, caught{chase: c, generation: g}) {
			return
		}
		base = g.Root
	}
}

// missed lists the generations after served up to target.
func (r *Replica) missed(ctx context.Context, served, target tree.Generation) ([]tree.Generation, error) {
	if target.Number == served.Number+1 {
		return []tree.Generation{target}, nil
	}
	history, err := r.cfg.Heads.History(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the history: %w", err)
	}
	var out []tree.Generation
	last := served
	for _, g := range history {
		if g.Number > served.Number && g.Number < target.Number && g.NextIno >= last.NextIno && !fenceOf(g).before(fenceOf(last)) {
			out, last = append(out, g), g
		}
	}
	return append(out, target), nil
}

// bring hands something to Run, which takes it unless it ends.
func (r *Replica) bring(ctx context.Context, c caught) bool {
	select {
	case r.caught <- c:
		return true
	case <-ctx.Done():
		return false
	}
}

// arrive flips to what a chase has brought.
func (r *Replica) arrive(ctx context.Context, c caught) {
	if c.chase != r.chase {
		return // of one that was stopped
	}
	if c.chase.mends {
		r.mended(ctx, c)
		return
	}
	err := c.err
	if err == nil && c.generation.Number > r.head().Number {
		err = r.serve(ctx, c.generation)
	}
	if err != nil {
		r.endChase()
		r.fellShort(c.chase.target, err)
		return
	}
	if c.generation.Number < c.chase.target.Number {
		return // there is more to come
	}
	got := c.chase.got.sum()
	r.log.Info().Uint64("generation", c.generation.Number).Int64("objects", got.Objects).Int64("bytes", got.Bytes).
		Int64("took_ms", time.Since(c.chase.began).Milliseconds()).Msg("caught up")
	r.endChase()
	r.observe(ctx, r.wanted)
}

// fellShort notes why the wanted head is not served, and tries again later.
func (r *Replica) fellShort(g tree.Generation, err error) {
	r.setProblem(fmt.Errorf("generation %d: %w", g.Number, err))
	if errors.Is(err, store.ErrFull) && r.cramped != g.Number {
		r.cramped = g.Number
		r.makeRoom()
	}
	r.again.Reset(min(30*time.Second, 500*time.Millisecond<<min(r.misses, 6)))
	r.misses++
}

// makeRoom has what nobody needs collected: what an attempt that failed has fetched or read fills the disk, too.
func (r *Replica) makeRoom() {
	if r.cfg.Pruned != nil {
		r.cfg.Pruned()
	}
}

func (r *Replica) setProblem(err error) {
	if err != nil && (r.problem == nil || r.problem.Error() != err.Error()) {
		r.log.Error().Err(err).Msg("the head is not served")
	}
	r.problem = err
}

// serve remembers g and flips to it. The ledger comes first: a generation that it could not take is not served, and
// tried again with the next observation.
func (r *Replica) serve(ctx context.Context, g tree.Generation) error {
	defer r.cfg.Store.Hold()() // until it is among the generations that a collection spares
	all := append(r.generations[:len(r.generations):len(r.generations)], g)
	expired := r.settings.Expired(all, r.cfg.Now())
	kept := all[expired:]
	if err := r.cfg.Ledger.Append(r.cfg.Shard, g, kept[0].Number); err != nil {
		return err
	}
	if err := r.cfg.Volume.Flip(ctx, g); err != nil {
		return fmt.Errorf("flip: %w", err)
	}
	r.generations, r.maxima, r.unreadable = kept, r.maxima.raise(g), nil
	if expired > 0 {
		if err := r.cfg.Volume.Forget(ctx, kept[0].Number); err != nil {
			return fmt.Errorf("forget generations before %d: %w", kept[0].Number, err)
		}
		r.makeRoom()
	}
	r.log.Info().Uint64("generation", g.Number).Uint64("files", g.Files).Str("root", g.Root.String()).Msg("flipped")
	r.publishStatus()
	if r.cfg.Flipped != nil {
		r.cfg.Flipped()
	}
	return nil
}

// head is the generation served now; zero when there is none.
func (r *Replica) head() tree.Generation {
	if len(r.generations) == 0 {
		return tree.Generation{}
	}
	return r.generations[len(r.generations)-1]
}

// Hold fetches what the leader is about to publish, from whatever master has it, and returns when all of it is on this
// disk. It needs no turn of the shard's owner: readers and flips go on meanwhile.
func (r *Replica) Hold(ctx context.Context, g tree.Generation, from string, progress func(Fetched)) error {
	if err := r.admit(fenceOf(g)); err != nil {
		return err
	}
	defer r.cfg.Store.Hold()()
	st := r.Status()
	if g.Number <= st.Head.Number {
		return fmt.Errorf("generation %d of shard %s: %d is served already: %w", g.Number, r.cfg.Shard, st.Head.Number, ErrOlderEpoch)
	}
	base := st.Head.Root
	if st.Unreadable {
		base = tree.Digest{}
	}
	if err := r.cfg.Ledger.Raise(r.cfg.Shard, g); err != nil {
		return err
	}
	if err := r.awaitAhead(ctx, fenceOf(g), progress); err != nil {
		return err
	}
	if err := r.cfg.Peers.Fetch(ctx, g.Root, base, from, progress); err != nil {
		if errors.Is(err, store.ErrFull) {
			r.makeRoom()
		}
		return fmt.Errorf("generation %d of shard %s: %w", g.Number, r.cfg.Shard, err)
	}
	if err := r.admit(fenceOf(g)); err != nil {
		return err
	}
	r.tell(func(in *inputs) { in.held = g.Root })
	r.log.Debug().Uint64("generation", g.Number).Int64("epoch", g.Epoch).Str("leader", from).Msg("held")
	return nil
}

// admit refuses what comes from a leader before the latest one that this master has been told of.
func (r *Replica) admit(f fence) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f.before(r.fence) {
		return fmt.Errorf("shard %s, epoch %d: %w: epoch %d", r.cfg.Shard, f.epoch, ErrOlderEpoch, r.fence.epoch)
	}
	r.fence = f
	return nil
}

// SetLeader tells whether the shard has a leader now, and its epoch: what an earlier one asks for is refused from then on.
func (r *Replica) SetLeader(era int, epoch int64, present bool) {
	r.mu.Lock()
	if f := (fence{era, epoch}); r.fence.before(f) {
		r.fence = f
	}
	r.mu.Unlock()
	r.tell(func(in *inputs) { in.led = &present })
}

// Between runs fn between two publishes, under the shard's owner: nothing of the shard moves meanwhile.
func (r *Replica) Between(ctx context.Context, fn func()) error {
	return r.do(ctx, func(context.Context) { fn() })
}
