package rpc

import (
	"context"
	"errors"
	"net"
	"sync"
)

const (
	maxPacket = 64 << 10
	// packetWorkers is how many packets are answered at once; more wait in the socket, or are dropped there.
	packetWorkers = 8
)

// ServePacket answers the calls that come to pc, one a packet, until ctx ends, and closes pc. Calls are made with Blocking
// set. The error is nil unless pc failed.
func (s *Server) ServePacket(ctx context.Context, pc net.PacketConn) error {
	stop := context.AfterFunc(ctx, func() { pc.Close() })
	defer stop()
	defer pc.Close()
	var workers sync.WaitGroup
	var once sync.Once
	var failed error
	for range packetWorkers {
		workers.Go(func() {
			if err := s.packets(ctx, pc); err != nil {
				once.Do(func() { failed = err; pc.Close() })
			}
		})
	}
	workers.Wait()
	return failed
}

// packets is one worker's loop.
func (s *Server) packets(ctx context.Context, pc net.PacketConn) error {
	in := make([]byte, maxPacket)
	local := addrPort(pc.LocalAddr())
	c := Call{Blocking: true}
	for {
		n, from, err := pc.ReadFrom(in)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		c.Conn = &Conn{remote: addrPort(from), local: local}
		c.out = getBuffer(0)
		if s.respond(ctx, &c, in[:n]) == nil && len(c.out.b) <= maxPacket {
			// a datagram that cannot be sent is a datagram lost
			pc.WriteTo(c.out.b[markSize:], from) //nolint:errcheck
			s.stats.calls.Add(1)
			s.stats.moved(s.cfg.Observer, n, len(c.out.b)-markSize)
		}
		putBuffer(c.out)
		c.out = nil
	}
}
