package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lans numbers the LANs of this run.
var lans atomic.Int32

// LAN is a bridge in a network namespace of its own, with hosts plugged in. Addresses are 10.77.0.0/24.
type LAN struct {
	bridge *Host // the namespace that holds the bridge and every host's end of its cable
	prefix string
	hosts  []*Host
	slaves int
}

// Host is a network namespace with an address on a LAN. The nil Host is this machine.
type Host struct {
	Addr string // its address on the LAN
	ns   string
	link string // its cable's end in the bridge's namespace
	lan  *LAN
}

// NewLAN makes an empty LAN; it needs root and goes away with the test.
func NewLAN(t testing.TB) *LAN {
	t.Helper()
	needRoot(t)
	l := &LAN{prefix: fmt.Sprintf("%s.%d.", theRun.id, lans.Add(1))}
	l.bridge = l.namespace(t, "lan")
	ip(t, "-n", l.bridge.ns, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
	ip(t, "-n", l.bridge.ns, "link", "set", "br0", "up")
	return l
}

func (l *LAN) namespace(t testing.TB, name string) *Host {
	t.Helper()
	h := &Host{ns: l.prefix + name, lan: l}
	ip(t, "netns", "add", h.ns)
	t.Cleanup(func() { exec.Command("ip", "netns", "delete", h.ns).Run() })
	ip(t, "-n", h.ns, "link", "set", "lo", "up")
	return h
}

// Host plugs a new host in; the first one is 10.77.0.1.
func (l *LAN) Host(t testing.TB, name string) *Host {
	t.Helper()
	h := l.namespace(t, name)
	l.hosts = append(l.hosts, h)
	h.Addr, h.link = fmt.Sprintf("10.77.0.%d", len(l.hosts)), name
	ip(t, "link", "add", "name", h.link, "netns", l.bridge.ns, "type", "veth", "peer", "name", "eth0", "netns", h.ns)
	ip(t, "-n", l.bridge.ns, "link", "set", h.link, "master", "br0", "up")
	ip(t, "-n", h.ns, "addr", "add", h.Addr+"/24", "dev", "eth0")
	ip(t, "-n", h.ns, "link", "set", "eth0", "up")
	return h
}

// tap adds a port for a virtual machine and returns its name and the address that the machine is to take.
func (l *LAN) tap(t testing.TB) (name, addr string) {
	t.Helper()
	name, addr = fmt.Sprintf("tap%d", l.slaves), fmt.Sprintf("10.77.0.%d", 100+l.slaves)
	l.slaves++
	ip(t, "-n", l.bridge.ns, "tuntap", "add", name, "mode", "tap")
	ip(t, "-n", l.bridge.ns, "link", "set", name, "master", "br0", "up")
	return name, addr
}

// Cut pulls the host's cable, both ways; Mend plugs it in again.
func (h *Host) Cut(t testing.TB) {
	t.Helper()
	ip(t, "-n", h.lan.bridge.ns, "link", "set", h.link, "down")
}

// Mend undoes Cut.
func (h *Host) Mend(t testing.TB) {
	t.Helper()
	ip(t, "-n", h.lan.bridge.ns, "link", "set", h.link, "up")
}

// argv is the command line that runs argv on h.
func (h *Host) argv(argv []string) []string {
	if h == nil {
		return argv
	}
	return append([]string{"ip", "netns", "exec", h.ns}, argv...)
}

// dial connects from h: a socket belongs for good to the namespace in which it was made.
func (h *Host) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: 5 * time.Second}
	if h == nil {
		return d.DialContext(ctx, network, addr)
	}
	type dialed struct {
		conn net.Conn
		err  error
	}
	result := make(chan dialed, 1)
	go func() {
		// The goroutine ends without unlocking: the thread that changed its namespace ends with it.
		runtime.LockOSThread()
		var r dialed
		if r.err = enter(h.ns); r.err == nil {
			r.conn, r.err = d.DialContext(ctx, network, addr)
		}
		result <- r
	}()
	r := <-result
	return r.conn, r.err
}

func enter(ns string) error {
	f, err := os.Open("/run/netns/" + ns)
	if err != nil {
		return fmt.Errorf("enter namespace: %w", err)
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter namespace %s: %w", ns, err)
	}
	return nil
}

// ip runs iproute2's ip.
func ip(t testing.TB, args ...string) {
	t.Helper()
	if r := runOn(t, nil, 20*time.Second, nil, append([]string{"ip"}, args...)...); r.Code != 0 {
		t.Fatalf("ip %q: %v", args, r)
	}
}

// LoseTo loses all that h sends to another host of the LAN, silently, and nothing of what it receives: its packets go to a
// network card that nobody has. ReachTo undoes it.
func (h *Host) LoseTo(t testing.TB, to *Host) {
	t.Helper()
	ip(t, "-n", h.ns, "neigh", "replace", to.Addr, "lladdr", "02:00:5e:00:00:01", "dev", "eth0", "nud", "permanent")
}

// ReachTo undoes LoseTo.
func (h *Host) ReachTo(t testing.TB, to *Host) {
	t.Helper()
	ip(t, "-n", h.ns, "neigh", "del", to.Addr, "dev", "eth0")
}
