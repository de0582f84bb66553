package relay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Dialer makes connections to masters. The zero value binds each to a local port below 1024, which takes root or
// CAP_NET_BIND_SERVICE and which masters ask for; it is safe for concurrent use.
type Dialer struct {
	// Insecure takes any local port, for masters that allow it.
	Insecure bool
}

// Ports that connections are bound to: the range of the kernel's own NFS client, without ports that well-known services
// may want to listen at.
const (
	lowPort  = 665
	highPort = 1023
)

var spared = []int{749, 853, 873, 989, 990, 992, 993, 995}

// userTimeout is how long the system sends again what a master's host does not acknowledge.
const userTimeout = 3 * time.Second

// Dial connects to a master. It fails when ctx ends.
func (d Dialer) Dial(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	nd := net.Dialer{
		Control:         control,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: time.Second, Count: 3},
	}
	if d.Insecure {
		return dialTCP(ctx, nd, to)
	}
	for port := range LowPorts() {
		nd.LocalAddr = &net.TCPAddr{Port: port}
		conn, err := dialTCP(ctx, nd, to)
		if !errors.Is(err, syscall.EADDRINUSE) && !errors.Is(err, syscall.EADDRNOTAVAIL) {
			return conn, err
		}
	}
	return nil, fmt.Errorf("connect to %s: all local ports from %d to %d are taken", to, lowPort, highPort)
}

// LowPorts are the local ports that Dial takes, all of them once, beginning with any.
func LowPorts() iter.Seq[int] {
	return func(yield func(int) bool) {
		const span = highPort - lowPort + 1
		first := rand.IntN(span)
		for i := range span {
			port := lowPort + (first+i)%span
			if !slices.Contains(spared, port) && !yield(port) {
				return
			}
		}
	}
}

func dialTCP(ctx context.Context, nd net.Dialer, to netip.AddrPort) (*net.TCPConn, error) {
	conn, err := nd.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// control lets local ports be shared by connections to different masters, and never keeps a service from listening.
func control(_, _ string, raw syscall.RawConn) error {
	var err error
	if cerr := raw.Control(func(fd uintptr) {
		err = errors.Join(
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds())))
	}); cerr != nil {
		return cerr
	}
	return err
}

// reset closes a connection with RST: the kernel's NFS client comes back without a pause, and no local port is kept.
func reset(c *net.TCPConn) {
	c.SetLinger(0) //nolint:errcheck // closed all the same
	c.Close()      //nolint:errcheck // nothing is lost that matters
}

// try makes a NULL call over a new connection and waits for the reply: the master serves it, and does not only accept.
func try(ctx context.Context, c *net.TCPConn) error {
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(past) }) //nolint:errcheck // fails only when closed
	xid := rand.Uint32()
	call := make([]byte, 0, 44)
	for _, v := range [...]uint32{lastFragment | 40, xid, 0, 2, 100003, 3, 0, 0, 0, 0, 0} {
		call = binary.BigEndian.AppendUint32(call, v)
	}
	_, err := c.Write(call)
	reply := make([]byte, 28)
	if err == nil {
		_, err = io.ReadFull(c, reply)
	}
	switch {
	case !stop():
		return fmt.Errorf("NULL call: %w", context.Cause(ctx))
	case err != nil:
		return fmt.Errorf("NULL call: %w", err)
	case binary.BigEndian.Uint32(reply) != lastFragment|24 || binary.BigEndian.Uint32(reply[4:]) != xid:
		return errors.New("NULL call: the reply is none")
	}
	return nil
}

// past is a deadline that is over.
var past = time.Unix(1, 0)
