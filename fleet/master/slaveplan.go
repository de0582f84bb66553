package master

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/spread"
)

// forgetAfter is how long a slave is known that nobody has heard of.
const forgetAfter = 7 * 24 * time.Hour

// absentAfter is how old the record of a slave that lives never is: it is written every seenEvery, by the clocks of two masters.
const absentAfter = 2 * seenEvery

// maxSlaves is how many slaves there may be. Whoever reaches a master can greet it, under any name.
const maxSlaves = 30000

// maxAtOrigin is how many of them one address may have, or one /64 of IPv6: there are about as many ports below 1024 that the slaves
// behind a translated address could read from. One machine that greets under ever new names does not fill the fleet.
const maxAtOrigin = 512

// situation is what the coordinator knows when it decides about the slaves.
type situation struct {
	now     time.Time
	slaves  map[string]fleet.Slave // as etcd has them
	hosts   []spread.Host
	reports []slaveReport // of slaves, the oldest first
	order   slaveOrder    // what an operator wants
	// steady says that etcd has answered for long enough: masters whose leases have run out are lost, not just about to
	// come back. Until then nobody is moved who has a home.
	steady bool
	// settled says that whoever lives has had time to be reported: who was not heard of for absentAfter is absent.
	settled bool
	// complete says that it is settled, and time to forget who was absent for long.
	complete bool
}

// slaveOrder is what an operator wants done with slaves. The zero value is nothing.
type slaveOrder struct {
	Move      string `json:"move,omitempty"` // a slave
	To        string `json:"to,omitempty"`   // its home from now on
	Forget    string `json:"forget,omitempty"`
	Rebalance bool   `json:"rebalance,omitempty"`

	// present are the slaves that are there, for Rebalance. Who carries out an order finds out.
	present map[string]bool
}

// decision is what is to be written: the records that are new or other, those who get another home first, and those that go.
type decision struct {
	put, gone []fleet.Slave
	moves     []spread.SlaveMove // of slaves that had a home, by name
	refused   int                // slaves that are too many
}

// decide says what is to become of the slaves.
func decide(s situation) decision {
	d := draft{situation: s, changed: map[string]fleet.Slave{}, gone: map[string]bool{}, agents: map[netip.Addr]bool{}, origins: map[netip.Addr]int{}}
	d.hear()
	d.forget()
	d.obey()
	d.spread()
	return d.decision()
}

// draft is a decision in the making.
type draft struct {
	situation
	changed map[string]fleet.Slave // over slaves
	gone    map[string]bool
	refused int
	agents  map[netip.Addr]bool // where slaves are that have an agent; only while something is heard
	origins map[netip.Addr]int  // how many slaves each origin has; likewise
}

// slave returns a record as it is to be.
func (d *draft) slave(name string) (s fleet.Slave, ok bool) {
	if s, ok = d.changed[name]; !ok {
		s, ok = d.slaves[name]
	}
	return s, ok && !d.gone[name]
}

// hear takes over what was reported. A machine of which an agent tells is known by the agent's name alone, not also by the
// one that its kernel mounts under.
func (d *draft) hear() {
	if len(d.reports) == 0 {
		return
	}
	for _, s := range d.slaves {
		d.origins[origin(s.Address)]++
		if s.Mode != fleet.ModeMount {
			d.agents[s.Address] = true
		}
	}
	for _, r := range d.reports {
		if r.Mode != fleet.ModeMount {
			d.agents[r.Address] = true
		}
	}
	for _, r := range d.reports {
		s, known := d.slave(r.Name)
		if r.Mode == fleet.ModeMount && !known && d.agents[r.Address] || !r.news(s) {
			continue
		}
		if !known {
			from := origin(r.Address)
			if len(d.slaves)+len(d.changed) >= maxSlaves || d.origins[from] >= maxAtOrigin {
				d.refused++
				continue
			}
			d.origins[from]++
		}
		if s = r.over(s); s.Master == "" && r.Master != "" {
			s.Fallbacks = []string{r.Master} // it reads from there already
		}
		d.changed[r.Name] = s
	}
	for name := range d.slaves {
		if s, ok := d.slave(name); ok && s.Mode == fleet.ModeMount && d.agents[s.Address] {
			d.gone[name] = true
		}
	}
}

// forget drops whom nobody has heard of for long.
func (d *draft) forget() {
	if !d.complete {
		return
	}
	for name := range d.slaves {
		if s, ok := d.slave(name); ok && d.now.Sub(s.SeenAt) > forgetAfter {
			d.gone[name] = true
		}
	}
}

// obey does what an operator wants with one slave.
func (d *draft) obey() {
	if d.order.Forget != "" {
		d.gone[d.order.Forget] = true
	}
	s, ok := d.slave(d.order.Move)
	if !ok || s.Master == d.order.To {
		return
	}
	before := append([]string{s.Master}, s.Fallbacks...)
	s.Master, s.Fallbacks = d.order.To, slices.DeleteFunc(before, func(m string) bool { return m == "" || m == d.order.To })
	s.Fallbacks = s.Fallbacks[:min(len(s.Fallbacks), spread.MaxFallbacks)]
	d.changed[s.Name] = s
}

// absent reports whether a slave is not there.
func (d *draft) absent(s fleet.Slave) bool { return d.settled && d.now.Sub(s.SeenAt) > absentAfter }

// spread gives everybody a home, and those who are absent one apart from those who are there: a slave that was switched off keeps
// its home, but takes nobody's place.
func (d *draft) spread() {
	all := make([]spread.Slave, 0, len(d.slaves)+len(d.changed))
	for name := range d.slaves {
		if s, ok := d.slave(name); ok {
			all = append(all, spread.Slave{Name: name, Master: s.Master, Fallbacks: s.Fallbacks})
		}
	}
	for name := range d.changed {
		if _, old := d.slaves[name]; !old && !d.gone[name] {
			s := d.changed[name]
			all = append(all, spread.Slave{Name: name, Master: s.Master, Fallbacks: s.Fallbacks})
		}
	}
	hosts := forbearing(d.hosts, all)
	if d.order.Rebalance {
		for _, group := range apart(all, func(name string) bool { return !d.order.present[name] }) {
			for _, m := range spread.Rebalance(group, hosts) {
				d.settle(m.Slave, m.To, m.Fallbacks)
			}
		}
		return
	}
	for _, group := range apart(all, func(name string) bool { s, _ := d.slave(name); return d.absent(s) }) {
		for _, s := range spread.Place(group, hosts) {
			d.settle(s.Name, s.Master, s.Fallbacks)
		}
	}
}

// apart parts slaves into those who are there and those who are absent.
func apart(all []spread.Slave, absent func(name string) bool) (groups [2][]spread.Slave) {
	for _, s := range all {
		group := 0
		if absent(s.Name) {
			group = 1
		}
		groups[group] = append(groups[group], s)
	}
	return groups
}

// settle gives a slave its home and fallbacks, unless it has a home and it is too early to say that it needs another.
func (d *draft) settle(name, master string, fallbacks []string) {
	s, _ := d.slave(name)
	if !d.steady && d.slaves[name].Master != "" && name != d.order.Move {
		return
	}
	s.Master, s.Fallbacks = master, fallbacks
	d.changed[name] = s
}

// forbearing calls masters in step that are behind, when most masters are: a new shard that all have yet to fetch, say. To
// crowd the slaves of all on the few that are not would not serve them better. Who is nobody's home stays as it is.
func forbearing(hosts []spread.Host, slaves []spread.Slave) []spread.Host {
	serving, inStep := 0, 0
	for _, h := range hosts {
		if h.Serving {
			serving++
			if h.InStep {
				inStep++
			}
		}
	}
	if 2*inStep >= serving {
		return hosts
	}
	homes := map[string]bool{}
	for _, s := range slaves {
		homes[s.Master] = true
	}
	hosts = slices.Clone(hosts)
	for i, h := range hosts {
		hosts[i].InStep = h.InStep || homes[h.Name]
	}
	return hosts
}

// decision sums up.
func (d *draft) decision() decision {
	out := decision{refused: d.refused}
	for _, name := range slices.Sorted(maps.Keys(d.changed)) {
		s, was := d.changed[name], d.slaves[name]
		if d.gone[name] {
			continue
		}
		if s.Master != was.Master {
			s.Since = d.now.UTC()
			if was.Master != "" {
				out.moves = append(out.moves, spread.SlaveMove{Slave: name, From: was.Master, To: s.Master, Fallbacks: s.Fallbacks})
			}
		}
		if s.Revision = was.Revision; s.Fallbacks == nil {
			s.Fallbacks = []string{}
		}
		out.put = append(out.put, s)
	}
	slices.SortStableFunc(out.put, func(x, y fleet.Slave) int {
		return cmp.Compare(d.urgency(x), d.urgency(y))
	})
	for _, name := range slices.Sorted(maps.Keys(d.gone)) {
		if s, ok := d.slaves[name]; ok {
			out.gone = append(out.gone, s)
		}
	}
	return out
}

// urgency is lower for records that are to be written before others.
func (d *draft) urgency(s fleet.Slave) int {
	switch was := d.slaves[s.Name].Master; {
	case was != "" && was != s.Master:
		return 0 // it has lost its master
	case was != s.Master:
		return 1
	}
	return 2
}
