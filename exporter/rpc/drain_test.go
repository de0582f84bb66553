package rpc

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"
)

// addr is a peer's address as the server sees it.
func (p peer) addr() netip.AddrPort { return addrPort(p.LocalAddr()) }

// Those chosen are closed when what they had asked is answered; the others do not notice.
func TestDisconnect(t *testing.T) {
	s, e, dial, _ := serving(t, nil)
	chosen, other, idle := dial(), dial(), dial()
	chosen.send(call(1, echoLater, opaque("last words")...))
	<-e.began
	other.send(call(1, echoNull))
	other.accepted(other.recv(), 1, acceptSuccess)
	began := time.Now()
	gone := make(chan int, 1)
	go func() {
		gone <- s.Disconnect(context.Background(), func(remote netip.AddrPort, accepted time.Time) bool {
			return remote != other.addr() && accepted.Before(began)
		})
	}()
	idle.closed()
	idle.Close()
	e.let <- struct{}{}
	if got := chosen.accepted(chosen.recv(), 1, acceptSuccess); !bytes.Equal(got, opaque("last words")) {
		t.Errorf("echo % x", got)
	}
	chosen.closed()
	chosen.Close()
	if n := <-gone; n != 2 {
		t.Errorf("%d were disconnected, want 2", n)
	}
	other.send(call(2, echoNull))
	other.accepted(other.recv(), 2, acceptSuccess)
	again := dial()
	again.send(call(1, echoNull))
	again.accepted(again.recv(), 1, acceptSuccess)
	if n := s.Disconnect(context.Background(), func(netip.AddrPort, time.Time) bool { return false }); n != 0 {
		t.Errorf("%d were disconnected though none was meant", n)
	}
}

// From a connection that is to go nothing more is read, even when it sends on without a pause.
func TestDisconnectStopsReading(t *testing.T) {
	s, _, dial, _ := serving(t, nil)
	p := dial()
	p.send(call(1, echoNull))
	p.accepted(p.recv(), 1, acceptSuccess)
	stop := make(chan struct{})
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for b := record(call(2, echoNull), 0); ; {
			if _, err := p.Write(b); err != nil {
				return
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	go func() { // takes the replies, so that it is not for want of that that nothing is read
		b := make([]byte, 64<<10)
		for {
			if _, err := p.Read(b); err != nil {
				return
			}
		}
	}()
	if n := s.Disconnect(context.Background(), func(netip.AddrPort, time.Time) bool { return true }); n != 1 {
		t.Errorf("%d were disconnected", n)
	}
	close(stop)
	<-sent
	if n := s.Stats().Conns; n != 0 {
		t.Errorf("%d connections are open", n)
	}
}

// A call that hangs does not hold Disconnect up for ever, nor longer than its context.
func TestDisconnectDespiteACallThatHangs(t *testing.T) {
	all := func(netip.AddrPort, time.Time) bool { return true }
	s, e, dial, _ := serving(t, func(c *Config) { c.DrainTimeout = 20 * time.Millisecond })
	p := dial()
	p.send(call(1, echoLater, opaque("x")...))
	<-e.began
	if n := s.Disconnect(context.Background(), all); n != 1 {
		t.Errorf("%d were disconnected", n)
	}
	p.closed()
	e.let <- struct{}{}

	s, e, dial, _ = serving(t, func(c *Config) { c.DrainTimeout = time.Hour })
	p = dial()
	p.send(call(1, echoLater, opaque("x")...))
	<-e.began
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s.Disconnect(ctx, all)
	p.closed()
	e.let <- struct{}{}
}

// Those that are parked at the gate are closed too, by Disconnect, and by the gate when it makes up its mind.
func TestParkedConnectionsAreClosed(t *testing.T) {
	verdict := make(chan error)
	parked := make(chan struct{}, 10)
	s, _, dial, _ := serving(t, func(c *Config) {
		c.Gate = gateFunc(func(ctx context.Context) error {
			parked <- struct{}{}
			select {
			case err := <-verdict:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	p := dial()
	p.send(call(1, echoNull))
	<-parked
	verdict <- errors.New("stepped down meanwhile")
	p.closed()

	q := dial()
	q.send(call(1, echoNull))
	<-parked
	// p has been closed, and may be counted still
	if n := s.Disconnect(context.Background(), func(remote netip.AddrPort, _ time.Time) bool { return remote == q.addr() }); n != 1 {
		t.Errorf("%d were disconnected", n)
	}
	q.closed()
}
