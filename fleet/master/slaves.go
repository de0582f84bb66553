package master

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nfs-fleet/nfs-fleet/exporter/hello"
	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

// Slaves implements console.Control.
func (c control) Slaves(ctx context.Context) ([]console.SlaveStatus, error) {
	return slaveStatuses(c.lastView().Slaves, c.hearAll(ctx)), nil
}

// Slave implements console.Control.
func (c control) Slave(ctx context.Context, name string) (console.SlaveStatus, error) {
	all, err := c.Slaves(ctx)
	i := slices.IndexFunc(all, func(s console.SlaveStatus) bool { return s.Name == name })
	if err != nil || i < 0 {
		return console.SlaveStatus{}, cmp.Or(err, noSlave(name))
	}
	return all[i], nil
}

func noSlave(name string) error {
	return console.Errorf(console.ErrNotFound, "no slave %q in this fleet: `nfs-fleet slave list` shows them", name)
}

// HeardSlaves implements console.Control.
func (c control) HeardSlaves(context.Context) ([]console.SlaveStatus, error) {
	return c.heardOrSeen(time.Now()), nil
}

// heardOrSeen are the slaves that read from this master, and those of the fleet that it has heard of before: they read from
// nobody as far as it knows.
func (m *Master) heardOrSeen(now time.Time) []console.SlaveStatus {
	out, v := m.heardSlaves(now), m.lastView()
	for name, at := range m.slaves.lastHeard(now) {
		if s, known := v.Slaves[name]; known {
			st := slaveStatus(s, console.SlaveStatus{})
			st.SeenAt = later(st.SeenAt, at.UTC())
			out = append(out, st)
		}
	}
	return out
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// heardSlaves are the slaves that read from this master: those whose agent greets it and says so, and those without an
// agent that are connected.
func (m *Master) heardSlaves(now time.Time) []console.SlaveStatus {
	v := m.lastView()
	var out []console.SlaveStatus
	for _, s := range m.slaves.readers(now) {
		if r, ok := s.report(m.cfg.Name); ok && r.Mode != fleet.ModeMount {
			out = append(out, slaveStatus(v.Slaves[r.Name], heardStatus(s, r)))
		}
	}
	var connected map[netip.Addr]bool
	for _, s := range v.Slaves {
		if s.Mode != fleet.ModeMount {
			continue
		}
		if connected == nil {
			connected = m.connected()
		}
		if connected[s.Address] {
			out = append(out, slaveStatus(s, console.SlaveStatus{Name: s.Name, Reads: m.cfg.Name, Mode: string(s.Mode), Address: s.Address, SeenAt: now.UTC()}))
		}
	}
	slices.SortFunc(out, byName)
	return out
}

func byName(a, b console.SlaveStatus) int { return strings.Compare(a.Name, b.Name) }

// heardStatus is what a greeting says.
func heardStatus(s slaveSighting, r slaveReport) console.SlaveStatus {
	st := console.SlaveStatus{
		Name: r.Name, Reads: r.Master, Mode: s.Mode, Address: r.Address, Instance: s.Instance, Version: s.Version, SeenAt: s.At.UTC(), MoreMounts: s.More,
	}
	for _, m := range s.Mounts {
		st.Mounts = append(st.Mounts, console.SlaveMount{Name: m.Name, Shard: m.Shard, Dir: m.Dir})
	}
	if s.Last != (hello.Reattach{}) {
		st.Last = &console.SlaveReattach{At: s.Last.At.UTC(), TookMS: s.Last.Took.Milliseconds(), From: s.Last.From, To: s.Last.To, Why: s.Last.Why}
	}
	return st
}

// slaveStatus completes what is heard of a slave by what the fleet knows. Either may be nothing.
func slaveStatus(s fleet.Slave, st console.SlaveStatus) console.SlaveStatus {
	if st.Reads == "" {
		st.Name, st.Mode, st.Address, st.Instance, st.Version, st.SeenAt = s.Name, string(s.Mode), s.Address, s.Instance, s.Version, s.SeenAt
	}
	st.Master, st.Fallbacks, st.Since, st.EnrolledAt = s.Master, append([]string{}, s.Fallbacks...), s.Since, s.EnrolledAt
	if st.Mounts == nil {
		st.Mounts = []console.SlaveMount{}
	}
	return st
}

// slaveStatuses puts together what the fleet knows and what masters hear. Of a slave that more than one hears of, the last
// word counts, and where it reads more than where it was once heard of.
func slaveStatuses(known map[string]fleet.Slave, heard []console.SlaveStatus) []console.SlaveStatus {
	all := make(map[string]console.SlaveStatus, len(known))
	seen := map[string]time.Time{} // those who read from nobody
	for _, st := range heard {
		if st.Reads == "" {
			seen[st.Name] = later(seen[st.Name], st.SeenAt)
			continue
		}
		if other, twice := all[st.Name]; !twice || supersedes(st, other) {
			all[st.Name] = slaveStatus(known[st.Name], st)
		}
	}
	for name, s := range known {
		if _, ok := all[name]; !ok {
			st := slaveStatus(s, console.SlaveStatus{})
			st.SeenAt = later(st.SeenAt, seen[name])
			all[name] = st
		}
	}
	return slices.SortedFunc(maps.Values(all), byName)
}

// supersedes reports whether of two things heard of a slave the first counts: what was heard last, and of two modes that are
// both in use, the relay.
func supersedes(a, b console.SlaveStatus) bool {
	if a.Mode != b.Mode && a.SeenAt.Sub(b.SeenAt).Abs() <= readingFor {
		return a.Mode == string(fleet.ModeRelay)
	}
	return a.SeenAt.After(b.SeenAt)
}

// hearAll asks every living master which slaves it hears of.
func (c control) hearAll(ctx context.Context) []console.SlaveStatus {
	ctx, cancel := context.WithTimeout(ctx, selfLimit)
	defer cancel()
	out := c.heardOrSeen(time.Now())
	var mu sync.Mutex // guards out
	var asking sync.WaitGroup
	for name := range c.lastView().Masters {
		if name == c.cfg.Name {
			continue
		}
		asking.Go(func() {
			other, err := c.links.console(name)
			if err != nil {
				return
			}
			heard, err := other.HeardSlaves(ctx)
			if err != nil {
				c.log.Debug().Err(err).Str("peer", name).Msg("a master does not tell of its slaves")
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out = append(out, heard...)
		})
	}
	asking.Wait()
	return out
}

// someHeard returns the slaves of all that a status shows, those away first, and counts those.
func someHeard(all []console.SlaveStatus) (some []console.SlaveStatus, away int) {
	some = slices.Clone(all)
	slices.SortStableFunc(some, func(a, b console.SlaveStatus) int { return attention(a) - attention(b) })
	for away < len(some) && some[away].Away() {
		away++
	}
	return some[:min(len(some), console.MaxShown)], away
}

// attention is lower for a slave that an operator rather wants to see.
func attention(s console.SlaveStatus) int {
	switch {
	case s.Away():
		return 0
	case s.Master == "":
		return 1
	case s.Reads == "":
		return 2
	}
	return 3
}

// slavesStatus sums the slaves up. It takes what the masters have heard out of what they say of themselves.
func slavesStatus(known map[string]fleet.Slave, masters []console.MasterStatus) console.SlavesStatus {
	st := console.SlavesStatus{Total: len(known)}
	var heard []console.SlaveStatus
	for i := range masters {
		st.Heard, st.Away = st.Heard+masters[i].Readers, st.Away+masters[i].Away
		heard = append(heard, masters[i].Heard...)
		masters[i].Heard = nil
	}
	for _, s := range known {
		if s.Master == "" {
			st.Homeless++
		}
	}
	if len(known) > console.MaxShown {
		urgent := map[string]fleet.Slave{}
		for _, s := range known {
			if s.Master == "" && len(urgent) < console.MaxShown {
				urgent[s.Name] = s
			}
		}
		heard = slices.DeleteFunc(heard, func(s console.SlaveStatus) bool { return attention(s) > 1 })
		for _, s := range heard {
			if s, ok := known[s.Name]; ok {
				urgent[s.Name] = s
			}
		}
		known = urgent
	}
	st.Shown = slaveStatuses(known, heard)
	st.Shown = st.Shown[:min(len(st.Shown), console.MaxShown)]
	return st
}

// MoveSlave implements console.Control.
func (c control) MoveSlave(ctx context.Context, name, master string) error {
	if err := c.knownSlave(name); err != nil {
		return err
	}
	if err := c.knownMaster(master); err != nil {
		return err
	}
	o := slaveOrder{Move: name, To: master}
	if g := c.guide.Load(); g != nil { // in plain words, and not by way of the coordinator
		now := situation{slaves: c.lastView().Slaves, hosts: g.hosts, order: o}
		if why := now.unfitHome(); why != "" {
			return console.Errorf(console.ErrConflict, "master %s %s", master, why)
		}
	}
	err := c.order(ctx, o, func(v fleet.View) bool { return v.Slaves[name].Master == master })
	return err
}

// ForgetSlave implements console.Control.
func (c control) ForgetSlave(ctx context.Context, name string) error {
	if err := c.knownSlave(name); err != nil {
		return err
	}
	placed := c.lastView().Slaves[name].Placed
	return c.order(ctx, slaveOrder{Forget: name}, func(v fleet.View) bool { s, ok := v.Slaves[name]; return !ok || s.Placed != placed })
}

// order has the coordinator do something, and waits until this master sees it done.
func (c control) order(ctx context.Context, o slaveOrder, done func(fleet.View) bool) error {
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	if _, err := c.giveOrder(ctx, o); err != nil {
		return kindOf(err)
	}
	c.log.Info().Str("move", o.Move).Str("to", o.To).Str("forget", o.Forget).Str("by", console.CallerOf(ctx).String()).Msg("slaves are placed as ordered")
	return c.awaitView(ctx, done)
}

// knownSlave refuses names that the fleet does not know.
func (c control) knownSlave(name string) error {
	if err := c.writable(); err != nil {
		return err
	}
	if _, known := c.slaveRecord(name); !known {
		return noSlave(name)
	}
	return nil
}

// Rebalance implements console.Control.
func (c control) Rebalance(ctx context.Context, r console.RebalanceRequest) ([]console.SlaveMove, error) {
	if err := c.writable(); err != nil {
		return nil, err
	}
	o := slaveOrder{Rebalance: true}
	var done orderResult
	if r.DryRun {
		g := c.guide.Load()
		if g == nil {
			return nil, console.Errorf(console.ErrUnavailable, "this master does not know the fleet yet")
		}
		o.present = c.present(ctx)
		done.Moves = decide(situation{now: time.Now(), slaves: c.lastView().Slaves, hosts: g.hosts, order: o, steady: true}).moves
	} else {
		ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
		defer cancel()
		var err error
		if done, err = c.giveOrder(ctx, o); err != nil {
			return nil, kindOf(err)
		}
		c.log.Info().Int("moves", len(done.Moves)).Str("by", console.CallerOf(ctx).String()).Msg("slaves are rebalanced")
	}
	out := make([]console.SlaveMove, len(done.Moves))
	for i, m := range done.Moves {
		out[i] = console.SlaveMove{Slave: m.Slave, From: m.From, To: m.To}
	}
	return out, nil
}

// presentFor is how lately a slave must have been heard of to count as there while it is between two masters.
const presentFor = 2 * time.Minute

// present are the slaves that are there.
func (c control) present(ctx context.Context) map[string]bool {
	return presentOf(slaveStatuses(c.lastView().Slaves, c.hearAll(ctx)), time.Now())
}

func presentOf(all []console.SlaveStatus, now time.Time) map[string]bool {
	out := make(map[string]bool, len(all))
	for _, s := range all {
		out[s.Name] = s.Reads != "" || now.Sub(s.SeenAt) < presentFor
	}
	return out
}
