package rpc

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Drain makes every Serve return: no new connection is accepted, calls in flight are answered, connections are closed. It
// returns when that is done, or, when ctx ends first, after closing the connections under their calls, with ctx's error.
func (s *Server) Drain(ctx context.Context) error {
	s.mu.Lock()
	for l := range s.listeners {
		delete(s.listeners, l)
		l.Close()
	}
	conns := s.chosen(func(*Conn, net.Listener) bool { return true })
	s.mu.Unlock()
	return s.end(ctx, conns)
}

// Disconnect closes the connections that match names by their peer's address and the time when they were accepted, those
// parked at the gate too. They are read from no more, at once; the calls that were read are answered first, within
// DrainTimeout or until ctx ends. It returns how many there were, when all of them are closed. match must not block.
func (s *Server) Disconnect(ctx context.Context, match func(remote netip.AddrPort, accepted time.Time) bool) int {
	s.mu.Lock()
	conns := s.chosen(func(c *Conn, _ net.Listener) bool { return match(c.remote, c.since) })
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, s.cfg.DrainTimeout)
	defer cancel()
	_ = s.end(ctx, conns) // they are closed in any case
	return len(conns)
}

// chosen returns the connections that which names. s.mu is held.
func (s *Server) chosen(which func(*Conn, net.Listener) bool) (conns []*Conn) {
	for c, l := range s.conns {
		if which(c, l) {
			conns = append(conns, c)
		}
	}
	return conns
}

// end stops connections and waits for them to be gone. When ctx ends first they are closed under their calls, and its
// error is returned.
func (s *Server) end(ctx context.Context, conns []*Conn) error {
	for _, c := range conns {
		c.Stop()
	}
	for {
		left, gone := s.remaining(conns)
		if len(left) == 0 {
			return nil
		}
		conns = left
		select {
		case <-ctx.Done():
			var cuts sync.WaitGroup // side by side: one may wait for a write
			for _, c := range left {
				cuts.Go(c.cut)
			}
			cuts.Wait()
			return ctx.Err()
		case <-gone:
		}
	}
}

// remaining returns those of conns that have not gone, and what is closed when any connection has.
func (s *Server) remaining(conns []*Conn) (left []*Conn, gone <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range conns {
		if _, ok := s.conns[c]; ok {
			left = append(left, c)
		}
	}
	return left, s.gone
}
