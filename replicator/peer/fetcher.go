package peer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// ErrUnreachable is wrapped by errors that say that masters which may have what is wanted did not answer, or not well.
var ErrUnreachable = errors.New("no master that may have the objects can be reached")

// Config describes a Fetcher. All functions are called from many goroutines and must not block for long.
type Config struct {
	Store *store.Store
	// Client returns how to reach a master: NewTransport makes a fitting transport. Its URL has no path.
	Client   func(master string) (client *http.Client, baseURL string, err error)
	Masters  func() []string // the living ones, without this one
	Pressure func() bool     // whether the disk is needed for something more urgent; nil: never
	Logger   zerolog.Logger
}

// Fetcher brings objects from other masters. It is safe for concurrent use.
type Fetcher struct {
	cfg Config
	log zerolog.Logger

	turns   chan struct{} // has room for the trees that are fetched at once
	running atomic.Int64  // runs

	mu      sync.Mutex // guards what follows
	flights map[tree.Digest]*flight
	shunned map[string]time.Time // masters, and until when
}

// maxFetches is how many trees are fetched at once. More wait for their turn.
const maxFetches = 32

// NewFetcher returns a Fetcher. It has nothing to be closed: all that it does ends with the calls of its methods.
func NewFetcher(c Config) *Fetcher {
	if c.Pressure == nil {
		c.Pressure = func() bool { return false }
	}
	return &Fetcher{
		cfg: c, log: c.Logger, turns: make(chan struct{}, maxFetches),
		flights: make(map[tree.Digest]*flight), shunned: make(map[string]time.Time),
	}
}

// Progress is how far a fetch has come.
type Progress struct {
	Objects int64 // fetched and stored
	Bytes   int64 // of these
	Pending int64 // objects known to be needed and not here yet, or not looked at
}

// Fetch brings every object of the tree root into the store that is not there, and returns when all of it is durable. It
// holds the store meanwhile; that what it brought stays is the caller's business, who holds it, too, until the root is
// named by something that a collection marks. base is a tree that is whole here, zero for none: what is the same object at
// the same place there is not looked at. prefer is the master that is asked first. progress, which may be nil, is called
// now and then, from one goroutine. Calls for the same root at the same time are one fetch.
//
// It wraps tree.ErrMissing when every living master says that it lacks an object; ErrUnreachable when some of them do not
// answer, and the rest lack it; store.ErrFull; and tree.ErrCorrupt when the tree itself is not one. What came before an
// error stays in the store, so that the next Fetch does not ask for it again.
func (f *Fetcher) Fetch(ctx context.Context, root, base tree.Digest, prefer string, progress func(Progress)) error {
	if root == base {
		return nil
	}
	return f.join(ctx, root, progress, func(ctx context.Context, progress func(Progress)) error {
		select {
		case f.turns <- struct{}{}:
			defer func() { <-f.turns }()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		defer f.cfg.Store.Hold()()
		r := f.newRun(ctx, prefer, progress)
		r.want(newItem(tree.RootPart(root, base)))
		if err := r.loop(); err != nil {
			return fmt.Errorf("fetch tree %s: %w", root, err)
		}
		return nil
	})
}

// Objects brings the objects named digests, durable, from any master: those that the store lacks or that are damaged in
// it. missing are those that every living master lacks; the error is as that of Fetch, and says nothing of these. What
// could not be had does not keep the others from being brought.
func (f *Fetcher) Objects(ctx context.Context, digests []tree.Digest) (missing []tree.Digest, err error) {
	defer f.cfg.Store.Hold()()
	r := f.newRun(ctx, "", nil)
	r.objects = true
	for _, d := range digests {
		r.want(item{digest: d})
	}
	if err = r.loop(); err == nil {
		err = r.lost
	}
	if err != nil {
		err = fmt.Errorf("fetch %d objects: %w", len(digests), err)
	}
	return r.missing, err
}

// shunnedUntil returns until when a master is shunned.
func (f *Fetcher) shunnedUntil(master string) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.shunned[master]
}

func (f *Fetcher) shun(master string, until time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	for name, end := range f.shunned {
		if now.After(end) {
			delete(f.shunned, name)
		}
	}
	f.shunned[master] = until
}
