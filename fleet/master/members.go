package master

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
	"github.com/nfs-fleet/nfs-fleet/fleet/etcd"
	"github.com/nfs-fleet/nfs-fleet/fleet/spread"
)

// selfLimit is how long another master may take to tell of itself.
const selfLimit = 700 * time.Millisecond

// Masters implements console.Control: the living masters, as they tell of themselves, and the lost ones.
func (c control) Masters(ctx context.Context) ([]console.MasterStatus, error) {
	st, err := c.Status(ctx)
	return st.Masters, err
}

// Self implements console.Control.
func (c control) Self(context.Context) (console.MasterStatus, error) {
	return c.masterStatus(c.self(), c.picture()), nil
}

// askOthers replaces what etcd says of other masters by what they say themselves, as far as they answer in time.
func (c control) askOthers(ctx context.Context, all []console.MasterStatus) {
	ctx, cancel := context.WithTimeout(ctx, selfLimit)
	defer cancel()
	var asking sync.WaitGroup
	for i := range all {
		if all[i].Self || all[i].State == console.MasterLost {
			continue
		}
		asking.Go(func() {
			peer, err := c.links.console(all[i].Name)
			if err != nil {
				return
			}
			told, err := peer.Self(ctx)
			if err != nil || told.Name != all[i].Name {
				c.log.Debug().Err(err).Str("peer", all[i].Name).Msg("a master does not tell of itself")
				return
			}
			told.Self, told.EtcdRole, told.Leads, told.Lag = false, all[i].EtcdRole, all[i].Leads, lag(c.lastView(), told.Serves)
			told.Slaves = all[i].Slaves
			all[i] = told
		})
	}
	asking.Wait()
}

// lag says how many generations a master is behind the heads.
func lag(v fleet.View, serves map[string]uint64) map[string]uint64 {
	out := map[string]uint64{}
	for shard, head := range v.Heads {
		if n := serves[shard]; n < head.Number {
			out[shard] = head.Number - n
		}
	}
	return out
}

// Drain implements console.Control.
func (c control) Drain(ctx context.Context, name string, r console.DrainRequest) error {
	if err := c.knownMaster(name); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	for {
		remains, needed := c.remains(name)
		if needed && remains == "" && !r.Force {
			return console.Errorf(console.ErrConflict, "master %s is the last one that slaves can read from: start or `undrain` another one and let it catch up; --force drains it all the same", name)
		}
		written, err := c.registry.Drain(ctx, fleet.Drain{Master: name, Since: time.Now().UTC(), By: console.CallerOf(ctx).String()}, remains)
		if err != nil && !errors.Is(err, fleet.ErrConflict) {
			return kindOf(err)
		}
		if err == nil {
			c.log.Info().Str("peer", name).Str("by", console.CallerOf(ctx).String()).Msg("master is drained")
		} // else somebody drained the one that was to remain at the same moment, and may have undrained it by now
		if seen := c.awaitView(ctx, func(v fleet.View) bool { return v.Includes(written) }); seen != nil {
			return seen
		}
		if err == nil {
			return c.awaitDrained(ctx, name)
		}
	}
}

// awaitDrained waits until a master that was drained leads nothing and is nobody's home, or is drained no more.
func (c control) awaitDrained(ctx context.Context, name string) error {
	if err := c.awaitIdle(ctx, name); err != nil {
		return err
	}
	c.awaitEmpty(ctx, name)
	if !c.drained(name) {
		return console.Errorf(console.ErrConflict, "master %s was undrained meanwhile", name)
	}
	return nil
}

// drained reports whether a master is drained, as far as this one knows.
func (c control) drained(name string) bool {
	_, drained := c.lastView().Drained[name]
	return drained
}

// remains names a master that slaves can read from once another is drained, as far as this one knows.
func (c control) remains(drained string) (master string, needed bool) {
	return whoRemains(c.lastView(), drained, func(master string) bool { g := c.guide.Load(); return g == nil || g.places[master].inStep })
}

// whoRemains names another master that serves, is not drained, and is in step, "" if there is none. One is needed when the master
// that is to be drained is such a one itself.
func whoRemains(v fleet.View, name string, inStep func(master string) bool) (remains string, needed bool) {
	serves := func(m fleet.Master) bool {
		_, drained := v.Drained[m.Name]
		return m.State == fleet.Serving && !drained && !gone(v, m)
	}
	for other, m := range v.Masters {
		if other != name && serves(m) && inStep(other) {
			remains = other
			break
		}
	}
	m, alive := v.Masters[name]
	return remains, alive && serves(m)
}

// awaitEmpty waits until a drained master is nobody's home, as long as there are others. Slaves that are still on their
// way then get there without anybody waiting. One that is undrained meanwhile is waited for no longer.
func (c control) awaitEmpty(ctx context.Context, name string) {
	poll(ctx, 20*time.Millisecond, func() bool {
		v, g := c.lastView(), c.guide.Load()
		fit := func(h spread.Host) bool { return h.Name != name && h.Serving && h.InStep }
		return g == nil || !slices.ContainsFunc(g.hosts, fit) || loads(v)[name] == 0 || !c.drained(name)
	})
}

// awaitIdle waits until a drained master leads nothing that another one could lead, or is drained no more.
func (c control) awaitIdle(ctx context.Context, name string) error {
	var left string
	idle := poll(ctx, 20*time.Millisecond, func() bool {
		left = ""
		if !c.drained(name) {
			return true
		}
		v := c.lastView()
		for shard := range v.Shards {
			if leader, ok := c.election.Leader(shard); ok && leader.Master == name && c.servedBeside(v, shard, name) {
				left = shard
			}
		}
		return left == ""
	})
	if !idle {
		return console.Errorf(console.ErrUnavailable, "master %s is drained, but still leads shard %s: `nfs-fleet status` shows when it does not", name, left)
	}
	return nil
}

// Undrain implements console.Control.
func (c control) Undrain(ctx context.Context, name string) error {
	if err := c.knownMaster(name); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	written, err := c.registry.Undrain(ctx, name)
	if err != nil && !errors.Is(err, fleet.ErrNotFound) {
		return kindOf(err)
	}
	c.log.Info().Str("peer", name).Str("by", console.CallerOf(ctx).String()).Msg("master is drained no more")
	return c.awaitView(ctx, func(v fleet.View) bool {
		_, drained := v.Drained[name]
		return !drained || err == nil && v.Includes(written) // somebody drains it again
	})
}

// knownMaster refuses names that are not in the roster.
func (c control) knownMaster(name string) error {
	if err := c.writable(); err != nil {
		return err
	}
	v := c.lastView()
	if _, ok := v.Roster[name]; !ok {
		return console.Errorf(console.ErrNotFound, "no master %q in this fleet: `nfs-fleet master list` shows them", name)
	}
	return nil
}

// RemoveMaster implements console.Control. It refuses to take the last copy of a head out of the fleet.
func (c control) RemoveMaster(ctx context.Context, name string) error {
	if err := c.knownMaster(name); err != nil {
		return err
	}
	v := c.lastView()
	if len(v.Roster) == 1 {
		return console.Errorf(console.ErrConflict, "master %s is the only one of this fleet: stop it instead", name)
	}
	_, drained := v.Drained[name]
	if _, alive := v.Masters[name]; alive && !drained {
		return console.Errorf(console.ErrConflict, "master %s serves: drain it first with `nfs-fleet master drain %s`", name, name)
	}
	for _, shard := range slices.Sorted(maps.Keys(v.Heads)) {
		if v.Replicas[name].Serves[shard] >= v.Heads[shard].Number && !c.servedBeside(v, shard, name) {
			return console.Errorf(console.ErrConflict, "master %s is the only living one that serves generation %d of shard %s: let another one catch up first", name, v.Heads[shard].Number, shard)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	if c.member != nil {
		seats, err := etcd.Members(ctx, c.client, c.routes)
		if err == nil && !etcd.CanRemove(seats, name) {
			return console.Errorf(console.ErrConflict, "without master %s etcd would lose its quorum: start the lost masters again, or remove those first", name)
		}
	}
	instance := v.Roster[name].Instance
	if err := c.registry.Remove(ctx, name, instance); err != nil {
		return kindOf(err)
	}
	c.log.Info().Str("peer", name).Str("instance", instance).Str("by", console.CallerOf(ctx).String()).Msg("master is removed from the fleet")
	if name == c.cfg.Name {
		return nil // it is stopping
	}
	return c.awaitView(ctx, func(v fleet.View) bool { _, ok := v.Roster[name]; return !ok })
}

// servedBeside reports whether a living master other than the named one serves a shard's head.
func (c control) servedBeside(v fleet.View, shard, name string) bool {
	for other := range v.Masters {
		if other != name && v.Replicas[other].Serves[shard] >= v.Heads[shard].Number {
			return true
		}
	}
	return false
}

// Lead implements console.Control.
func (c control) Lead(ctx context.Context, shard, master string) error {
	if _, err := c.find(shard); err != nil {
		return err
	}
	if err := c.knownMaster(master); err != nil {
		return err
	}
	if _, err := c.updateShard(ctx, shard, func(s fleet.Shard) fleet.Shard { s.Lead = master; return s }); err != nil {
		return err
	}
	leader, ok := c.election.Leader(shard)
	if ok && leader.Master == master {
		return nil
	}
	if why := unfit(c.lastView(), master, shard); why != "" {
		return console.Errorf(console.ErrConflict, "master %s %s: it will lead shard %s when it can", master, why, shard)
	}
	if ok {
		if err := c.requestLead(ctx, shard, leader.Master, master, true); err != nil {
			return kindOf(fmt.Errorf("it will when it can: %w", err))
		}
	}
	return c.awaitLeader(ctx, shard, master)
}

// awaitLeader waits until etcd names the master as a shard's leader.
func (c control) awaitLeader(ctx context.Context, shard, master string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*c.cfg.LeaseTTL)
	defer cancel()
	taken := poll(ctx, 10*time.Millisecond, func() bool {
		leader, ok := c.election.Leader(shard)
		return ok && leader.Master == master
	})
	if !taken {
		return console.Errorf(console.ErrUnavailable, "master %s has not taken shard %s over in time: `nfs-fleet status` shows why", master, shard)
	}
	return nil
}
