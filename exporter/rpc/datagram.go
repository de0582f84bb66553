package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// datagrams is a packet socket that answers from the address that was asked: on a host with several, the kernel's own
// choice may be another one, whose answer the client's socket does not let in.
type datagrams struct {
	pc    net.PacketConn
	udp   *net.UDPConn // pc, when it is one that tells where packets went to; else nil
	local netip.AddrPort
}

func newDatagrams(pc net.PacketConn) datagrams {
	d := datagrams{pc: pc, local: addrPort(pc.LocalAddr())}
	udp, ok := pc.(*net.UDPConn)
	if !ok || !d.local.Addr().IsUnspecified() {
		return d
	}
	raw, err := udp.SyscallConn()
	if err != nil {
		return d
	}
	var six, four error
	err = raw.Control(func(fd uintptr) {
		six = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		four = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	})
	if err == nil && (six == nil || four == nil) {
		d.udp = udp
	}
	return d
}

// ancillary has room for the control messages of both families; a worker has one, for the packet in hand.
type ancillary [128]byte

// read returns the length of the next packet, who sent it, and the address that it was sent to; source is to be given to
// write with the answer.
func (d *datagrams) read(p []byte, a *ancillary) (n int, from net.Addr, to netip.AddrPort, source []byte, err error) {
	if d.udp == nil {
		n, from, err = d.pc.ReadFrom(p)
		return n, from, d.local, nil, err
	}
	n, m, _, peer, err := d.udp.ReadMsgUDP(p, a[:])
	if err != nil {
		return 0, nil, d.local, nil, err
	}
	addr, source := sourceFor(a[:m])
	if addr.IsValid() {
		return n, peer, netip.AddrPortFrom(addr.Unmap(), d.local.Port()), source, nil
	}
	return n, peer, d.local, nil, nil
}

// write sends the answer to a packet; source is what read said of it. A datagram that cannot be sent is one that is lost.
func (d *datagrams) write(p []byte, to net.Addr, source []byte) {
	if peer, ok := to.(*net.UDPAddr); ok && d.udp != nil {
		_, _, _ = d.udp.WriteMsgUDP(p, source, peer)
		return
	}
	_, _ = d.pc.WriteTo(p, to)
}

// sourceFor finds in the control messages of a packet the address of this host that it was sent to, and makes them those
// of an answer that comes from there. It modifies oob. Without such an address, as for a multicast, the kernel chooses.
func sourceFor(oob []byte) (netip.Addr, []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.Addr{}, nil
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) == unix.SizeofInet4Pktinfo:
			// the interface, the address of this host, the destination as it was sent
			addr := netip.AddrFrom4([4]byte(m.Data[4:8]))
			if addr.IsUnspecified() { // it came before the socket was told to tell
				continue
			}
			return addr, unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: addr.As4()})
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) == unix.SizeofInet6Pktinfo:
			addr := netip.AddrFrom16([16]byte(m.Data[:16]))
			if addr.IsMulticast() || addr.IsUnspecified() {
				continue
			}
			info := unix.Inet6Pktinfo{Addr: addr.As16()}
			if addr.IsLinkLocalUnicast() { // means nothing without its interface
				info.Ifindex = binary.NativeEndian.Uint32(m.Data[16:])
			}
			return addr, unix.PktInfo6(&info)
		}
	}
	return netip.Addr{}, nil
}

// packets is one worker's loop.
func (s *Server) packets(ctx context.Context, d *datagrams) error {
	in := make([]byte, maxPacket)
	var a ancillary
	c := Call{Blocking: true}
	for {
		n, from, to, source, err := d.read(in, &a)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		c.Conn = &Conn{remote: addrPort(from), local: to}
		c.out = getBuffer(0)
		if s.respond(ctx, &c, in[:n]) == nil && len(c.out.b) <= maxPacket {
			d.write(c.out.b[markSize:], from, source)
			s.stats.calls.Add(1)
			s.stats.moved(s.cfg.Observer, n, len(c.out.b)-markSize)
		}
		putBuffer(c.out)
		c.out = nil
	}
}
