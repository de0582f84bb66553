package direct

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// What linux/netfilter/nfnetlink_conntrack.h says.
const (
	ctDelete = 1<<8 | 2 // of the subsystem ctnetlink

	ctTupleOrig = 1 | netlink.Nested
	ctTupleIP   = 1 | netlink.Nested
	ctTupleTCP  = 2 | netlink.Nested
	ctProto     = 1
	ctFromPort  = 2
	ctToPort    = 3
)

// forget has connection tracking forget what it knows of the packets from a local port to a peer, so that it asks the rules of NAT
// about the next one.
func forget(local uint16, peer netip.AddrPort) error {
	from, err := sourceFor(peer)
	if err != nil {
		return err
	}
	request, err := forgetRequest(netip.AddrPortFrom(from, local), peer)
	if err != nil {
		return err
	}
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("ctnetlink: %w", err)
	}
	defer conn.Close()
	_, err = conn.Execute(netlink.Message{
		Header: netlink.Header{Type: ctDelete, Flags: netlink.Request | netlink.Acknowledge}, Data: request,
	})
	switch {
	case err == nil, errors.Is(err, syscall.ENOENT): // it knows of none
		return nil
	case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.EOPNOTSUPP): // no ctnetlink: what it may know it keeps
		return nil
	}
	return fmt.Errorf("ctnetlink: %w", err)
}

// forgetRequest is a struct nfgenmsg and the attributes that name a connection.
func forgetRequest(from, to netip.AddrPort) ([]byte, error) {
	family, ipFrom, ipTo := uint8(unix.AF_INET), uint16(1), uint16(2)
	if to.Addr().Is6() {
		family, ipFrom, ipTo = unix.AF_INET6, 3, 4
	}
	attrs := netlink.NewAttributeEncoder()
	attrs.ByteOrder = binary.BigEndian
	attrs.Nested(ctTupleOrig, func(tuple *netlink.AttributeEncoder) error {
		tuple.Nested(ctTupleIP, func(ip *netlink.AttributeEncoder) error {
			ip.Bytes(ipFrom, from.Addr().AsSlice())
			ip.Bytes(ipTo, to.Addr().AsSlice())
			return nil
		})
		tuple.Nested(ctTupleTCP, func(tcp *netlink.AttributeEncoder) error {
			tcp.Uint8(ctProto, unix.IPPROTO_TCP)
			tcp.Uint16(ctFromPort, from.Port())
			tcp.Uint16(ctToPort, to.Port())
			return nil
		})
		return nil
	})
	b, err := attrs.Encode()
	return append([]byte{family, unix.NFNETLINK_V0, 0, 0}, b...), err
}

// sourceFor is the address from which this host talks to a peer.
func sourceFor(peer netip.AddrPort) (netip.Addr, error) {
	conn, err := net.Dial("udp", peer.String()) // nothing is sent
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}
