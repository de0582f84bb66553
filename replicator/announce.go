package replicator

import (
	"context"
	"slices"
	"sync"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

const (
	// announceBytes and announceObjects are how much a publish stores before other masters are told of it: what is less is
	// fetched as fast when the tree has its root.
	announceBytes   = 4 << 20
	announceObjects = 1024
	// announceTo is how many masters are told. What they have, the others fetch from them, too, once there is a root.
	announceTo = 4
	// announceBatch and announceBatchBytes are how much is told at once, announceQueue how many of these wait for a master. It
	// is not told of more: the publish does not wait.
	announceBatch      = 64
	announceBatchBytes = 1 << 20
	announceQueue      = 256
)

// announcer tells other masters what a publish stores while the source is still being read, so that they have most of it
// when the tree gets its root. All that it says is a hint: no copy counts before a master was asked to hold the generation,
// and whoever was not told, or did not listen, fetches it then.
type announcer struct {
	ctx    context.Context
	cancel context.CancelFunc
	begin  func() []chan<- []tree.Part // whom to tell; called once, with mu held
	tasks  sync.WaitGroup

	mu    sync.Mutex // guards what follows
	batch []tree.Part
	bytes int64 // of batch
	begun bool
	ended bool
	feeds []chan<- []tree.Part
}

// announce has what this master stores from now on told to others, until the announcer is closed.
func (r *Replica) announce(ctx context.Context) *announcer {
	a := &announcer{}
	a.ctx, a.cancel = context.WithCancel(ctx)
	era, epoch := r.cfg.Era(), r.term.Epoch()
	a.begin = func() (feeds []chan<- []tree.Part) {
		others := slices.Sorted(slices.Values(r.cfg.Peers.Others()))
		for _, master := range others[:min(len(others), announceTo)] {
			feed := make(chan []tree.Part, announceQueue)
			feeds = append(feeds, feed)
			a.tasks.Go(func() {
				if err := r.cfg.Peers.Announce(a.ctx, master, r.cfg.Shard, era, epoch, feed); err != nil && a.ctx.Err() == nil {
					r.log.Debug().Err(err).Str("peer", master).Msg("a master does not fetch ahead")
				}
			})
		}
		return feeds
	}
	r.announcing.Store(a)
	return a
}

// stored notes an object that is in the store. It may be called from several goroutines, and never blocks.
func (a *announcer) stored(d tree.Digest, size int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended || a.begun && len(a.feeds) == 0 {
		return
	}
	a.batch = append(a.batch, tree.Part{Digest: d, Form: tree.Blob, Size: uint64(size)})
	a.bytes += int64(size)
	if !a.begun {
		if a.bytes < announceBytes && len(a.batch) < announceObjects {
			return
		}
		a.begun, a.feeds = true, a.begin()
	}
	if len(a.batch) >= announceBatch || a.bytes >= announceBatchBytes {
		a.flush()
	}
}

// flush tells the batch to those who are not too far behind. mu is held.
func (a *announcer) flush() {
	if len(a.batch) == 0 {
		return
	}
	for _, feed := range a.feeds {
		select {
		case feed <- a.batch: // nobody changes it any more
		default:
		}
	}
	a.batch, a.bytes = nil, 0
}

// end says that everything was announced.
func (a *announcer) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		return
	}
	a.flush()
	a.ended = true
	for _, feed := range a.feeds {
		close(feed)
	}
}

// stopAnnouncing ends the announcing, and waits for it. What others have fetched is theirs to collect, unless a generation needs it.
func (r *Replica) stopAnnouncing(a *announcer) {
	r.announcing.Store(nil)
	a.cancel()
	a.end()
	a.tasks.Wait()
}

// stored is told of each object that this master's source has stored.
func (r *Replica) stored(d tree.Digest, size int) {
	if a := r.announcing.Load(); a != nil {
		a.stored(d, size)
	}
}

// announced is Objects whose Puts are announced.
type announced struct {
	tree.Objects
	replica *Replica
}

func (o announced) Put(ctx context.Context, b []byte) (tree.Digest, error) {
	d, err := o.Objects.Put(ctx, b)
	if err == nil {
		o.replica.stored(d, len(b))
	}
	return d, err
}
