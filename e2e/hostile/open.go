package hostile

import (
	"context"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/e2e/nfs"
)

// open opens connections as fast as one thread can, makes a call on every other one, and forgets the oldest, without a word to
// the server, when it has Conns of them.
func open(ctx context.Context, c *campaign) error {
	to, err := netip.ParseAddrPort(c.Addr)
	if err != nil {
		return err
	}
	addr := &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	from := &unix.SockaddrInet4{}
	if c.From != "" {
		a, err := netip.ParseAddr(c.From)
		if err != nil {
			return err
		}
		from.Addr = a.As4()
	}
	null := nfs.AppendCall(nil, nfs.Call{XID: 1, Program: nfs.ProgramNFS, Version: 3})
	fds := make([]int, c.Conns)
	for i := range fds {
		fds[i] = -1
	}
	defer func() {
		for _, fd := range fds {
			forget(fd)
		}
	}()
	for i := 0; ctx.Err() == nil; i = (i + 1) % len(fds) {
		forget(fds[i])
		if fds[i], err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		// The port is chosen when it is known where to: there are as many as are free for that.
		err := errors.Join(unix.SetsockoptInt(fds[i], unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1), unix.Bind(fds[i], from))
		if err != nil {
			return err
		}
		if err := unix.Connect(fds[i], addr); errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EINTR) {
			continue // all ports of this host are in use, for now
		} else if err != nil && !closed(err) {
			return err
		}
		c.done.Add(1)
		if i%2 == 0 {
			_ = unix.Sendto(fds[i], null, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT, nil) // whoever is turned away is content too
		}
	}
	return nil
}

// forget closes a socket by a reset: in good order, this host would run out of ports.
func forget(fd int) {
	if fd < 0 {
		return
	}
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	_ = unix.Close(fd)
}
