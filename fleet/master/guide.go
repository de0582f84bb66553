package master

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/nfs-fleet/nfs-fleet/exporter/hello"
	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/dns"
	"github.com/nfs-fleet/nfs-fleet/fleet/spread"
)

// guide is what this master tells slaves by DNS and by HELLO: which masters there are, and which of them a slave is to read
// from. It is a picture of one moment, and is not changed.
type guide struct {
	revision int64      // of etcd
	view     fleet.View // that it was made from
	domain   string
	places   map[string]place // by master
	hosts    []spread.Host    // of places, by name
	alone    bool             // no other master is fit to be read from
	zone     *dns.Zone
}

// place is a master as slaves reach it.
type place struct {
	host      string       // as the master says it
	addresses []netip.Addr // of host; none: it is not resolved yet
	port      uint16
	serving   bool // it lives, and is not drained
	inStep    bool
}

func (p place) equal(o place) bool {
	return p.host == o.host && p.port == o.port && p.serving == o.serving && p.inStep == o.inStep && slices.Equal(p.addresses, o.addresses)
}

// surroundings are what a guide is made from.
type surroundings struct {
	view      fleet.View
	self      fleet.Master   // what this one announces, or is about to
	away      bool           // this one is not to be read from, whatever it has announced
	loads     map[string]int // slaves by home
	domain    string
	addresses func(host string) []netip.Addr
	keeps     func(master string) bool // it keeps up with the heads
}

// newGuide makes a guide. It does not block.
func newGuide(s surroundings) *guide {
	g := &guide{revision: s.view.Revision, view: s.view, domain: s.domain, places: make(map[string]place, len(s.view.Masters)+1), alone: true}
	for name, m := range s.view.Masters {
		if name != s.self.Name {
			g.add(s, m)
		}
	}
	g.add(s, s.self)
	g.hosts = hostsOf(s, g.places)
	g.zone = &dns.Zone{Domain: s.domain, Serial: uint32(s.view.Revision), Masters: g.dnsTargets(), SlaveOrder: g.order, Self: s.self.Name}
	return g
}

// add places one master.
func (g *guide) add(s surroundings, m fleet.Master) {
	_, drained := s.view.Drained[m.Name]
	p := place{host: m.Address, addresses: s.addresses(m.Address), port: uint16(m.NFSPort), inStep: s.keeps(m.Name)}
	p.serving = m.State == fleet.Serving && !drained && !gone(s.view, m)
	if m.Name == s.self.Name {
		p.serving = p.serving && !s.away
	} else if p.serving && p.inStep {
		g.alone = false
	}
	g.places[m.Name] = p
}

// hostsOf are the masters as homes of slaves. When all are drained, one that is drained is better than none.
func hostsOf(s surroundings, places map[string]place) []spread.Host {
	hosts := make([]spread.Host, 0, len(places))
	some := false
	for name, p := range places {
		m := s.self
		if name != m.Name {
			m = s.view.Masters[name]
		}
		hosts = append(hosts, spread.Host{Name: name, Slots: m.Slots, InStep: p.inStep, Serving: p.serving, Load: s.loads[name]})
		some = some || p.serving
	}
	for i := range hosts {
		hosts[i].Serving = hosts[i].Serving || !some
	}
	slices.SortFunc(hosts, func(a, b spread.Host) int { return cmp.Compare(a.Name, b.Name) })
	return hosts
}

// dnsTargets are the masters as DNS names them.
func (g *guide) dnsTargets() []dns.Target {
	out := make([]dns.Target, 0, len(g.hosts))
	for _, h := range g.hosts {
		p := g.places[h.Name]
		out = append(out, dns.Target{Name: h.Name, Addresses: p.addresses, Port: p.port, InStep: h.Serving && h.InStep})
	}
	return out
}

// order names the masters that a slave is to read from, the best first.
func (g *guide) order(slave string) []string {
	home, enrolled := g.view.Slaves[slave]
	if !enrolled {
		return spread.Order(slave, nil, g.hosts)
	}
	return spread.Order(slave, &spread.Slave{Name: slave, Master: home.Master, Fallbacks: home.Fallbacks}, g.hosts)
}

// helloTargets is the order of a slave as HELLO tells it. Of a master's addresses it is given one of the kind that it
// comes from itself.
func (g *guide) helloTargets(slave string, from netip.Addr) []hello.Target {
	var out []hello.Target
	for _, name := range g.order(slave) {
		p := g.places[name]
		t := hello.Target{Name: name, Host: p.host, Port: p.port}
		if len(p.addresses) > 0 {
			i := slices.IndexFunc(p.addresses, func(a netip.Addr) bool { return a.Is4() == from.Unmap().Is4() })
			t.Host = p.addresses[max(i, 0)].String()
		}
		out = append(out, t)
	}
	return out
}

// stamp is a number that grows with the fleet's changes, also across a recovery that begins etcd's revisions anew.
func (g *guide) stamp() int64 { return int64(g.view.Identity.Era)<<44 | g.revision }

// fit reports whether a slave may be sent to a master.
func (g *guide) fit(master string) bool {
	p := g.places[master]
	return p.serving && p.inStep
}

// loads counts slaves by their home.
func loads(v fleet.View) map[string]int {
	out := make(map[string]int, len(v.Masters))
	for _, s := range v.Slaves {
		out[s.Master]++
	}
	return out
}
