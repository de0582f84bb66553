package dns

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

func packed(t *testing.T, m *dns.Msg) []byte {
	t.Helper()
	wire, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return wire
}

// Many questions on one connection are answered in their order, however they are cut into segments.
func TestQuestionsOnOneConnection(t *testing.T) {
	s := serve(t, "127.0.0.1:0", Config{Zone: of(threeMasters())})
	c := s.dial(t)
	var all []byte
	for id := range 100 {
		q := question("prod.example", dns.TypeSOA)
		q.Id = uint16(id)
		if id == 50 { // a long one
			o := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
			o.Option = append(o.Option, &dns.EDNS0_PADDING{Padding: make([]byte, 3000)})
			q.Extra = append(q.Extra, o)
		}
		all = append(all, frame(packed(t, q))...)
	}
	go func() {
		for piece := range slices.Chunk(all, 7) {
			if _, err := c.Write(piece); err != nil {
				return // the reader tells
			}
		}
	}()
	for id := range 100 {
		b, err := readFrame(c)
		if err != nil {
			t.Fatal(err)
		}
		if got := binary.BigEndian.Uint16(b); int(got) != id {
			t.Fatalf("answer %d came when %d was due", got, id)
		}
	}
}

func TestHostileConnections(t *testing.T) {
	s := serve(t, "127.0.0.1:0", Config{Zone: of(threeMasters())})
	good := packed(t, question("prod.example", dns.TypeSOA))
	answer := slices.Clone(good)
	answer[2] |= bitResponse
	for name, bytes := range map[string][]byte{
		"an empty frame":       {0, 0},
		"a frame of one byte":  {0, 1, 0},
		"a frame of 65,535":    {0xFF, 0xFF},
		"an answer":            frame(answer),
		"something like HTTP":  []byte("GET / HTTP/1.1\r\n\r\n"),
		"half a frame, closed": frame(good)[:10],
	} {
		c := s.dial(t)
		if _, err := c.Write(bytes); err != nil {
			t.Fatal(err)
		}
		if name == "half a frame, closed" {
			_ = c.(*net.TCPConn).CloseWrite()
		}
		if b, err := readFrame(c); err == nil {
			t.Errorf("%s: answer %x", name, b)
		}
	}
}

// The connection that was idle longest makes room for a new one.
func TestConnectionsAreBounded(t *testing.T) {
	s := serve(t, "127.0.0.1:0", Config{Zone: of(threeMasters()), Connections: 3})
	good := frame(packed(t, question("prod.example", dns.TypeSOA)))
	talk := func(c net.Conn) error {
		if _, err := c.Write(good); err != nil {
			return err
		}
		_, err := readFrame(c)
		return err
	}
	var conns []net.Conn
	for range 3 {
		c := s.dial(t)
		if err := talk(c); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	if err := talk(conns[0]); err != nil {
		t.Fatal(err)
	}
	fourth := s.dial(t)
	if err := talk(fourth); err != nil {
		t.Fatal(err)
	}
	if _, err := readFrame(conns[1]); err == nil {
		t.Error("the connection that was idle longest is still open")
	}
	for i, c := range []net.Conn{conns[0], conns[2], fourth} {
		if err := talk(c); err != nil {
			t.Errorf("connection %d: %v", i, err)
		}
	}
	if n := s.Stats().Connections; n != 3 {
		t.Errorf("%d connections", n)
	}
}

// A connection that makes room while its question waits for the rate ends at once.
func TestWaitingConnectionsMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewServer(Config{Zone: of(threeMasters()), Connections: 1})
		for s.streamLimit.take(netip.Addr{}, time.Now()) == grant { // net.Pipe has no addresses
		}
		s.streamLimit.rate = 0
		here, there := net.Pipe()
		defer here.Close()
		ended := make(chan struct{})
		go func() {
			s.serveStream(s.streams.add(t.Context(), there))
			close(ended)
		}()
		if _, err := here.Write(frame(packed(t, question("prod.example", dns.TypeSOA)))); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		second, _ := net.Pipe()
		c := s.streams.add(t.Context(), second)
		<-ended
		s.streams.remove(c)
		if n := s.Stats(); n.Limited != 1 || n.Connections != 0 {
			t.Errorf("%+v", n)
		}
	})
}

func TestSlowConnectionsEnd(t *testing.T) {
	good := frame(packed(t, question("prod.example", dns.TypeSOA)))
	for name, c := range map[string]struct {
		send  func(net.Conn)
		after time.Duration
	}{
		"says nothing":           {func(net.Conn) {}, idleTimeout},
		"says half of it slowly": {func(c net.Conn) { dribble(c, good[:len(good)-1]) }, idleTimeout},
		"reads no answer":        {func(c net.Conn) { _, _ = c.Write(good) }, writeTimeout},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := NewServer(Config{Zone: of(threeMasters())})
			here, there := net.Pipe()
			defer here.Close()
			began, ended := time.Now(), make(chan time.Time, 1)
			go func() {
				s.serveStream(s.streams.add(t.Context(), there))
				ended <- time.Now()
			}()
			go c.send(here)
			if took := (<-ended).Sub(began); took != c.after {
				t.Errorf("%s: ended after %v, want %v", name, took, c.after)
			}
			if s.streams.count() != 0 {
				t.Errorf("%s: still counted", name)
			}
		})
	}
}

// dribble writes a byte every 200 ms.
func dribble(c net.Conn, b []byte) {
	for i := range b {
		if _, err := c.Write(b[i : i+1]); err != nil {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func TestTheEndClosesConnections(t *testing.T) {
	s := serve(t, "127.0.0.1:0", Config{Zone: of(threeMasters())})
	c := s.dial(t)
	good := frame(packed(t, question("prod.example", dns.TypeSOA)))
	if _, err := c.Write(good); err != nil {
		t.Fatal(err)
	}
	if _, err := readFrame(c); err != nil {
		t.Fatal(err)
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := readFrame(c); err == nil {
		t.Error("still open")
	}
	if s.streams.add(t.Context(), c) != nil {
		t.Error("a connection is taken after the end")
	}
}
