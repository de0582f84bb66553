package election

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// etcd is the backend of real elections. Every call goes to one endpoint, the same for all until it fails; see
// endpoints. Every request demands that the endpoint knows a raft leader, so that a member that is cut off from its
// peers says so instead of letting the time run out.
type etcd struct {
	endpoints *endpoints
	prefix    string
}

func newEtcd(c *clientv3.Client, prefix, master string) *etcd {
	return &etcd{newEndpoints(c, master), prefix}
}

func (e *etcd) tries() int { return len(e.endpoints.client.Endpoints()) }

func (e *etcd) close(ctx context.Context) { e.endpoints.close(ctx) }

// call runs one request at the present endpoint and gives the endpoint up if the failure is its own.
//
// A request that is urgent has a lease that runs out meanwhile.
func (e *etcd) call(ctx context.Context, what string, urgent bool, request func(context.Context, *endpoint) error) error {
	ep, err := e.endpoints.present()
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	sent := time.Now()
	if err = request(clientv3.WithRequireLeader(ctx), ep); err == nil {
		ep.answered()
		return nil
	}
	err = rpctypes.Error(err)
	if errors.Is(err, errGone) {
		return err
	}
	// One that is slow is not left for that unless there is another: what else is under way there would be lost with the
	// connection, be asked for again, and make it slower still.
	slow := errors.Is(ctx.Err(), context.DeadlineExceeded) && !ep.silentSince(sent)
	if unwell(ctx, err) && !(slow && (e.tries() == 1 || !urgent)) {
		e.endpoints.leave(ep)
	}
	return fmt.Errorf("%s at %s: %w", what, ep.address, err)
}

// errWatchRefused: the endpoint is well, but has no such revision any more, or does not let us.
var errWatchRefused = errors.New("watch refused")

// unwell reports whether err speaks of the endpoint, or the way to it, rather than of the request.
func unwell(ctx context.Context, err error) bool {
	if errors.Is(ctx.Err(), context.Canceled) {
		return false // we ended it ourselves
	}
	if errors.Is(err, errWatchRefused) {
		return false
	}
	var said rpctypes.EtcdError
	if !errors.As(err, &said) {
		return true
	}
	switch {
	case errors.Is(err, rpctypes.ErrNoLeader), errors.Is(err, rpctypes.ErrStopped), errors.Is(err, rpctypes.ErrTimeout),
		errors.Is(err, rpctypes.ErrTimeoutDueToLeaderFail), errors.Is(err, rpctypes.ErrTimeoutDueToConnectionLost),
		errors.Is(err, rpctypes.ErrNotLeader), errors.Is(err, rpctypes.ErrLeaderChanged), errors.Is(err, rpctypes.ErrUnhealthy):
		return true
	}
	return false
}

func (e *etcd) grant(ctx context.Context, ttl time.Duration) (id int64, granted time.Duration, err error) {
	err = e.call(ctx, "grant a lease", true, func(ctx context.Context, ep *endpoint) error {
		resp, err := ep.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: int64(math.Ceil(ttl.Seconds()))})
		if err != nil {
			return err
		}
		id, granted = resp.ID, time.Duration(resp.TTL)*time.Second
		return nil
	})
	return id, granted, err
}

// renew asks a second time, another way, before it believes that the lease is gone: terms and a lease are dear.
func (e *etcd) renew(ctx context.Context, id int64) (granted time.Duration, err error) {
	err = e.call(ctx, "renew the lease", true, func(ctx context.Context, ep *endpoint) error {
		ttl, err := ep.keepAlive(ctx, id)
		granted = time.Duration(ttl) * time.Second
		if err != nil || ttl > 0 {
			return err
		}
		resp, err := ep.lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: id})
		switch {
		case err != nil && !errors.Is(rpctypes.Error(err), rpctypes.ErrLeaseNotFound):
			return err
		case err == nil && resp.TTL > 0:
			return errors.New("the lease was not found, and is there")
		}
		return errGone
	})
	return granted, err
}

func (e *etcd) revoke(ctx context.Context, id int64) error {
	return e.call(ctx, "revoke the lease", true, func(ctx context.Context, ep *endpoint) error {
		_, err := ep.lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: id})
		if errors.Is(rpctypes.Error(err), rpctypes.ErrLeaseNotFound) {
			return errGone
		}
		return err
	})
}

func (e *etcd) read(ctx context.Context, since int64, known int) (s snapshot, err error) {
	err = e.call(ctx, "read the leaders", false, func(ctx context.Context, ep *endpoint) error {
		prefix := keysPrefix(e.prefix)
		if known > 0 {
			resp, err := ep.kv.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithMinModRev(since+1))
			if err != nil {
				return err
			}
			s = snapshot{resp.Header.Revision, fromEtcd(resp.Kvs), true}
			if s.completes(since, known, int(resp.Count)) {
				return nil
			}
		}
		resp, err := ep.kv.Get(ctx, prefix, clientv3.WithPrefix())
		if err != nil {
			return err
		}
		s = snapshot{resp.Header.Revision, fromEtcd(resp.Kvs), false}
		return nil
	})
	return s, err
}

// completes reports whether a partial snapshot, of a time when there were count keys, and the known ones that there were
// at revision since, are all there is: none was deleted, or the numbers would not agree, and etcd was not put back to an
// older state.
func (s *snapshot) completes(since int64, known, count int) bool {
	for _, k := range s.kvs {
		if k.create > since {
			known++
		}
	}
	return s.rev >= since && known == count
}

func (e *etcd) write(ctx context.Context, w write) (out written, err error) {
	err = e.call(ctx, "write", false, func(ctx context.Context, ep *endpoint) error {
		if ops := w.transaction(); len(ops) > 0 {
			resp, err := ep.kv.Txn(ctx).Then(ops...).Commit()
			if err != nil {
				return err
			}
			out = w.outcome((*pb.TxnResponse)(resp))
		}
		for _, id := range w.revoke {
			_, err := ep.lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: id})
			if err != nil && !errors.Is(rpctypes.Error(err), rpctypes.ErrLeaseNotFound) {
				return fmt.Errorf("revoke an old lease: %w", err)
			}
		}
		return nil
	})
	return out, err
}

// transaction makes each part of the write a transaction of its own within one: their conditions are independent.
func (w *write) transaction() []clientv3.Op {
	lease := clientv3.WithLease(clientv3.LeaseID(w.lease))
	var ops []clientv3.Op
	for _, key := range w.claims {
		get := clientv3.OpGet(key)
		ops = append(ops, clientv3.OpTxn([]clientv3.Cmp{createdAt(key, 0)},
			[]clientv3.Op{clientv3.OpPut(key, string(w.claim), lease), get}, []clientv3.Op{get}))
	}
	for key, m := range w.marks {
		get := clientv3.OpGet(key)
		ops = append(ops, clientv3.OpTxn([]clientv3.Cmp{createdAt(key, m.epoch)},
			[]clientv3.Op{clientv3.OpPut(key, string(m.value), lease), get}, []clientv3.Op{get}))
	}
	for key, epoch := range w.releases {
		ops = append(ops, clientv3.OpTxn([]clientv3.Cmp{createdAt(key, epoch)}, []clientv3.Op{clientv3.OpDelete(key)}, nil))
	}
	for key, value := range w.puts {
		ops = append(ops, clientv3.OpPut(key, string(value), lease))
	}
	for _, key := range w.deletes {
		ours := clientv3.Compare(clientv3.LeaseValue(key), "=", w.lease)
		ops = append(ops, clientv3.OpTxn([]clientv3.Cmp{ours}, []clientv3.Op{clientv3.OpDelete(key)}, nil))
	}
	return ops
}

func createdAt(key string, rev int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(key), "=", rev)
}

// outcome reads what the claimed and marked keys are now, which is the last answer of each of those parts.
func (w *write) outcome(resp *pb.TxnResponse) written {
	out := written{rev: resp.Header.Revision}
	for _, part := range resp.Responses[:len(w.claims)+len(w.marks)] {
		answers := part.GetResponseTxn().Responses
		out.seats = append(out.seats, fromEtcd(answers[len(answers)-1].GetResponseRange().Kvs)...)
	}
	return out
}

func (e *etcd) watch(ctx context.Context, rev int64, each func(changes)) error {
	return e.call(ctx, "watch the leaders", false, func(ctx context.Context, ep *endpoint) error {
		ctx, cancel := ep.while(ctx)
		defer cancel()
		stream, err := ep.watch.Watch(ctx, grpc.MaxCallRecvMsgSize(math.MaxInt32))
		if err != nil {
			return err
		}
		prefix := keysPrefix(e.prefix)
		err = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
			Key: []byte(prefix), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(prefix)), StartRevision: rev,
		}}})
		if err != nil {
			return err
		}
		for {
			resp, err := stream.Recv()
			if err != nil {
				return err
			}
			ep.answered()
			if resp.Canceled {
				return fmt.Errorf("%w: from revision %d, compacted up to %d: %s", errWatchRefused, rev, resp.CompactRevision, resp.CancelReason)
			}
			if ch := changesOf(resp.Events); len(ch.kvs) > 0 {
				each(ch)
			}
		}
	})
}

// changesOf takes the revision from the events: the one in the header may be ahead of them.
func changesOf(events []*mvccpb.Event) changes {
	var ch changes
	for _, e := range events {
		k := kv{key: string(e.Kv.Key), mod: e.Kv.ModRevision}
		if e.Type != mvccpb.DELETE {
			k.value, k.create, k.lease = e.Kv.Value, e.Kv.CreateRevision, e.Kv.Lease
		}
		ch.kvs = append(ch.kvs, k)
		ch.rev = max(ch.rev, k.mod)
	}
	return ch
}

func fromEtcd(kvs []*mvccpb.KeyValue) []kv {
	out := make([]kv, len(kvs))
	for i, k := range kvs {
		out[i] = kv{string(k.Key), k.Value, k.CreateRevision, k.ModRevision, k.Lease}
	}
	return out
}
