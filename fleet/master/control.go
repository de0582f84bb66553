package master

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
	"github.com/nfs-fleet/nfs-fleet/replicator"
	"github.com/nfs-fleet/nfs-fleet/replicator/peer"
	"github.com/nfs-fleet/nfs-fleet/replicator/source"
	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// control implements console.Control.
type control struct{ *Master }

var _ console.Control = control{}

// kinds says which of the console's kinds of error an error of the parts below is. The first that fits counts.
var kinds = []struct{ is, kind error }{
	{replicator.ErrNoGeneration, console.ErrNotFound}, {fleet.ErrNotFound, console.ErrNotFound}, {fleet.ErrExists, console.ErrConflict},
	{fleet.ErrConflict, console.ErrConflict}, {fleet.ErrUnavailable, console.ErrNoQuorum}, {fleet.ErrFenced, console.ErrNoLeader},
	{replicator.ErrNoTerm, console.ErrNoLeader}, {replicator.ErrNoSource, console.ErrInvalid}, {replicator.ErrTooFewCopies, console.ErrUnavailable},
	{replicator.ErrBehind, console.ErrUnavailable}, {replicator.ErrHolding, console.ErrConflict}, {peer.ErrUnreachable, console.ErrUnavailable}, {errNoAnswer, console.ErrUnavailable},
	{replicator.ErrRegressed, console.ErrUnavailable}, {replicator.ErrStopped, console.ErrUnavailable}, {store.ErrFull, console.ErrUnavailable},
	{tree.ErrMissing, console.ErrInvalid},
}

// kindOf gives an error the console's kind without changing its words.
func kindOf(err error) error {
	for _, k := range kinds {
		if errors.Is(err, k.is) {
			return console.Errorf(k.kind, "%w", err)
		}
	}
	return err
}

func (c control) find(name string) (*shard, error) {
	s, ok := c.shard(name)
	if !ok {
		return nil, console.Errorf(console.ErrNotFound, "no shard %q: `nfs-fleet shard list` shows them", name)
	}
	return s, nil
}

// Shards implements console.Control.
func (c control) Shards(context.Context) ([]console.Shard, error) {
	out := []console.Shard{}
	for _, s := range c.allShards() {
		c.mu.Lock()
		out = append(out, s.settings)
		c.mu.Unlock()
	}
	return out, nil
}

// CreateShard implements console.Control.
func (c control) CreateShard(ctx context.Context, s console.Shard) (console.Shard, error) {
	if err := c.writable(); err != nil {
		return s, err
	}
	s.FSID, s.CreatedAt = 0, time.Now().UTC()
	if err := s.Validate(); err != nil {
		return s, fmt.Errorf("%w: %w", err, console.ErrInvalid)
	}
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	made, err := c.registry.CreateShard(ctx, s)
	if errors.Is(err, fleet.ErrExists) {
		return s, console.Errorf(console.ErrConflict, "shard %s exists already: change it with `nfs-fleet shard set`", s.Name)
	}
	if err != nil {
		return s, kindOf(err)
	}
	return made, c.awaitView(ctx, func(v fleet.View) bool { return v.Shards[s.Name].FSID == made.FSID })
}

// SetShard implements console.Control.
func (c control) SetShard(ctx context.Context, name string, p console.ShardPatch) (console.Shard, error) {
	return c.updateShard(ctx, name, func(s fleet.Shard) fleet.Shard { return p.Apply(s) })
}

func (c control) updateShard(ctx context.Context, name string, change func(fleet.Shard) fleet.Shard) (fleet.Shard, error) {
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	for {
		before, revision, err := c.registry.Shard(ctx, name)
		if errors.Is(err, fleet.ErrNotFound) {
			return before, console.Errorf(console.ErrNotFound, "no shard %q: `nfs-fleet shard list` shows them", name)
		}
		if err != nil {
			return before, kindOf(err)
		}
		after := change(before)
		if err := after.Validate(); err != nil {
			return before, fmt.Errorf("%w: %w", err, console.ErrInvalid)
		}
		written, err := c.registry.UpdateShard(ctx, after, revision)
		if errors.Is(err, fleet.ErrConflict) {
			continue // somebody else's change went first: apply ours to that
		}
		if err != nil {
			return before, kindOf(err)
		}
		return after, c.awaitView(ctx, func(v fleet.View) bool { return v.Includes(written) })
	}
}

// DeleteShard implements console.Control.
func (c control) DeleteShard(ctx context.Context, name string) error {
	s, err := c.find(name)
	if err != nil {
		return err
	}
	if s.source != nil {
		return console.Errorf(console.ErrConflict, "shard %s has a source on this master, which would make it anew: leave out --source %s=… first", name, name)
	}
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	if err := c.registry.DeleteShard(ctx, name); err != nil {
		return kindOf(err)
	}
	return c.awaitView(ctx, func(v fleet.View) bool { _, ok := v.Shards[name]; return !ok })
}

// writable says why the fleet cannot be changed now.
func (c control) writable() error {
	if err := c.etcdProblem(); err != nil {
		return console.Errorf(console.ErrNoQuorum, "etcd does not answer: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.view.Identity.ID == "" {
		return console.Errorf(console.ErrUnavailable, "etcd holds no such fleet: run `nfs-fleet recover` if it has lost its data")
	}
	return nil
}

// awaitView waits until this master has seen, and acted on, a View that ok accepts.
func (c control) awaitView(ctx context.Context, ok func(fleet.View) bool) error {
	for {
		c.mu.Lock()
		v, changed := c.reconciled, c.changed
		c.mu.Unlock()
		if ok(v) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("it is written, but this master has not seen it yet: %w", context.Cause(ctx))
		}
	}
}

// leaderOf names the master that is to answer what only a shard's leader can.
func (m *Master) leaderOf(shard string) (string, error) {
	if _, ok := m.shard(shard); !ok {
		return m.cfg.Name, nil // which says that there is no such shard
	}
	if err := m.etcdProblem(); err != nil {
		return m.cfg.Name, nil // which says why nothing can be changed
	}
	leader, ok := m.election.Leader(shard)
	if !ok {
		return "", console.Errorf(console.ErrNoLeader, "nobody leads shard %s now: `nfs-fleet status` shows why", shard)
	}
	return leader.Master, nil
}

// maxNote bounds what a publish says of itself, in bytes: every generation keeps it, in etcd and on each disk.
const maxNote = 4 << 10

func checkNotes(texts ...string) error {
	for _, text := range texts {
		if len(text) > maxNote {
			return console.Errorf(console.ErrInvalid, "a note, or where a tree comes from, may have %d bytes, not %d", maxNote, len(text))
		}
	}
	return nil
}

// Publish implements console.Control.
func (c control) Publish(ctx context.Context, name string, r console.PublishRequest, progress func(console.Progress)) (console.Published, error) {
	s, err := c.find(name)
	if err != nil {
		return console.Published{}, err
	}
	if err := errors.Join(checkNotes(r.Note, r.Origin), c.writable()); err != nil {
		return console.Published{}, err
	}
	p := replicator.Publication{Note: r.Note, Root: r.Root, Origin: r.Origin, Caller: r.Caller.String(), Progress: scanProgress(progress)}
	if !r.Root.IsZero() {
		done, err := c.uploads.use(r.Upload, name)
		if err != nil {
			return console.Published{}, err
		}
		defer done()
	}
	var res replicator.Result
	if at := c.sourceOf(s); r.Root.IsZero() && at != c.cfg.Name {
		res, err = ask[replicator.Result](ctx, c.links, at, shardPath(name, "publish"), publishRequest{p.Note, p.Caller}, nil)
	} else {
		res, err = s.replica.Publish(ctx, p)
	}
	return c.published(ctx, s, res, r.Wait, err)
}

// sourceOf names the living master whose source a shard is published from when somebody asks: this one if it has one.
func (c control) sourceOf(s *shard) string {
	if s.source != nil {
		return c.cfg.Name
	}
	v := c.lastView()
	head := v.Heads[s.name]
	best := c.cfg.Name // which says that there is none
	for _, name := range slices.Sorted(maps.Keys(v.Masters)) {
		if !slices.Contains(v.Masters[name].Sources, s.name) {
			continue
		}
		if best == c.cfg.Name || strings.HasPrefix(head.Source, name+":") {
			best = name
		}
	}
	return best
}

// Rollback implements console.Control.
func (c control) Rollback(ctx context.Context, name string, r console.RollbackRequest, _ func(console.Progress)) (console.Published, error) {
	s, err := c.find(name)
	if err != nil {
		return console.Published{}, err
	}
	if err := errors.Join(checkNotes(r.Note), c.writable()); err != nil {
		return console.Published{}, err
	}
	res, err := s.replica.Rollback(ctx, r.Generation, replicator.Publication{Note: r.Note, Caller: r.Caller.String()})
	return c.published(ctx, s, res, r.Wait, err)
}

func (c control) published(ctx context.Context, s *shard, res replicator.Result, wait bool, err error) (console.Published, error) {
	if err != nil {
		return console.Published{}, kindOf(err)
	}
	servedBy := []string{}
	if wait {
		servedBy = c.awaitAll(ctx, s, res.Generation.Number)
	}
	warnings := res.Warnings
	if warnings == nil {
		warnings = []string{}
	}
	return console.Published{
		Generation: res.Generation, Shard: s.name, ServedBy: servedBy, Changed: res.Changed, Added: res.Added, Modified: res.Modified, Removed: res.Removed,
		Warnings: warnings, TookMS: res.Took.Milliseconds(),
	}, nil
}

// awaitLimit bounds the wait for masters to serve a generation.
const awaitLimit = time.Minute

// awaitAll waits until every living master that is not behind already serves a generation, and returns those that do.
func (c control) awaitAll(ctx context.Context, s *shard, generation uint64) []string {
	ctx, cancel := context.WithTimeout(ctx, awaitLimit)
	defer cancel()
	var mu sync.Mutex // guards out
	out := []string{c.cfg.Name}
	var waiting sync.WaitGroup
	for _, name := range peers(c).Others() {
		waiting.Go(func() {
			_, err := ask[nothing](ctx, c.links, name, shardPath(s.name, "await"), awaitRequest{generation}, nil)
			if err != nil {
				c.log.Debug().Err(err).Str("peer", name).Uint64("generation", generation).Msg("a master does not serve a generation in time")
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out = append(out, name)
		})
	}
	waiting.Wait()
	slices.Sort(out)
	return out
}

func scanProgress(progress func(console.Progress)) func(source.Progress) {
	if progress == nil {
		return nil
	}
	return func(p source.Progress) {
		progress(console.Progress{Step: "scan", Files: p.Files, TotalFiles: p.TotalFiles, Bytes: p.Bytes, TotalBytes: p.TotalBytes, Path: p.Path})
	}
}

// History implements console.Control.
func (c control) History(_ context.Context, name string) ([]tree.Generation, error) {
	s, err := c.find(name)
	if err != nil {
		return nil, err
	}
	out := slices.Clone(s.replica.Status().Generations)
	slices.Reverse(out)
	if out == nil {
		out = []tree.Generation{}
	}
	return out, nil
}

// Diff implements console.Control.
func (c control) Diff(ctx context.Context, name string, a, b uint64, fn func(console.Change) error) error {
	s, err := c.find(name)
	if err != nil {
		return err
	}
	defer c.store.Hold()()
	known := s.replica.Status().Generations
	if len(known) == 0 {
		return console.Errorf(console.ErrNotFound, "shard %s has no generation yet", name)
	}
	if b == 0 {
		b = known[len(known)-1].Number
	}
	to, err := pick(name, known, b)
	if err != nil {
		return err
	}
	var from tree.Digest // the empty tree before the first generation
	if a == 0 {
		i := slices.IndexFunc(known, func(g tree.Generation) bool { return g.Number == b })
		if i > 0 {
			from = known[i-1].Root
		} else if b > 1 {
			return console.Errorf(console.ErrNotFound, "the generation before %d of shard %s is not retained: name one that is", b, name)
		}
	} else if g, err := pick(name, known, a); err != nil {
		return err
	} else {
		from = g.Root
	}
	return tree.Diff(ctx, c.store, from, to.Root, func(ch tree.Change) error {
		if ch.Renumbered() {
			return nil
		}
		return fn(console.ChangeOf(ch.Path, ch.Old, ch.New))
	})
}

func pick(shard string, known []tree.Generation, n uint64) (tree.Generation, error) {
	for _, g := range known {
		if g.Number == n {
			return g, nil
		}
	}
	return tree.Generation{}, console.Errorf(console.ErrNotFound, "generation %d of shard %s is not retained: `nfs-fleet history %s` lists those that are", n, shard, shard)
}

// Source implements console.Control.
func (c control) Source(ctx context.Context, name string, a console.SourceAction) error {
	s, err := c.find(name)
	if err != nil {
		return err
	}
	at := c.sourceOf(s)
	if s.source == nil && at == c.cfg.Name {
		return console.Errorf(console.ErrInvalid, "no living master has a source for shard %s", name)
	}
	pause := func(paused bool) error {
		_, err := c.updateShard(ctx, name, func(s fleet.Shard) fleet.Shard { s.Paused = paused; return s })
		return err
	}
	switch a {
	case console.SourcePause:
		return pause(true)
	case console.SourceRescan:
		if at != c.cfg.Name {
			_, err := ask[nothing](ctx, c.links, at, shardPath(name, "rescan"), nothing{}, nil)
			return kindOf(err)
		}
		s.source.MarkAll("asked for by `source rescan`")
		return nil
	case console.SourceResume:
		head := s.replica.Status().Head.Source
		rolledBack := strings.HasPrefix(head, replicator.RollbackSource)
		c.mu.Lock()
		paused := s.settings.Paused
		c.mu.Unlock()
		if !paused && !rolledBack {
			return console.Errorf(console.ErrConflict, "the source of shard %s is not paused", name)
		}
		if err := pause(false); err != nil || !rolledBack {
			return err
		}
		_, err := c.Publish(ctx, name, console.PublishRequest{Caller: console.CallerOf(ctx)}, nil) // takes the shard back to its source
		return err
	}
	return console.Errorf(console.ErrInvalid, "source %q: use pause, resume or rescan", a)
}

// Healthy implements console.Control.
func (c control) Healthy() error { return nil }

// Ready implements console.Control: clients and operators may be sent here when the doors are open, every head is
// served, each shard has had a leader, and no first publish is on its way. A leader that is lost later stops publishing,
// not reading; so does etcd.
func (c control) Ready() error {
	if c.draining.Load() {
		return fmt.Errorf("this master is draining: %w", console.ErrUnavailable)
	}
	select {
	case <-c.open:
	default:
		return fmt.Errorf("this master is starting: %w", console.ErrUnavailable)
	}
	etcdUp := c.etcdProblem() == nil
	c.mu.Lock()
	etcdUp = etcdUp && c.reconciled.Revision != 0
	c.mu.Unlock()
	for name := range c.cfg.Sources {
		if _, here := c.shard(name); etcdUp && !here {
			return fmt.Errorf("shard %s is being made: %w", name, console.ErrUnavailable)
		}
	}
	for _, s := range c.allShards() {
		if err := c.shardReady(s, etcdUp); err != nil {
			return fmt.Errorf("shard %s: %w: %w", s.name, err, console.ErrUnavailable)
		}
	}
	return nil
}

func (c control) shardReady(s *shard, etcdUp bool) error {
	st := s.replica.Status()
	if leader, ok := c.election.Leader(s.name); ok && (leader.Master != c.cfg.Name || st.Epoch != 0) {
		s.led.Store(true)
	}
	switch {
	case st.Problem != nil:
		return st.Problem
	case etcdUp && !s.led.Load():
		return errors.New("it has no leader yet")
	case st.Head.Number == 0 && st.Source == replicator.SourceWatching && st.SourceError == nil:
		return errors.New("its first publish is under way")
	}
	return nil
}
