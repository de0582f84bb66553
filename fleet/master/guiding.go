package master

import (
	"context"
	"net/netip"
	"time"
)

// guideRest is the least time between two guides. The making of one takes about a millisecond in a fleet of 1,000 masters
// and 10,000 slaves.
const guideRest = 10 * time.Millisecond

// runGuide makes a new guide whenever the fleet changes, and once a second: being behind is a matter of time.
func (m *Master) runGuide(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	rest := time.NewTicker(guideRest)
	defer rest.Stop()
	var w guideWork
	for {
		m.makeGuide(&w)
		select {
		case <-ctx.Done():
			return nil
		case <-rest.C:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.guiding:
		case <-tick.C:
		}
	}
}

// guideWork is what runGuide keeps from one guide to the next.
type guideWork struct {
	pace   pace
	loads  map[string]int
	slaves int64 // View.SlavesRevision of loads
}

// guideSoon has runGuide look again.
func (m *Master) guideSoon() {
	select {
	case m.guiding <- struct{}{}:
	default: // it will
	}
}

// makeGuide makes a guide of what is known. Nothing is, before etcd has answered once: then there is none.
func (m *Master) makeGuide(w *guideWork) {
	m.mu.Lock()
	v := m.reconciled
	m.mu.Unlock()
	if v.Revision == 0 {
		return
	}
	p := &w.pace
	if lease := m.election.Lease(); lease.ID != 0 {
		p.advance(time.Now().Add(-lease.Age), max(behindMoment, lease.TTL)/2)
	}
	p.note(v)
	if w.loads == nil || w.slaves != v.SlavesRevision {
		w.loads, w.slaves = loads(v), v.SlavesRevision
	}
	self, own := m.self(), m.serves()
	domain, others := domainOf(m.cfg.Domain, v.Masters)
	for _, other := range others {
		if m.warnOnce("domain " + other + " " + domain) {
			m.log.Warn().Str("domain", domain).Str("other", other).Msg("masters are set to different domains, and each answers DNS questions for its own: give all of them one --domain")
		}
	}
	m.guide.Store(newGuide(surroundings{
		view: v, self: self, away: m.draining.Load() || m.steppedDown.Load() || m.sendingAway.Load(), loads: w.loads, domain: domain, addresses: m.addressesOf,
		keeps: func(master string) bool {
			if master == self.Name {
				return p.keeps(v, own)
			}
			return p.keeps(v, v.Replicas[master].Serves)
		},
	}))
	m.spreadSoon()
}

// addressesOf returns the addresses of a master's host, as far as they are known. This machine's own name may mean
// nothing to others.
func (m *Master) addressesOf(host string) []netip.Addr {
	known := m.addresses.of(host)
	if len(known) == 0 && host == m.address {
		if a, ok := firstGlobalAddress(); ok {
			return []netip.Addr{netip.MustParseAddr(a)}
		}
	}
	return known
}

// serves is the generation that this master serves of each shard.
func (m *Master) serves() map[string]uint64 {
	out := map[string]uint64{}
	for _, s := range m.allShards() {
		if n := s.replica.Status().Serves(); n > 0 {
			out[s.name] = n
		}
	}
	return out
}
