package spread

import "slices"

// Order returns the masters that a slave is told to read from, by DNS and by HELLO: its home, its fallbacks, and then others
// that serve, MaxOrder at the most, the best first. Those that are not in step come after all that are. known is the
// slave's record; for a slave that has none, nil, the order is that in which Place would seat a new one. It changes only
// with the masters that it names, or that fill up. Load of the hosts must be set.
func Order(slave string, known *Slave, hosts []Host) []string {
	r := ranking{hash: hashOf(slave)}
	for i := range hosts {
		if h := &hosts[i]; h.Serving && h.InStep {
			r.total += h.Load
			r.slots += slotsOf(*h)
		}
	}
	for i := range hosts {
		if h := &hosts[i]; h.Serving {
			r.add(rank{h, r.class(h, known), newTicket(*h).draw(r.hash)})
		}
	}
	names := make([]string, len(r.best))
	for i, best := range r.best {
		names[i] = best.host.Name
	}
	return names
}

// ranking finds the first few hosts for a slave.
type ranking struct {
	hash         uint64
	total, slots int // of the hosts that serve and are in step
	best         []rank
}

type rank struct {
	host  *Host
	class int
	draw  uint64
}

// before is true when r comes first. Names decide at the last.
func (r rank) before(o rank) bool {
	switch {
	case r.class != o.class:
		return r.class < o.class
	case r.draw != o.draw:
		return r.draw < o.draw
	}
	return r.host.Name < o.host.Name
}

// class is lower for hosts that come before others: home, fallbacks, who takes a new slave, the rest, each of them in step
// before all that are not.
func (r *ranking) class(h *Host, known *Slave) int {
	const fallbacks, open, rest, behind = 1, 1 << 10, 1<<10 + 1, 1 << 11
	class := rest
	if admits(h.Load, slotsOf(*h), r.total+1, r.slots) {
		class = open
	}
	if known != nil {
		if i := slices.Index(known.Fallbacks, h.Name); i >= 0 && i < open-fallbacks {
			class = fallbacks + i
		}
		if known.Master == h.Name {
			class = 0
		}
	}
	if !h.InStep {
		class += behind
	}
	return class
}

// add lets one compete.
func (r *ranking) add(one rank) {
	if len(r.best) == MaxOrder && !one.before(r.best[MaxOrder-1]) {
		return
	}
	i := len(r.best)
	for i > 0 && one.before(r.best[i-1]) {
		i--
	}
	if len(r.best) == MaxOrder {
		r.best = r.best[:MaxOrder-1]
	}
	r.best = slices.Insert(r.best, i, one)
}
