package relay

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// pipeSize is how much of the replies of a connection is on its way through the kernel at once. It is the most that the
// system gives an ordinary user.
const pipeSize = 1 << 20

// pipe holds bytes between two sockets without bringing them into this process. Only the loop uses it.
type pipe struct {
	r, w int
	held int // bytes
}

func newPipe() (*pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeSize) //nolint:errcheck // a small one serves too
	return &pipe{r: fds[0], w: fds[1]}, nil
}

func (p *pipe) close() {
	unix.Close(p.r) //nolint:errcheck // nothing to be done about it
	unix.Close(p.w) //nolint:errcheck // nothing to be done about it
}

// fill moves at most n bytes from a socket. When the pipe holds some already, that none came may also mean that it is full.
func (p *pipe) fill(from *socket, n int) (int, error) {
	got, err := splice(from.fd, p.w, n)
	if err == unix.EAGAIN && p.held > 0 {
		return 0, nil
	}
	got, err = from.took(got, got, err) // fewer than n says nothing: pipes count pages
	p.held += got
	return got, err
}

// empty moves what it holds to a socket, as far as that takes it.
func (p *pipe) empty(to *socket) error {
	for p.held > 0 && to.writable {
		n, err := to.gave(splice(p.r, to.fd, p.held))
		if err != nil {
			return err
		}
		p.held -= n
	}
	return nil
}

// splice never waits, as transfer.
func splice(from, to, n int) (int, error) {
	for {
		moved, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if errno != unix.EINTR {
			return int(moved), failure(errno)
		}
	}
}
