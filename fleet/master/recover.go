package master

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
	"github.com/nfs-fleet/nfs-fleet/replicator"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// recordsLimit is how long another master may take to tell what it remembers.
const recordsLimit = 5 * time.Second

// recordsRequest asks what a master remembers: of one shard everything, of all of them (Shard "") no more history than the
// last generation, because an answer has to fit into one line.
type recordsRequest struct {
	Shard string `json:"shard,omitempty"`
}

// tell is the answer to a recordsRequest, from all records.
func (r recordsRequest) tell(all map[string]replicator.Record) map[string]replicator.Record {
	if r.Shard != "" {
		return map[string]replicator.Record{r.Shard: all[r.Shard]}
	}
	for name, rec := range all {
		rec.Generations = rec.Generations[max(0, len(rec.Generations)-1):]
		all[name] = rec
	}
	return all
}

// testimony is what the masters that answer remember of one shard.
type testimony struct {
	floor    replicator.Maxima // above all of them
	best     replicator.Record // of the master with the latest head, without the history before it
	from     string            // that master
	settings json.RawMessage   // the shard's, as that master knows them if it does
}

// latest is the last generation of a record; zero when there is none.
func latest(r replicator.Record) tree.Generation {
	if len(r.Generations) == 0 {
		return tree.Generation{}
	}
	return r.Generations[len(r.Generations)-1]
}

// hear adds one master's record. This master's own comes first, and is preferred to equals.
func (t *testimony) hear(from string, r replicator.Record) {
	t.floor = t.floor.Join(r.Maxima)
	have, told := latest(t.best), latest(r)
	better := t.from == "" || told.After(have)
	if better {
		t.best, t.from = r, from
	}
	if len(r.Settings) > 0 && (better || len(t.settings) == 0) {
		t.settings = r.Settings
	}
}

// testify asks all masters that can be reached, by shard, and says who did not answer.
func (m *Master) testify(ctx context.Context) (map[string]*testimony, []string, error) {
	own, err := m.ledger.Read()
	if err != nil {
		return nil, nil, err
	}
	out := map[string]*testimony{}
	hear := func(from string, records map[string]replicator.Record) {
		for name, r := range records {
			if out[name] == nil {
				out[name] = &testimony{}
			}
			out[name].hear(from, r)
		}
	}
	hear(m.cfg.Name, recordsRequest{}.tell(own))
	ctx, cancel := context.WithTimeout(ctx, recordsLimit)
	defer cancel()
	var silent []string
	askAll(ctx, m.links, pathRecords, recordsRequest{}, func(name string, records map[string]replicator.Record, err error) {
		if err != nil {
			silent = append(silent, fmt.Sprintf("what master %s alone has seen is not recovered: %v", name, err))
			return
		}
		hear(name, records)
	})
	slices.Sort(silent)
	return out, silent, nil
}

// Recover implements console.Control: it writes into etcd what the masters' disks know and etcd does not.
func (c control) Recover(ctx context.Context, r console.RecoverRequest) (console.RecoverReport, error) {
	c.mu.Lock()
	id, etcdErr, revision := c.local, c.etcdErr, c.view.Revision
	c.mu.Unlock()
	rep := console.RecoverReport{ID: id.ID, Shards: []console.RecoveredShard{}, Warnings: []string{}}
	if r.LostQuorum {
		rep.Restart = true
		return rep, c.askRescue(ctx)
	}
	if id.ID == "" {
		return rep, console.Errorf(console.ErrConflict, "this disk belongs to no fleet yet: there is nothing to recover from")
	}
	if etcdErr != nil {
		return rep, console.Errorf(console.ErrNoQuorum, "etcd does not answer: %w", etcdErr)
	}
	heard, silent, err := c.testify(ctx)
	if err != nil {
		return rep, err
	}
	rep.Warnings = append(rep.Warnings, silent...)
	if !r.DryRun {
		if err := c.recoverIdentity(ctx, id.Identity, heard, revision); err != nil {
			return rep, kindOf(err)
		}
	}
	var errs []error // one shard that cannot be recovered keeps the others waiting for nothing
	for _, name := range slices.Sorted(maps.Keys(heard)) {
		if len(heard[name].settings) == 0 {
			rep.Warnings = append(rep.Warnings, fmt.Sprintf("shard %s: no disk has its settings any more: left out", name))
			continue
		}
		one, err := c.recoverOne(ctx, name, heard[name], r.DryRun)
		if err != nil {
			errs = append(errs, fmt.Errorf("shard %s: %w", name, err))
			continue
		}
		rep.Shards = append(rep.Shards, one)
	}
	if err := errors.Join(errs...); err != nil {
		return rep, kindOf(err)
	}
	return rep, nil
}

// recoverIdentity puts the fleet's identity back, and begins a new era when epochs that were issued may come again.
func (c control) recoverIdentity(ctx context.Context, id fleet.Identity, heard map[string]*testimony, revision int64) error {
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	var last replicator.Maxima
	for _, t := range heard {
		last = last.Join(t.floor)
	}
	now, err := c.registry.Identity(ctx)
	if errors.Is(err, fleet.ErrNotFound) {
		id.Era = max(id.Era, last.Era) + 1
		now, err = c.registry.CreateIdentity(ctx, id)
	}
	for err == nil && (now.Era < last.Era || now.Era == last.Era && last.Epoch >= revision) {
		now, err = c.registry.BumpEra(ctx, now.Era)
	}
	if err != nil {
		return err
	}
	return c.awaitView(ctx, func(v fleet.View) bool { return v.Identity.ID == now.ID && v.Identity.Era >= now.Era })
}

// recoverOne recovers one shard.
func (c control) recoverOne(ctx context.Context, name string, t *testimony, dry bool) (console.RecoveredShard, error) {
	out := console.RecoveredShard{Name: name, Action: "kept"}
	var settings fleet.Shard
	if err := json.Unmarshal(t.settings, &settings); err != nil {
		return out, fmt.Errorf("settings on the disk of %s: %w", t.from, err)
	}
	out.FSID = settings.FSID
	bounded, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	_, _, err := c.registry.Shard(bounded, name)
	missing := errors.Is(err, fleet.ErrNotFound)
	if err != nil && !missing {
		return out, err
	}
	head, _, err := c.registry.Head(bounded, name)
	if err != nil {
		return out, err
	}
	out.Was, out.Generation, out.NextIno = head.Number, head.Number, head.NextIno
	last := latest(t.best)
	behind := last.Number > 0 && (last.After(head) || head.Number < t.floor.Generation || head.NextIno < last.NextIno || head.Number == last.Number && head.Root != last.Root)
	switch {
	case missing:
		out.Action = "created"
	case behind:
		out.Action = "raised"
	}
	if behind {
		out.Generation, out.NextIno = max(t.floor.Generation, head.Number)+1, max(t.floor.NextIno, head.NextIno)
	}
	if dry {
		return out, nil
	}
	if missing {
		if _, err := c.registry.CreateShard(bounded, settings); err != nil && !errors.Is(err, fleet.ErrExists) {
			return out, err
		}
	}
	if !behind {
		return out, nil
	}
	after, err := c.raiseHead(ctx, name, t, replicator.Recovery{Floor: t.floor, Caller: console.CallerOf(ctx).String()})
	out.Generation, out.NextIno = after.Number, after.NextIno
	return out, err
}

// raiseHead takes the leadership of a shard and makes the latest head on any disk the head in etcd.
func (c control) raiseHead(ctx context.Context, name string, t *testimony, how replicator.Recovery) (tree.Generation, error) {
	s, err := c.awaitShard(ctx, name)
	if err != nil {
		return tree.Generation{}, err
	}
	s.force.Store(true)
	defer s.force.Store(false)
	bounded, cancel := context.WithTimeout(ctx, 4*c.cfg.LeaseTTL)
	defer cancel()
	if err := c.takeLead(bounded, s); err != nil {
		return tree.Generation{}, err
	}
	if t.from != c.cfg.Name {
		told, err := ask[map[string]replicator.Record](ctx, c.links, t.from, pathRecords, recordsRequest{name}, nil)
		if err != nil {
			return tree.Generation{}, fmt.Errorf("what master %s has served: %w", t.from, err)
		}
		how.Newer, how.From = told[name].Generations, t.from
		defer c.witness(t.from)()
	}
	_, after, err := s.replica.Recover(ctx, how)
	if err != nil {
		return after, err
	}
	fence := fleet.Fence{LeaderKey: c.registry.Keys().Leader(name), Epoch: after.Epoch}
	return after, c.registry.RestoreHistory(ctx, name, fence, s.replica.Status().Generations)
}

// witness has the fetcher ask a master although etcd may not know that it lives, until release is called.
func (m *Master) witness(name string) (release func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.witnesses[name]++
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.witnesses[name]--; m.witnesses[name] == 0 {
			delete(m.witnesses, name)
		}
	}
}

// fetchable names the masters that objects are fetched from.
func (m *Master) fetchable() []string {
	out := peers{m}.Others()
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.witnesses {
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// awaitShard waits until a shard that etcd knows is known here.
func (c control) awaitShard(ctx context.Context, name string) (*shard, error) {
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	if err := c.awaitView(ctx, func(v fleet.View) bool { _, ok := v.Shards[name]; return ok }); err != nil {
		return nil, err
	}
	return c.find(name)
}

// takeLead waits until this master leads the shard, having asked for it whoever does.
func (c control) takeLead(ctx context.Context, s *shard) error {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		c.standSoon()
		c.mu.Lock()
		t, changed := c.terms[s.name], c.changed
		c.mu.Unlock()
		if t != nil && t.Check() == nil {
			return nil
		}
		if leader, ok := c.election.Leader(s.name); ok && leader.Master != c.cfg.Name {
			if _, err := ask[nothing](ctx, c.links, leader.Master, shardPath(s.name, "lead"), leadRequest{To: c.cfg.Name, Wait: true, Force: true}, nil); err != nil {
				c.log.Warn().Err(err).Str("shard", s.name).Str("peer", leader.Master).Msg("the leader does not hand the shard over; trying again")
			}
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("shard %s: %w: %w", s.name, replicator.ErrNoTerm, context.Cause(ctx))
		}
	}
}

// RecoverShard implements console.Control: it makes the latest generation that is still whole on a living master the
// head, in place of one that nobody has any more.
func (c control) RecoverShard(ctx context.Context, name string, r console.RecoverShardRequest) (console.RecoverShardReport, error) {
	rep := console.RecoverShardReport{Shard: name, Warnings: []string{}}
	s, err := c.find(name)
	if err != nil {
		return rep, err
	}
	if err := c.writable(); err != nil {
		return rep, err
	}
	bounded, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	head, _, err := c.registry.Head(bounded, name)
	if err != nil {
		return rep, kindOf(err)
	}
	heard, silent, err := c.testify(ctx)
	if err != nil {
		return rep, err
	}
	t := heard[name]
	if t == nil || latest(t.best).Number == 0 {
		return rep, console.Errorf(console.ErrNotFound, "no living master holds any generation of shard %s: publish it anew", name)
	}
	last := latest(t.best)
	rep.Was, rep.Tree, rep.PublishedAt, rep.Master = head.Number, last.Number, last.PublishedAt, t.from
	rep.Warnings = append(rep.Warnings, silent...)
	if !head.After(last) {
		return rep, console.Errorf(console.ErrConflict, "nothing is lost: master %s holds generation %d, the head of shard %s", t.from, last.Number, name)
	}
	if !r.AcceptLoss {
		return rep, nil
	}
	note := fmt.Sprintf("recovered from generation %d on the disk of %s; generation %d was lost", last.Number, t.from, head.Number)
	after, err := c.raiseHead(ctx, s.name, t, replicator.Recovery{Floor: t.floor, AcceptLoss: true, Note: note, Caller: console.CallerOf(ctx).String()})
	if err != nil {
		return rep, kindOf(err)
	}
	rep.Generation = after.Number
	c.log.Warn().Str("shard", name).Uint64("lost", head.Number).Uint64("tree", last.Number).Uint64("generation", after.Number).
		Str("by", console.CallerOf(ctx).String()).Msg("loss accepted")
	return rep, nil
}
