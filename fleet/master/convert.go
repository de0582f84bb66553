package master

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/nfs-fleet/nfs-fleet/exporter"
	"github.com/nfs-fleet/nfs-fleet/exporter/volume"
	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// volumeStore is the store as a volume wants it.
type volumeStore struct{ *store.Store }

// OpenBlob implements volume.Store.
func (s volumeStore) OpenBlob(d tree.Digest) (volume.Blob, error) {
	b, err := s.Store.OpenBlob(d)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", d, err)
	}
	return b, nil
}

// OpenCached implements volume.CachedOpener.
func (s volumeStore) OpenCached(d tree.Digest) (volume.Blob, bool) {
	b, ok := s.Store.OpenCached(d)
	return b, ok
}

// exportMounts is the mount table, and what a mount tells of a slave, as the exporter wants them.
type exportMounts struct {
	*mountTable
	slaves *slaveBook
}

// Mounted implements exporter.Mounts.
func (t exportMounts) Mounted(shard, path string, client netip.Addr, machine string) {
	t.mountTable.Mounted(shard, path, client)
	t.slaves.seen(mountSighting(machine, shard, path, client, time.Now()))
}

// Unmounted implements exporter.Mounts: one record a client and shard, whatever the path.
func (t exportMounts) Unmounted(shard, _ string, client netip.Addr) {
	t.mountTable.Unmounted(shard, client)
}

// List implements exporter.Mounts.
func (t exportMounts) List() []exporter.Mount {
	known := t.list()
	out := make([]exporter.Mount, len(known))
	for i, m := range known {
		out[i] = mountOf(m)
	}
	return out
}

func mountOf(m fleet.Mount) exporter.Mount {
	return exporter.Mount{Shard: m.Shard, Path: m.Path, Client: m.Client, Since: m.Since}
}
