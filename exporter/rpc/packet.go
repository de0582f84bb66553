package rpc

import (
	"context"
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
	d := newDatagrams(pc)
	for range packetWorkers {
		workers.Go(func() {
			if err := s.packets(ctx, &d); err != nil {
				once.Do(func() { failed = err; pc.Close() })
			}
		})
	}
	workers.Wait()
	return failed
}
