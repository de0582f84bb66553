package rpc

import (
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// congestion is how what a listener or a connection sends is controlled.
func congestion(t *testing.T, x any) (way string) {
	t.Helper()
	control(x, func(fd int) {
		var err error
		if way, err = unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION); err != nil {
			t.Skipf("the system does not tell: %v", err)
		}
	})
	return way
}

// Replies to this machine are not paced, those to others are as the administrator wants, and so are all where nothing is paced.
func TestOnlyPeersNearbyAreUnpaced(t *testing.T) {
	for _, way := range []string{"bbr", "cubic", "reno"} {
		t.Run(way, func(t *testing.T) { testPace(t, way) })
	}
}

func testPace(t *testing.T, standard string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	control(l, func(fd int) { err = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, standard) })
	if err != nil {
		t.Skipf("the system has not got it: %v", err)
	}
	near := standard
	if strings.HasPrefix(standard, paced) {
		near = unpaced
	}
	p := newPace(l)
	accept := func(from string) *Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		nc, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		conn := newConn(New(Config{}), nc)
		p.set(conn)
		return conn
	}
	if got := congestion(t, accept("127.0.0.1").nc); got != near {
		t.Errorf("from the same address: %s, want %s", got, near)
	}
	if got := congestion(t, accept("127.0.0.2").nc); got != standard {
		t.Errorf("from another address: %s, want %s", got, standard)
	}
}
