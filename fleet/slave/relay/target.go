package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// moveTime is how long Move waits for the new master's connections.
const moveTime = 2 * time.Second

// ErrOvertaken says that the target was changed while a Move to another was being prepared.
var ErrOvertaken = errors.New("target was changed meanwhile")

// Hold keeps new connections waiting; those that are joined go on. It ends with the next Resume, Switch or Move.
func (r *Relay) Hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = true
}

// Resume ends a Hold, with the target that there is.
func (r *Relay) Resume() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.target.IsValid() {
		r.held = false
		r.announce()
	}
}

// Switch makes to the target and ends every connection with the old one at once. Switching to the target that there is
// makes all connections anew.
func (r *Relay) Switch(to netip.AddrPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.aim(to)
	for l := range r.links {
		if l.session != nil {
			l.session.kill()
		}
	}
}

// aim sets the target. r.mu is held.
func (r *Relay) aim(to netip.AddrPort) {
	r.target, r.held, r.heard = to, false, time.Time{}
	r.turn++
	r.announce()
}

func (r *Relay) announce() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// Move makes to the target without a loss: it makes the new connections first, and then ends the old ones between two
// replies. It returns when all have moved, or with an error and nothing changed.
func (r *Relay) Move(ctx context.Context, to netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, moveTime)
	defer cancel()
	r.mu.Lock()
	turn := r.turn
	ahead := make(map[*link]*net.TCPConn, len(r.links))
	for l := range r.links {
		ahead[l] = nil
	}
	r.mu.Unlock()
	if err := r.prepare(ctx, to, ahead); err != nil {
		return fmt.Errorf("move to %s: %w", to, err)
	}
	r.mu.Lock()
	if r.turn != turn {
		r.mu.Unlock()
		for _, c := range ahead {
			reset(c)
		}
		return fmt.Errorf("move to %s: %w", to, ErrOvertaken)
	}
	r.aim(to)
	var leaving []*session
	for l := range r.links {
		if c := ahead[l]; c != nil {
			l.next, l.nextTo = c, r.turn
			delete(ahead, l)
		}
		if l.session != nil {
			l.session.drain(r.drainTime)
			leaving = append(leaving, l.session)
		}
	}
	r.mu.Unlock()
	for _, c := range ahead { // their links are gone
		reset(c)
	}
	for _, s := range leaving {
		<-s.done // at most drainTime
	}
	return nil
}

// prepare makes a connection to a master for each link, and tries it.
func (r *Relay) prepare(ctx context.Context, to netip.AddrPort, ahead map[*link]*net.TCPConn) error {
	var mu sync.Mutex // guards ahead
	g, ctx := errgroup.WithContext(ctx)
	links := make([]*link, 0, len(ahead))
	for l := range ahead {
		links = append(links, l)
	}
	for _, l := range links {
		g.Go(func() error {
			c, err := r.cfg.Dialer.Dial(ctx, to)
			if err != nil {
				return err
			}
			mu.Lock()
			ahead[l] = c
			mu.Unlock()
			return try(ctx, c)
		})
	}
	err := g.Wait()
	if err != nil {
		for _, c := range ahead {
			if c != nil {
				reset(c)
			}
		}
	}
	return err
}
