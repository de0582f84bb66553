package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
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
	// Slaves are those that were enrolled. They are many: Follow alone reads them, a View of Load has none.
	Slaves         map[string]Slave
	SlavesRevision int64            // Slaves are the same while this is
	Problems       map[string]error // by key: values that could not be read; whoever wrote them has to mend them

	applied int64 // everything up to this revision is in it: Revision may be ahead of what a watch has told
}

// Includes reports whether everything that concerns the fleet up to a revision, at which something of it was written, is in v.
func (v View) Includes(revision int64) bool { return v.applied >= revision }

func newView(revision int64) View {
	return View{
		Revision: revision, applied: revision,
		Shards: map[string]Shard{}, Heads: map[string]Head{}, Staged: map[string]Head{}, Deleted: map[FSID]bool{},
		Masters: map[string]Master{}, Replicas: map[string]Replica{},
		Roster: map[string]RosterEntry{}, Drained: map[string]Drain{}, Removed: map[string]Removal{},
		Slaves: map[string]Slave{}, Problems: map[string]error{},
	}
}

// draft returns a copy in which keys of these kinds can be set. Everything else it shares with v.
func (v View) draft(kinds map[string]bool) View {
	fork(&v.Shards, kinds["shards"])
	fork(&v.Heads, kinds["heads"])
	fork(&v.Staged, kinds["staged"])
	fork(&v.Deleted, kinds["deleted"])
	fork(&v.Masters, kinds["masters"])
	fork(&v.Replicas, kinds["replicas"])
	fork(&v.Roster, kinds["roster"])
	fork(&v.Drained, kinds["drained"])
	fork(&v.Removed, kinds["removed"])
	fork(&v.Slaves, kinds["slaves"])
	fork(&v.Problems, true)
	return v
}

// fork makes a map one's own when it is to be written to.
func fork[K comparable, V any](m *map[K]V, write bool) {
	if write {
		*m = maps.Clone(*m)
	}
}

// next is the View after the events of a watch. news is whether they concern it.
func (v View) next(keys Keys, revision int64, events []*clientv3.Event) (next View, news bool) {
	kinds := map[string]bool{}
	for _, e := range events {
		if kind, _, ok := keys.split(string(e.Kv.Key)); ok {
			kinds[kind] = true
		}
	}
	next = v.draft(kinds)
	next.Revision = revision
	for _, e := range events {
		news = next.set(keys, e.Kv, e.Type == mvccpb.DELETE) || news
		next.applied = max(next.applied, e.Kv.ModRevision)
	}
	return next, news
}

func (v *View) setAll(keys Keys, kvs []*mvccpb.KeyValue) {
	for _, kv := range kvs {
		v.set(keys, kv, false)
	}
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
	case "slaves":
		v.SlavesRevision = max(v.SlavesRevision, kv.ModRevision)
		err = setSlave(v.Slaves, v.Slaves, name, kv, deleted)
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

// Load reads the fleet at one revision, linearizably, without its slaves.
func (r *Registry) Load(ctx context.Context) (View, error) {
	v, _, err := r.load(ctx)
	return v, err
}

// load is Load, and returns what etcd says to more as of the same revision.
func (r *Registry) load(ctx context.Context, more ...clientv3.Op) (View, []*etcdserverpb.ResponseOp, error) {
	kinds := []string{"id", "shards/", "heads/", "staged/", "deleted/", "masters/", "replicas/", "roster/", "drained/", "removed/"}
	ops := make([]clientv3.Op, len(kinds))
	for i, kind := range kinds {
		ops[i] = clientv3.OpGet(r.keys.prefix+kind, clientv3.WithPrefix())
	}
	resp, err := r.client.Txn(ctx).Then(append(ops, more...)...).Commit()
	if err != nil {
		return View{}, nil, fmt.Errorf("read the fleet: %w", unavailable(err))
	}
	v := newView(resp.Header.Revision)
	for _, part := range resp.Responses[:len(kinds)] {
		v.setAll(r.keys, part.GetResponseRange().Kvs)
	}
	return v, resp.Responses[len(kinds):], nil
}

// errResync ends a watch whose time is over, or that etcd has compacted away from under it.
var errResync = errors.New("read the fleet again")

// Follow calls seen with the View of the fleet as it changes, the first one as soon as etcd answers, and lost with the
// error each time that etcd cannot be read; it then tries again. Beside the watch everything is read again each
// reread, because a watch can hang across a partition (etcd#8980). It returns when ctx ends; seen and lost are called
// from its goroutine, one at a time.
func (r *Registry) Follow(ctx context.Context, reread time.Duration, seen func(View), lost func(error)) error {
	known := View{}
	for n := 0; ; n++ {
		v, err := r.loadWithin(ctx, reread, known, n%wholeEvery == 0)
		if err == nil {
			seen(v)
			known, err = r.watch(ctx, v, reread, seen)
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

// wholeEvery is the number of times that Follow reads the fleet for one at which it reads every slave, changed or not: an
// etcd that was restored from a backup may have reached the revisions again that are known from before.
const wholeEvery = 30

func (r *Registry) loadWithin(ctx context.Context, limit time.Duration, known View, whole bool) (View, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return r.loadAll(ctx, known, whole)
}

// watch follows the fleet from v on, until it has to be read again, and returns the View that it has come to.
func (r *Registry) watch(ctx context.Context, v View, reread time.Duration, seen func(View)) (View, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := r.client.Watch(clientv3.WithRequireLeader(ctx), r.keys.prefix, clientv3.WithPrefix(), clientv3.WithRev(v.Revision+1))
	again := time.NewTimer(reread)
	defer again.Stop()
	for {
		select {
		case <-again.C:
			return v, errResync
		case resp, ok := <-events:
			if !ok || resp.CompactRevision != 0 {
				return v, errResync
			}
			if err := resp.Err(); err != nil {
				return v, fmt.Errorf("watch the fleet: %w", unavailable(err))
			}
			var news bool
			if v, news = v.next(r.keys, resp.Header.Revision, resp.Events); news {
				seen(v)
			}
		}
	}
}
