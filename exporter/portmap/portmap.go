// Package portmap answers for port 111: portmap version 2 and rpcbind versions 3 and 4 (RFC 1833), so that a client that
// knows a host but no port finds NFS and MOUNT. It tells of a fixed set of services and takes no registrations (SET and
// UNSET answer false); it forwards no calls (CALLIT), for that is how port 111 gets abused. [Register] is the other way
// round: it tells the host's own rpcbind of our services.
package portmap

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
)

// Number, LowVersion and Version name the protocol to RPC; Port is where it is asked.
const (
	Number     = 100000
	LowVersion = 2
	Version    = 4
	Port       = 111
)

// Procedures. Up to procDump versions 2, 3 and 4 agree on what they are for.
const (
	procNull = iota
	procSet
	procUnset
	procGet // GETPORT of version 2, GETADDR of 3 and 4
	procDump
	procCall
	procGetTime
	procUaddr2Taddr
	procTaddr2Uaddr
	procGetVersAddr // from here version 4
	procIndirect
	procGetAddrList
)

// Protocol numbers of version 2.
const (
	protoTCP = 6
	protoUDP = 17
)

// Service is a version of a program that is answered somewhere.
type Service struct {
	Program, Version uint32
	Network          string         // "tcp" or "udp"
	Addr             netip.AddrPort // with an unspecified address: all of the host's, and for [::] those of IPv4 too
}

// endpoint is a service by one of the names of a network that RPC knows: tcp, tcp6, udp, udp6.
type endpoint struct {
	Service
	netid string
}

// Program answers port 111. It is an rpc.Program.
type Program struct{ all []endpoint }

// New returns a Program that tells of services.
func New(services []Service) *Program {
	p := &Program{}
	for _, s := range services {
		p.all = append(p.all, endpoints(s)...)
	}
	return p
}

// endpoints returns a service by each of its netids, IPv4 first.
func endpoints(s Service) []endpoint {
	a := s.Addr.Addr().Unmap()
	s.Addr = netip.AddrPortFrom(a, s.Addr.Port())
	if a.Is4() {
		return []endpoint{{s, s.Network}}
	}
	six := endpoint{s, s.Network + "6"}
	if !a.IsUnspecified() {
		return []endpoint{six}
	}
	s.Addr = netip.AddrPortFrom(netip.IPv4Unspecified(), s.Addr.Port())
	return []endpoint{{s, s.Network}, six}
}

// Number implements rpc.Program.
func (p *Program) Number() uint32 { return Number }

// Versions implements rpc.Program.
func (p *Program) Versions() (low, high uint32) { return LowVersion, Version }

// Append implements rpc.Program.
func (p *Program) Append(_ context.Context, c *rpc.Call, dst []byte) ([]byte, error) {
	switch c.Proc {
	case procNull:
		return dst, nil
	case procSet, procUnset:
		return rpc.AppendBool(dst, false), nil
	case procGet:
		if c.Vers == LowVersion {
			return p.getPort(c, dst)
		}
		return p.getAddr(c, dst, false)
	case procDump:
		if c.Vers == LowVersion {
			return p.dump2(dst), nil
		}
		return p.dump3(dst), nil
	}
	if c.Vers > LowVersion && c.Proc == procGetTime {
		return rpc.AppendUint32(dst, uint32(time.Now().Unix())), nil
	}
	if c.Vers == Version {
		switch c.Proc {
		case procGetVersAddr:
			return p.getAddr(c, dst, true)
		case procGetAddrList:
			return p.getAddrList(c, dst)
		}
	}
	return nil, rpc.ErrProcUnavail
}

// find returns the endpoint of a program on a network. Of another version, unless exact: the caller then learns from the
// program itself which versions there are.
func (p *Program) find(program, version uint32, netid string, exact bool) (endpoint, bool) {
	var other endpoint
	for _, e := range p.all {
		if e.Program != program || e.netid != netid {
			continue
		}
		if e.Version == version {
			return e, true
		}
		other = e
	}
	return other, other.netid != "" && !exact
}

// getPort answers GETPORT of version 2: 0 says there is no such service.
func (p *Program) getPort(c *rpc.Call, dst []byte) ([]byte, error) {
	d := rpc.NewDecoder(c.Args)
	program, version, proto := d.Uint32(), d.Uint32(), d.Uint32()
	d.Uint32() // the port, ignored
	if err := d.Err(); err != nil {
		return nil, err
	}
	netid := ""
	switch proto {
	case protoTCP:
		netid = "tcp"
	case protoUDP:
		netid = "udp"
	}
	e, ok := p.find(program, version, netid, false)
	if !ok {
		return rpc.AppendUint32(dst, 0), nil
	}
	return rpc.AppendUint32(dst, uint32(e.Addr.Port())), nil
}

// binding is an rpcb struct.
type binding struct {
	program, version   uint32
	netid, addr, owner string
}

// decodeBinding takes an rpcb.
func decodeBinding(args []byte) (b binding, err error) {
	d := rpc.NewDecoder(args)
	b.program, b.version = d.Uint32(), d.Uint32()
	b.netid = string(d.Opaque(len(args)))
	b.addr = string(d.Opaque(len(args)))
	b.owner = string(d.Opaque(len(args)))
	return b, d.Err()
}

// getAddr answers GETADDR and GETVERSADDR: an empty address says there is no such service.
func (p *Program) getAddr(c *rpc.Call, dst []byte, exact bool) ([]byte, error) {
	b, err := decodeBinding(c.Args)
	if err != nil {
		return nil, err
	}
	e, ok := p.find(b.program, b.version, b.netid, exact)
	if !ok {
		return rpc.AppendOpaque(dst, ""), nil
	}
	return rpc.AppendOpaque(dst, uaddr(e.reachable(c, b.addr))), nil
}

// reachable is the endpoint's address as the caller can use it: where it listens on all of the host's, the one that
// the caller reached, or says it reached, or that a packet to it would come from.
func (e *endpoint) reachable(c *rpc.Call, hint string) netip.AddrPort {
	if !e.Addr.Addr().IsUnspecified() || c.Conn == nil {
		return e.Addr
	}
	candidates := []netip.Addr{c.Conn.Local().Addr()}
	if a, ok := parseUaddr(hint); ok {
		candidates = append(candidates, a.Addr())
	}
	if remote := c.Conn.Remote(); remote.IsValid() {
		if probe, err := net.Dial("udp", remote.String()); err == nil { // sends nothing
			if local, ok := probe.LocalAddr().(*net.UDPAddr); ok {
				candidates = append(candidates, local.AddrPort().Addr().Unmap())
			}
			probe.Close()
		}
	}
	for _, a := range candidates {
		if a.IsValid() && !a.IsUnspecified() && a.Is4() == e.Addr.Addr().Is4() {
			return netip.AddrPortFrom(a, e.Addr.Port())
		}
	}
	return e.Addr
}

// uaddr writes an address as RFC 1833 does: the host, then the port's two bytes in decimal. A zone is this host's own name
// for an interface: it would make the address unreadable to others.
func uaddr(a netip.AddrPort) string {
	port := a.Port()
	return a.Addr().WithZone("").String() + "." + strconv.Itoa(int(port>>8)) + "." + strconv.Itoa(int(port&0xff))
}

// parseUaddr is the inverse of uaddr.
func parseUaddr(s string) (netip.AddrPort, bool) {
	rest, low, ok1 := cutLast(s)
	host, high, ok2 := cutLast(rest)
	a, err := netip.ParseAddr(host)
	return netip.AddrPortFrom(a, high<<8|low), ok1 && ok2 && err == nil
}

// cutLast cuts off what follows the last dot: a byte.
func cutLast(s string) (before string, b uint16, ok bool) {
	i := strings.LastIndexByte(s, '.')
	if i < 0 {
		return "", 0, false
	}
	n, err := strconv.ParseUint(s[i+1:], 10, 8)
	return s[:i], uint16(n), err == nil
}

// dump2 answers DUMP of version 2, which knows IPv4 only.
func (p *Program) dump2(dst []byte) []byte {
	for _, e := range p.all {
		proto := uint32(protoTCP)
		switch e.netid {
		case "udp":
			proto = protoUDP
		case "tcp":
		default:
			continue
		}
		dst = rpc.AppendBool(dst, true)
		for _, v := range [...]uint32{e.Program, e.Version, proto, uint32(e.Addr.Port())} {
			dst = rpc.AppendUint32(dst, v)
		}
	}
	return rpc.AppendBool(dst, false)
}

// dump3 answers DUMP of versions 3 and 4.
func (p *Program) dump3(dst []byte) []byte {
	for _, e := range p.all {
		dst = rpc.AppendBool(dst, true)
		dst = appendBinding(dst, binding{e.Program, e.Version, e.netid, uaddr(e.Addr), "superuser"})
	}
	return rpc.AppendBool(dst, false)
}

func appendBinding(dst []byte, b binding) []byte {
	dst = rpc.AppendUint32(dst, b.program)
	dst = rpc.AppendUint32(dst, b.version)
	dst = rpc.AppendOpaque(dst, b.netid)
	dst = rpc.AppendOpaque(dst, b.addr)
	return rpc.AppendOpaque(dst, b.owner)
}

// getAddrList answers GETADDRLIST: every way to reach a version of a program.
func (p *Program) getAddrList(c *rpc.Call, dst []byte) ([]byte, error) {
	b, err := decodeBinding(c.Args)
	if err != nil {
		return nil, err
	}
	const connected, datagram = 3, 1 // NC_TPI_COTS_ORD, NC_TPI_CLTS
	for _, e := range p.all {
		if e.Program != b.program || e.Version != b.version {
			continue
		}
		semantics, family := uint32(connected), "inet"
		if e.Network == "udp" {
			semantics = datagram
		}
		if e.Addr.Addr().Is6() {
			family = "inet6"
		}
		dst = rpc.AppendBool(dst, true)
		dst = rpc.AppendOpaque(dst, uaddr(e.reachable(c, b.addr)))
		dst = rpc.AppendOpaque(dst, e.netid)
		dst = rpc.AppendUint32(dst, semantics)
		dst = rpc.AppendOpaque(dst, family)
		dst = rpc.AppendOpaque(dst, e.Network)
	}
	return rpc.AppendBool(dst, false), nil
}
