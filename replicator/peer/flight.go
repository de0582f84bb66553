package peer

import (
	"context"
	"slices"
	"sync"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// flight is a fetch that several callers wait for. It ends when the last of them does not wait any more.
type flight struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when err is set
	err    error

	mu      sync.Mutex // guards waiters; taken after Fetcher.mu
	waiters []*waiter
}

type waiter struct{ progress func(Progress) }

// join waits for the flight of root, which it begins with fetch if there is none.
func (f *Fetcher) join(ctx context.Context, root tree.Digest, progress func(Progress), fetch func(context.Context, func(Progress)) error) error {
	w := &waiter{progress}
	f.mu.Lock()
	fl := f.flights[root]
	if fl == nil {
		fl = &flight{done: make(chan struct{})}
		var own context.Context
		own, fl.cancel = context.WithCancel(context.WithoutCancel(ctx))
		f.flights[root] = fl
		go func() {
			err := fetch(own, fl.report)
			f.mu.Lock()
			if f.flights[root] == fl {
				delete(f.flights, root)
			}
			f.mu.Unlock()
			fl.err = err
			close(fl.done)
			fl.cancel()
		}()
	}
	fl.mu.Lock()
	fl.waiters = append(fl.waiters, w)
	fl.mu.Unlock()
	f.mu.Unlock()
	select {
	case <-fl.done:
		return fl.err
	case <-ctx.Done():
	}
	if f.leave(fl, root, w) {
		<-fl.done // nothing of it goes on when the caller goes on
	}
	return context.Cause(ctx)
}

// leave takes a waiter off a flight, and ends the flight when it was the last.
func (f *Fetcher) leave(fl *flight, root tree.Digest, w *waiter) (last bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl.mu.Lock()
	defer fl.mu.Unlock()
	fl.waiters = slices.DeleteFunc(fl.waiters, func(o *waiter) bool { return o == w })
	if len(fl.waiters) > 0 {
		return false
	}
	if f.flights[root] == fl {
		delete(f.flights, root)
	}
	fl.cancel()
	return true
}

// report tells all who wait.
func (fl *flight) report(p Progress) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	for _, w := range fl.waiters {
		if w.progress != nil {
			w.progress(p)
		}
	}
}
