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
// forget it. There is one at most a transport, with its repetitions; those of earlier ones may still be asleep in the kernel.
type aims struct {
	wg sync.WaitGroup

	mu    sync.Mutex // guards what follows
	to    netip.Addr // what is written from now on
	under map[string]*writes
	ended []aimed
}

// writes are those of a transport that have not returned.
type writes struct {
	repeated bool // none of the latest has returned
	n        int
}

// aimed is the end of a write.
type aimed struct {
	id  string
	to  netip.Addr
	err error
}

// Linux takes the address under the transport's lock, and nobody wakes who waits for that but the end of an attempt to connect: a
// write that meets a call just being sent would wait until the connection is lost. The next one most likely meets none. When none of
// the first has returned, some more are tried while the transport is connected: over a detour, for example.
const (
	aimAgain   = 5 * time.Millisecond
	aimsFirst  = 8
	aimLater   = 50 * time.Millisecond
	aimsMost   = 16
	aimsAsleep = 64
)

// turn has all writes from now on be of an address, also those that repeat one that is under way.
func (a *aims) turn(to netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.to = to
}

// begin writes the address, and reports whether it could begin.
func (a *aims) begin(sys System, id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.under == nil {
		a.under = make(map[string]*writes)
	}
	w := a.under[id]
	if w == nil {
		w = &writes{}
		a.under[id] = w
	}
	if w.repeated || w.n > aimsAsleep-aimsMost {
		return false
	}
	w.repeated = true
	done := make(chan aimed, aimsMost)
	a.write(sys, id, done)
	a.wg.Go(func() { a.repeat(sys, id, done) })
	return true
}

// write writes the address once. a.mu is held.
func (a *aims) write(sys System, id string, done chan<- aimed) {
	w, to := a.under[id], a.to
	w.n++
	a.wg.Go(func() {
		done <- aimed{id, to, sys.Aim(id, to)}
		a.mu.Lock()
		defer a.mu.Unlock()
		w.n--
		a.tidy(id)
	})
}

// tidy forgets a transport that nothing is under way of. a.mu is held.
func (a *aims) tidy(id string) {
	if w := a.under[id]; w != nil && w.n == 0 && !w.repeated {
		delete(a.under, id)
	}
}

// repeat writes the address again and again until one of the writes has returned.
func (a *aims) repeat(sys System, id string, done chan aimed) {
	again := time.NewTicker(aimAgain)
	defer again.Stop()
	for n := 1; ; {
		select {
		case end := <-done:
			a.mu.Lock()
			defer a.mu.Unlock()
			a.ended = append(a.ended, end)
			a.under[id].repeated = false
			a.tidy(id)
			return
		case <-again.C:
			if n < aimsFirst || n < aimsMost && connected(sys, id) {
				a.mu.Lock()
				a.write(sys, id, done)
				a.mu.Unlock()
				n++
			}
			if n == aimsFirst {
				again.Reset(aimLater)
			}
		}
	}
}

// connected says whether a transport is.
func connected(sys System, id string) bool {
	t, err := sys.Transport(id)
	return err == nil && t.Connected
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

// underway is what outlasts the change that began it. It is Run's.
type underway struct {
	aims    aims
	detours detours
}

// change makes the present target the kernel's, until that is done, changeTime is over, or there is another.
func (d *Direct) change(ctx context.Context, under *underway) {
	d.mu.Lock()
	to, turn, urgent := d.target, d.turn, d.urgent && (d.busy || d.result != nil)
	d.mu.Unlock()
	if !to.IsValid() {
		return
	}
	err := d.perform(ctx, under, to, turn, urgent)
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
func (d *Direct) perform(ctx context.Context, under *underway, to netip.AddrPort, turn uint64, urgent bool) error {
	if to.Port() != d.cfg.Port {
		return errPort(d.cfg.Port)
	}
	breaker, breakErr := d.cfg.Kernel.choose()
	c := newChange(to, urgent, breaker != nil && breaker.First(), time.Now())
	aims, detours := &under.aims, &under.detours
	aims.turn(to.Addr())
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
		c.detours = detours.list()
		do := c.look(time.Now(), ours, sockets)
		if err := detours.keep(do.detours); err != nil {
			d.cfg.Logger.Warn().Err(err).Msg("cannot lead the kernel to a master before it knows the address, or no more")
		}
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
			case !aims.begin(d.cfg.Kernel.sys, id):
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
	if len(do.catch)+len(do.aim)+len(do.cut) > 0 || len(do.detours) != len(c.detours) {
		d.cfg.Logger.Debug().Stringer("to", c.to).Int("caught", len(do.catch)).Strs("aimed", do.aim).Int("cut", len(do.cut)).
			Int("detours", len(do.detours)).Dur("after", time.Since(c.began)).Msg("the kernel is sent to a master")
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
