package election

import (
	"context"
	"sync/atomic"
	"time"
)

// Term is one uninterrupted time of leading one shard.
//
// Work done under a term takes Context, and whoever is about to do something that cannot be undone and that etcd does not
// fence calls Check directly before: after a process was stopped (SIGSTOP, a suspended machine) goroutines and timers
// wake up in any order, and Check compares the clock with the deadline itself instead of trusting that somebody did.
// The Err method of Context does the same, contexts derived from it do not.
type Term struct {
	shard, key string
	epoch      int64
	life       *lifeline
	ctx        context.Context
	cancel     context.CancelCauseFunc
}

func newTerm(shard, key string, epoch int64, life *lifeline) *Term {
	t := &Term{shard: shard, key: key, epoch: epoch, life: life}
	t.ctx, t.cancel = context.WithCancelCause(life.ctx)
	return t
}

// Shard is the shard that the term is for.
func (t *Term) Shard() string { return t.shard }

// Epoch is the CreateRevision of the leader key: the fencing token. A master that lost touch with etcd and found its key
// again gets a new term of the same epoch; any other term for the shard has a greater one than all before it.
func (t *Term) Epoch() int64 { return t.epoch }

// Key is the leader key in etcd.
func (t *Term) Key() string { return t.key }

// Context is cancelled when the term ends; context.Cause then wraps ErrLeaseLost, ErrDeposed or ErrResigned.
func (t *Term) Context() context.Context { return termContext{t.ctx, t.life} }

// Check returns nil if the term goes on at this instant, or the cause of its end.
func (t *Term) Check() error {
	t.life.check()
	return context.Cause(t.ctx)
}

// Deadline is when the term ends unless the lease is renewed before; each renewal moves it on. It is past once the
// lease is lost.
func (t *Term) Deadline() time.Time { return t.life.until() }

// termContext is a term's context whose Err cannot say that a term goes on after its deadline.
type termContext struct {
	context.Context
	life *lifeline
}

func (c termContext) Err() error {
	c.life.check()
	return c.Context.Err()
}

// lifeline is a time during which a lease was renewed before each of its deadlines. All terms of a master in that time
// hang on it. Once it has ended, it stays so, whoever noticed first: the timer, the loop, or the user of a term.
type lifeline struct {
	now      clock
	ctx      context.Context
	cancel   context.CancelCauseFunc
	deadline atomic.Int64 // an instant; 0: ended
	timer    *time.Timer
}

func newLifeline(now clock, deadline instant) *lifeline {
	l := &lifeline{now: now}
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	l.deadline.Store(int64(deadline))
	l.timer = time.AfterFunc(time.Hour, l.expire) // set before it can run
	l.timer.Reset(deadline.sub(now()))
	return l
}

// expire runs when the timer does. The deadline may have been moved on since it was set.
func (l *lifeline) expire() {
	if l.check() {
		l.timer.Reset(instant(l.deadline.Load()).sub(l.now()))
	}
}

// check ends the lifeline if its deadline has passed, and reports whether it goes on.
func (l *lifeline) check() bool {
	for {
		d := l.deadline.Load()
		if d != 0 && int64(l.now()) < d {
			return true
		}
		if d == 0 || l.deadline.CompareAndSwap(d, 0) {
			l.end(ErrLeaseLost)
			return false
		}
	}
}

// extend moves the deadline on, never back. It reports false if the lifeline has ended.
func (l *lifeline) extend(deadline instant) bool {
	for {
		if !l.check() {
			return false
		}
		d := l.deadline.Load()
		if d != 0 && (int64(deadline) <= d || l.deadline.CompareAndSwap(d, int64(deadline))) {
			return true
		}
	}
}

func (l *lifeline) end(cause error) {
	l.deadline.Store(0)
	l.cancel(cause)
}

// until converts the deadline to the wall clock.
func (l *lifeline) until() time.Time {
	return time.Now().Add(instant(l.deadline.Load()).sub(l.now()))
}
