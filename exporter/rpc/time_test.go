package rpc

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener whose connections are net.Pipe's, so that time can be a test's own.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p pipes) Close() error {
	select {
	case <-p.done:
	default:
		close(p.done)
	}
	return nil
}

func (p pipes) Addr() net.Addr { return &net.UnixAddr{} }

// inBubble runs a test of a server with the usual limits under a time of its own.
func inBubble(t *testing.T, test func(t *testing.T, e *echo, dial func() peer)) {
	bubble(t, Config{}, test)
}

// bubble is inBubble for a server with other limits. Its programs are one echo.
func bubble(t *testing.T, cfg Config, test func(t *testing.T, e *echo, dial func() peer)) {
	synctest.Test(t, func(t *testing.T) {
		l := pipes{make(chan net.Conn), make(chan struct{})}
		e := newEcho()
		cfg.Programs = []Program{e}
		s := New(cfg)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Serve(ctx, l) }()
		test(t, e, func() peer {
			ours, theirs := net.Pipe()
			l.conns <- theirs
			t.Cleanup(func() { ours.Close() })
			return peer{t, ours}
		})
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

// ends checks that the server closes the connection in between two times from now.
func (p peer) ends(after, before time.Duration) {
	p.t.Helper()
	began := time.Now()
	p.closed()
	if took := time.Since(began); took < after || took > before {
		p.t.Errorf("closed after %v, want %v to %v", took, after, before)
	}
}

func TestIdleConnection(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *echo, dial func() peer) {
		p := dial()
		// Linux keeps a connection for 5 minutes without a call
		for i := range uint32(5) {
			time.Sleep(5*time.Minute + 10*time.Second)
			p.send(call(i, echoNull))
			p.accepted(p.recv(), i, acceptSuccess)
		}
		p.ends(8*time.Minute, 10*time.Minute)
	})
}

func TestIdleConnectionThatNeverCalled(t *testing.T) {
	inBubble(t, func(_ *testing.T, _ *echo, dial func() peer) { dial().ends(8*time.Minute, 10*time.Minute) })
}

func TestOneByteASecond(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *echo, dial func() peer) {
		p := dial()
		p.send(call(1, echoNull))
		p.recv()
		time.Sleep(time.Minute)
		began := time.Now()
		for _, b := range record(call(2, echoBytes, opaque("a byte at a time")...), 0) {
			if _, err := p.Write([]byte{b}); err != nil {
				break
			}
			time.Sleep(time.Second)
		}
		if took := time.Since(began); took < 29*time.Second || took > 32*time.Second {
			t.Errorf("closed after %v, want about 30 s", took)
		}
	})
}

// A record in parts, each in time, is served; the clock starts anew with the next.
func TestSlowButSteadyRecords(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *echo, dial func() peer) {
		p := dial()
		for i := range uint32(4) {
			wire := record(call(i, echoNull), 0)
			p.Write(wire[:9]) //nolint:errcheck
			time.Sleep(20 * time.Second)
			p.Write(wire[9:]) //nolint:errcheck
			p.accepted(p.recv(), i, acceptSuccess)
		}
		p.ends(8*time.Minute, 10*time.Minute)
	})
}

// A client that always has the beginning of its next call on its way is not slow, however long it goes on.
func TestRecordsThatOverlap(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *echo, dial func() peer) {
		p := dial()
		wire := record(call(0, echoNull), 0)
		p.Write(wire[:9]) //nolint:errcheck
		for i := range uint32(12) {
			time.Sleep(10 * time.Second)
			next := record(call(i+1, echoNull), 0)
			p.Write(append(wire[9:len(wire):len(wire)], next[:9]...)) //nolint:errcheck
			p.accepted(p.recv(), i, acceptSuccess)
			wire = next
		}
		p.ends(25*time.Second, 31*time.Second) // and then the last record does not come
	})
}

func TestPeerThatNeverReads(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *echo, dial func() peer) {
		p := dial()
		p.send(call(1, echoNull))
		time.Sleep(31 * time.Second) // a pipe holds nothing: the reply is stuck
		p.closed()
	})
}

// A late reply that nobody takes ends the connection and gives the worker back.
func TestPeerThatNeverReadsLateReplies(t *testing.T) {
	inBubble(t, func(t *testing.T, e *echo, dial func() peer) {
		p := dial()
		p.send(call(1, echoLater, opaque("x")...))
		e.let <- struct{}{}
		time.Sleep(31 * time.Second)
		p.closed()
	})
}

// A newcomer takes the place of a connection that has never made a call, not of one that has.
func TestSilentConnectionMakesRoom(t *testing.T) {
	t.Run("after a call", func(t *testing.T) { silentMakesRoom(t, call(1, echoNull)) })
	t.Run("after a late reply", func(t *testing.T) { silentMakesRoom(t, call(1, echoLater, opaque("x")...)) })
}

func silentMakesRoom(t *testing.T, first []byte) {
	bubble(t, Config{MaxConns: 2}, func(t *testing.T, e *echo, dial func() peer) {
		speaks, silent := dial(), dial()
		speaks.send(first)
		e.let <- struct{}{}
		speaks.recv()
		dial().closed() // silent has not had its second
		time.Sleep(2 * time.Second)
		newcomer := dial()
		silent.closed()
		for _, p := range []peer{newcomer, speaks} {
			p.send(call(2, echoNull))
			p.accepted(p.recv(), 2, acceptSuccess)
		}
		time.Sleep(2 * time.Second)
		dial().closed()
	})
}

// A connection that is kept waiting cannot be heard: it is not silent, however long that takes.
func TestWhoWaitsAtTheGateIsNotSilent(t *testing.T) {
	var open chan struct{} // made in the bubble
	gate := gateFunc(func(context.Context) error { <-open; return nil })
	bubble(t, Config{MaxConns: 1, Gate: gate}, func(t *testing.T, _ *echo, dial func() peer) {
		open = make(chan struct{})
		p := dial()
		time.Sleep(5 * time.Second)
		dial().closed()
		close(open)
		p.answers()
	})
}
