package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/raft/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Registry reads and writes one fleet's keys in etcd. It is safe for concurrent use; every call is bounded by its
// context and wraps ErrUnavailable when etcd does not answer.
type Registry struct {
	client *clientv3.Client
	keys   Keys
}

// NewRegistry returns the registry of the named fleet.
func NewRegistry(c *clientv3.Client, fleet string) *Registry { return &Registry{c, KeysOf(fleet)} }

// Keys returns the fleet's keys.
func (r *Registry) Keys() Keys { return r.keys }

// Fence is the proof of leadership that a write to a shard carries: its leader key's CreateRevision.
type Fence struct {
	LeaderKey string
	Epoch     int64
}

func (f Fence) holds() clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(f.LeaderKey), "=", f.Epoch)
}

// Identity returns the fleet's identity, or ErrNotFound when etcd knows no such fleet.
func (r *Registry) Identity(ctx context.Context) (Identity, error) {
	var id Identity
	_, err := r.get(ctx, r.keys.ID(), &id)
	return id, err
}

// CreateIdentity stores id unless the fleet has one already, and returns the one it has then.
func (r *Registry) CreateIdentity(ctx context.Context, id Identity) (Identity, error) {
	err := r.create(ctx, r.keys.ID(), id)
	if errors.Is(err, ErrExists) {
		return r.Identity(ctx)
	}
	return id, err
}

// BumpEra begins the era after seen and returns the identity with it. ErrConflict: the era is not seen any more.
func (r *Registry) BumpEra(ctx context.Context, seen int) (Identity, error) {
	var id Identity
	revision, err := r.get(ctx, r.keys.ID(), &id)
	if err != nil {
		return id, err
	}
	if id.Era != seen {
		return id, fmt.Errorf("era is %d, not %d: %w", id.Era, seen, ErrConflict)
	}
	id.Era++
	_, err = r.swap(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(r.keys.ID()), "=", revision)}, put(r.keys.ID(), id))
	return id, err
}

// CA stores the PEM of the fleet's CA, certificate and key, unless etcd has one already, and returns the one it has then.
// With nothing to store it returns what is there, or ErrNotFound.
func (r *Registry) CA(ctx context.Context, pem []byte) ([]byte, error) {
	key := r.keys.CA()
	var write []clientv3.Op
	if len(pem) > 0 {
		write = append(write, clientv3.OpPut(key, string(pem)))
	}
	resp, err := r.client.Txn(ctx).If(absent(key)).Then(write...).Else(clientv3.OpGet(key)).Commit()
	switch {
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", key, unavailable(err))
	case !resp.Succeeded:
		return resp.Responses[0].GetResponseRange().Kvs[0].Value, nil
	case len(pem) == 0:
		return nil, fmt.Errorf("%s: %w", key, ErrNotFound)
	}
	return pem, nil
}

// Shard returns a shard's settings and their ModRevision.
func (r *Registry) Shard(ctx context.Context, name string) (Shard, int64, error) {
	var s Shard
	rev, err := r.get(ctx, r.keys.Shard(name), &s)
	return s, rev, err
}

// CreateShard stores a new shard. A zero FSID is replaced by one drawn at random from 64 bits, which is how an fsid is
// allotted once and never again; recovery passes the one that the shard had.
func (r *Registry) CreateShard(ctx context.Context, s Shard) (Shard, error) {
	if err := s.Validate(); err != nil {
		return s, err
	}
	for s.FSID == 0 {
		s.FSID = FSID(rand.Uint64())
	}
	return s, r.create(ctx, r.keys.Shard(s.Name), s)
}

// UpdateShard replaces a shard's settings if they have not changed since revision seen, and returns their new
// ModRevision.
func (r *Registry) UpdateShard(ctx context.Context, s Shard, seen int64) (int64, error) {
	if err := s.Validate(); err != nil {
		return 0, err
	}
	key := r.keys.Shard(s.Name)
	return r.swap(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", seen)}, put(key, s))
}

// DeleteShard removes a shard with its head and its history, and leaves a DeletedShard.
func (r *Registry) DeleteShard(ctx context.Context, name string) error {
	s, revision, err := r.Shard(ctx, name)
	if err != nil {
		return err
	}
	key := r.keys.Shard(name)
	_, err = r.swap(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", revision)},
		clientv3.OpDelete(key), clientv3.OpDelete(r.keys.Head(name)), clientv3.OpDelete(r.keys.Staged(name)),
		clientv3.OpDelete(r.keys.Generations(name), clientv3.WithPrefix()),
		put(r.keys.Deleted(s.FSID), DeletedShard{name, s.FSID, time.Now().UTC()}))
	return err
}

// Head returns a shard's head and its ModRevision: the zero Generation and revision 0 before the first publish.
func (r *Registry) Head(ctx context.Context, shard string) (tree.Generation, int64, error) {
	var g tree.Generation
	rev, err := r.get(ctx, r.keys.Head(shard), &g)
	if errors.Is(err, ErrNotFound) {
		return tree.Generation{}, 0, nil
	}
	return g, rev, err
}

// History returns a shard's retained generations, oldest first.
func (r *Registry) History(ctx context.Context, shard string) ([]tree.Generation, error) {
	resp, err := r.client.Get(ctx, r.keys.Generations(shard), clientv3.WithPrefix())
	if err != nil {
		return nil, unavailable(err)
	}
	out := make([]tree.Generation, len(resp.Kvs))
	for i, kv := range resp.Kvs {
		if err := decode(string(kv.Key), kv.Value, &out[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// MoveHead makes next the head of shard, if f still holds and the head's ModRevision is still seen, records it in the
// history and drops the generations below oldest from there. ErrFenced: leadership is lost. ErrConflict: somebody moved
// the head. ErrUnavailable: read the head again to learn what happened.
func (r *Registry) MoveHead(ctx context.Context, shard string, f Fence, seen int64, next tree.Generation, oldest uint64) error {
	return r.fenced(ctx, "move head", shard, f, seen,
		put(r.keys.Head(shard), next), put(r.keys.Generation(shard, next.Number), next), clientv3.OpDelete(r.keys.Staged(shard)),
		clientv3.OpDelete(r.keys.Generations(shard), clientv3.WithRange(r.keys.Generation(shard, min(oldest, next.Number)))))
}

// Stage says that g is what the other masters shall fetch, in place of what was staged before, if f still holds and the
// head's ModRevision is still seen. MoveHead takes it away again. The errors are MoveHead's.
func (r *Registry) Stage(ctx context.Context, shard string, f Fence, seen int64, g tree.Generation) error {
	return r.fenced(ctx, "stage", shard, f, seen, put(r.keys.Staged(shard), g))
}

// fenced applies ops if f holds, the head's ModRevision is seen and the shard exists.
func (r *Registry) fenced(ctx context.Context, what, shard string, f Fence, seen int64, ops ...clientv3.Op) error {
	head, settings := r.keys.Head(shard), r.keys.Shard(shard)
	txn := func() (*clientv3.TxnResponse, error) {
		return r.client.Txn(ctx).
			If(f.holds(), clientv3.Compare(clientv3.ModRevision(head), "=", seen), clientv3.Compare(clientv3.CreateRevision(settings), ">", 0)).
			Then(ops...).Else(clientv3.OpGet(f.LeaderKey)).Commit()
	}
	resp, err := txn()
	for ; isDropped(err) && ctx.Err() == nil; resp, err = txn() {
		select { // etcd is between two leaders
		case <-ctx.Done():
		case <-time.After(dropPause):
		}
	}
	switch {
	case err != nil:
		return fmt.Errorf("%s of %s: %w", what, shard, unavailable(err))
	case resp.Succeeded:
		return nil
	}
	if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) == 0 || kvs[0].CreateRevision != f.Epoch {
		return fmt.Errorf("%s of %s: %w", what, shard, ErrFenced)
	}
	return fmt.Errorf("%s of %s: %w", what, shard, ErrConflict)
}

// RestoreHistory records generations that etcd has lost, if f still holds. Those that it has are left as they are.
func (r *Registry) RestoreHistory(ctx context.Context, shard string, f Fence, generations []tree.Generation) error {
	known, err := r.History(ctx, shard)
	if err != nil {
		return err
	}
	has := map[uint64]bool{}
	for _, g := range known {
		has[g.Number] = true
	}
	for _, g := range generations {
		if has[g.Number] {
			continue
		}
		_, err := r.swap(ctx, []clientv3.Cmp{f.holds()}, put(r.keys.Generation(shard, g.Number), g))
		if errors.Is(err, ErrConflict) {
			err = ErrFenced
		}
		if err != nil {
			return fmt.Errorf("restore the history of %s: %w", shard, err)
		}
	}
	return nil
}

func (r *Registry) get(ctx context.Context, key string, into any) (rev int64, err error) {
	resp, err := r.client.Get(ctx, key)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", key, unavailable(err))
	}
	if len(resp.Kvs) == 0 {
		return 0, fmt.Errorf("%s: %w", key, ErrNotFound)
	}
	return resp.Kvs[0].ModRevision, decode(key, resp.Kvs[0].Value, into)
}

func (r *Registry) create(ctx context.Context, key string, value any) error {
	_, err := r.swap(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", 0)}, put(key, value))
	if errors.Is(err, ErrConflict) {
		return fmt.Errorf("%s: %w", key, ErrExists)
	}
	return err
}

// swap applies ops in one transaction if the conditions hold, and returns its revision; otherwise ErrConflict.
func (r *Registry) swap(ctx context.Context, conditions []clientv3.Cmp, ops ...clientv3.Op) (int64, error) {
	resp, err := r.client.Txn(ctx).If(conditions...).Then(ops...).Commit()
	if err != nil {
		return 0, unavailable(err)
	}
	if !resp.Succeeded {
		return 0, ErrConflict
	}
	return resp.Header.Revision, nil
}

func put(key string, value any, opts ...clientv3.OpOption) clientv3.Op {
	b, err := json.Marshal(value)
	if err != nil {
		panic(fmt.Sprintf("fleet: marshal %s: %v", key, err)) // our own plain types always marshal
	}
	return clientv3.OpPut(key, string(b), opts...)
}

// dropPause is the time between two attempts at a write that etcd has dropped.
const dropPause = 50 * time.Millisecond

// isDropped reports whether etcd says that it has not begun with a write, because it has no raft leader just now. The
// error has no code of its own.
func isDropped(err error) bool {
	return status.Code(err) == codes.Unknown && strings.Contains(err.Error(), raft.ErrProposalDropped.Error())
}

// unavailable wraps ErrUnavailable around errors that mean "etcd did not answer" rather than "etcd said no".
func unavailable(err error) error {
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, rpctypes.ErrNoLeader), errors.Is(err, rpctypes.ErrLeaderChanged),
		errors.Is(err, rpctypes.ErrTimeout), errors.Is(err, rpctypes.ErrTimeoutDueToLeaderFail), errors.Is(err, rpctypes.ErrTimeoutDueToConnectionLost),
		errors.Is(err, rpctypes.ErrNoSpace), errors.Is(err, rpctypes.ErrStopped):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if isDropped(err) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}
