package rpc

import (
	"net"
	"net/netip"
	"time"
)

// silence is how long a connection has for its first call before it may have to make room for a newcomer. What it says while it
// waits at the gate is not heard.
const silence = time.Second

// admit counts c in. When there are too many connections, one makes room that has never made a call, if it has had the time
// for it; else one of the origin that holds the most, if c's own holds next to none: whoever floods a server with connections
// turns himself away, and takes but a few from a crowd. The one that made room is out, and the caller's to cut: that may
// have to wait. Turning away costs little: a flood is mostly that.
func (s *Server) admit(c *Conn, l net.Listener) (out *Conn, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.listeners[l]; !ok {
		return nil, false
	}
	if len(s.conns) >= s.cfg.MaxConns {
		if s.leaving >= max(s.cfg.MaxConns/4, leavingLeast) {
			return nil, false
		}
		if out = s.silent(c.since); out == nil {
			out = s.surplus(c)
		}
		if out == nil {
			return nil, false
		}
		s.stats.refuse.Add(1)
		s.forget(out)
		out.evicted = true
		s.leaving++
	}
	s.conns[c] = l
	s.holds[origin(c)]++
	return out, true
}

// leavingLeast is how many connections that made room may always be there: they end soon, unless the disk does not answer.
const leavingLeast = 8

// forget counts c out, if it is counted in. s.mu is held.
func (s *Server) forget(c *Conn) {
	if _, ok := s.conns[c]; !ok {
		return
	}
	delete(s.conns, c)
	if s.holds[origin(c)]--; s.holds[origin(c)] == 0 {
		delete(s.holds, origin(c))
	}
}

// origin is what connections are counted by: an address, or the network of one in IPv6, of which a host has as many as it
// likes.
func origin(c *Conn) netip.Addr {
	a := c.remote.Addr()
	if a.Is6() {
		if p, err := a.WithZone("").Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// silent returns the connection that has been silent for the longest, if that is long enough; nil when there is none. It looks
// at all of them only when there may be one. s.mu is held.
func (s *Server) silent(now time.Time) (oldest *Conn) {
	if now.Before(s.barren) {
		return nil
	}
	for o := range s.conns {
		if !o.opened.IsZero() && !o.spoken.Load() && (oldest == nil || o.opened.Before(oldest.opened)) {
			oldest = o
		}
	}
	since := now // whoever comes, or passes the gate, is not older
	if oldest != nil {
		since = oldest.opened
	}
	if s.barren = since.Add(silence); now.After(s.barren) {
		s.barren = time.Time{}
		return oldest
	}
	return nil
}

// few is what an origin may take from one that holds more.
func (s *Server) few() int { return max(s.cfg.MaxConns/64, 1) }

// surplus returns the connection of the origin that holds the most which is missed the least, the newest of these; nil when
// c's own has few no more, or would then hold as many. A crowd may be a hundred good clients behind one address, so nobody
// takes more than a few from it. s.mu is held.
func (s *Server) surplus(c *Conn) (out *Conn) {
	own := s.holds[origin(c)]
	if own >= s.few() {
		return nil
	}
	var most netip.Addr
	for a, n := range s.holds {
		if n > s.holds[most] {
			most = a
		}
	}
	if s.holds[most] <= own+1 {
		return nil
	}
	least := missedWorking
	for o := range s.conns {
		if origin(o) != most {
			continue
		}
		if m := o.missed(); out == nil || m < least || m == least && o.since.After(out.since) {
			out, least = o, m
		}
	}
	return out
}

// missed is how much a peer loses with its connection.
type missed int

const (
	missedNever   missed = iota // it has not made a call
	missedIdle                  // none is under way
	missedWorking               // or so it seems
)

// missed may be called from any goroutine: it is a guess.
func (c *Conn) missed() missed {
	if !c.spoken.Load() {
		return missedNever
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending == 0 && c.turn.Load() == turnRest {
		return missedIdle
	}
	return missedWorking
}
