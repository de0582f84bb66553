package direct

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// from dials an address from a local port, which another connection may have too.
func from(t *testing.T, port uint16, to netip.AddrPort) (net.Conn, error) {
	t.Helper()
	local, err := net.ResolveTCPAddr("tcp", net.JoinHostPort("", strconv.Itoa(int(port))))
	if err != nil {
		t.Fatal(err)
	}
	d := net.Dialer{LocalAddr: local, Timeout: 3 * time.Second, Control: func(_, _ string, c syscall.RawConn) (err error) {
		if cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }); cerr != nil {
			return cerr
		}
		return err
	}}
	return d.DialContext(context.Background(), "tcp", to.String())
}

// host accepts connections at an address, and says its name on each.
func host(t *testing.T, at netip.AddrPort, name string) {
	t.Helper()
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for b := make([]byte, 1); ; {
					if _, err := c.Read(b); err != nil {
						return
					}
					c.Write([]byte(name)) //nolint:errcheck // it is missed then
				}
			}()
		}
	}()
}

// ask says who is at the other end of a connection.
func ask(t *testing.T, c net.Conn) string {
	t.Helper()
	c.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := c.Write([]byte("?")); err != nil {
		return err.Error()
	}
	b := make([]byte, 1)
	if _, err := c.Read(b); err != nil {
		return err.Error()
	}
	return string(b)
}

// A detour leads what comes from one local port elsewhere, whether anybody is at the old address or not, and nothing else; while it is
// there, the target can be reached from that port itself, too. Where detours are laid with a fence, the fence before the old address
// does not stop what is led elsewhere.
func TestDetoursOfLinux(t *testing.T) {
	inNamespace(t)
	for _, d := range (&Linux{}).Detourers() {
		for _, family := range []struct{ name, old, dead, target string }{
			{"IPv4", "127.0.0.2:2049", "127.0.0.3:2049", "127.0.0.4:2049"},
			{"IPv6", "[::2]:2049", "[::3]:2049", "[::4]:2049"},
		} {
			t.Run(d.Name()+" "+family.name, func(t *testing.T) {
				inNamespace(t)
				for _, a := range []string{"::2", "::3", "::4"} {
					addAddress(t, a)
				}
				old, dead, target := at(family.old), at(family.dead), at(family.target)
				host(t, old, "o")
				host(t, target, "t")
				for _, left := range []netip.AddrPort{old, dead} {
					const port = 777
					known(t, d, port, left)
					remove, err := d.Lay(Detour{Local: port, From: left, To: target})
					if errors.Is(err, ErrUnsupported) || errors.Is(err, os.ErrNotExist) {
						t.Skip(err)
					} else if err != nil {
						t.Fatal(err)
					}
					led, err := from(t, port, left)
					if err != nil {
						t.Fatalf("over the detour: %v", err)
					}
					if who := ask(t, led); who != "t" || led.RemoteAddr().String() != left.String() {
						t.Errorf("over the detour, %s answers as %s", who, led.RemoteAddr())
					}
					if c, err := from(t, port+1, left); left == old && (err != nil || ask(t, c) != "o") {
						t.Errorf("from another port: %v", err)
					} else if left == dead && !errors.Is(err, syscall.ECONNREFUSED) {
						t.Errorf("from another port to nobody: %v", err)
					}
					straight, err := from(t, port, target)
					if err != nil {
						t.Fatalf("to the target itself, from the same port: %v", err)
					}
					if who := ask(t, straight); who != "t" {
						t.Errorf("to the target itself, from the same port, %s answers", who)
					}
					if who := ask(t, led); who != "t" {
						t.Errorf("over the detour, later, %s answers", who)
					}
					led.(*net.TCPConn).SetLinger(0)
					led.Close()
					if err := remove(); err != nil {
						t.Error(err)
					}
					if who := ask(t, straight); who != "t" {
						t.Errorf("to the target itself, after the detour's end, %s answers", who)
					}
					straight.(*net.TCPConn).SetLinger(0)
					straight.Close()
					if c, err := from(t, port+2, left); left == old && (err != nil || ask(t, c) != "o") {
						t.Errorf("after the detour's end: %v", err)
					}
				}
			})
		}
	}
}

// addAddress gives the loopback interface another IPv6 address.
func addAddress(t *testing.T, addr string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	// struct in6_ifreq: the address, the length of its prefix, the interface
	req := append(netip.MustParseAddr(addr).AsSlice(), 128, 0, 0, 0, 1, 0, 0, 0)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFADDR, uintptr(unsafe.Pointer(&req[0]))); errno != 0 {
		t.Fatalf("give lo the address %s: %v", addr, errno)
	}
	until(t, 3*time.Second, func() bool {
		l, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
		if err == nil {
			l.Close()
		}
		return err == nil
	})
}

// known has connection tracking know of a connection from a port that is no more, if it is part of such detours.
func known(t *testing.T, d Detourer, port uint16, to netip.AddrPort) {
	t.Helper()
	remove, err := d.Lay(Detour{Local: port + 9, From: to, To: to})
	if err != nil {
		t.Skip(err)
	}
	c, err := from(t, port, to)
	if err == nil {
		ask(t, c)
	}
	if err := remove(); err != nil {
		t.Error(err)
	}
	if err == nil {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
}

// A detour that was left behind by a crash is removed by the next process; one of nftables leads nowhere before, soon.
func TestDetourIsNotLeft(t *testing.T) {
	old, target := at("127.0.0.2:2049"), at("127.0.0.4:2049")
	const port = 777
	for _, d := range []Detourer{&nftDetourer{lasts: time.Minute}, iptablesDetourer{}, &nftDetourer{lasts: 100 * time.Millisecond}} {
		t.Run(d.Name(), func(t *testing.T) {
			inNamespace(t)
			host(t, old, "o")
			host(t, target, "t")
			if err := d.Sweep(); err != nil {
				t.Errorf("nothing to sweep: %v", err)
			}
			remove, err := d.Lay(Detour{Local: port, From: old, To: target})
			if err != nil {
				t.Skip(err)
			}
			who := func() string {
				c, err := from(t, port, old)
				if err != nil {
					return err.Error()
				}
				defer c.Close()
				c.(*net.TCPConn).SetLinger(0)
				return ask(t, c)
			}
			if n, ok := d.(*nftDetourer); ok && n.lasts < time.Second {
				until(t, 5*time.Second, func() bool { return who() == "o" })
				return
			}
			if w := who(); w != "t" {
				t.Fatalf("over the detour, %s answers", w)
			}
			if err := d.Sweep(); err != nil {
				t.Fatal(err)
			}
			if w := who(); w != "o" {
				t.Errorf("after a sweep, %s answers", w)
			}
			if err := remove(); err != nil && d.Name() == "nftables" {
				t.Errorf("a detour that is not there any more cannot be removed: %v", err)
			}
		})
	}
}
