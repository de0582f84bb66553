package dns

import (
	"encoding/binary"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// A host with several addresses must answer a datagram from the address that it was sent to. The kernel tells that address in
// a control message, and takes it in the same form when the answer is sent.

// controlSize is enough for one such control message of either family.
var controlSize = unix.CmsgSpace(max(unix.SizeofInet4Pktinfo, unix.SizeofInet6Pktinfo))

// wantDestination makes the kernel tell where each datagram was sent to.
func wantDestination(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		// On a socket of both families this speaks of IPv4 too, with mapped addresses.
		if failed = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1); failed != nil {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_PKTINFO, 1)
		}
	})
	if err != nil {
		return err
	}
	return failed
}

// fromDestination turns the control message of a question into that of its answer, in place; nil when there is none.
func fromDestination(control []byte) []byte {
	header, data, _, err := unix.ParseOneSocketControlMessage(control)
	if err != nil {
		return nil
	}
	switch {
	case header.Level == syscall.IPPROTO_IP && header.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
		// The interface is left to routing. The second field is the local address, also of a broadcast.
		binary.NativeEndian.PutUint32(data, 0)
	case header.Level == syscall.IPPROTO_IPV6 && header.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
		if !net.IP(data[:16]).IsLinkLocalUnicast() { // which means nothing without its interface
			binary.NativeEndian.PutUint32(data[16:], 0)
		}
	default:
		return nil
	}
	return control
}
