package direct

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// What linux/sock_diag.h and linux/inet_diag.h say.
const (
	diagByFamily = 20
	diagDestroy  = 21
	diagInfo     = 2  // INET_DIAG_INFO, the attribute that is a tcp_info
	diagMsgSize  = 72 // struct inet_diag_msg
	diagNoCookie = ^uint64(0)

	// Offsets in struct tcp_info.
	infoLastDataRecv  = 52
	infoBytesReceived = 128
)

// diagRequest is a struct inet_diag_req_v2.
func diagRequest(family uint8, states uint32, s Socket) []byte {
	b := make([]byte, 56)
	b[0], b[1], b[2] = family, unix.IPPROTO_TCP, 1<<(diagInfo-1)
	binary.NativeEndian.PutUint32(b[4:], states)
	binary.BigEndian.PutUint16(b[8:], s.Local.Port())
	binary.BigEndian.PutUint16(b[10:], s.Remote.Port())
	copy(b[12:28], s.Local.Addr().AsSlice())
	copy(b[28:44], s.Remote.Addr().AsSlice())
	binary.NativeEndian.PutUint64(b[48:], s.Cookie)
	return b
}

// diagAddr reads an address of a struct inet_diag_sockid.
func diagAddr(family uint8, b []byte) netip.Addr {
	if family == unix.AF_INET {
		return netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.AddrFrom16([16]byte(b[:16])).Unmap()
}

// parseSocket reads a struct inet_diag_msg and the attributes behind it.
func parseSocket(b []byte) (Socket, error) {
	if len(b) < diagMsgSize {
		return Socket{}, fmt.Errorf("inet_diag: %d bytes of a message", len(b))
	}
	s := Socket{
		Local:  netip.AddrPortFrom(diagAddr(b[0], b[8:24]), binary.BigEndian.Uint16(b[4:])),
		Remote: netip.AddrPortFrom(diagAddr(b[0], b[24:40]), binary.BigEndian.Uint16(b[6:])),
		State:  State(b[1]), Cookie: binary.NativeEndian.Uint64(b[44:]), family: b[0],
	}
	attrs, err := netlink.NewAttributeDecoder(b[diagMsgSize:])
	if err != nil {
		return s, fmt.Errorf("inet_diag: %w", err)
	}
	for attrs.Next() {
		if info := attrs.Bytes(); attrs.Type() == diagInfo && len(info) >= infoBytesReceived+8 {
			s.Silent = time.Duration(binary.NativeEndian.Uint32(info[infoLastDataRecv:])) * time.Millisecond
			s.Received = binary.NativeEndian.Uint64(info[infoBytesReceived:])
		}
	}
	return s, attrs.Err()
}

// diag asks sock_diag once.
func diag(kind uint16, flags netlink.HeaderFlags, request []byte) ([]netlink.Message, error) {
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	defer conn.Close()
	return conn.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | flags},
		Data:   request,
	})
}

// Sockets implements System.
func (l *Linux) Sockets(port uint16) ([]Socket, error) {
	const all = 1<<12 - 1
	want := Socket{Local: netip.AddrPortFrom(netip.Addr{}, 0), Remote: netip.AddrPortFrom(netip.Addr{}, port), Cookie: diagNoCookie}
	var out []Socket
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		msgs, err := diag(diagByFamily, netlink.Dump, diagRequest(family, all&^(1<<TimeWait), want))
		if errors.Is(err, syscall.ENOENT) {
			return nil, fmt.Errorf("inet_diag: %w (modules inet_diag and tcp_diag)", ErrUnsupported)
		}
		if err != nil {
			return nil, fmt.Errorf("list sockets: %w", err)
		}
		for _, m := range msgs {
			s, err := parseSocket(m.Data)
			if err != nil {
				return nil, err
			}
			if s.Remote.Port() == port {
				out = append(out, s)
			}
		}
	}
	return out, nil
}

// Socket implements System.
func (l *Linux) Socket(s Socket) (Socket, error) {
	msgs, err := diag(diagByFamily, 0, diagRequest(s.family, 0, s))
	if err != nil {
		return Socket{}, fmt.Errorf("look at a socket: %w", err)
	}
	if len(msgs) != 1 {
		return Socket{}, fmt.Errorf("look at a socket: %w", syscall.ENOENT)
	}
	return parseSocket(msgs[0].Data)
}

// destroyer breaks connections by SOCK_DESTROY, which takes a kernel with CONFIG_INET_DIAG_DESTROY: the big distributions'
// kernels have it. It leaves nothing behind, and touches nothing but the one socket.
type destroyer struct{}

func (destroyer) Name() string { return "sock_destroy" }
func (destroyer) First() bool  { return false }
func (destroyer) Sweep() error { return nil }

// Check asks for the destruction of a socket that cannot be.
func (destroyer) Check() error {
	none := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)
	err := destroySocket(Socket{Local: none, Remote: none, Cookie: diagNoCookie - 1, family: unix.AF_INET})
	switch {
	case errors.Is(err, syscall.EOPNOTSUPP):
		return fmt.Errorf("SOCK_DESTROY: %w (CONFIG_INET_DIAG_DESTROY)", ErrUnsupported)
	case err == nil, errors.Is(err, syscall.ENOENT):
		return nil
	}
	return fmt.Errorf("SOCK_DESTROY: %w", err)
}

// Catch does nothing: Break needs no help.
func (destroyer) Catch(Socket) (func() error, error) { return func() error { return nil }, nil }

// Break implements Breaker.
func (destroyer) Break(s Socket) (func() error, error) {
	nothing := func() error { return nil }
	if err := destroySocket(s); err != nil && !errors.Is(err, syscall.ENOENT) {
		return nothing, err
	}
	return nothing, nil
}

func destroySocket(s Socket) error {
	_, err := diag(diagDestroy, netlink.Acknowledge, diagRequest(s.family, 0, s))
	return err
}
