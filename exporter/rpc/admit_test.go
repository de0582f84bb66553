package rpc

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// from opens a connection to the server that p is connected to, from another address of this host.
func (p peer) from(address string) peer {
	p.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	c, err := d.Dial("tcp", p.RemoteAddr().String())
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second)) //nolint:errcheck
	return peer{p.t, c}
}

// answers checks that the peer is served.
func (p peer) answers() {
	p.t.Helper()
	p.send(call(9, echoNull))
	p.accepted(p.recv(), 9, acceptSuccess)
}

// atRest waits until the server has n connections that owe nothing.
func atRest(t *testing.T, s *Server, n int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		idle := s.chosen(func(c *Conn, _ net.Listener) bool { return c.missed() == missedIdle })
		s.mu.Unlock()
		if len(idle) == n {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d connections are at rest, want %d", len(idle), n)
		}
	}
}

// Whoever fills a server with connections, which make calls, keeps nobody out but himself, and loses few to each. What became of
// a connection that made room shows when the server stops: it waits for all its goroutines.
func TestACrowdMakesRoomForOthers(t *testing.T) {
	s, _, dial, stop := serving(t, func(c *Config) { c.MaxConns = 4 })
	var crowd []peer
	for range 4 {
		p := dial()
		p.answers()
		crowd = append(crowd, p)
	}
	dial().closed()
	atRest(t, s, 4)
	other := crowd[0].from("127.0.0.2")
	other.answers()
	crowd[3].closed() // the newest
	dial().closed()
	crowd[0].from("127.0.0.2").closed() // has its few
	atRest(t, s, 4)
	third := crowd[0].from("127.0.0.3")
	third.answers()
	crowd[2].closed()
	for _, p := range []peer{crowd[0], crowd[1], other, third} {
		p.answers()
	}
	if st := s.Stats(); st.Conns != 4 || st.Refused != 5 {
		t.Errorf("stats %+v, want 4 connections, 5 refused", st)
	}
	if err := stop(); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// visitors makes connections for admit to choose from, from one address. They say nothing, to nobody.
func visitors(s *Server, address string, n int) []*Conn {
	all := make([]*Conn, n)
	for i := range all {
		all[i] = &Conn{srv: s, since: time.Now(), remote: netip.AddrPortFrom(netip.MustParseAddr(address), uint16(i+1))}
	}
	return all
}

// A stranger takes few connections from a crowd of good clients behind one address, however many he opens, and those first
// that are missed least.
func TestAStrangerTakesFewFromACrowd(t *testing.T) {
	s := New(Config{})
	s.listeners[nil] = struct{}{}
	crowd := visitors(s, "192.0.2.1", s.cfg.MaxConns)
	for i, c := range crowd {
		c.spoken.Store(i >= 4)
		if i < 10 {
			c.turn.Store(turnRest)
		}
		if out, ok := s.admit(c, nil); out != nil || !ok {
			t.Fatal("no room for the crowd")
		}
	}
	var taken []*Conn
	for _, c := range visitors(s, "192.0.2.2", 1000) {
		if out, ok := s.admit(c, nil); ok {
			taken = append(taken, out)
		}
	}
	if len(taken) != 16 {
		t.Fatalf("%d connections were taken, want 16 of %d", len(taken), s.cfg.MaxConns)
	}
	for i, out := range taken {
		want := missedWorking
		if i < 4 {
			want = missedNever
		} else if i < 10 {
			want = missedIdle
		}
		if out.missed() != want {
			t.Errorf("number %d is missed %d, want %d", i, out.missed(), want)
		}
	}
}

// Connections that made room and go on working count until they have ended.
func TestThoseWhoMakeRoomAreBounded(t *testing.T) {
	s := New(Config{})
	s.listeners[nil] = struct{}{}
	for _, c := range visitors(s, "192.0.2.1", s.cfg.MaxConns) {
		s.admit(c, nil)
	}
	var taken int
	for network := range 200 {
		for _, c := range visitors(s, netip.AddrFrom4([4]byte{198, 51, 100, byte(network)}).String(), 5) {
			if _, ok := s.admit(c, nil); ok {
				taken++
			}
		}
	}
	if want := s.cfg.MaxConns / 4; taken != want || s.leaving != want {
		t.Errorf("%d made room, %d count; want %d", taken, s.leaving, want)
	}
}

func TestOrigin(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "2001:db8:1:2:3::4": "2001:db8:1:2::", "fe80::1%eth0": "fe80::",
	} {
		c := &Conn{remote: netip.AddrPortFrom(netip.MustParseAddr(address), 1)}
		if got := origin(c); got != netip.MustParseAddr(want) {
			t.Errorf("%s counts as %v, want %s", address, got, want)
		}
	}
	if got := origin(&Conn{}); got.IsValid() {
		t.Errorf("no address counts as %v", got)
	}
}

// A peer that does not take its late replies is let go although its connection is at rest.
func TestLateRepliesThatNobodyTakes(t *testing.T) {
	s, e, dial, _ := serving(t, func(c *Config) { c.WriteTimeout = 100 * time.Millisecond })
	p := dial()
	payload := AppendOpaque(nil, bytes.Repeat([]byte("x"), 1<<20))
	for i := range uint32(12) {
		e.let <- struct{}{}
		if _, err := p.Write(record(call(i, echoLater, payload...), 0)); err != nil {
			break // it was let go already
		}
	}
	for end := time.Now().Add(10 * time.Second); s.Stats().Conns > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the connection is still there")
		}
	}
}

// processorTime is what this process has used.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A connection that breaks while its calls are under way costs nothing until they are answered.
func TestABrokenConnectionIsNoWork(t *testing.T) {
	_, e, dial, _ := serving(t, func(c *Config) { c.MaxInFlight = 1 })
	p := dial()
	p.answers()
	p.send(call(1, echoLater, opaque("a")...), call(2, echoLater, opaque("b")...))
	<-e.began
	p.Conn.(*net.TCPConn).SetLinger(0) //nolint:errcheck // shows below
	p.Close()
	dial().answers() // the loop has seen it
	const window = 400 * time.Millisecond
	used := processorTime(t)
	time.Sleep(window)
	if used = processorTime(t) - used; used > window/4 {
		t.Errorf("%v of processor time in %v, and nothing to do", used, window)
	}
	e.let <- struct{}{}
	e.let <- struct{}{}
}
