package master

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
)

// errSteppedDown is why a connection is refused by a master that the fleet goes on without.
var errSteppedDown = errors.New("this master has lost its lease and others have not: it serves nobody until it has one again")

// runStepDown serves nobody while this master is without a lease and another one confirms that it has one: its slaves
// are being told to go elsewhere then. A fleet whose etcd is gone goes on serving: nobody has a lease.
func (m *Master) runStepDown(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			m.stepDown(ctx)
		}
	}
}

func (m *Master) stepDown(ctx context.Context) {
	lease := m.election.Lease()
	if lease.ID == 0 && time.Since(m.started) > 2*m.cfg.LeaseTTL {
		m.confirmed(ctx) // a removed master learns of it only from others
	}
	if lease.Alive || lease.ID == 0 {
		m.sendingAway.Store(false)
		if m.steppedDown.Swap(false) {
			m.guideSoon()
			m.log.Info().Msg("this master has a lease again: serving")
		}
		return
	}
	m.mu.Lock()
	m.backAt = time.Now() // not yet
	m.mu.Unlock()
	if lease.Age < 2*lease.TTL {
		return
	}
	by := m.confirmed(ctx)
	if by != "" {
		m.confirmedAt = time.Now()
	}
	was := m.steppedDown.Load()
	now := standsDown(was, by != "", time.Since(m.confirmedAt), lease.TTL)
	if now == was || m.election.Lease().Alive {
		return
	}
	if now { // slaves are told to go before they are made to
		m.sendingAway.Store(true)
		m.guideSoon()
		if m.seeOff(ctx, downNotice); m.election.Lease().Alive {
			return
		}
	}
	m.sendingAway.Store(false)
	m.steppedDown.Store(now)
	m.guideSoon()
	if !now {
		m.log.Warn().Int64("lease_age_ms", lease.Age.Milliseconds()).Msg("no other master confirms a lease any more: serving again")
		return
	}
	closed := m.exporter.Disconnect(ctx, func(netip.AddrPort, time.Time) bool { return true })
	m.log.Warn().Str("confirmed_by", by).Int("connections", closed).Int64("lease_age_ms", lease.Age.Milliseconds()).Msg("stepped down")
}

// standsDown reports whether a master without a lease serves nobody. Once it does not, it serves again when nobody has
// confirmed for a while that the fleet goes on elsewhere: its readers may have nobody else.
func standsDown(was, confirmed bool, silence, ttl time.Duration) bool {
	return confirmed || was && silence < 2*ttl
}

// confirmed names a master that holds a lease and does not see this one among the living; "" when there is none.
func (m *Master) confirmed(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	by := ""
	askAll(ctx, m.links, pathLease, nothing{}, func(name string, r leaseReport, err error) {
		if errors.Is(err, errRemovedHere) {
			m.fail(removedError(fleet.Removal{Master: m.cfg.Name}, m.data.path))
		}
		if by == "" && err == nil && r.Alive && !r.Masters[m.cfg.Name] && name != m.cfg.Name {
			by = name
			cancel() // one is enough
		}
	})
	return by
}

// leaseReport is what this master tells others of its lease.
func (m *Master) leaseReport() leaseReport {
	r := leaseReport{Alive: m.election.Lease().Alive && m.etcdProblem() == nil, Masters: map[string]bool{}}
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.view.Masters {
		r.Masters[name] = true
	}
	return r
}
