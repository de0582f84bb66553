package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/fleet/trust"
)

func testRoutes(file string) *Routes {
	return OpenRoutes(RoutesConfig{
		Self: "m1", Own: "127.0.0.1:1", File: file, TLS: func(string) *tls.Config { return nil }, Logger: zerolog.Nop(),
	})
}

func TestRoutesAreKept(t *testing.T) {
	file := filepath.Join(t.TempDir(), "routes")
	r := testRoutes(file)
	if got := r.fallback(); !slices.Equal(got, []string{"http://127.0.0.1:1"}) {
		t.Errorf("knowing nothing: %v", got)
	}
	r.Set(map[string]string{"m1": "a:1", "m2": "b:1", "m3": "c:1", "m4": "d:1"})
	if got := r.fallback(); len(got) != 4 || got[0] != "http://127.0.0.1:1" {
		t.Errorf("knowing the roster: %v", got)
	}
	r.setVoters([]string{"m2", "m3", "m9"})
	again := testRoutes(file)
	got := again.fallback()
	if first := slices.Sorted(slices.Values(got[:2])); len(got) != 4 || !slices.Equal(first, []string{"http://m2", "http://m3"}) {
		t.Errorf("after a restart: %v", got)
	}
	if again.Peers()["m4"] != "d:1" {
		t.Errorf("peers after a restart: %v", again.Peers())
	}
	if !slices.Equal(again.Endpoints(), r.Endpoints()) || len(r.Endpoints()) != slots {
		t.Errorf("endpoints: %v", again.Endpoints())
	}
	if err := os.WriteFile(file, []byte("{damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := testRoutes(file).Peers(); len(got) > 0 {
		t.Errorf("of a damaged file: %v", got)
	}
}

// Masters go to the voters in orders of their own.
func TestRoutesSpread(t *testing.T) {
	peers := map[string]string{"v1": "1", "v2": "2", "v3": "3"}
	starts := map[string]int{}
	for _, self := range []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"} {
		r := testRoutes(filepath.Join(t.TempDir(), "routes"))
		r.cfg.Self = self
		r.Set(peers)
		r.setVoters([]string{"v1", "v2", "v3"})
		starts[r.fallback()[0]]++
	}
	if len(starts) != 3 {
		t.Errorf("first endpoints: %v", starts)
	}
}

// listener accepts connections, over TLS with the given settings if any, and hands them on.
func listener(t *testing.T, config *tls.Config) (address string, accepted chan net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address = l.Addr().String()
	if config != nil {
		l = tls.NewListener(l, config)
	}
	t.Cleanup(func() { l.Close() })
	accepted = make(chan net.Conn, 16)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if s, ok := c.(*tls.Conn); ok && s.HandshakeContext(context.Background()) != nil {
				c.Close()
				continue
			}
			accepted <- c
		}
	}()
	return address, accepted
}

// A connection to one of Endpoints ends when that stands for something else, and the next one goes there.
func TestRoutesPoint(t *testing.T) {
	credentials := testCredentials(t, "m2")
	own, atOwn := listener(t, nil)
	peer, atPeer := listener(t, credentials.ServerTLS(Protocol))
	r := testRoutes(filepath.Join(t.TempDir(), "routes"))
	r.cfg.Own, r.cfg.TLS = own, credentials.ClientTLS
	r.Set(map[string]string{"m2": peer})
	r.lead([]string{"http://" + own})
	address := strings.TrimPrefix(r.Endpoints()[1], "http://")
	conn, err := r.Dial(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	<-atOwn
	r.lead([]string{"http://" + own, "http://" + own})
	conn.SetReadDeadline(time.Now().Add(patience))
	r.lead([]string{"http://" + own, "http://m2"})
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the old connection: %v", err)
	}
	conn.Close()
	conn, err = r.Dial(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	<-atPeer
	conn.Close()
	if n := len(r.slots[1].conns); n > 0 {
		t.Errorf("%d closed connections are remembered", n)
	}
}

func TestRoutesRefuse(t *testing.T) {
	m2 := testCredentials(t, "m2")
	stranger := testCredentials(t, "m2")
	r := testRoutes(filepath.Join(t.TempDir(), "routes"))
	r.cfg.TLS = m2.ClientTLS
	noTunnel, _ := listener(t, m2.ServerTLS())
	otherFleet, _ := listener(t, stranger.ServerTLS(Protocol))
	otherMaster, _ := listener(t, m2.ServerTLS(Protocol))
	r.Set(map[string]string{"m2": noTunnel, "m3": otherMaster})
	for name, peers := range map[string]map[string]string{
		"unknown":          {},
		"without a tunnel": {"m2": noTunnel},
		"of another fleet": {"m2": otherFleet},
		"another master's": {"m3": otherMaster},
		"nobody listens":   {"m2": "127.0.0.1:1"},
	} {
		r.Set(peers)
		for _, master := range []string{"m2", "m3"} {
			if c, err := r.Dial(t.Context(), master); err == nil {
				if name != "another master's" || master == "m3" {
					t.Errorf("%s: connected to %s", name, master)
				}
				c.Close()
			}
		}
	}
}

func testCredentials(t *testing.T, name string) *trust.Credentials {
	t.Helper()
	f := newTestFleet(t)
	c, err := trust.NewCredentials(f.authority, name, "instance-of-"+name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
