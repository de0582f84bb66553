package slave

import (
	"slices"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/control"
)

// told is what one mount says of how its masters are found. It counts as long as the mount is there: a mount that fails leaves
// nothing, and one that succeeds takes nothing away from others by the same name.
type told struct {
	Dir     string   `json:"dir,omitempty"` // of the mount; "": not known, any
	DNS     []string `json:"dns,omitempty"`
	Masters []string `json:"masters,omitempty"`
	Slave   string   `json:"slave,omitempty"`
	Seen    bool     `json:"seen,omitempty"` // it was in the kernel's table

	at   time.Time
	open bool // a command waits for a way to a master
}

// Bounds of what a route is told.
const (
	maxTold   = 32 // in all
	maxPerDir = 3  // by mounting again at one directory
	maxGroups = 8  // of name servers that are asked at once
)

// same says whether two mounts say the same.
func (t *told) same(o *told) bool {
	return t.Dir == o.Dir && t.Slave == o.Slave && t.leads(o)
}

// leads says whether two mounts find their masters in the same way.
func (t *told) leads(o *told) bool {
	return slices.Equal(t.DNS, o.DNS) && slices.Equal(t.Masters, o.Masters)
}

// recall puts what was told to the agent before into the present; the latest is first.
func recall(records []told) []*told {
	var out []*told
	for _, t := range records {
		t.at = time.Now() // what is not mounted has some time to be
		out = append(out, &t)
	}
	return out
}

// recorded is what of it the next agent is to know. The caller holds mu, as those of all methods of a route in this file do.
func (r *route) recorded() (out []told) {
	for _, t := range r.told {
		if !t.open {
			out = append(out, *t)
		}
	}
	return out
}

// live says whether the mount that has told something is there.
func (r *route) live(t *told) bool {
	for _, m := range r.mounts {
		if t.Dir == "" || t.Dir == m.Dir {
			return true
		}
	}
	return false
}

// hear adds what a command says that waits.
func (r *route) hear(w control.Want) *told {
	if len(r.mounts) == 0 { // what was unmounted is not heeded any more when somebody else speaks
		r.told = slices.DeleteFunc(r.told, func(t *told) bool { return t.Seen && !t.open })
	}
	t := &told{Dir: w.Dir, DNS: w.DNS, Masters: w.Masters, Slave: w.Slave, at: time.Now(), open: true}
	r.told = slices.Insert(r.told, 0, t)
	r.heard++
	return t
}

// settle ends the wait of a command. What came to nothing is forgotten, unless it was to help what is mounted there already.
func (r *route) settle(t *told, ok bool) {
	t.open, t.at = false, time.Now()
	t.Seen = r.live(t)
	if !ok && (!t.Seen || t.Dir == "") {
		r.forget(t)
		return
	}
	count := 0
	r.told = slices.DeleteFunc(r.told, func(o *told) bool {
		if o == t || o.open || o.Dir != t.Dir {
			return false
		}
		count++
		return o.same(t) || !t.Seen || count >= maxPerDir
	})
	for i := len(r.told) - 1; i > 0 && len(r.told) > maxTold; i-- {
		if !r.told[i].open {
			r.told = slices.Delete(r.told, i, i+1)
		}
	}
}

func (r *route) forget(t *told) {
	r.told = slices.DeleteFunc(r.told, func(o *told) bool { return o == t })
}

// prune forgets what was told by mounts that are gone. When nothing is mounted that can be seen, something may be that cannot:
// in another mount namespace, or unmounted lazily.
func (r *route) prune() {
	if len(r.mounts) == 0 {
		return
	}
	r.told = slices.DeleteFunc(r.told, func(t *told) bool {
		if r.live(t) {
			t.Seen = t.Seen || !t.open
			return false
		}
		return !t.open && (t.Seen || time.Since(t.at) > r.agent.cfg.Rest)
	})
}

// waited says whether a command waits.
func (r *route) waited() bool {
	return slices.ContainsFunc(r.told, func(t *told) bool { return t.open })
}

// pending says whether a command waits, or a mount is being made.
func (r *route) pending() bool {
	return slices.ContainsFunc(r.told, func(t *told) bool { return t.open || !t.Seen && time.Since(t.at) < r.agent.cfg.Rest })
}

// sources returns whom to ask for the masters: groups of name servers, of which each is asked for itself so that a wrong one
// does not speak for others, and masters that were named. A group without servers is the system's.
func (r *route) sources() (groups [][]string, masters []string) {
	add := func(servers []string) {
		if len(groups) < maxGroups && !slices.ContainsFunc(groups, func(g []string) bool { return slices.Equal(g, servers) }) {
			groups = append(groups, servers)
		}
	}
	for _, t := range r.told {
		switch {
		case len(t.DNS) > 0:
			add(t.DNS)
		case len(t.Masters) == 0 || len(r.agent.cfg.DNS) > 0:
			add(r.agent.cfg.DNS)
		}
		for _, m := range t.Masters {
			if !slices.Contains(masters, m) {
				masters = append(masters, m)
			}
		}
	}
	if len(r.told) == 0 {
		add(r.agent.cfg.DNS)
	}
	return groups, masters
}

// nameServers are those that its mounts name, or those of the agent; none: the system's.
func (r *route) nameServers() []string {
	var out []string
	groups, _ := r.sources()
	for _, group := range groups {
		for _, s := range group {
			if !slices.Contains(out, s) {
				out = append(out, s)
			}
		}
	}
	return out
}

// called is the name that mounts give this slave: the latest that is mounted, or else that is to be.
func (r *route) called() string {
	name := ""
	for _, t := range r.told {
		switch {
		case t.Slave == "":
		case t.Seen:
			return t.Slave
		case name == "":
			name = t.Slave
		}
	}
	return name
}
