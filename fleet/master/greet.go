package master

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/nfs-fleet/nfs-fleet/exporter/hello"
	"github.com/nfs-fleet/nfs-fleet/fleet"
)

// stuckRead is how old the oldest READ may be before slaves are told that this master is unwell.
const stuckRead = 3 * time.Second

// greet implements hello.Greet. It answers from memory.
func (m *Master) greet(_ context.Context, from netip.AddrPort, said hello.Greeting) (hello.Answer, error) {
	s := slaveSighting{Greeting: said, From: from, At: time.Now()}
	s.Slave = strings.ToLower(s.Slave)
	r, g := reception{refused: m.refuses(s)}, m.guide.Load()
	answer := hello.Answer{Master: m.cfg.Name}
	if r.refused == nil {
		m.receive(&r, s, g)
		if g != nil {
			answer.Revision, answer.Targets = g.stamp(), g.helloTargets(s.Slave, from.Addr())
		}
	}
	answer.Status, answer.Why = r.judge()
	m.metrics.greeted(answer.Status)
	return answer, nil
}

// receive takes note of a slave, and of what this master is to it. g is nil before etcd has ever answered.
func (m *Master) receive(r *reception, s slaveSighting, g *guide) {
	enrols := m.enrols(s.From)
	if enrols {
		m.slaves.seen(s)
	}
	select {
	case <-m.open:
	default:
		r.starting = true
	}
	r.leaving, r.closing = m.leaving()
	r.stuck, r.lacks = m.exporter.OldestRead(), m.lacking(s.Mounts)
	if g == nil {
		r.alone = true // nobody else is known
		return
	}
	r.alone, r.behind = g.alone, !g.places[m.cfg.Name].inStep
	if enrols && m.stays.note(s, g.view.SlavesRevision, m.slaves.readsHere(s)) {
		m.log.Warn().Str("slave", s.Slave).Stringer("from", s.From.Addr()).Msg("two machines greet under one name: mount on one of them by another name")
	}
	if home, ok := g.view.Slaves[s.Slave]; ok && g.fit(home.Master) && home.Master != m.cfg.Name {
		r.moved = m.stays.moved(s, home)
	}
}

// refuses says why a greeting is not one of this fleet's slaves.
func (m *Master) refuses(s slaveSighting) error {
	if err := fleet.ValidSlaveName(s.Slave); err != nil {
		return err
	}
	exports := m.exports()
	for i := range exports {
		if exports[i].Rules.Covers(s.From.Addr()) {
			return nil
		}
	}
	if len(exports) > 0 {
		return fmt.Errorf("no shard of this fleet may be mounted from %s: see `nfs-fleet shard list`", s.From.Addr())
	}
	return nil
}

// enrols reports whether a greeting comes from where something may be mounted. Others are answered, but what they say of
// themselves any user of a machine could say.
func (m *Master) enrols(from netip.AddrPort) bool {
	exports := m.exports()
	for i := range exports {
		if exports[i].Rules.Admits(from) {
			return true
		}
	}
	return false
}

// lacking names a shard of these mounts of which nothing is served here although there is something.
func (m *Master) lacking(mounts []hello.Mount) string {
	exports, heads := m.exports(), m.lastView().Heads
	for _, mount := range mounts {
		if heads[mount.Shard].Number == 0 {
			continue
		}
		served := false
		for i := range exports {
			served = served || exports[i].Name == mount.Shard
		}
		if !served {
			return mount.Shard
		}
	}
	return ""
}

// leaving says why nobody is to read from this master any more; closing that it will end their connections.
func (m *Master) leaving() (why string, closing bool) {
	m.mu.Lock()
	_, drained := m.view.Drained[m.cfg.Name]
	m.mu.Unlock()
	switch {
	case m.draining.Load():
		return "it is stopping", true
	case m.steppedDown.Load() || m.sendingAway.Load():
		return "it has lost its lease", true
	case drained:
		return "it is drained", false
	}
	return "", false
}

// reception is what the answer to a greeting depends on.
type reception struct {
	refused  error         // the greeting is not from a slave of this fleet
	starting bool          // this master does not serve yet
	leaving  string        // why nobody is to read here any more; "": for no reason
	closing  bool          // it will end the connections of those that stay
	alone    bool          // no other master is fit to be read from
	moved    string        // another master that has become the slave's home since it came; "": none
	lacks    string        // a shard that the slave has mounted, and of which nothing is served here; "": none
	behind   bool          // it has not served a head for longer than a moment
	stuck    time.Duration // since when its oldest READ waits
}

// judge says what to answer. Whoever has nowhere else to go is not sent away.
func (r reception) judge() (hello.Status, string) {
	switch {
	case r.refused != nil:
		return hello.Refused, r.refused.Error()
	case r.starting:
		return hello.Unwell, "it is starting"
	case r.leaving != "" && (r.closing || !r.alone):
		return hello.Leave, r.leaving
	case r.lacks != "":
		return hello.Unwell, "it has nothing of shard " + r.lacks + " yet"
	case r.moved != "":
		return hello.Leave, "its home is " + r.moved + " now"
	case r.behind && !r.alone:
		return hello.Leave, "it is behind a head"
	case r.stuck > stuckRead && !r.alone:
		return hello.Unwell, fmt.Sprintf("a read has been waiting for %s", r.stuck.Round(time.Second))
	}
	return hello.OK, ""
}
