package source

import (
	"context"
	"sync"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// aheadEntries bounds what is listed before it is asked for.
const aheadEntries = 16_384

// listed is a directory's listing and what is to be listed after it.
type listed struct {
	tree.Listing
	subdirs []string // paths, in the order in which they will be asked for, as far as one can tell
}

// ahead lists directories before Merge asks for them, so that reading goes on while Merge encodes, and in several
// directories at once. What has not been begun when it is asked for is listed there and then, so nothing waits for
// room.
type ahead struct {
	list func(ctx context.Context, dir string) (*listed, error)

	mu    sync.Mutex // guards what follows
	wake  *sync.Cond
	jobs  map[string]*job
	stack []*job // not begun; the last is next
	held  int    // entries listed and not asked for yet
	ended bool

	workers sync.WaitGroup
	cancel  context.CancelFunc
}

type job struct {
	dir   string
	begun bool
	done  chan struct{} // closed when out and err are set
	out   *listed
	err   error
}

func newAhead(ctx context.Context, workers int, list func(ctx context.Context, dir string) (*listed, error)) *ahead {
	a := &ahead{list: list, jobs: map[string]*job{}}
	a.wake = sync.NewCond(&a.mu)
	ctx, a.cancel = context.WithCancel(ctx)
	for range workers {
		a.workers.Go(func() { a.work(ctx) })
	}
	return a
}

// get returns the listing of dir.
func (a *ahead) get(ctx context.Context, dir string) (*listed, error) {
	a.mu.Lock()
	j := a.jobs[dir]
	delete(a.jobs, dir)
	waiting := j != nil && j.begun
	if j != nil {
		j.begun = true
	}
	a.mu.Unlock()
	if !waiting {
		out, err := a.list(ctx, dir)
		if err == nil {
			a.push(out.subdirs)
		}
		return out, err
	}
	select {
	case <-j.done:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if j.err != nil {
		return nil, j.err
	}
	a.mu.Lock()
	a.held -= len(j.out.Names)
	a.mu.Unlock()
	a.wake.Broadcast()
	return j.out, nil
}

func (a *ahead) push(dirs []string) {
	a.mu.Lock()
	for i := len(dirs) - 1; i >= 0; i-- {
		j := &job{dir: dirs[i], done: make(chan struct{})}
		a.jobs[j.dir] = j
		a.stack = append(a.stack, j)
	}
	a.mu.Unlock()
	a.wake.Broadcast()
}

func (a *ahead) work(ctx context.Context) {
	for {
		j := a.next()
		if j == nil {
			return
		}
		j.out, j.err = a.list(ctx, j.dir)
		if j.err == nil {
			a.mu.Lock()
			a.held += len(j.out.Names)
			a.mu.Unlock()
			a.push(j.out.subdirs)
		}
		close(j.done)
	}
}

// next waits for a directory to list; nil: the end.
func (a *ahead) next() *job {
	a.mu.Lock()
	defer a.mu.Unlock()
	for {
		for len(a.stack) > 0 && a.stack[len(a.stack)-1].begun {
			a.stack = a.stack[:len(a.stack)-1]
		}
		if a.ended {
			return nil
		}
		if n := len(a.stack); n > 0 && a.held < aheadEntries {
			j := a.stack[n-1]
			a.stack = a.stack[:n-1]
			j.begun = true
			return j
		}
		a.wake.Wait()
	}
}

// stop ends the workers and waits for them.
func (a *ahead) stop() {
	a.mu.Lock()
	a.ended = true
	a.mu.Unlock()
	a.cancel()
	a.wake.Broadcast()
	a.workers.Wait()
}
