package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Head is a shard's head with the ModRevision of its key, which the next move compares.
type Head struct {
	tree.Generation
	Revision int64
}

// View is what etcd said of the fleet at one revision. A View handed out is never modified.
type View struct {
	Revision int64
	Identity Identity // zero: etcd holds no such fleet
	Shards   map[string]Shard
	Heads    map[string]Head
	Staged   map[string]Head // by shard: what its leader asks the others to fetch
	Deleted  map[FSID]bool   // shards that were deleted on purpose
	Masters  map[string]Master
	Replicas map[string]Replica
	Roster   map[string]RosterEntry // by master, living or lost
	Drained  map[string]Drain       // by master
	Removed  map[string]Removal     // by instance
	Problems map[string]error       // by key: values that could not be read; whoever wrote them has to mend them
}

func newView(revision int64) View {
	return View{
		Revision: revision,
		Shards:   map[string]Shard{}, Heads: map[string]Head{}, Staged: map[string]Head{}, Deleted: map[FSID]bool{},
		Masters: map[string]Master{}, Replicas: map[string]Replica{},
		Roster: map[string]RosterEntry{}, Drained: map[string]Drain{}, Removed: map[string]Removal{},
		Problems: map[string]error{},
	}
}

func (v View) clone() View {
	v.Shards, v.Deleted = maps.Clone(v.Shards), maps.Clone(v.Deleted)
	v.Heads, v.Staged = maps.Clone(v.Heads), maps.Clone(v.Staged)
	v.Masters, v.Replicas = maps.Clone(v.Masters), maps.Clone(v.Replicas)
	v.Roster, v.Drained, v.Removed = maps.Clone(v.Roster), maps.Clone(v.Drained), maps.Clone(v.Removed)
	v.Problems = maps.Clone(v.Problems)
	return v
}

// set records one key, or forgets it. Keys that a View does not hold are passed over; a value that cannot be read is
// left out and said in Problems, so that one bad value does not stop the rest of the fleet. held is whether a View holds
// keys of this kind.
func (v *View) set(keys Keys, kv *mvccpb.KeyValue, deleted bool) (held bool) {
	delete(v.Problems, string(kv.Key))
	held, err := v.apply(keys, kv, deleted)
	if err != nil {
		v.Problems[string(kv.Key)] = err
	}
	return held
}

func (v *View) apply(keys Keys, kv *mvccpb.KeyValue, deleted bool) (held bool, err error) {
	key := string(kv.Key)
	kind, name, ok := keys.split(key)
	if !ok {
		return false, nil
	}
	switch kind {
	case "id":
		if v.Identity = (Identity{}); !deleted {
			err = decode(key, kv.Value, &v.Identity)
		}
	case "shards":
		err = setIn(v.Shards, name, key, kv.Value, deleted)
	case "heads":
		err = setHead(v.Heads, name, kv, deleted)
	case "staged":
		err = setHead(v.Staged, name, kv, deleted)
	case "deleted":
		var fsid FSID
		if err = fsid.UnmarshalText([]byte(name)); err == nil {
			v.Deleted[fsid] = !deleted
		}
	case "masters":
		err = setIn(v.Masters, name, key, kv.Value, deleted)
	case "replicas":
		err = setIn(v.Replicas, name, key, kv.Value, deleted)
	case "roster":
		err = setIn(v.Roster, name, key, kv.Value, deleted)
	case "drained":
		err = setIn(v.Drained, name, key, kv.Value, deleted)
	case "removed":
		err = setIn(v.Removed, name, key, kv.Value, deleted)
	default:
		return false, nil
	}
	return true, err
}

func setHead(m map[string]Head, shard string, kv *mvccpb.KeyValue, deleted bool) error {
	delete(m, shard)
	if deleted {
		return nil
	}
	h := Head{Revision: kv.ModRevision}
	if err := decode(string(kv.Key), kv.Value, &h.Generation); err != nil {
		return err
	}
	m[shard] = h
	return nil
}

func setIn[T any](m map[string]T, name, key string, value []byte, deleted bool) error {
	delete(m, name)
	if deleted {
		return nil
	}
	var t T
	if err := decode(key, value, &t); err != nil {
		return err
	}
	m[name] = t
	return nil
}

// Load reads the fleet at one revision, linearizably.
func (r *Registry) Load(ctx context.Context) (View, error) {
	kinds := []string{"id", "shards/", "heads/", "staged/", "deleted/", "masters/", "replicas/", "roster/", "drained/", "removed/"}
	ops := make([]clientv3.Op, len(kinds))
	for i, kind := range kinds {
		ops[i] = clientv3.OpGet(r.keys.prefix+kind, clientv3.WithPrefix())
	}
	resp, err := r.client.Txn(ctx).Then(ops...).Commit()
	if err != nil {
		return View{}, fmt.Errorf("read the fleet: %w", unavailable(err))
	}
	v := newView(resp.Header.Revision)
	for _, part := range resp.Responses {
		for _, kv := range part.GetResponseRange().Kvs {
			v.set(r.keys, kv, false)
		}
	}
	return v, nil
}

// errResync ends a watch whose time is over, or that etcd has compacted away from under it.
var errResync = errors.New("read the fleet again")

// Follow calls seen with the View of the fleet as it changes, the first one as soon as etcd answers, and lost with the
// error each time that etcd cannot be read; it then tries again. Beside the watch everything is read again each
// reread, because a watch can hang across a partition (etcd#8980). It returns when ctx ends; seen and lost are called
// from its goroutine, one at a time.
func (r *Registry) Follow(ctx context.Context, reread time.Duration, seen func(View), lost func(error)) error {
	for {
		v, err := r.loadWithin(ctx, reread)
		if err == nil {
			seen(v)
			err = r.watch(ctx, v, reread, seen)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, errResync) {
			continue
		}
		lost(err)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(min(reread, 500*time.Millisecond)):
		}
	}
}

func (r *Registry) loadWithin(ctx context.Context, limit time.Duration) (View, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return r.Load(ctx)
}

func (r *Registry) watch(ctx context.Context, v View, reread time.Duration, seen func(View)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := r.client.Watch(clientv3.WithRequireLeader(ctx), r.keys.prefix, clientv3.WithPrefix(), clientv3.WithRev(v.Revision+1))
	again := time.NewTimer(reread)
	defer again.Stop()
	for {
		select {
		case <-again.C:
			return errResync
		case resp, ok := <-events:
			if !ok || resp.CompactRevision != 0 {
				return errResync
			}
			if err := resp.Err(); err != nil {
				return fmt.Errorf("watch the fleet: %w", unavailable(err))
			}
			next, news := v.clone(), false
			next.Revision = resp.Header.Revision
			for _, e := range resp.Events {
				news = next.set(r.keys, e.Kv, e.Type == mvccpb.DELETE) || news
			}
			if v = next; news {
				seen(v)
			}
		}
	}
}
