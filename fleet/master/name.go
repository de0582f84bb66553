package master

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/nfs-fleet/nfs-fleet/fleet"
)

// nameRetry is the time between two attempts to learn whether this master's name is free.
const nameRetry = 250 * time.Millisecond

// awaitName waits until no other master of this one's name is alive: taking part before would push that one out. A
// process that is gone is outwaited, because its lease ends; one that is still there then makes this one's error.
func (m *Master) awaitName(ctx context.Context) error {
	tick := time.NewTicker(nameRetry)
	defer tick.Stop()
	var namesake fleet.Master
	var until time.Time // then the namesake is alive, if it is there
	for {
		other, ttl, err := m.namesake(ctx)
		switch {
		case err != nil: // etcd does not answer yet
		case other.Instance == "" || other.Instance == m.instance:
			return nil
		case other.Instance != namesake.Instance:
			namesake, until = other, time.Now().Add(ttl+time.Second)
			m.log.Warn().Str("peer", other.Peer).Str("instance", other.Instance).Dur("wait_ms", ttl).Msg("another master of this name has a lease: waiting for its end")
		case time.Now().After(until):
			return fmt.Errorf("another master named %s lives in this fleet (at %s): give this one a name of its own with --name", m.cfg.Name, other.Peer)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// namesake returns the master that etcd knows by this one's name, and how long its lease lives without it; the zero Master
// when there is none.
func (m *Master) namesake(ctx context.Context) (other fleet.Master, ttl time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	resp, err := m.client.Get(ctx, m.registry.Keys().Master(m.cfg.Name))
	if err != nil || len(resp.Kvs) == 0 {
		return other, 0, err
	}
	kv := resp.Kvs[0]
	if json.Unmarshal(kv.Value, &other) != nil || kv.Lease == 0 {
		return fleet.Master{}, 0, nil // nothing that a master keeps alive
	}
	lease, err := m.client.TimeToLive(ctx, clientv3.LeaseID(kv.Lease))
	if err != nil || lease.TTL <= 0 {
		return fleet.Master{}, 0, err
	}
	return other, time.Duration(lease.GrantedTTL) * time.Second, nil
}
