package master

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/nfs-fleet/nfs-fleet/fleet"
)

// mountLease is how long a mount record outlives the last time that its client was seen, to within a half.
const mountLease = 24 * time.Hour

// mountTable is who has mounted what. MNT and UMNT never wait for etcd: they are noted here, and run writes them.
type mountTable struct {
	master   string
	registry *fleet.Registry
	log      zerolog.Logger
	wake     chan struct{}

	mu      sync.Mutex               // guards what follows
	mine    map[mountKey]fleet.Mount // made through this master and not undone
	pending map[mountKey]bool        // to be written: true as it is in mine, false deleted
	known   []fleet.Mount            // the fleet's, as etcd last said
}

type mountKey struct {
	shard  string
	client netip.Addr
}

func newMountTable(master string, registry *fleet.Registry, log zerolog.Logger) *mountTable {
	return &mountTable{
		master: master, registry: registry, log: log, wake: make(chan struct{}, 1),
		mine: map[mountKey]fleet.Mount{}, pending: map[mountKey]bool{},
	}
}

// Mounted notes that client has mounted path, the shard or a directory in it.
func (t *mountTable) Mounted(shard, path string, client netip.Addr) {
	t.note(func() {
		k := mountKey{shard, client}
		t.mine[k] = fleet.Mount{Shard: shard, Client: client, Path: path, Master: t.master, Since: time.Now().UTC()}
		t.pending[k] = true
	})
}

// Unmounted notes that client has unmounted the shard; the empty shard means all of them.
func (t *mountTable) Unmounted(shard string, client netip.Addr) {
	t.note(func() {
		for _, m := range append(slices.Clone(t.known), t.ownLocked()...) {
			if m.Client == client && (shard == "" || m.Shard == shard) {
				k := mountKey{m.Shard, client}
				delete(t.mine, k)
				t.pending[k] = false
			}
		}
	})
}

func (t *mountTable) note(change func()) {
	t.mu.Lock()
	change()
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

func (t *mountTable) ownLocked() []fleet.Mount {
	out := make([]fleet.Mount, 0, len(t.mine))
	for _, m := range t.mine {
		out = append(out, m)
	}
	return out
}

// list returns the fleet's mounts: etcd's records with this master's own on top. It asks etcd for at most half a
// second and falls back on the last answer.
func (t *mountTable) list() []fleet.Mount {
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	known, err := t.registry.Mounts(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		t.known = known
	}
	all := map[mountKey]fleet.Mount{}
	for _, m := range t.known {
		all[mountKey{m.Shard, m.Client}] = m
	}
	for k, present := range t.pending {
		if !present {
			delete(all, k)
		}
	}
	for k, m := range t.mine {
		all[k] = m
	}
	out := make([]fleet.Mount, 0, len(all))
	for _, m := range all {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b fleet.Mount) int {
		return cmp.Or(a.Client.Compare(b.Client), cmp.Compare(a.Shard, b.Shard))
	})
	return out
}

// run writes what was noted, at most once a second, and puts the mounts of clients that are still connected under a
// fresh lease before the old one runs out.
func (t *mountTable) run(ctx context.Context, connected func() map[netip.Addr]bool) error {
	var lease clientv3.LeaseID
	var granted time.Time
	pace := time.NewTicker(time.Second)
	defer pace.Stop()
	refresh := time.NewTicker(mountLease / 2)
	defer refresh.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-refresh.C:
			t.renew(connected())
		case <-t.wake:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-pace.C:
		}
		if time.Since(granted) > mountLease/2 {
			id, err := t.registry.GrantLease(ctx, mountLease)
			if err != nil {
				t.retry(nil, nil)
				continue
			}
			lease, granted = id, time.Now()
		}
		put, gone := t.takePending()
		if err := t.registry.WriteMounts(ctx, lease, put, gone); err != nil {
			t.log.Debug().Err(err).Msg("mount records not written; trying again under a new lease")
			granted = time.Time{} // etcd may have lost the lease, and with it what was under it
			t.retry(put, gone)
			t.rewrite()
		}
	}
}

// rewrite marks all mounts made through this master to be written again.
func (t *mountTable) rewrite() {
	t.note(func() {
		for k := range t.mine {
			t.pending[k] = true
		}
	})
}

// renew marks the mounts of connected clients to be written again and forgets the others.
func (t *mountTable) renew(connected map[netip.Addr]bool) {
	t.note(func() {
		for k := range t.mine {
			if connected[k.client] {
				t.pending[k] = true
			} else {
				delete(t.mine, k)
			}
		}
	})
}

func (t *mountTable) takePending() (put, gone []fleet.Mount) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, present := range t.pending {
		if present {
			put = append(put, t.mine[k])
		} else {
			gone = append(gone, fleet.Mount{Shard: k.shard, Client: k.client})
		}
	}
	clear(t.pending)
	return put, gone
}

// retry notes again what could not be written, unless something newer has been noted.
func (t *mountTable) retry(put, gone []fleet.Mount) {
	t.note(func() {
		for _, m := range put {
			t.again(m, true)
		}
		for _, m := range gone {
			t.again(m, false)
		}
	})
}

func (t *mountTable) again(m fleet.Mount, present bool) {
	k := mountKey{m.Shard, m.Client}
	if _, newer := t.pending[k]; !newer {
		t.pending[k] = present
	}
}
