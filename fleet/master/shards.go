package master

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/nfs-fleet/nfs-fleet/exporter"
	"github.com/nfs-fleet/nfs-fleet/exporter/volume"
	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/replicator"
	"github.com/nfs-fleet/nfs-fleet/replicator/source"
)

// shard is one shard on this master.
type shard struct {
	name     string
	settings fleet.Shard // guarded by Master.mu
	volume   *volume.Volume
	replica  *replicator.Replica
	source   *source.Source // nil: none here
	parts    *stack
	led      atomic.Bool // somebody has led it since the start
	stands   bool        // for its leadership; only runStanding uses it
	force    atomic.Bool // this master stands for its leadership whatever it serves: it is about to mend the head
}

// restoreShards starts every shard that the disk knows, before etcd is asked.
func (m *Master) restoreShards(ctx context.Context) error {
	records, err := m.ledger.Read()
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(m.cfg.Sources)) {
		if _, known := records[name]; known {
			continue
		}
		root, err := openSourceRoot(m.cfg.Sources[name].Dir, false)
		if err != nil {
			return fmt.Errorf("source of shard %s: %w; correct --source %s=DIR", name, err, name)
		}
		root.(io.Closer).Close() // it was opened to see that it is there; nothing was read
	}
	for _, name := range slices.Sorted(maps.Keys(records)) {
		var settings fleet.Shard
		if err := json.Unmarshal(records[name].Settings, &settings); err != nil {
			m.log.Warn().Err(err).Str("shard", name).Msg("the ledger has no settings of this shard: waiting for etcd's")
			continue
		}
		if err := m.startShard(ctx, settings, records[name]); err != nil {
			return err
		}
	}
	return nil
}

// startShard starts one shard and stands for its leadership once the fleet is known.
func (m *Master) startShard(ctx context.Context, settings fleet.Shard, rec replicator.Record) error {
	s := &shard{name: settings.Name, settings: settings, parts: newStack()}
	s.volume = volume.New(uint64(settings.FSID), volumeStore{m.store}, m.log)
	conf := replicator.Config{
		Shard: s.name, Master: m.cfg.Name, Store: m.store, Ledger: m.ledger, Heads: shardHeads{m.registry, s.name}, Volume: s.volume,
		Peers: peers{m}, Era: m.era,
		Settings: replicaSettings(settings), Record: rec, Logger: m.log, Published: m.metrics.published(s.name), Pruned: m.pruned, Flipped: m.flipped,
	}
	if from, ok := m.cfg.Sources[s.name]; ok {
		src, err := m.openSource(s.name, from.Dir, len(rec.Generations) > 0)
		if err != nil {
			return err
		}
		s.source, conf.Source, conf.Directory, conf.Manual = src, src, from.Dir, from.Manual()
	}
	s.replica = replicator.New(ctx, conf)
	s.parts.start("volume", func(ctx context.Context) error {
		<-ctx.Done()
		return s.volume.Close()
	})
	if s.source != nil {
		s.parts.start("source", func(ctx context.Context) error { return errors.Join(s.source.Run(ctx), s.source.Close()) })
	}
	s.parts.start("replica", s.replica.Run)
	m.mu.Lock()
	m.shards[s.name] = s
	m.mu.Unlock()
	go m.watchShard(s)
	return nil
}

// watchShard ends with the shard: it makes a part that failed the master's failure.
func (m *Master) watchShard(s *shard) {
	select {
	case err := <-s.parts.failed:
		m.fail(fmt.Errorf("shard %s: %w", s.name, err))
	case <-s.parts.stopped:
	}
}

func (m *Master) openSource(shard, dir string, published bool) (*source.Source, error) {
	root, err := openSourceRoot(dir, published)
	if err != nil {
		return nil, fmt.Errorf("source of shard %s: %w; correct --source %s=DIR", shard, err, shard)
	}
	return source.New(source.Config{
		Shard: shard, FS: root, Watch: dir, State: m.scanState(shard), Objects: m.store,
		Quiet: m.cfg.Scan.Quiet, MaxWait: m.cfg.Scan.MaxWait, Rescan: m.cfg.Scan.Rescan, Logger: m.log.With().Str("shard", shard).Logger(),
	})
}

func (m *Master) scanState(shard string) string { return m.data.join("scan", shard) }

func replicaSettings(s fleet.Shard) replicator.Settings {
	return replicator.Settings{MinCopies: s.MinCopies, Strict: s.Strict, Paused: s.Paused, Expired: s.Keep.Expired}
}

// runShards stops the shards when ctx ends.
func (m *Master) runShards(ctx context.Context) error {
	<-ctx.Done()
	var wg sync.WaitGroup
	for _, s := range m.allShards() {
		wg.Go(func() {
			if late := s.parts.stop(stopLimit); len(late) > 0 {
				m.log.Warn().Str("shard", s.name).Strs("parts", late).Msg("did not stop in time")
			}
		})
	}
	wg.Wait()
	return nil
}

// allShards returns the shards by name.
func (m *Master) allShards() []*shard {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]*shard, 0, len(m.shards))
	for _, name := range slices.Sorted(maps.Keys(m.shards)) {
		out = append(out, m.shards[name])
	}
	return out
}

func (m *Master) shard(name string) (*shard, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.shards[name]
	return s, ok
}

// seen is called with each View of the fleet. It runs in the goroutine of Registry.Follow.
func (m *Master) seen(ctx context.Context, v fleet.View) {
	known, err := m.settleIdentity(ctx, v)
	if err != nil {
		m.lost(err)
		return
	}
	m.mu.Lock()
	if known && v.Identity.ID == "" {
		v.Identity = m.local.Identity // just made
	}
	first := m.etcdErr != nil
	if m.view, m.etcdErr = v, nil; first {
		m.backAt = time.Now()
	}
	m.mu.Unlock()
	m.spreadSoon()
	if first {
		m.log.Info().Int64("revision", v.Revision).Msg("etcd answers")
	}
	for key, problem := range v.Problems {
		if m.warnOnce(key + problem.Error()) {
			m.log.Warn().Err(problem).Str("key", key).Msg("a value in etcd cannot be read")
		}
	}
	if !known {
		m.serve() // etcd has answered: there is nothing to wait for
		return
	}
	if err := m.settleTrust(ctx); err != nil {
		m.lost(err)
		return
	}
	m.meet(ctx, v)
	if err := m.reconcile(ctx, v); err != nil {
		m.log.Error().Err(err).Msg("cannot follow the fleet")
	}
}

// errForeign: the fleet in etcd is not the one that this disk belongs to.
var errForeign = errors.New("etcd holds")

// lost is called each time that etcd cannot be read, or holds what is none of this master's business.
func (m *Master) lost(err error) {
	m.mu.Lock()
	first := m.etcdErr == nil || m.view.Revision == 0 && m.etcdErr.Error() != err.Error()
	m.etcdErr = err
	m.mu.Unlock()
	if first && errors.Is(err, errForeign) {
		m.log.Error().Err(err).Msg("etcd has another fleet; serving what the disk has, publishing nothing")
	} else if first {
		m.log.Warn().Err(err).Strs("endpoints", m.client.Endpoints()).Msg("etcd does not answer; serving goes on, publishing waits; trying again")
	}
}

// settleIdentity compares the fleet in etcd with the one that the disk belongs to; it makes or joins the fleet when
// the disk is new. known is false when etcd holds no fleet but the disk does: somebody has to recover it.
func (m *Master) settleIdentity(ctx context.Context, v fleet.View) (known bool, err error) {
	m.mu.Lock()
	local := m.local
	m.mu.Unlock()
	id := v.Identity
	switch {
	case id.ID == "" && local.ID != "":
		if m.warnOnce("lost") {
			m.log.Error().Msg("etcd holds no such fleet, but this master's disk belongs to one: serving what the disk has; run `nfs-fleet recover` if etcd has lost its data")
		}
		return false, nil
	case id.ID == local.ID && id.ID != "":
		m.foreign.Store(false)
		return true, nil
	case id.ID != "" && local.ID != "":
		err := fmt.Errorf("data directory %s belongs to fleet %s (%s), but %w %s (%s) under that name: choose another with --data-dir, or the right etcd with --etcd",
			m.data.path, local.Fleet, local.ID, errForeign, id.Fleet, id.ID)
		select {
		case <-m.open: // its readers have nobody else, perhaps
			m.foreign.Store(true)
			m.standSoon()
			return false, err
		default:
			m.fail(err)
			return false, nil
		}
	case id.ID == "":
		ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
		defer cancel()
		id, err = m.registry.CreateIdentity(ctx, fleet.Identity{ID: uuid.NewString(), Fleet: m.cfg.Fleet, CreatedAt: time.Now().UTC()})
		if err != nil {
			return false, err
		}
	}
	local.Identity, local.Master = id, m.cfg.Name
	if err := m.data.setIdentity(local); err != nil {
		m.fail(err)
		return false, nil
	}
	m.mu.Lock()
	m.local = local
	m.mu.Unlock()
	m.log.Info().Str("id", id.ID).Str("fleet", id.Fleet).Msg("this disk now belongs to the fleet")
	return true, nil
}

// reconcile makes the shards here those of the view. What goes wrong with one shard does not keep the others waiting.
func (m *Master) reconcile(ctx context.Context, v fleet.View) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(m.cfg.Sources)) {
		_, here := m.shard(name)
		if _, ok := v.Shards[name]; ok || here || v.Problems[m.registry.Keys().Shard(name)] != nil {
			continue
		}
		errs = append(errs, m.createSourceShard(ctx, name))
	}
	for _, name := range slices.Sorted(maps.Keys(v.Shards)) {
		errs = append(errs, m.follow(ctx, v, v.Shards[name]))
	}
	for _, s := range m.allShards() {
		if _, ok := v.Shards[s.name]; ok {
			continue
		}
		if v.Deleted[s.settings.FSID] {
			m.dropShard(s)
		} else if m.warnOnce("unknown " + s.name) {
			m.log.Error().Str("shard", s.name).Msg(unknownShard)
		}
	}
	m.serve()
	m.announce()
	m.mu.Lock()
	m.reconciled = v
	m.tellLocked()
	m.mu.Unlock()
	m.guideSoon()
	return errors.Join(errs...)
}

// unknownShard is said of a shard that this disk has, that etcd does not know, and that nobody has deleted.
const unknownShard = "etcd does not know this shard, but this disk has it: serving what the disk has; run `nfs-fleet recover` if etcd has lost it"

// tellLocked wakes those that wait for reconciled or terms to change. The caller holds mu.
func (m *Master) tellLocked() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// createSourceShard brings the shard of a configured source into being; the watch then brings it here.
func (m *Master) createSourceShard(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	s, err := m.registry.CreateShard(ctx, m.cfg.Shard(name, time.Now()))
	if errors.Is(err, fleet.ErrExists) {
		return nil // another master was first; the watch brings it
	}
	if err != nil {
		return fmt.Errorf("create shard %s: %w", name, err)
	}
	m.log.Info().Str("shard", name).Stringer("fsid", s.FSID).Msg("shard created")
	return nil
}

// follow tells one shard what the view says of it, and starts it when it is new.
func (m *Master) follow(ctx context.Context, v fleet.View, settings fleet.Shard) error {
	s, ok := m.shard(settings.Name)
	if ok && s.settings.FSID != settings.FSID {
		if !v.Deleted[s.settings.FSID] {
			return fmt.Errorf("shard %s: etcd gives it fsid %s, this disk %s, and nobody has deleted it: serving what the disk has", s.name, settings.FSID, s.settings.FSID)
		}
		m.dropShard(s) // deleted and made anew since we looked
		ok = false
	}
	text, err := json.Marshal(settings)
	if err != nil {
		return err
	}
	if !ok {
		if err := m.ledger.SetSettings(settings.Name, text); err != nil {
			return err
		}
		if err := m.startShard(ctx, settings, replicator.Record{}); err != nil {
			return err
		}
		s, _ = m.shard(settings.Name)
	} else if before, err := json.Marshal(s.settings); err != nil || string(before) != string(text) {
		if err := m.ledger.SetSettings(settings.Name, text); err != nil {
			return err
		}
		m.mu.Lock()
		s.settings = settings
		m.mu.Unlock()
		s.replica.SetSettings(replicaSettings(settings))
	}
	head := v.Heads[s.name]
	if v.Problems[m.registry.Keys().Head(s.name)] == nil {
		s.replica.SetHead(head.Generation, head.Revision)
	}
	m.standSoon()
	return nil
}

// dropShard stops a shard that is no more and forgets it.
func (m *Master) dropShard(s *shard) {
	m.election.Withdraw(s.name)
	m.mu.Lock()
	delete(m.shards, s.name)
	delete(m.terms, s.name)
	m.mu.Unlock()
	m.export()
	s.parts.stop(stopLimit)
	if err := m.ledger.Forget(s.name); err != nil {
		m.log.Error().Err(err).Str("shard", s.name).Msg("forgetting a deleted shard")
	}
	os.Remove(m.scanState(s.name)) // a cache: its absence costs a scan, its presence some disk
	m.log.Info().Str("shard", s.name).Msg("shard deleted")
	m.pruned()
}

// serve opens the doors: from now on, what is exported may be mounted.
func (m *Master) serve() {
	m.openOnce.Do(func() { close(m.open) })
	m.export()
}

// serveStale serves what the disk has when etcd has not answered in time.
func (m *Master) serveStale(ctx context.Context) error {
	timer := time.NewTimer(staleAfter)
	defer timer.Stop()
	select {
	case <-m.open:
	case <-timer.C:
		m.log.Warn().Msg("etcd has not confirmed any head: serving what this disk has, marked stale")
		m.serve()
	case <-ctx.Done():
	}
	<-ctx.Done()
	return nil
}

// flipped is called when a shard serves another generation.
func (m *Master) flipped() {
	m.export()
	m.announce()
	m.standSoon()
	m.guideSoon()
}

// export tells the exporter which volumes there are. Before the doors are open there are none.
func (m *Master) export() {
	select {
	case <-m.open:
	default:
		return
	}
	m.exporting.Lock()
	defer m.exporting.Unlock()
	var exports []exporter.Export
	for _, s := range m.allShards() {
		if s.volume.State() == nil {
			continue
		}
		m.mu.Lock()
		settings := s.settings
		m.mu.Unlock()
		exports = append(exports, exporter.Export{Name: s.name, Volume: s.volume, Rules: rules(settings)})
	}
	m.exporter.SetExports(exports)
	m.exported.Store(&exports)
}

// exports is what clients see now.
func (m *Master) exports() []exporter.Export {
	if all := m.exported.Load(); all != nil {
		return *all
	}
	return nil
}

func rules(s fleet.Shard) exporter.Rules {
	squash := map[fleet.Squash]exporter.Squash{fleet.SquashNone: exporter.SquashNone, fleet.SquashRoot: exporter.SquashRoot, fleet.SquashAll: exporter.SquashAll}
	return exporter.Rules{Networks: s.Networks, Squash: squash[s.Squash], AnonUID: s.AnonUID, AnonGID: s.AnonGID, Insecure: s.Insecure}
}
