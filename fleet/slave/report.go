package slave

import (
	"cmp"
	"slices"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/control"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/relay"
)

// Status says who reads from where. It implements control.Agent.
func (a *Agent) Status() control.Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := control.Status{Version: a.cfg.Version, Since: control.Time(a.began), Mounts: []control.Mount{}}
	for _, r := range a.routes {
		s.Mounts = append(s.Mounts, r.report()...)
	}
	slices.SortFunc(s.Mounts, func(x, y control.Mount) int {
		return cmp.Or(cmp.Compare(x.Dir, y.Dir), cmp.Compare(x.Name, y.Name), cmp.Compare(x.Path, y.Path))
	})
	return s
}

// report says what is mounted through the route; something that is connected and cannot be seen is a mount without a Dir.
func (r *route) report() []control.Mount {
	r.mu.Lock()
	defer r.mu.Unlock()
	base := control.Mount{Name: r.name, Via: r.via, Slave: r.slaveName(), Order: []string{}, DNS: r.nameServers()}
	if r.addr.IsValid() {
		base.Addr = r.addr.String()
	}
	course := r.present()
	describe(&base, course, r.prober != nil)
	if len(course.Order) == 0 && r.noDNS != nil && base.State == control.Searching {
		base.Why = "its masters are not known: " + r.noDNS.Error()
	}
	var out []control.Mount
	for _, m := range r.mounts {
		row := base
		row.Path, row.Dir, row.Addr = m.Path, m.Dir, m.Addr.String()
		out = append(out, row)
	}
	if len(out) == 0 && r.connected() {
		out = append(out, base)
	}
	return out
}

// describe fills in where a route is.
func describe(m *control.Mount, c relay.Course, awake bool) {
	for _, t := range c.Order {
		m.Order = append(m.Order, t.String())
	}
	if len(c.Order) > 0 {
		m.Home = c.Order[0].String()
	}
	switch {
	case !awake:
		m.State = control.Idle
	case c.Target.Addr.IsValid() && !c.Lost:
		m.State = control.Reading
	default:
		m.State = control.Searching
	}
	if c.Target.Addr.IsValid() {
		m.Master, m.At, m.Since, m.Why = c.Target.String(), c.Target.Addr.String(), control.Time(c.Since), c.Why
	}
	if m.State == control.Searching {
		m.Since, m.Why = control.Time(c.LostSince), cmp.Or(c.LostWhy, "no master has answered yet")
	}
	if ch := c.Change; ch.From.Addr.IsValid() {
		m.Reattach = &control.Change{
			At: control.Time(ch.At), TookMS: float64(ch.Took) / float64(time.Millisecond), From: ch.From.String(), To: ch.To.String(),
			Why: ch.Why, Planned: ch.Planned,
		}
	}
}
