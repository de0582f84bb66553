package direct

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// aims are the writes of addresses under way: the kernel takes one when it is not connecting, and cannot be asked to
// forget it. There is one at most a transport, with its repetitions.
type aims struct {
	wg sync.WaitGroup

	mu    sync.Mutex // guards what follows
	under map[string]int
	ended []aimed
}

// aimed is the end of a write.
type aimed struct {
	id  string
	to  netip.Addr
	err error
}

// Linux takes the address under the transport's lock, and nobody wakes who waits for that but the end of an attempt to connect: a
// write that meets a call just being sent would wait until the connection is lost. The next one most likely meets none.
const (
	aimAgain = 5 * time.Millisecond
	aimsMost = 8
)

// begin writes an address, and reports whether it could begin.
func (a *aims) begin(sys System, id string, to netip.Addr) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.under[id] > 0 {
		return false
	}
	if a.under == nil {
		a.under = make(map[string]int)
	}
	a.under[id]++ // for the goroutine that repeats it
	done := make(chan error, aimsMost)
	write := func() {
		a.under[id]++
		a.wg.Go(func() {
			done <- sys.Aim(id, to)
			a.leave(id)
		})
	}
	write()
	a.wg.Go(func() {
		defer a.leave(id)
		again := time.NewTicker(aimAgain)
		defer again.Stop()
		for n := 1; ; n++ {
			select {
			case err := <-done:
				a.mu.Lock()
				defer a.mu.Unlock()
				a.ended = append(a.ended, aimed{id, to, err})
				return
			case <-again.C:
				if n < aimsMost {
					a.mu.Lock()
					write()
					a.mu.Unlock()
				}
			}
		}
	})
	return true
}

// leave counts a write, or the goroutine that repeats it, out.
func (a *aims) leave(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.under[id]--; a.under[id] <= 0 {
		delete(a.under, id)
	}
}

// collect returns the writes that have ended since it was last called.
func (a *aims) collect() []aimed {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := a.ended
	a.ended = nil
	return out
}

// wait waits for the writes under way, and not for ever: the kernel holds them back while it is connecting.
func (a *aims) wait() {
	done := make(chan struct{})
	go func() { a.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(changeTime):
	}
}

// change makes the present target the kernel's, until that is done, changeTime is over, or there is another.
func (d *Direct) change(ctx context.Context, aims *aims) {
	d.mu.Lock()
	to, turn, urgent := d.target, d.turn, d.urgent && (d.busy || d.result != nil)
	d.mu.Unlock()
	if !to.IsValid() {
		return
	}
	err := d.perform(ctx, aims, to, turn, urgent)
	if errors.Is(err, errOther) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.turn != turn {
		return
	}
	d.result = err
	if d.busy && d.urgent && err != nil { // a Move returns it; what settles later would say the same every second
		d.cfg.Logger.Error().Err(err).Stringer("to", to).Msg("cannot send the kernel to another master; trying again")
	}
	if d.busy {
		d.busy = false
		close(d.done)
		d.done = make(chan struct{})
	}
}

// errOther says that there is another target meanwhile, or none is wanted any more.
var errOther = errors.New("overtaken")

// perform does what a change wants.
func (d *Direct) perform(ctx context.Context, aims *aims, to netip.AddrPort, turn uint64, urgent bool) error {
	if to.Port() != d.cfg.Port {
		return errPort(d.cfg.Port)
	}
	breaker, breakErr := d.cfg.Kernel.choose()
	c := newChange(to, urgent, breaker != nil && breaker.First(), time.Now())
	cuts := cuts{breaker: breaker, caught: make(releases), broken: make(releases)}
	defer func() {
		if err := cuts.release(); err != nil {
			d.cfg.Logger.Error().Err(err).Msg("cannot undo what broke connections to a silent master")
		}
	}()
	problem := breakErr
	for {
		if err := c.heed(aims.collect()); err != nil {
			problem = err
		}
		ours, sockets, err := d.picture()
		if err != nil {
			return err
		}
		do := c.look(time.Now(), ours, sockets)
		switch {
		case do.done:
			return nil
		case time.Since(c.began) >= changeTime:
			return fmt.Errorf("the kernel is not connected to %s after %s: %w", to, changeTime, cmp.Or(problem, errSlow))
		}
		err = cuts.catch(do.catch)
		c.aimed(time.Now(), do.aim, func(id string) begun {
			switch {
			case err != nil: // without what catches its end, an address written now could leave a connection that nothing can break later
				return notBegun
			case !aims.begin(d.cfg.Kernel.sys, id, to.Addr()):
				return notYet
			}
			return begunNow
		})
		problem = cmp.Or(cuts.cut(do.cut), err, problem)
		d.logDeeds(c, do)
		if err := d.rest(ctx, turn); err != nil {
			return err
		}
	}
}

// errSlow is why a change is not done when nothing is known to be wrong.
var errSlow = errors.New("it is still trying")

// picture returns our transports, and the sockets that may be theirs.
func (d *Direct) picture() ([]Transport, []Socket, error) {
	d.mu.Lock()
	in := d.interest()
	d.mu.Unlock()
	ours, err := d.cfg.Kernel.transports(d, in)
	if err != nil {
		return nil, nil, err
	}
	d.mu.Lock()
	d.ours = ours
	d.mu.Unlock()
	sockets, err := d.cfg.Kernel.sys.Sockets(d.cfg.Port)
	if errors.Is(err, ErrUnsupported) {
		err = nil // then nothing is broken either
	}
	return ours, sockets, err
}

// rest waits until it is time for another look.
func (d *Direct) rest(ctx context.Context, turn uint64) error {
	timer := time.NewTimer(step)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return errOther
	case <-timer.C:
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.turn != turn {
		return errOther
	}
	return nil
}

// logDeeds says what was done.
func (d *Direct) logDeeds(c *change, do deeds) {
	if len(do.catch)+len(do.aim)+len(do.cut) > 0 {
		d.cfg.Logger.Debug().Stringer("to", c.to).Int("caught", len(do.catch)).Strs("aimed", do.aim).Int("cut", len(do.cut)).
			Dur("after", time.Since(c.began)).Msg("the kernel is sent to a master")
	}
}

// cuts are the connections that a change has broken.
type cuts struct {
	breaker        Breaker // nil: there is none
	caught, broken releases
}

// releases undo what was done, by peer.
type releases map[netip.AddrPort]func() error

// catch has the ends of connections break them.
func (c *cuts) catch(sockets []Socket) error {
	var problem error
	for _, s := range sockets {
		if c.breaker == nil || c.caught[s.Remote] != nil {
			continue
		}
		release, err := c.breaker.Catch(s)
		if err != nil {
			problem = fmt.Errorf("catch the end of the connection to %s: %w", s.Remote, err)
			continue
		}
		c.caught[s.Remote] = release
	}
	return problem
}

// cut breaks connections.
func (c *cuts) cut(sockets []Socket) error {
	var problem error
	for _, s := range sockets {
		if c.breaker == nil || c.breaker.First() && c.broken[s.Remote] != nil {
			continue
		}
		release, err := c.breaker.Break(s)
		if err != nil {
			problem = fmt.Errorf("break the connection to %s: %w", s.Remote, err)
			continue
		}
		c.broken[s.Remote] = release
	}
	return problem
}

// release undoes it.
func (c *cuts) release() error {
	var all []error
	for _, done := range []releases{c.broken, c.caught} {
		for _, release := range done {
			all = append(all, release())
		}
	}
	return errors.Join(all...)
}
