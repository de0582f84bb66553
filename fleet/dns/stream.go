package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	idleTimeout  = 10 * time.Second // until the whole of the next question has come
	writeTimeout = 2 * time.Second
	holdBack     = 20 * time.Millisecond // for a question over the rate
	lengthSize   = 2
)

// streams are the open TCP connections. The mutex guards all but max.
type streams struct {
	max    int
	mu     sync.Mutex
	open   map[*stream]struct{}
	closed bool
	wg     sync.WaitGroup
}

type stream struct {
	conn   net.Conn
	ctx    context.Context // ends with the connection, whoever closes it
	cancel context.CancelFunc
	last   time.Time // of its last question; guarded by streams.mu
}

func (c *stream) close() {
	c.cancel()
	_ = c.conn.Close()
}

// add takes in a connection, in the place of the longest idle one when there are too many; nil when no more are taken.
func (s *streams) add(ctx context.Context, conn net.Conn) *stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	if len(s.open) >= s.max {
		var idle *stream
		for c := range s.open {
			if idle == nil || c.last.Before(idle.last) {
				idle = c
			}
		}
		idle.close()
		delete(s.open, idle)
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &stream{conn, ctx, cancel, time.Now()}
	s.open[c] = struct{}{}
	s.wg.Add(1)
	return c
}

func (s *streams) touch(c *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.last = time.Now()
}

// remove closes a connection whose goroutine ends.
func (s *streams) remove(c *stream) {
	c.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
	s.wg.Done()
}

func (s *streams) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.open {
		c.close()
	}
}

func (s *streams) wait() { s.wg.Wait() }

func (s *streams) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

func (s *Server) serveTCP(ctx context.Context, l net.Listener) error {
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("dns: accept: %w", err)
		case err != nil: // out of descriptors, for a while
			s.c.Logger.Debug().Err(err).Msg("dns: accept")
			pause(ctx, retryAfterError)
			continue
		}
		c := s.streams.add(ctx, conn)
		if c == nil {
			_ = conn.Close()
			continue
		}
		go s.serveStream(c)
	}
}

// serveStream answers one connection's questions in order until it is closed, idle, or hostile.
func (s *Server) serveStream(c *stream) {
	defer s.streams.remove(c)
	from := addressOf(c.conn)
	buf := make([]byte, 512)
	for {
		_ = c.conn.SetReadDeadline(time.Now().Add(idleTimeout))
		if _, err := io.ReadFull(c.conn, buf[:lengthSize]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(buf))
		if n < headerSize || n > maxQuery {
			return
		}
		if n > len(buf) {
			buf = make([]byte, maxQuery)
		}
		if _, err := io.ReadFull(c.conn, buf[:n]); err != nil {
			return
		}
		s.streams.touch(c)
		s.tcp.Add(1)
		if !s.within(c.ctx, from) {
			return
		}
		reply := s.answer(buf[:n], TCP)
		if reply == nil {
			return
		}
		_ = c.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		out := net.Buffers{binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply}
		if _, err := out.WriteTo(c.conn); err != nil {
			return
		}
	}
}

// within holds a question back until its network's rate has room for it; false when ctx ends first.
func (s *Server) within(ctx context.Context, from netip.Addr) bool {
	if s.streamLimit.take(from, time.Now()) == grant {
		return true
	}
	s.limited.Add(1)
	for ctx.Err() == nil {
		pause(ctx, holdBack)
		if s.streamLimit.take(from, time.Now()) == grant {
			return true
		}
	}
	return false
}

// addressOf returns where a connection comes from; an address of no family when it has none.
func addressOf(conn net.Conn) netip.Addr {
	if a, is := conn.RemoteAddr().(*net.TCPAddr); is {
		return a.AddrPort().Addr()
	}
	return netip.Addr{}
}
