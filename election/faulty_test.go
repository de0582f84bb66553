package election

import (
	"context"
	"errors"
	"sync"
	"time"
)

var errInjected = errors.New("injected")

// faulty is a backend that fails single operations, by name. A hook runs in place of the operation and may call it.
type faulty struct {
	backend
	mu     sync.Mutex // guards hooks and counts
	hooks  map[string]func(ctx context.Context, call func() error) error
	counts map[string]int
}

func newFaulty(b backend) *faulty {
	return &faulty{backend: b, hooks: map[string]func(context.Context, func() error) error{}, counts: map[string]int{}}
}

// on sets the hook of an operation; nil: none.
func (f *faulty) on(op string, hook func(ctx context.Context, call func() error) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hooks[op] = hook
}

// count returns how often op was called since the last count.
func (f *faulty) count(op string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.counts[op]
	f.counts[op] = 0
	return n
}

func (f *faulty) run(ctx context.Context, op string, call func() error) error {
	f.mu.Lock()
	hook := f.hooks[op]
	f.counts[op]++
	f.mu.Unlock()
	if hook == nil {
		return call()
	}
	return hook(ctx, call)
}

// Hooks that tests share.

// silence answers nothing, and the request has no effect.
func silence(ctx context.Context, _ func() error) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

// lost carries out the request and loses the answer.
func lost(_ context.Context, call func() error) error { return errors.Join(call(), errInjected) }

// late carries out the request and delivers the answer after d.
func late(d time.Duration) func(context.Context, func() error) error {
	return func(ctx context.Context, call func() error) error {
		err := call()
		select {
		case <-time.After(d):
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (f *faulty) grant(ctx context.Context, ttl time.Duration) (id int64, granted time.Duration, err error) {
	err = f.run(ctx, "grant", func() error { id, granted, err = f.backend.grant(ctx, ttl); return err })
	return id, granted, err
}

func (f *faulty) renew(ctx context.Context, id int64) (granted time.Duration, err error) {
	err = f.run(ctx, "renew", func() error { granted, err = f.backend.renew(ctx, id); return err })
	return granted, err
}

func (f *faulty) read(ctx context.Context, since int64, known int) (s snapshot, err error) {
	err = f.run(ctx, "read", func() error { s, err = f.backend.read(ctx, since, known); return err })
	return s, err
}

func (f *faulty) write(ctx context.Context, w write) (out written, err error) {
	err = f.run(ctx, "write", func() error { out, err = f.backend.write(ctx, w); return err })
	return out, err
}

func (f *faulty) watch(ctx context.Context, rev int64, each func(changes)) error {
	return f.run(ctx, "watch", func() error { return f.backend.watch(ctx, rev, each) })
}
