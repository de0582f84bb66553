package master

import (
	"context"
	"errors"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// etcdTimeout bounds one read or write of etcd on behalf of somebody who waits.
const etcdTimeout = 5 * time.Second

// shardHeads is one shard's head in etcd, as the replicator wants it.
type shardHeads struct {
	registry *fleet.Registry
	shard    string
}

// Head implements replicator.Heads.
func (h shardHeads) Head(ctx context.Context) (tree.Generation, int64, error) {
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	return h.registry.Head(ctx, h.shard)
}

// Move implements replicator.Heads. Once it has begun, it does not end with the caller's context: a Txn that was given
// up leaves nobody the wiser.
func (h shardHeads) Move(ctx context.Context, epoch, seen int64, next tree.Generation, oldest uint64) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), etcdTimeout)
	defer cancel()
	return h.registry.MoveHead(ctx, h.shard, h.fence(epoch), seen, next, oldest)
}

// Stage implements replicator.Heads.
func (h shardHeads) Stage(ctx context.Context, epoch, seen int64, next tree.Generation) error {
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	for {
		attempt, cancel := context.WithTimeout(ctx, etcdTimeout/4)
		err := h.registry.Stage(attempt, h.shard, h.fence(epoch), seen, next)
		cancel()
		if !errors.Is(err, fleet.ErrUnavailable) || ctx.Err() != nil { // staging the same twice does no harm
			return err
		}
	}
}

// History implements replicator.Heads.
func (h shardHeads) History(ctx context.Context) ([]tree.Generation, error) {
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	return h.registry.History(ctx, h.shard)
}

func (h shardHeads) fence(epoch int64) fleet.Fence {
	return fleet.Fence{LeaderKey: h.registry.Keys().Leader(h.shard), Epoch: epoch}
}
