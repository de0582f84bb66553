package master

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// stack runs the parts of a master and stops them in the reverse order of their start, so that each part finds what it
// stands on still there while it ends. It is used by one goroutine.
type stack struct {
	parts   []*part
	failed  chan error    // the first part that ended by itself
	stopped chan struct{} // closed when stop begins
}

type part struct {
	name   string
	cancel context.CancelCauseFunc
	done   chan struct{}
}

var errStopping = errors.New("stopping")

func newStack() *stack { return &stack{failed: make(chan error, 1), stopped: make(chan struct{})} }

// start runs a part until it is stopped. A part that returns before that has failed.
func (s *stack) start(name string, run func(ctx context.Context) error) *part {
	ctx, cancel := context.WithCancelCause(context.Background())
	p := &part{name: name, cancel: cancel, done: make(chan struct{})}
	s.parts = append(s.parts, p)
	go func() {
		defer close(p.done)
		err := run(ctx)
		if errors.Is(context.Cause(ctx), errStopping) {
			return
		}
		select {
		case s.failed <- fmt.Errorf("%s: %w", name, errors.Join(err, errEnded(err))):
		default: // an earlier failure is already stopping the master
		}
	}()
	return p
}

// errEnded makes a part that returned nil too early an error as well.
func errEnded(err error) error {
	if err == nil {
		return errors.New("ended by itself")
	}
	return nil
}

// stop ends the part and waits for it; it reports whether it ended within the limit.
func (p *part) stop(limit time.Duration) bool {
	p.cancel(errStopping)
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.done:
		return true
	case <-timer.C:
		return false
	}
}

// stop ends all parts, the last one first, and returns the names of those that did not end in time. It is called once.
func (s *stack) stop(limit time.Duration) (late []string) {
	close(s.stopped)
	deadline := time.Now().Add(limit)
	for i := len(s.parts) - 1; i >= 0; i-- {
		if !s.parts[i].stop(time.Until(deadline)) {
			late = append(late, s.parts[i].name)
		}
	}
	return late
}
