package rpc

import "net/netip"

// Clients returns the addresses that have a connection open.
func (s *Server) Clients() map[netip.Addr]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[netip.Addr]bool, len(s.conns))
	for c := range s.conns {
		out[c.remote.Addr().Unmap()] = true
	}
	return out
}
