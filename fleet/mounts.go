package fleet

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// GrantLease returns a new etcd lease with the given time to live. Nobody renews it: what is put under it is gone when
// nothing has put it again under a later one.
func (r *Registry) GrantLease(ctx context.Context, ttl time.Duration) (clientv3.LeaseID, error) {
	resp, err := r.client.Grant(ctx, int64(ttl/time.Second))
	if err != nil {
		return 0, fmt.Errorf("grant lease: %w", unavailable(err))
	}
	return resp.ID, nil
}

// maxOps is the most operations in one transaction, below etcd's limit of 128.
const maxOps = 100

// WriteMounts stores the mounts under lease and deletes those of the keys in gone.
func (r *Registry) WriteMounts(ctx context.Context, lease clientv3.LeaseID, mounts []Mount, gone []Mount) error {
	var ops []clientv3.Op
	for _, m := range mounts {
		key := r.keys.Mount(m.Shard, m.Client.String())
		ops = append(ops, put(key, m, clientv3.WithLease(lease)))
	}
	for _, m := range gone {
		ops = append(ops, clientv3.OpDelete(r.keys.Mount(m.Shard, m.Client.String())))
	}
	for len(ops) > 0 {
		n := min(len(ops), maxOps)
		if _, err := r.client.Txn(ctx).Then(ops[:n]...).Commit(); err != nil {
			return fmt.Errorf("write mounts: %w", unavailable(err))
		}
		ops = ops[n:]
	}
	return nil
}

// Mounts returns who has mounted what. Records that cannot be read are left out.
func (r *Registry) Mounts(ctx context.Context) ([]Mount, error) {
	resp, err := r.client.Get(ctx, r.keys.Mounts(), clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", unavailable(err))
	}
	out := make([]Mount, 0, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		var m Mount
		if decode(string(kv.Key), kv.Value, &m) == nil {
			out = append(out, m)
		}
	}
	return out, nil
}
