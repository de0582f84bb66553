package master

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
)

// era counts the fleet's recoveries.
func (m *Master) era() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.view.Identity.Era
}

// meet takes note of who the fleet's masters are, and enters this one. It is called with each View.
func (m *Master) meet(ctx context.Context, v fleet.View) {
	if gone, removed := v.Removed[m.instance]; removed {
		m.fail(removedError(gone, m.data.path))
		return
	}
	addresses := map[string]string{}
	for name, entry := range v.Roster {
		addresses[name] = entry.Peer
	}
	for name, other := range v.Masters {
		if other.Peer != "" {
			addresses[name] = other.Peer
		}
	}
	delete(addresses, m.cfg.Name)
	m.links.set(addresses)
	m.routes.Set(addresses)
	m.noteLost(v)
	entry := fleet.RosterEntry{Name: m.cfg.Name, Instance: m.instance, Peer: net.JoinHostPort(m.address, m.peerPort), JoinedAt: m.started}
	known, there := v.Roster[m.cfg.Name]
	if there && known.Instance == entry.Instance && known.Peer == entry.Peer {
		return
	}
	if there && known.Instance == entry.Instance {
		entry.JoinedAt = known.JoinedAt
	}
	if other, alive := v.Masters[m.cfg.Name]; alive && other.Instance != "" && other.Instance != entry.Instance {
		m.fail(fmt.Errorf("another master named %s lives in this fleet (at %s): give this one a name of its own with --name", m.cfg.Name, other.Peer))
		return
	}
	bounded, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	err := m.registry.PutRoster(bounded, entry)
	if errors.Is(err, fleet.ErrRemoved) {
		m.fail(removedError(fleet.Removal{Master: m.cfg.Name}, m.data.path))
	} else if err != nil {
		m.log.Warn().Err(err).Msg("this master is not in the roster yet; trying again")
	}
}

func removedError(gone fleet.Removal, dir string) error {
	when := ""
	if !gone.RemovedAt.IsZero() {
		when = " on " + gone.RemovedAt.Format(time.DateTime)
	}
	return fmt.Errorf("this master was removed from the fleet%s: start it with a new token (`nfs-fleet token create --join`, `serve --join TOKEN`), or with another data directory than %s",
		when, dir)
}

// noteLost remembers since when masters of the roster have not been among the living.
func (m *Master) noteLost(v fleet.View) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range v.Roster {
		_, alive := v.Masters[name]
		_, noted := m.lostSince[name]
		switch {
		case alive && noted:
			delete(m.lostSince, name)
			m.log.Info().Str("peer", name).Msg("master is back")
		case !alive && !noted && name != m.cfg.Name:
			m.lostSince[name] = time.Now().UTC()
			m.log.Warn().Str("peer", name).Msg("master is lost")
		}
	}
	for name := range m.lostSince {
		if _, known := v.Roster[name]; !known {
			delete(m.lostSince, name)
		}
	}
}
