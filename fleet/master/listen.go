package master

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"github.com/nfs-fleet/nfs-fleet/exporter"
)

// listeners are a master's sockets. They are opened first, so that a port that is taken is said before anything else
// has happened.
type listeners struct {
	nfs, http  net.Listener
	peer       net.Listener
	dns        *dnsSockets    // nil: off, or not yet
	dnsLater   error          // why not yet
	portmapTCP net.Listener   // nil: off
	portmapUDP net.PacketConn // nil: off
}

func openListeners(c ListenConfig) (*listeners, error) {
	var l listeners
	var err error
	if l.nfs, err = listen("--listen-nfs", c.NFS); err == nil {
		l.http, err = listen("--listen-http", c.HTTP)
	}
	if err == nil {
		l.peer, err = listen("--listen-peer", c.Peer)
	}
	if err == nil {
		l.dns, l.dnsLater, err = listenDNS(c.DNS)
	}
	if err == nil && c.Portmap != PortmapOff {
		if l.portmapTCP, err = listen("--listen-portmap", c.Portmap); err == nil {
			l.portmapUDP, err = net.ListenPacket("udp", c.Portmap)
			err = explain("--listen-portmap", c.Portmap, err)
		}
	}
	if err != nil {
		l.close()
		return nil, err
	}
	return &l, nil
}

func listen(flag, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	return l, explain(flag, address, err)
}

// explain says what to do about an address that cannot be listened on.
func explain(flag, address string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("cannot listen on %s: the port is taken (another nfs-fleet, or the kernel's nfsd?): stop what uses it, or choose another address with %s", address, flag)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("cannot listen on %s: ports below 1024 need root or CAP_NET_BIND_SERVICE: choose another with %s", address, flag)
	}
	return fmt.Errorf("cannot listen on %s: %w; choose another address with %s", address, err, flag)
}

func (l *listeners) close() {
	l.dns.close()
	for _, c := range []interface{ Close() error }{l.nfs, l.http, l.peer, l.portmapTCP, l.portmapUDP} {
		if c != nil {
			c.Close() // closed by its server already, or never used
		}
	}
}

// advertised is the address that others reach this master by: the configured one, else the one it listens on, else the
// one that the way out of this host begins with, else the host's name.
func advertised(configured string, nfs net.Addr) string {
	if configured != "" {
		return configured
	}
	if ap, err := netip.ParseAddrPort(nfs.String()); err == nil && !ap.Addr().IsUnspecified() {
		return ap.Addr().String()
	}
	if a, ok := firstGlobalAddress(); ok {
		return a
	}
	host, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	return host
}

// firstGlobalAddress returns the first address of this host that is of use to others, IPv4 first.
func firstGlobalAddress() (string, bool) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "", false
	}
	six := ""
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		switch {
		case err != nil || !p.Addr().IsGlobalUnicast():
		case p.Addr().Is4():
			return p.Addr().String(), true
		case six == "":
			six = p.Addr().String()
		}
	}
	return six, six != ""
}

// startPortmap answers on port 111 when asked to.
func (m *Master) startPortmap(parts *stack, l *listeners) {
	if l.portmapTCP == nil {
		return
	}
	parts.start("portmap", func(ctx context.Context) error {
		return m.exporter.ServePortmap(ctx, l.portmapTCP, l.portmapUDP, exporter.Services(l.nfs.Addr(), nil)...)
	})
}

func portOf(a net.Addr) int { return int(netip.MustParseAddrPort(a.String()).Port()) }
