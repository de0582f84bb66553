package relay

import (
	"fmt"
	"io"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// pipeSize is how much of a reply is on its way through the kernel at once.
const pipeSize = 512 << 10

// pipe passes bytes from one connection to another without bringing them into this process. One goroutine uses it.
type pipe struct {
	r, w     int
	from, to syscall.RawConn
	size     int
}

func newPipe(from, to *net.TCPConn) (*pipe, error) {
	p := &pipe{size: 64 << 10}
	var err error
	if p.from, err = from.SyscallConn(); err != nil {
		return nil, err
	}
	if p.to, err = to.SyscallConn(); err != nil {
		return nil, err
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	p.r, p.w = fds[0], fds[1]
	if n, err := unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, pipeSize); err == nil {
		p.size = n
	}
	return p, nil
}

func (p *pipe) close() {
	unix.Close(p.r) //nolint:errcheck // nothing to be done about it
	unix.Close(p.w) //nolint:errcheck // nothing to be done about it
}

// pass sends head, then moves n bytes, and calls moved for each part that has come. Whatever it fails with, what was taken
// from one side and not given to the other is lost.
func (p *pipe) pass(head []byte, n int, moved func(n int)) error {
	if err := p.send(head); err != nil {
		return err
	}
	for n > 0 {
		got, err := p.splice(p.from.Read, -1, p.w, min(n, p.size))
		if err != nil {
			return err
		}
		if got == 0 {
			return io.ErrUnexpectedEOF
		}
		moved(got)
		n -= got
		for got > 0 {
			gave, err := p.splice(p.to.Write, p.r, -1, got)
			if err != nil {
				return err
			}
			got -= gave
		}
	}
	return nil
}

// send sends what more will follow at once: they travel together.
func (p *pipe) send(b []byte) error {
	for len(b) > 0 {
		var n int
		var err error
		werr := p.to.Write(func(fd uintptr) bool {
			for {
				n, err = unix.SendmsgN(int(fd), b, nil, nil, unix.MSG_MORE|unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
				if err != unix.EINTR {
					return err != unix.EAGAIN
				}
			}
		})
		if werr != nil {
			return werr
		}
		if err != nil {
			return fmt.Errorf("send: %w", err)
		}
		b = b[n:]
	}
	return nil
}

// splice moves at most n bytes between a descriptor and a connection (-1), when wait says that it is ready.
func (p *pipe) splice(wait func(func(uintptr) bool) error, from, to, n int) (int, error) {
	var moved int64
	var err error
	werr := wait(func(fd uintptr) bool {
		r, w := from, to
		if r < 0 {
			r = int(fd)
		} else {
			w = int(fd)
		}
		for {
			moved, err = unix.Splice(r, nil, w, nil, n, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	if werr != nil {
		return 0, werr
	}
	if err != nil {
		return 0, fmt.Errorf("splice: %w", err)
	}
	return int(moved), nil
}
