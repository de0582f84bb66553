// Package poll waits for what Go's own poller does not: exceptional conditions, and connections that somebody else accepts.
package poll

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Poller waits for events of one descriptor. It is used by one goroutine.
type Poller struct {
	fds  [2]unix.PollFd
	wake int
}

// New returns a poller for events (unix.POLLIN, …) of a descriptor, which its owner closes after the poller.
func New(fd uintptr, events int16) (*Poller, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("poll: %w", err)
	}
	return &Poller{[2]unix.PollFd{{Fd: int32(fd), Events: events}, {Fd: int32(wake), Events: unix.POLLIN}}, wake}, nil
}

// Wait returns nil when one of the events, an error or a hang-up is there, and ctx's cause when that has ended first. After the
// latter the poller cannot be used again. It occupies a thread.
func (p *Poller) Wait(ctx context.Context) error {
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		unix.Write(p.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) //nolint:errcheck // of eight bytes, which always succeeds
		close(ended)
	})
	defer func() {
		if !stop() {
			<-ended // it writes to wake, which is closed next
		}
	}()
	for {
		_, err := unix.Poll(p.fds[:], -1)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil:
			return nil
		case !errors.Is(err, unix.EINTR):
			return fmt.Errorf("poll: %w", err)
		}
	}
}

// Close frees the poller.
func (p *Poller) Close() error { return unix.Close(p.wake) }
