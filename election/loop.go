package election

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// loop is Election on a backend: it feeds the state with events, and does what the state decides.
type loop struct {
	config  Config
	backend backend
	now     clock
	log     zerolog.Logger
	terms   chan *Term
	changed chan struct{}
	mail    chan struct{} // the inbox is not empty

	mu    sync.Mutex // guards inbox and started, and state, which only Run's goroutine changes
	inbox []event
	state *state
	start bool

	// Owned by Run's goroutine.
	life      *lifeline
	held      map[string]*Term
	queue     []*Term // begun, not yet received
	stopWatch context.CancelFunc
	work      sync.WaitGroup // requests and the watch
}

func newLoop(c Config, b backend, now clock) *loop {
	return &loop{
		config: c, backend: b, now: now, log: c.Logger.With().Str("master", c.Master).Logger(),
		terms: make(chan *Term), changed: make(chan struct{}, 1), mail: make(chan struct{}, 1),
		state: newState(c), held: map[string]*Term{}, stopWatch: func() {},
	}
}

func (l *loop) Stand(shard string, preferred bool) { l.post(standing{shard, preferred}) }
func (l *loop) Withdraw(shard string)              { l.post(withdrawal{shard}) }
func (l *loop) Retire(on bool)                     { l.post(retirement{on}) }
func (l *loop) Resign(shard, to string)            { l.post(handOver{shard, to}) }
func (l *loop) Terms() <-chan *Term                { return l.terms }
func (l *loop) Changed() <-chan struct{}           { return l.changed }

func (l *loop) Announce(key string, value []byte) { l.post(announced{key, bytes.Clone(value)}) }

func (l *loop) Lease() LeaseStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, s := l.now(), l.state
	status := LeaseStatus{ID: s.lease.id, Alive: now < s.lease.deadline, TTL: s.lease.ttl, Err: s.lease.err}
	if s.lease.confirmed != 0 {
		status.Age = now.sub(s.lease.confirmed)
		status.Deadline = time.Now().Add(s.lease.ttl - s.margin() - status.Age)
	}
	return status
}

func (l *loop) Leader(shard string) (Leader, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	seat, ok := l.state.view.seats[shard]
	return Leader{Master: seat.Master, Epoch: seat.epoch, Since: seat.Since}, ok
}

// post hands an event to Run's goroutine. It never waits for it.
func (l *loop) post(e event) {
	l.mu.Lock()
	l.inbox = append(l.inbox, e)
	l.mu.Unlock()
	select {
	case l.mail <- struct{}{}:
	default:
	}
}

func (l *loop) Run(ctx context.Context) error {
	l.mu.Lock()
	again := l.start
	l.start = true
	l.mu.Unlock()
	if again {
		return errors.New("election: Run was called twice")
	}
	io, cancel := context.WithCancel(ctx)
	defer cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		now := l.now()
		actions, wake := l.step(now)
		for _, a := range actions {
			l.perform(io, now, a)
		}
		timer.Reset(wake.sub(l.now()))
		next, out := l.nextTerm()
		select {
		case <-ctx.Done():
		case <-l.mail:
		case <-timer.C:
		case out <- next:
			l.queue = l.queue[1:]
		}
	}
	cancel()
	return l.finish()
}

// step runs the state once on everything that has happened.
func (l *loop) step(now instant) ([]action, instant) {
	l.mu.Lock()
	defer l.mu.Unlock()
	events := l.inbox
	l.inbox = nil
	actions := l.state.step(now, events...)
	if l.state.changed {
		l.state.changed = false
		select {
		case l.changed <- struct{}{}:
		default:
		}
	}
	return actions, l.state.wake
}

// nextTerm returns the next term to deliver, and where to; a nil channel if there is none.
func (l *loop) nextTerm() (*Term, chan<- *Term) {
	for len(l.queue) > 0 {
		if t := l.queue[0]; t.Check() == nil {
			return t, l.terms
		}
		l.queue = l.queue[1:]
	}
	return nil, nil
}

// perform does what the state decided at the instant now, from which deadlines are counted.
func (l *loop) perform(ctx context.Context, now instant, a action) {
	switch a := a.(type) {
	case doGrant:
		l.request(ctx, l.state.timeout(), func(ctx context.Context) event {
			id, ttl, err := l.backend.grant(ctx, a.ttl)
			return leaseReply{now, id, ttl, err}
		})
	case doRenew:
		l.request(ctx, l.state.timeout(), func(ctx context.Context) event {
			ttl, err := l.backend.renew(ctx, a.id)
			return leaseReply{now, a.id, ttl, err}
		})
	case doRead:
		l.request(ctx, l.state.patience(), func(ctx context.Context) event {
			snap, err := l.backend.read(ctx, a.seen, a.known)
			return readReply{now, a.seen, a.watch, snap, err}
		})
	case doWrite:
		a.w.claim = mustJSON(leaderValue{Master: l.config.Master, Since: time.Now().UTC()})
		l.request(ctx, l.state.patience(), func(ctx context.Context) event {
			result, err := l.backend.write(ctx, a.w)
			return writeReply{now, a.w, result, err}
		})
	case doWatch:
		l.watch(ctx, a)
	default:
		l.lead(now, a)
	}
}

// lead does what concerns the lease's life and the terms that hang on it.
func (l *loop) lead(now instant, a action) {
	switch a := a.(type) {
	case doLive:
		switch {
		case !a.renewed:
			l.life = newLifeline(l.now, a.deadline)
			l.log.Info().Int64("took_ms", l.now().sub(now).Milliseconds()).Msg("lease is alive")
		case !l.life.extend(a.deadline):
			l.post(overslept{})
		}
	case doLapse:
		l.life.end(a.cause)
		clear(l.held)
		l.log.Warn().Err(a.cause).Msg("all terms have ended")
	case doBegin:
		t := newTerm(a.shard, leaderKey(l.config.Prefix, a.shard), a.epoch, l.life)
		l.held[a.shard] = t
		l.queue = append(l.queue, t)
		l.log.Info().Str("shard", a.shard).Int64("epoch", a.epoch).Msg("term begins")
	case doEnd:
		t := l.held[a.shard]
		delete(l.held, a.shard)
		t.cancel(a.cause)
		l.log.Info().Str("shard", a.shard).Int64("epoch", t.epoch).Err(a.cause).Msg("term ends")
	case doReport:
		l.log.Warn().Err(a.err).Msg(a.message)
	default:
		panic(fmt.Sprintf("election: no such action: %T", a))
	}
}

// request does one call to etcd beside the loop and posts what came of it.
func (l *loop) request(ctx context.Context, timeout time.Duration, call func(context.Context) event) {
	l.work.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		l.post(call(ctx))
	})
}

// watch replaces the watch by a new one.
func (l *loop) watch(ctx context.Context, a doWatch) {
	l.stopWatch()
	ctx, l.stopWatch = context.WithCancel(ctx)
	l.work.Go(func() {
		err := l.backend.watch(ctx, a.rev, func(ch changes) { l.post(watched{a.n, ch}) })
		l.post(watchEnded{a.n, err})
	})
}

// finish ends the terms first and then gives everything back, in bounded time.
func (l *loop) finish() error {
	if l.life != nil {
		l.life.end(ErrResigned)
	}
	close(l.terms)
	l.stopWatch()
	l.work.Wait()
	l.mu.Lock()
	l.state.step(l.now(), l.inbox...) // the answers that came last: a lease granted in the meantime, say
	lease, budget := l.state.lease.id, min(2*time.Second, l.state.lease.ttl/2)
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), budget)
	defer cancel()
	defer l.backend.close(ctx)
	if lease == 0 {
		return nil
	}
	return l.giveBack(ctx, budget, lease)
}

// giveBack revokes the lease, which deletes all that is under it at one revision: nobody sees this master as a candidate
// for what it has just given up.
func (l *loop) giveBack(ctx context.Context, budget time.Duration, lease int64) error {
	tries := max(2, l.backend.tries())
	var err error
	for range tries {
		if err = l.tryGiveBack(ctx, budget/time.Duration(tries), lease); err == nil || errors.Is(err, errGone) {
			return nil
		}
	}
	return fmt.Errorf("election: give the lease back: %w; its keys expire by themselves", err)
}

func (l *loop) tryGiveBack(ctx context.Context, timeout time.Duration, lease int64) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return l.backend.revoke(ctx, lease)
}
