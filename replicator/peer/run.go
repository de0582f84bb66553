package peer

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

const (
	tickTime     = 50 * time.Millisecond
	refreshTime  = 500 * time.Millisecond
	progressTime = 200 * time.Millisecond
	stuckTime    = 30 * time.Second // without an object, after which a fetch gives up
	easeTime     = 200 * time.Millisecond
	slowStream   = time.Second // after which a request is compared with what another master could do
	syncBytes    = 256 << 20   // fetched, after which they are made durable beside the fetching
	largeMemory  = 64 << 20    // bytes of large objects on their way
	hereBatch    = 16          // objects that are here for one turn of a worker
)

// run is one fetch. Its goroutine owns everything but ctx, work and events.
type run struct {
	f      *Fetcher
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // workers and requests
	work   chan task
	events chan event

	prefer   string
	progress func(Progress)
	objects  bool               // missing objects are a result, not an error
	masters  func() []string    // that may be asked
	feed     <-chan []tree.Part // more objects to want; nil: there are no more

	sources []*source
	byName  map[string]*source
	queue   queue
	here    []item                   // that are in the store and must be looked into
	next    task                     // of them, for the next worker that is free
	known   map[tree.Digest]struct{} // objects that name others, and that were wanted once
	blobs   map[tree.Digest]struct{} // wanted now
	open    int64                    // objects wanted and not finished
	missing []tree.Digest
	lost    error // why single objects could not be had, the first time
	active  map[*request]struct{}
	large   int64 // bytes of partial objects

	done      Progress
	told      time.Time
	refreshed time.Time // when the living masters were last looked up
	moved     time.Time // when something last came
	came      int64     // bytes of requests that have ended
	noticed   int64     // bytes, and of others, at moved
	unsynced  int64
	syncing   bool
	pressed   bool      // the disk is needed for something more urgent
	eased     time.Time // when something was last asked for although it was
}

func (f *Fetcher) newRun(ctx context.Context, prefer string, progress func(Progress)) *run {
	r := &run{
		f: f, prefer: prefer, progress: progress, masters: f.cfg.Masters,
		work: make(chan task, slabsAhead), events: make(chan event),
		byName: make(map[string]*source), known: make(map[tree.Digest]struct{}), blobs: make(map[tree.Digest]struct{}), active: make(map[*request]struct{}),
		moved: time.Now(),
	}
	r.ctx, r.cancel = context.WithCancelCause(ctx)
	return r
}

// want adds an object to what is to be had, unless it is known already.
func (r *run) want(it item) {
	known := r.known
	if it.leaf() {
		known = r.blobs
	}
	if _, twice := known[it.digest]; twice {
		return
	}
	here := r.f.cfg.Store.Has(it.digest)
	if here && it.form == tree.Blob {
		return
	}
	known[it.digest] = struct{}{}
	r.open++
	if here {
		r.here = append(r.here, it)
	} else {
		r.queue.add("", it)
	}
}

// loop runs until nothing is open and nothing is announced any more, and then makes everything durable.
func (r *run) loop() error {
	r.f.running.Add(1)
	defer r.f.running.Add(-1)
	for range runtime.GOMAXPROCS(0) {
		r.wg.Go(r.worker)
	}
	defer r.wg.Wait()
	defer r.cancel(nil)
	tick := time.NewTicker(tickTime)
	defer tick.Stop()
	r.refresh()
	r.pressed = r.f.cfg.Pressure()
	for r.open > 0 || r.feed != nil {
		if err := r.dispatch(); err != nil {
			return err
		}
		select {
		case r.nextHere() <- r.next:
			r.next = task{}
		case parts, more := <-r.hungry():
			r.take(parts, more)
		case e := <-r.events:
			if err := r.handle(&e); err != nil {
				return err
			}
		case <-tick.C:
			if err := r.tick(); err != nil {
				return err
			}
		case <-r.ctx.Done():
			return context.Cause(r.ctx)
		}
	}
	if err := r.f.cfg.Store.Sync(r.ctx); err != nil {
		return err
	}
	r.report()
	return nil
}

// nextHere fills next with objects that are here, and returns whom to give it to, nil when there is nothing to give.
func (r *run) nextHere() chan<- task {
	if n := min(len(r.here), hereBatch); len(r.next.here) == 0 && n > 0 && len(r.blobs) < 2*backlog {
		// A copy: the list grows over it while a worker reads.
		r.next.here = slices.Clone(r.here[len(r.here)-n:])
		r.here = r.here[:len(r.here)-n]
	}
	if len(r.next.here) == 0 {
		return nil
	}
	return r.work
}

func (r *run) report() {
	r.told = time.Now()
	if r.progress != nil {
		r.done.Pending = r.open
		r.progress(r.done)
	}
}

// refresh learns which masters live.
func (r *run) refresh() {
	r.refreshed = time.Now()
	for _, s := range r.sources {
		s.alive = false
	}
	for _, name := range r.masters() {
		s := r.byName[name]
		if s == nil {
			s = &source{name: name, number: len(r.sources), shunUntil: r.f.shunnedUntil(name)}
			r.sources, r.byName[name] = append(r.sources, s), s
		}
		s.alive = true
	}
}

// tick is done now and then.
func (r *run) tick() error {
	now := time.Now()
	if now.Sub(r.refreshed) >= refreshTime {
		r.refresh()
	}
	came := r.came
	for req := range r.active {
		came += req.bytes.Load()
	}
	if r.pressed = r.f.cfg.Pressure(); r.pressed || r.open == 0 || came-r.noticed >= stallBytes {
		r.moved, r.noticed = now, came
	}
	if now.Sub(r.moved) >= stuckTime {
		causes := []error{errStuck}
		for _, s := range r.sources {
			causes = append(causes, s.err)
		}
		return fmt.Errorf("%w: %w", ErrUnreachable, errors.Join(causes...))
	}
	if now.Sub(r.told) >= progressTime {
		r.report()
	}
	if r.queue.len() == 0 && !r.pressed {
		r.hurry(now)
	}
	return nil
}

// hurry ends a request that takes long when another master has nothing to do and would be much faster: what is left of it
// goes there.
func (r *run) hurry(now time.Time) {
	const much = 4
	for req := range r.active {
		took := req.watch.total()
		if took < slowStream {
			continue
		}
		bytes := req.bytes.Load()
		rate := float64(bytes) / took.Seconds()
		if float64(req.cost-bytes) < 2*rate && bytes > 0 {
			continue // it is nearly done
		}
		for _, s := range r.sources {
			if s != req.src && s.streams == 0 && s.free(now) && s.rank(now) == fine && !req.lacks.has(s.number) && s.speed() > much*rate {
				req.cancel(errSlow)
				break
			}
		}
	}
}

// handle takes in what a worker or a request says.
func (r *run) handle(e *event) error {
	if e.err != nil {
		return e.err
	}
	if e.ended != nil {
		r.ended(e.ended)
		return nil
	}
	if e.synced {
		r.syncing = false
		return nil
	}
	for i := range e.found {
		r.want(e.found[i])
	}
	if n := len(e.finished); n > 0 {
		r.moved = time.Now()
		r.open -= int64(n)
		for i := range e.finished {
			r.finish(&e.finished[i])
		}
	}
	if e.req != nil {
		r.done.Objects += int64(len(e.finished))
		r.done.Bytes += e.fetched
		r.unsynced += e.fetched
	}
	r.queue.add("", e.again...)
	for i := range e.wrong {
		r.wrong(e.req, e.wrong[i])
	}
	r.sync()
	return nil
}

func (r *run) finish(it *item) {
	if it.leaf() {
		delete(r.blobs, it.digest)
	}
	if it.partial != nil {
		r.large -= it.partial.charged
	}
}

// sync makes what has come durable beside the fetching, so that there is never very much for the disk to do at once.
func (r *run) sync() {
	if r.syncing || r.unsynced < syncBytes {
		return
	}
	r.unsynced, r.syncing = 0, true
	r.wg.Go(func() {
		if err := r.f.cfg.Store.Sync(r.ctx); err != nil {
			r.tell(event{err: err})
			return
		}
		r.tell(event{synced: true})
	})
}
