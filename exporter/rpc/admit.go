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
// for it; else the newest one of the origin that holds the most, unless that is c's own: whoever floods a server with
// connections turns himself away, not others. Turning away costs little: a flood is mostly that.
func (s *Server) admit(c *Conn, l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.listeners[l]; !ok {
		return false
	}
	if len(s.conns) >= s.cfg.MaxConns {
		o := s.silent(c.since)
		if o == nil {
			o = s.surplus(c)
		}
		if o == nil {
			return false
		}
		s.stats.refuse.Add(1)
		s.forget(o)
		o.cut()
	}
	s.conns[c] = l
	s.holds[origin(c)]++
	return true
}

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

// surplus returns the newest connection of the origin that holds the most; nil when c's own would then hold as many. s.mu is
// held.
func (s *Server) surplus(c *Conn) (newest *Conn) {
	own := s.holds[origin(c)]
	if 2*own >= len(s.conns) {
		return nil // nobody holds more
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
	for o := range s.conns {
		if origin(o) == most && (newest == nil || o.since.After(newest.since)) {
			newest = o
		}
	}
	return newest
}
