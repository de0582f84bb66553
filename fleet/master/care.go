package master

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
	"github.com/nfs-fleet/nfs-fleet/replicator"
	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

const (
	// collectRest is the least time between two collections of what no retained generation needs.
	collectRest = time.Minute
	// collectEvery is when one runs although nothing went past retention: an interrupted publish leaves objects too.
	collectEvery = 6 * time.Hour
)

// pruned asks for a collection.
func (m *Master) pruned() {
	select {
	case m.prune <- struct{}{}:
	default: // one is due already
	}
}

// runCare collects garbage until ctx ends, and ends uploads that nobody uses.
func (m *Master) runCare(ctx context.Context) error {
	every := time.NewTicker(collectEvery)
	defer every.Stop()
	daily := time.NewTicker(24 * time.Hour)
	defer daily.Stop()
	rest := time.NewTicker(collectRest)
	defer rest.Stop()
	due := false
	for {
		select {
		case <-ctx.Done():
			m.uploads.endAll()
			return nil
		case <-m.prune:
			due = true
		case <-every.C:
			due = true
		case <-daily.C:
			m.refreshTrust()
		case <-rest.C:
			m.uploads.endIdle()
			m.noteMounted(time.Now())
			m.slaves.sweep(time.Now())
			if due {
				due = m.collect(ctx) != nil
			}
		}
	}
}

// errNotNow puts a collection off.
var errNotNow = errors.New("not every shard is settled")

// settled returns an error unless it is known of every shard what it needs of the store.
func (m *Master) settled(v fleet.View) error {
	for _, s := range m.allShards() {
		_, known := v.Shards[s.name]
		if !known || !collectable(s.replica.Status(), v.Heads[s.name].Number) {
			return fmt.Errorf("shard %s: %w", s.name, errNotNow)
		}
	}
	return nil
}

// collectable reports whether a shard's retained generations, its head in etcd and what is staged are all that it needs. A
// master that is behind may collect: that its disk is full may be why.
func collectable(st replicator.Status, head uint64) bool {
	behind := st.Head.Number < head
	return !st.Undecided && !st.Unreadable && (behind || st.Problem == nil && st.Head.Number == head)
}

// collect removes from the store what no retained generation of any shard needs. While a publish or an upload holds the
// store, a shard is not settled, or etcd does not answer, it is put off.
func (m *Master) collect(ctx context.Context) error {
	done, err := m.store.Collect(ctx, func(ctx context.Context, live func(tree.Digest) bool) error {
		bounded, cancel := context.WithTimeout(ctx, etcdTimeout)
		v, err := m.registry.Load(bounded)
		cancel()
		if err != nil {
			return fmt.Errorf("%w: %w", errNotNow, err)
		}
		if err := m.settled(v); err != nil {
			return err
		}
		return m.mark(ctx, v, live)
	})
	switch {
	case errors.Is(err, store.ErrHeld), errors.Is(err, errNotNow), ctx.Err() != nil:
	case err != nil:
		m.log.Error().Err(err).Msg("collecting what no generation needs failed; nothing was deleted")
	case done.Objects > 0:
		m.log.Info().Int64("objects", done.Objects).Int64("bytes", done.Bytes).Int64("freed", done.Freed).Int("packs", done.Compacted).Msg("collected")
	}
	return err
}

// mark names everything that a retained generation needs, or one that this master has fetched and does not serve yet.
func (m *Master) mark(ctx context.Context, v fleet.View, live func(tree.Digest) bool) error {
	reach := func(root tree.Digest) error {
		return tree.Reach(ctx, m.store, root, func(d tree.Digest) bool { return !live(d) }, func(tree.Digest, tree.Form, uint64) error { return nil })
	}
	for _, s := range m.allShards() {
		for _, g := range s.replica.Status().Generations {
			if err := reach(g.Root); err != nil {
				return fmt.Errorf("shard %s, generation %d: %w", s.name, g.Number, err)
			}
		}
	}
	// What need not be whole comes last: where a walk ends early, nothing is looked into again.
	for _, fetched := range []map[string]fleet.Head{v.Heads, v.Staged} {
		for shard, g := range fetched {
			if err := reach(g.Root); err != nil && !errors.Is(err, tree.ErrMissing) {
				return fmt.Errorf("shard %s, generation %d: %w", shard, g.Number, err)
			}
		}
	}
	return nil
}

// Verify implements console.Control.
func (c control) Verify(ctx context.Context, r console.VerifyRequest, progress func(console.Progress)) (console.VerifyReport, error) {
	began := time.Now()
	shards := c.allShards()
	if r.Shard != "" {
		s, err := c.find(r.Shard)
		if err != nil {
			return console.VerifyReport{}, err
		}
		shards = []*shard{s}
	}
	found, err := c.store.Verify(ctx, func(done, total int64) {
		if progress != nil {
			progress(console.Progress{Step: "verify", Bytes: done, TotalBytes: total})
		}
	})
	if err != nil {
		return console.VerifyReport{}, kindOf(err)
	}
	rep := console.VerifyReport{Objects: found.Objects, Bytes: found.Bytes, Bad: found.Bad, Missing: []console.MissingObject{}}
	if rep.Bad == nil {
		rep.Bad = []tree.Digest{}
	}
	if rep.Missing, err = c.missing(ctx, shards); err != nil {
		return rep, err
	}
	if r.Repair && len(rep.Missing) > 0 {
		if rep.Repaired, err = c.repairAll(ctx, shards, &rep); err != nil {
			return rep, err
		}
	}
	rep.TookMS = time.Since(began).Milliseconds()
	return rep, nil
}

// repairAll brings back what other masters, or the shards' sources, still have, and returns how many objects came back.
func (c control) repairAll(ctx context.Context, shards []*shard, rep *console.VerifyReport) (int64, error) {
	all := map[tree.Digest]bool{} // that were missed at any time: a directory that comes back may name more of them
	for {
		var wanted []tree.Digest
		for _, o := range rep.Missing {
			if !all[o.Digest] {
				wanted = append(wanted, o.Digest)
			}
			all[o.Digest] = true
		}
		if len(wanted) == 0 || len(c.links.names()) == 0 {
			break
		}
		if err := c.heal(ctx, wanted...); err != nil {
			c.log.Warn().Err(err).Msg("other masters do not have everything that is missing here")
		}
		var err error
		if rep.Missing, err = c.missing(ctx, shards); err != nil {
			return 0, err
		}
	}
	if len(rep.Missing) > 0 {
		for _, s := range shards {
			if err := c.repair(ctx, s); err != nil {
				return 0, err
			}
		}
	}
	for _, s := range shards {
		if err := s.replica.ReadBack(ctx); err != nil {
			c.log.Warn().Err(err).Str("shard", s.name).Msg("the head still cannot be read back")
		}
	}
	missing, err := c.missing(ctx, shards)
	rep.Missing = missing
	return int64(len(all) - len(missing)), err
}

// repair brings back from a shard's source what it still has.
func (c control) repair(ctx context.Context, s *shard) error {
	if s.source == nil {
		return nil
	}
	err := s.replica.Repair(ctx)
	if err != nil {
		return kindOf(fmt.Errorf("repair from the source of shard %s: %w", s.name, err))
	}
	return nil
}

// missing lists what retained generations need and the store does not hold, each object once.
func (c control) missing(ctx context.Context, shards []*shard) ([]console.MissingObject, error) {
	defer c.store.Hold()()
	out, seen := []console.MissingObject{}, map[tree.Digest]bool{}
	first := func(d tree.Digest) bool {
		was := seen[d]
		seen[d] = true
		return was
	}
	for _, s := range shards {
		generations := s.replica.Status().Generations
		for _, g := range slices.Backward(generations) {
			lacks := func(d tree.Digest) {
				out = append(out, console.MissingObject{Shard: s.name, Generation: g.Number, Digest: d})
			}
			err := tree.Reach(ctx, tolerant{c.store, lacks}, g.Root, first, func(d tree.Digest, f tree.Form, _ uint64) error {
				if f == tree.Blob && !c.store.Has(d) {
					lacks(d)
				}
				return nil
			})
			if err != nil && !errors.Is(err, tree.ErrMissing) {
				return out, err
			}
		}
	}
	return out, nil
}

// tolerant reads objects from a store and tells of those that are not there.
type tolerant struct {
	*store.Store
	lacks func(tree.Digest)
}

// Get implements tree.Objects.
func (t tolerant) Get(ctx context.Context, d tree.Digest) ([]byte, error) {
	b, err := t.Store.Get(ctx, d)
	if errors.Is(err, tree.ErrMissing) {
		t.lacks(d)
	}
	return b, err
}
