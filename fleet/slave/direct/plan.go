package direct

import (
	"net/netip"
	"time"
)

// Times of a plan.
const (
	patience   = 500 * time.Millisecond // a master that is left as planned has so long to end its connections
	stuckAfter = 50 * time.Millisecond  // an aim that has not returned by then waits for a connection that will not come
	kickAfter  = 300 * time.Millisecond // a connection to the target that was silent for so long is made anew by a Switch
	reAim      = 100 * time.Millisecond // an address that was written and is not there is written again

	detourAfter  = 300 * time.Millisecond  // an aim that has not returned by then waits for an attempt to connect that is put off
	detourAnswer = 1500 * time.Millisecond // what has no answer over a detour by then, with a SYN sent again after 1 s, is not on it
)

// change is a change of target under way. It decides what to do; it is given what there is. It is not safe for concurrent
// use.
type change struct {
	to     netip.AddrPort
	urgent bool
	first  bool // what the aim makes the kernel send is to be caught
	began  time.Time
	looked bool

	from  map[string]netip.Addr // where transports were connected to
	aims  map[string]*aim       // by transport
	stale map[uint64]time.Time

	detours map[string]Detour // that are laid, by transport; they may lead to another target
	led     map[uint64]bool   // sockets that came up over a detour
}

// aim is that a transport was given the target's address, or is about to be.
type aim struct {
	at    time.Time // when it was begun, or first wanted while an earlier one is under way
	begun bool
	ended bool      // the kernel has taken it
	over  time.Time // when that was seen
}

// deeds is what a change wants done, in this order.
type deeds struct {
	catch []Socket
	aim   []string
	cut   []Socket
	done  bool

	detours map[string]Detour // those that are to be there, by transport; before all else
}

func newChange(to netip.AddrPort, urgent, first bool, now time.Time) *change {
	return &change{
		to: to, urgent: urgent, first: first, began: now,
		from: make(map[string]netip.Addr), aims: make(map[string]*aim), stale: make(map[uint64]time.Time),
		led: make(map[uint64]bool),
	}
}

// heed takes the ends of writes into account, and returns why the last one failed, if one did.
func (c *change) heed(ended []aimed) (err error) {
	for _, e := range ended {
		if a := c.aims[e.id]; a != nil && a.begun && e.to == c.to.Addr() {
			a.ended = true
		}
		if e.err != nil {
			err = e.err
		}
	}
	return err
}

// aimed takes into account that aims were begun, or not: then the next look wants them again. One that has to wait for an
// earlier one to end has its time nevertheless: that one may be what waits for a connection that will not come.
func (c *change) aimed(now time.Time, transports []string, begin func(id string) begun) {
	for _, id := range transports {
		switch begin(id) {
		case begunNow:
			c.aims[id].at, c.aims[id].begun = now, true
		case notBegun:
			delete(c.aims, id)
		case notYet:
		}
	}
}

// begun is what became of an aim that was to be begun.
type begun int

const (
	begunNow begun = iota
	notBegun       // for a reason that has to do with it
	notYet         // an earlier one of the same transport is under way
)

// look says what to do when transports and sockets are as given.
func (c *change) look(now time.Time, ours []Transport, sockets []Socket) deeds {
	d := deeds{done: true, detours: make(map[string]Detour)}
	for _, t := range ours {
		if _, ok := c.from[t.ID]; !ok {
			c.from[t.ID] = t.Addr.Addr()
		}
		s := c.socket(t, sockets)
		if s != nil {
			c.judge(now, t, *s)
		}
		a := c.aims[t.ID]
		if a == nil && (t.Addr.Addr() != c.to.Addr() || s != nil && c.isStale(*s)) ||
			a != nil && a.ended && t.Addr.Addr() != c.to.Addr() && now.Sub(a.at) >= reAim {
			a = &aim{at: now}
			c.aims[t.ID] = a
		}
		if a != nil && a.ended && a.over.IsZero() {
			a.over = now
		}
		if detour, ok := c.detour(now, t, s, a); ok {
			d.detours[t.ID] = detour
		}
		if a != nil && !a.begun {
			d.aim = append(d.aim, t.ID)
			if s != nil && c.first && c.urgent && c.isStale(*s) && !c.led[s.Cookie] {
				d.catch = append(d.catch, *s)
			}
		}
		if s != nil && c.mayCut(now, *s, a) {
			d.cut = append(d.cut, *s)
		}
		if a != nil && !a.ended || s != nil && c.isStale(*s) || t.Waiting > 0 && !t.Connected {
			d.done = false
		}
	}
	c.looked = true
	return d
}

// socket finds a transport's socket; nil: it has none.
func (c *change) socket(t Transport, sockets []Socket) *Socket {
	for i, s := range sockets {
		// The local port is not known when this process has never seen the transport connected. Then what leads to the old
		// master is taken for it: whatever else that is, it is as dead.
		old := t.LocalPort == 0 && s.Remote == netip.AddrPortFrom(c.from[t.ID], c.to.Port()) && s.Remote != c.to
		if s.of(t) || old {
			return &sockets[i]
		}
	}
	return nil
}

// judge finds out whether a transport's socket has to go.
func (c *change) judge(now time.Time, t Transport, s Socket) {
	if s.State == TimeWait || s.State == Closed || c.isStale(s) {
		return
	}
	elsewhere := s.Remote.Addr() != c.to.Addr()
	kick := !c.looked && c.urgent && t.Waiting > 0 && s.Silent >= kickAfter
	if elsewhere || kick {
		c.stale[s.Cookie] = now
		_, laid := c.detours[t.ID]
		c.led[s.Cookie] = laid && elsewhere
	}
}

// detour says whether a transport is to be led to the target, though it has not taken its address: the kernel has put an attempt to
// connect off, holds the address back until it has made it, and makes it where it was told last. What came up that way stays until the
// address is taken, and is given the time to end then.
func (c *change) detour(now time.Time, t Transport, s *Socket, a *aim) (Detour, bool) {
	laid, ok := c.detours[t.ID]
	up := s != nil && s.State != SynSent && s.State != Closed
	switch {
	case a == nil || t.LocalPort == 0:
		return Detour{}, false
	case a.ended:
		return laid, ok && up && c.led[s.Cookie] && now.Sub(a.over) < patience
	case t.Addr.Addr() == c.to.Addr(), !ok && (up || now.Sub(a.at) < detourAfter):
		return Detour{}, false
	}
	return Detour{Local: t.LocalPort, From: t.Addr, To: c.to}, true
}

func (c *change) isStale(s Socket) bool {
	_, ok := c.stale[s.Cookie]
	return ok && s.State != TimeWait && s.State != Closed
}

// mayCut says whether a socket is to be broken now. What goes first refuses new connections, too: not those to the target, nor
// those that the kernel makes to the old address until it has taken the new one, unless it is stuck with that; a refusal costs
// three seconds. Until then the end of the connection is caught.
func (c *change) mayCut(now time.Time, s Socket, a *aim) bool {
	if !c.isStale(s) || a == nil || c.first && s.Remote.Addr() == c.to.Addr() {
		return false
	}
	if c.led[s.Cookie] {
		if a.ended { // it ends as if the master were left as planned: it is the target
			return now.Sub(a.over) >= patience
		}
		return s.State != Established && now.Sub(c.stale[s.Cookie]) >= detourAnswer
	}
	wait := patience
	switch {
	case c.urgent && (c.first || !a.ended):
		wait = stuckAfter
	case c.urgent:
		wait = 0
	}
	return now.Sub(a.at) >= wait
}

// of says whether a socket is a transport's.
func (s Socket) of(t Transport) bool {
	return t.LocalPort != 0 && s.Local.Port() == t.LocalPort && s.Remote.Port() == t.Addr.Port()
}
