package rpc

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// Gate holds new connections back until they may be served.
type Gate interface {
	// Await returns nil when a connection may be served; an error closes it. It is called once a connection, from the
	// connection's goroutine.
	Await(ctx context.Context) error
}

// Config is what a Server needs. Zero limits become the defaults.
type Config struct {
	Programs []Program // the busiest first
	Log      zerolog.Logger
	Gate     Gate     // nil: every connection is served at once
	Observer Observer // may be nil

	MaxConns    int // open connections; 1024
	MaxRecord   int // bytes of a call; 1 MiB and 64 KiB
	MaxInFlight int // calls of one connection that workers have in hand; 64
	MaxLate     int // bytes that the replies to those may take, unless it is a single one; 4 MiB

	IdleTimeout   time.Duration // without a call; 10 minutes, twice the time after which Linux closes by itself
	RecordTimeout time.Duration // from a call's first byte to its last; 30 s
	WriteTimeout  time.Duration // for a peer to take a batch of replies; 30 s
	DrainTimeout  time.Duration // for calls in flight when Serve's context ends; 3 s
}

// withDefaults fills in what is zero.
func (c Config) withDefaults() Config {
	c.MaxConns = cmp.Or(c.MaxConns, 1024)
	c.MaxRecord = cmp.Or(c.MaxRecord, 1<<20+64<<10)
	c.MaxInFlight = cmp.Or(c.MaxInFlight, 64)
	c.MaxLate = cmp.Or(c.MaxLate, 4<<20)
	c.IdleTimeout = cmp.Or(c.IdleTimeout, 10*time.Minute)
	c.RecordTimeout = cmp.Or(c.RecordTimeout, 30*time.Second)
	c.WriteTimeout = cmp.Or(c.WriteTimeout, 30*time.Second)
	c.DrainTimeout = cmp.Or(c.DrainTimeout, 3*time.Second)
	return c
}

// Server answers RPC calls. Safe for concurrent use.
type Server struct {
	responder
	cfg   Config
	stats stats

	mu        sync.Mutex // guards what follows
	conns     map[*Conn]net.Listener
	holds     map[netip.Addr]int // how many of conns an origin has; see admit.go
	leaving   int                // connections that made room for others and have not ended: not in conns
	barren    time.Time          // until then no connection makes room for having been silent
	listeners map[net.Listener]struct{}
	gone      chan struct{} // closed, and made anew, when a connection has gone
}

// New returns a server; Serve and ServePacket make it answer.
func New(c Config) *Server {
	c = c.withDefaults()
	return &Server{responder: responder{programs: c.Programs, log: c.Log}, cfg: c,
		conns: make(map[*Conn]net.Listener), holds: make(map[netip.Addr]int), listeners: make(map[net.Listener]struct{}), gone: make(chan struct{})}
}

// Stats returns the present figures.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	n := len(s.conns)
	s.mu.Unlock()
	return Stats{Conns: n, InFlight: int(s.stats.inFlight.Load()), Calls: s.stats.calls.Load(),
		In: s.stats.in.Load(), Out: s.stats.out.Load(), Refused: s.stats.refuse.Load(),
		Spoiled: s.stats.spoiled.Load(), Lent: s.stats.lent.Load()}
}

// Serve answers the connections that l accepts until ctx ends or Drain is called, and closes l. Calls in flight then are
// answered, within DrainTimeout, before their connections are closed. The error is nil unless l failed.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	// calls outlive ctx by the drain
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	s.mu.Lock()
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var shared *loop
	defer func() { shared.close() }()
	var open sync.WaitGroup
	err := s.accept(ctx, work, l, &shared, &open)
	l.Close()

	patience, done := context.WithTimeout(work, s.cfg.DrainTimeout)
	defer done()
	s.mu.Lock()
	mine := s.chosen(func(_ *Conn, of net.Listener) bool { return of == l })
	s.mu.Unlock()
	_ = s.end(patience, mine) // the connections are closed all the same
	cancel(ErrDrained)
	open.Wait()
	return err
}

// accept runs until l is closed by its Serve's context or by Drain.
func (s *Server) accept(ctx, work context.Context, l net.Listener, shared **loop, open *sync.WaitGroup) error {
	pause, pace := time.Millisecond, newPace(l)
	for {
		nc, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				s.mu.Lock()
				delete(s.listeners, l)
				s.mu.Unlock()
				return nil
			}
			// out of descriptors, most often: others will be closed
			s.log.Warn().Err(err).Dur("pause", pause).Msg("cannot accept a connection")
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			pause = min(2*pause, time.Second)
			if pause == time.Second && !isTemporary(err) {
				return err
			}
			continue
		}
		pause = time.Millisecond
		c := newConn(s, nc)
		pace.set(c)
		if c.raw != nil && *shared == nil {
			*shared = newLoop(work, s)
		}
		c.loop = *shared
		out, ok := s.admit(c, l)
		if !ok {
			s.stats.refuse.Add(1)
			nc.Close()
			continue
		}
		if out != nil {
			open.Go(out.cut)
		}
		open.Go(func() { s.run(work, c) })
	}
}

func isTemporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

// run serves one connection.
func (s *Server) run(ctx context.Context, c *Conn) {
	defer func() {
		s.mu.Lock()
		s.forget(c)
		if c.evicted {
			s.leaving--
		}
		close(s.gone)
		s.gone = make(chan struct{})
		s.mu.Unlock()
	}()
	if err := s.await(ctx, c); err != nil {
		s.stats.refuse.Add(1)
		s.log.Debug().Stringer("client", c.remote).Err(err).Msg("connection closed at the gate")
		c.nc.Close()
		return
	}
	s.mu.Lock()
	c.opened = time.Now()
	s.mu.Unlock()
	err := c.serve(ctx)
	s.log.Debug().Stringer("client", c.remote).AnErr("cause", err).Msg("connection closed")
}

// await parks c at the gate.
func (s *Server) await(ctx context.Context, c *Conn) error {
	if s.cfg.Gate == nil {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.mu.Lock()
	c.release = cancel
	stopping := c.stopping
	c.mu.Unlock()
	if stopping {
		return errStopped
	}
	return s.cfg.Gate.Await(ctx)
}
