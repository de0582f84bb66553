package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
)

// Config says what a Server answers from, and within which bounds.
type Config struct {
	// Zone returns the present picture of the fleet, nil when there is none yet. It does not block and may be called by
	// many goroutines at once.
	Zone   func() *Zone
	Logger zerolog.Logger
	// Rate is how many questions a second one network (IPv4 /24, IPv6 /56) may ask over UDP, and as many over TCP; twice as
	// many at once. Beyond, every other datagram is answered with "come back over TCP", the rest with nothing, and what
	// comes over TCP waits. Loopback has no bound. 0: 1,000.
	Rate int
	// Connections is how many TCP connections may be open; a further one takes the place of the one that was idle longest.
	// 0: 256.
	Connections int

	local bool // the rate bounds loopback too
}

// Stats counts what a server has done since it was made.
type Stats struct {
	UDP, TCP    uint64 // questions
	Limited     uint64 // of them over the rate of their network
	Unanswered  uint64 // of them that were no questions at all
	Faults      uint64 // of them whose answer ended in a bug
	Connections int    // open now
}

const (
	defaultRate        = 1000
	defaultConnections = 256
	maxQuery           = 4096 // bytes of a question in a datagram
	retryAfterError    = 50 * time.Millisecond
)

// Server answers on a UDP and a TCP socket.
type Server struct {
	c           Config
	limit       *limiter // of datagrams
	streamLimit *limiter
	streams     streams

	udp, tcp, limited, unanswered, faults atomic.Uint64
}

// NewServer returns a server that does not answer yet.
func NewServer(c Config) *Server {
	if c.Rate <= 0 {
		c.Rate = defaultRate
	}
	if c.Connections <= 0 {
		c.Connections = defaultConnections
	}
	return &Server{c: c, limit: newLimiter(c.Rate, c.local), streamLimit: newLimiter(c.Rate, c.local), streams: streams{max: c.Connections, open: map[*stream]struct{}{}}}
}

// Stats may be called at any time.
func (s *Server) Stats() Stats {
	return Stats{
		UDP: s.udp.Load(), TCP: s.tcp.Load(), Limited: s.limited.Load(), Unanswered: s.unanswered.Load(), Faults: s.faults.Load(),
		Connections: s.streams.count(),
	}
}

// Listen opens UDP and TCP on one port of a host:port; an empty host means every address, port 0 any free one.
func Listen(ctx context.Context, address string) (*net.UDPConn, net.Listener, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	var lc net.ListenConfig
	for try := 0; ; try++ {
		tcp, err := lc.Listen(ctx, "tcp", address)
		if err != nil {
			return nil, nil, fmt.Errorf("listen on %s: %w", address, err)
		}
		_, chosen, _ := net.SplitHostPort(tcp.Addr().String())
		udp, err := lc.ListenPacket(ctx, "udp", net.JoinHostPort(host, chosen))
		if err == nil {
			return udp.(*net.UDPConn), tcp, nil
		}
		_ = tcp.Close()
		if port != "0" || try == 9 { // somebody else may have the UDP port of a TCP port that was free
			return nil, nil, fmt.Errorf("listen on %s: %w", address, err)
		}
	}
}

// Serve answers until ctx ends; then it closes both sockets and all connections, waits for what is under way, and returns
// nil. An error means that a socket cannot be used any more. It is called once.
func (s *Server) Serve(ctx context.Context, udp *net.UDPConn, tcp net.Listener) error {
	if err := wantDestination(udp); err != nil {
		_, _ = udp.Close(), tcp.Close()
		return fmt.Errorf("dns: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error { return s.serveUDP(ctx, udp) })
	}
	g.Go(func() error { return s.serveTCP(ctx, tcp) })
	g.Go(func() error {
		<-ctx.Done()
		_, _ = udp.Close(), tcp.Close()
		s.streams.close()
		return nil
	})
	err := g.Wait()
	s.streams.wait()
	return err
}

// serveUDP answers datagrams one after the other: the answers are made from memory, so that more goroutines would only wait
// for each other, and what comes faster is dropped by the kernel.
func (s *Server) serveUDP(ctx context.Context, conn *net.UDPConn) error {
	query, control := make([]byte, maxQuery+1), make([]byte, controlSize)
	for {
		n, nc, _, from, err := conn.ReadMsgUDPAddrPort(query, control)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("dns: read: %w", err)
		case err != nil:
			s.c.Logger.Debug().Err(err).Msg("dns: read")
			pause(ctx, retryAfterError)
			continue
		case n > maxQuery:
			s.unanswered.Add(1)
			continue
		}
		s.udp.Add(1)
		var reply []byte
		switch s.limit.take(from.Addr(), time.Now()) {
		case grant:
			reply = s.answer(query[:n], UDP)
		case divert:
			s.limited.Add(1)
			reply = comeBack(query[:n])
		case refuse:
			s.limited.Add(1)
			continue
		}
		if reply != nil {
			// An error concerns this client alone: it asks again.
			_, _, _ = conn.WriteMsgUDPAddrPort(reply, fromDestination(control[:nc]), from)
		}
	}
}

// answer survives a bug: it costs the question that met it, not the files that this process serves.
func (s *Server) answer(query []byte, via Transport) (reply []byte) {
	defer func() {
		if v := recover(); v != nil {
			reply = nil
			if s.faults.Add(1) == 1 {
				s.c.Logger.Error().Interface("panic", v).Hex("question", query).Msg("dns: a question met a bug; it gets no answer")
			}
		}
	}()
	if reply = Answer(s.c.Zone(), query, via); reply == nil {
		s.unanswered.Add(1)
	}
	return reply
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// networkOf is what one client can make up addresses within.
func networkOf(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 56
	if a.Is4() {
		bits = 24
	}
	p, _ := a.Prefix(bits)
	return p
}
