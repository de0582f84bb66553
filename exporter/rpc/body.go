package rpc

import (
	"errors"
	"io"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Body is data of a reply that is written from where it is, instead of being copied into the reply.
type Body interface {
	// Lend calls use with up to n of the body's bytes from off on, and returns how many; 0 when they must be Read. use gives
	// them to the system and looks at none. good means that they were what they should be.
	Lend(off, n int, use func(mem []byte)) (lent int, good bool)
	// Read fills p from off on. It may wait.
	Read(p []byte, off int) error
	// GiveBack is called when the body is not needed any more.
	GiveBack()
}

// body is the Body of the reply that c.out ends with.
type body struct {
	from Body // nil when there is none
	size int
	at   int // where in c.out it belongs
}

// CanLend reports whether Attach may be called.
func (c *Call) CanLend() bool { return !c.Blocking && c.Conn != nil && c.Conn.raw != nil }

// Attach makes the first size bytes of b part of the result, after what is in dst now; at least a byte must be appended to
// the result afterwards. What Lend had to call not good is on its way to the peer by the time it says so, and is of no use to
// it without the rest: so the connection ends there. A call that CanLend may have one body. It is the engine's to give back
// unless Append returns an error.
func (c *Call) Attach(dst []byte, b Body, size int) { c.body = body{from: b, size: size, at: len(dst)} }

// drop gives the body back.
func (b *body) drop() {
	if b.from != nil {
		b.from.GiveBack()
		*b = body{}
	}
}

// errNotGood ends a connection on which bytes are under way that are not known to be good.
var errNotGood = errors.New("part of a reply was lost from memory while it was sent")

// lending is a body being written. It belongs to whoever has the Conn's wmu.
type lending struct {
	ahead [2][]byte // what is to be written before the body's next bytes
	off   int       // how much of the body is written
	none  bool      // what the last step came to: nothing was lent,
	good  bool      // it was good,
	wrote int       // so much was written, with what was ahead,
	err   syscall.Errno
	fd    int

	parts [3]unix.Iovec
	msg   unix.Msghdr
}

// writeBody writes the batch, whose last reply has a body, but for the reply's end. That goes with what is written next, which
// is to follow at once: so most replies take one write.
func (c *Conn) writeBody(now time.Time) (int, error) {
	b := c.call.body
	defer c.call.body.drop()
	c.wmu.Lock()
	defer c.wmu.Unlock()
	l := &c.lending
	l.off, l.ahead = 0, [2][]byte{c.unsent, c.out.b[:b.at]}
	err := c.prepareWrite(now)
	for err == nil && l.off < b.size {
		if err = c.raw.Write(c.onLend); err == nil {
			err = c.afterLend(b)
		}
	}
	l.ahead, l.parts = [2][]byte{}, [3]unix.Iovec{} // buffers go back to their pools, and files may be unmapped
	c.unsent = append(c.unsent[:0], c.out.b[b.at:]...)
	c.owing = true
	n := len(c.out.b) + b.size
	c.out.b = c.out.b[:0]
	return n, c.tear(err)
}

// lend is given to the poller: it writes once, and parks when the socket is full.
func (c *Conn) lend(fd uintptr) bool {
	l := &c.lending
	l.fd, l.wrote, l.err = int(fd), 0, 0
	lent, good := c.call.body.from.Lend(l.off, c.call.body.size-l.off, c.onLent)
	l.none, l.good = lent == 0, good
	return l.none || !good || l.wrote > 0 || l.err != unix.EAGAIN
}

// lent is given to Lend. It writes once what is ahead and then mem, which is a file's. Go's scheduler is not told, though a page
// that has left memory since it was looked for would come from the disk meanwhile (docs/decisions/0018-lending.md).
func (c *Conn) lent(mem []byte) {
	l := &c.lending
	n := 0
	for _, p := range [...][]byte{l.ahead[0], l.ahead[1], mem} {
		if len(p) > 0 {
			l.parts[n].Base = unsafe.SliceData(p)
			l.parts[n].SetLen(len(p))
			n++
		}
	}
	l.msg.Iov = &l.parts[0]
	l.msg.SetIovlen(n)
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(l.fd), uintptr(unsafe.Pointer(&l.msg)),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL|unix.MSG_MORE)
		switch errno {
		case unix.EINTR:
			continue
		case 0:
			l.wrote = int(n)
		default:
			l.err = errno
		}
		return
	}
}

// took takes n written bytes off what is ahead, and returns how many were the body's.
func (l *lending) took(n int) int {
	for i := range l.ahead {
		k := min(n, len(l.ahead[i]))
		l.ahead[i], n = l.ahead[i][k:], n-k
	}
	return n
}

// afterLend goes on after a write: what could not be lent is read.
func (c *Conn) afterLend(b body) error {
	l := &c.lending
	switch {
	case l.wrote > 0 && !l.good:
		if n := c.srv.stats.spoiled.Add(1); n&(n-1) == 0 { // the first, the second, the fourth: a sick machine may have many
			c.srv.log.Warn().Stringer("client", c.remote).Uint64("so_far", n).Err(errNotGood).Msg("connection closed in the middle of a reply")
		}
		return errNotGood
	case l.wrote > 0:
		n := l.took(l.wrote)
		if l.off == 0 && n > 0 {
			c.srv.stats.lent.Add(1)
		}
		l.off += n
		return nil
	case !l.none && l.err != unix.EAGAIN && l.err != unix.EFAULT: // EFAULT: the disk cannot be read; Read finds out
		return l.err
	}
	for _, p := range l.ahead {
		if err := c.writeAll(p, unix.MSG_MORE); err != nil {
			return err
		}
	}
	rest := getBuffer(b.size - l.off)
	defer putBuffer(rest)
	p := rest.b[:b.size-l.off]
	if err := b.from.Read(p, l.off); err != nil {
		return err
	}
	l.off = b.size
	return c.writeAll(p, unix.MSG_MORE)
}

// writeAll writes p whole. The caller has wmu, and has prepared.
func (c *Conn) writeAll(p []byte, flags int) error {
	if c.raw == nil {
		_, err := c.nc.Write(p)
		return err
	}
	c.sending, c.sendFlags, c.sendErr = p, flags, nil
	err := c.raw.Write(c.onSend)
	c.sending = nil
	if err == nil {
		err = c.sendErr
	}
	return err
}

// send is given to the poller: it writes until all is written or the socket is full.
func (c *Conn) send(fd uintptr) bool {
	for len(c.sending) > 0 {
		n, errno := sendOnce(int(fd), c.sending, c.sendFlags)
		switch {
		case errno == unix.EAGAIN:
			return false
		case errno != 0:
			c.sendErr = errno
			return true
		case n == 0:
			c.sendErr = io.ErrUnexpectedEOF
			return true
		}
		c.sending = c.sending[n:]
	}
	return true
}

// sendOnce writes once, without waiting. Go's scheduler is not told: that would cost as much as answering a call.
func sendOnce(fd int, p []byte, flags int) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
			uintptr(flags|unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL), 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// readOnce reads once, without waiting.
func readOnce(fd int, p []byte) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}
