package relay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socket is a connection that the loop reads and writes by itself. Go's poller must not know of it: that would wake a
// thread for all that comes, to find that nobody waits there.
type socket struct {
	fd int

	// What the system said last, the loop's own: it tells changes only.
	readable, writable bool
	ending             bool // the peer has sent its last byte, or reset it: it stays readable until a read says so
	lowat              int  // bytes that make it readable
}

// nearBuffer is how much may be on its way to the kernel, which is near: what is more falls out of the processor's cache
// before it is taken. It also bounds the system's memory a connection.
const nearBuffer = 512 << 10

// tune prepares a listener for connections that never leave this host. They are not paced: where BBR is the default, the
// system would set a timer for every few packets of replies, which takes a third of the relay's time; there is nothing here
// that could be congested. The listener must be told, because pacing stays once it is on.
func tune(ln *net.TCPListener) error {
	raw, err := ln.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) {
		err = errors.Join(
			unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno"), // which every kernel has
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, nearBuffer))
	})
	return errors.Join(cerr, err)
}

// detach takes a connection away from Go's poller. c is of no use afterwards; it is reset when that fails.
func detach(c *net.TCPConn) (*socket, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		reset(c)
		return nil, err
	}
	s := &socket{lowat: 1}
	cerr := raw.Control(func(fd uintptr) { s.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(cerr, err); err != nil {
		reset(c)
		return nil, fmt.Errorf("take a connection over: %w", err)
	}
	c.Close() //nolint:errcheck // it lives on under the other descriptor
	return s, nil
}

// close ends the connection in order.
func (s *socket) close() { s.closeLinger(unix.Linger{}) }

// reset closes the connection with RST, as the function does.
func (s *socket) reset() { s.closeLinger(unix.Linger{Onoff: 1}) }

func (s *socket) closeLinger(how unix.Linger) {
	unix.SetsockoptLinger(s.fd, unix.SOL_SOCKET, unix.SO_LINGER, &how) //nolint:errcheck // closed all the same
	unix.Close(s.fd)                                                   //nolint:errcheck // nothing to be done about it
}

// note takes what the loop was told into account.
func (s *socket) note(events uint32) {
	if events&unix.EPOLLOUT != 0 {
		s.writable = true
	}
	if events&unix.EPOLLIN != 0 {
		s.readable = true
	}
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.readable, s.writable, s.ending = true, true, true
	}
}

// read reads what there is. n is 0 without an error when nothing is.
func (s *socket) read(b []byte) (n int, err error) {
	n, err = transfer(unix.SYS_READ, s.fd, b, 0)
	return s.took(n, len(b), err)
}

// took sorts what a read or a splice of the socket returned.
func (s *socket) took(n, most int, err error) (int, error) {
	switch {
	case err == unix.EAGAIN:
		s.readable = false
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("read: %w", err)
	case n == 0:
		return 0, io.EOF
	}
	if n < most && !s.ending {
		s.readable = false
	}
	return n, nil
}

// peek fills b with what a read would return first, and says whether there was enough.
func (s *socket) peek(b []byte) bool {
	n, err := transfer(unix.SYS_RECVFROM, s.fd, b, unix.MSG_PEEK)
	if err == unix.EAGAIN {
		s.readable = false
	}
	return err == nil && n == len(b)
}

// write writes what the system takes.
func (s *socket) write(b []byte) (n int, err error) {
	return s.gave(transfer(unix.SYS_WRITE, s.fd, b, 0))
}

// gave sorts what a write, or a splice to the socket, returned.
func (s *socket) gave(n int, err error) (int, error) {
	switch {
	case err == unix.EAGAIN:
		s.writable = false
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("write: %w", err)
	}
	return n, nil
}

// closeWrite says that no more will be written.
func (s *socket) closeWrite() {
	unix.Shutdown(s.fd, unix.SHUT_WR) //nolint:errcheck // its reader will see
}

// await tells the system how many bytes are waited for. Fewer are not worth being woken for: a thread that is, for each
// 64 KiB of a large reply, takes the processor from the one that sends them.
func (s *socket) await(n int) {
	if n == s.lowat {
		return
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, n); err == nil {
		s.lowat = n
	}
}

// lastCame says how long ago bytes came that have not been read; ok is false when all have been.
func (s *socket) lastCame() (ago time.Duration, ok bool) {
	if n, err := unix.IoctlGetInt(s.fd, unix.TIOCINQ); err != nil || n == 0 {
		return 0, false
	}
	info, err := unix.GetsockoptTCPInfo(s.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, false
	}
	return time.Duration(info.Last_data_recv) * time.Millisecond, true
}

// transfer is read, write or recv of a socket that never waits. Go's scheduler is not told: that would cost as much as a small
// read.
func transfer(trap uintptr, fd int, b []byte, flags int) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), uintptr(flags), 0, 0)
		if errno != unix.EINTR {
			return int(n), failure(errno)
		}
	}
}

// failure is a call's error, as one that can be nil. n means nothing then.
func failure(errno unix.Errno) error {
	switch errno {
	case 0:
		return nil
	case unix.EAGAIN:
		return unix.EAGAIN // in an interface without an allocation
	}
	return errno
}
