package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// patience is how long a server may be silent.
const patience = 5 * time.Second

// errEnd: the server has closed the connection.
var errEnd = errors.New("the server has closed the connection")

// slot is a call in flight; its number is the call's XID.
type slot struct {
	began  int64
	node   node   // of walk and slurp
	at     uint64 // offset or cookie
	isRead bool
}

// conn is one connection.
type conn struct {
	run        *run
	fd         int
	in         []byte
	start, end int // what of in is not looked at yet
	skip       int // bytes of a READ's reply that are still to be thrown away
	skipping   uint32
	out        []byte
	lengths    []int // of the records in out
	slots      []slot
	free       []uint32
}

func dial(r *run, addr string) (*conn, error) {
	a, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	c := &conn{run: r, fd: fd, in: make([]byte, 1<<20+64<<10), slots: make([]slot, r.op.Depth)}
	for i := range c.slots {
		c.free = append(c.free, uint32(i))
	}
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()})
	if !r.op.Each { // else the system may send what is written call by call together
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
	}
	err = errors.Join(err, c.greet(), unix.SetNonblock(fd, true))
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return c, nil
}

// greet makes a call that does nothing and waits for its reply: what a server does with a new connection is not measured.
func (c *conn) greet() error {
	if _, err := unix.Write(c.fd, record(procNull, nil)); err != nil {
		return err
	}
	want := 4 + replyHead
	for want > 0 {
		n, err := unix.Read(c.fd, c.in[:want])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return errors.Join(errEnd, err)
		}
		want -= n
	}
	return nil
}

func (c *conn) take() uint32 {
	i := c.free[len(c.free)-1]
	c.free = c.free[:len(c.free)-1]
	return i
}

// begin makes the next call of an operation that goes on for some time.
func (c *conn) begin(i uint32) {
	r := c.run
	c.slots[i] = slot{began: r.now}
	if r.op.Name == Read || r.op.Name == RandRead {
		blocks := (r.target.size + uint64(r.op.Block) - 1) / uint64(r.op.Block)
		b := r.cursor % blocks
		if r.op.Name == RandRead {
			b = r.random.Uint64N(blocks)
		}
		c.read(i, r.target, b*uint64(r.op.Block))
	} else {
		c.add(i, r.calls[r.cursor%uint64(len(r.calls))])
	}
	r.cursor++
}

// visit lists a directory from a cookie on, or reads a file from an offset on.
func (c *conn) visit(i uint32, n node, at uint64) {
	if !n.dir {
		c.read(i, n, at)
		return
	}
	c.slots[i] = slot{began: c.run.now, node: n, at: at}
	args := u64(opaque(nil, n.handle), at)
	c.add(i, record(procReaddirplus, u32(u64(args, 0), 64<<10, 64<<10)))
}

func (c *conn) read(i uint32, n node, at uint64) {
	c.slots[i] = slot{began: c.run.now, node: n, at: at, isRead: true}
	from := len(c.out)
	c.out = append(c.out, readHead...)
	c.out = u32(u64(opaque(c.out, n.handle), at), uint32(c.run.op.Block))
	binary.BigEndian.PutUint32(c.out[from:], 1<<31|uint32(len(c.out)-from-4))
	c.sent(i, from)
}

func (c *conn) add(i uint32, record []byte) {
	from := len(c.out)
	c.out = append(c.out, record...)
	c.sent(i, from)
}

func (c *conn) sent(i uint32, from int) {
	binary.BigEndian.PutUint32(c.out[from+4:], i)
	c.lengths = append(c.lengths, len(c.out)-from)
	c.run.flying++
}

// flush sends the calls.
func (c *conn) flush() error {
	rest := c.out
	for len(rest) > 0 {
		piece := rest
		if c.run.op.Each {
			piece = rest[:c.lengths[0]]
			c.lengths = c.lengths[1:]
		}
		for len(piece) > 0 {
			n, errno := transfer(unix.SYS_WRITE, c.fd, piece)
			switch errno {
			case 0:
				piece, rest = piece[n:], rest[n:]
			case unix.EAGAIN, unix.EINTR:
				if _, err := unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLOUT}}, int(patience.Milliseconds())); err != nil && !errors.Is(err, unix.EINTR) {
					return err
				}
			default:
				return errno
			}
		}
	}
	c.out, c.lengths = c.out[:0], c.lengths[:0]
	return nil
}

// receive takes in what has come: once, or, with Each, reply by reply as long as there may be one.
func (c *conn) receive() error {
	for {
		n, err := c.fetch()
		if err != nil || n == 0 {
			return err
		}
		if err := c.consume(); err != nil {
			return err
		}
		if !c.run.op.Each || len(c.free) == len(c.slots) {
			return nil
		}
	}
}

// fetch reads once; with Each no more than the next record mark, or what follows it.
func (c *conn) fetch() (n int, err error) {
	if c.start == c.end {
		c.start, c.end = 0, 0
	} else if len(c.in)-c.end < 128<<10 {
		c.start, c.end = 0, copy(c.in, c.in[c.start:c.end])
	}
	space := c.in[c.end:]
	if c.run.op.Each {
		want := 4
		if c.skip > 0 {
			want = c.skip
		} else if c.end-c.start >= 4 {
			want += int(binary.BigEndian.Uint32(c.in[c.start:]) &^ (1 << 31))
		}
		space = space[:min(want-(c.end-c.start), len(space))]
	}
	n, errno := transfer(unix.SYS_READ, c.fd, space)
	switch {
	case errno == unix.EAGAIN || errno == unix.EINTR:
		return 0, nil
	case errno != 0:
		return 0, errno
	case n == 0:
		return 0, errEnd
	}
	c.end += n
	return n, nil
}

// consume takes the replies apart that are there.
func (c *conn) consume() error {
	for {
		if c.skip > 0 {
			n := min(c.skip, c.end-c.start)
			c.start, c.skip = c.start+n, c.skip-n
			if c.skip > 0 {
				return nil
			}
			c.finish(c.skipping)
		}
		ok, err := c.next()
		if err != nil || !ok {
			return err
		}
	}
}

// next looks at the next reply, if enough of it is there.
func (c *conn) next() (ok bool, err error) {
	b := c.in[c.start:c.end]
	if len(b) < 4+replyHead+4 {
		// NULL has no result; its reply is the header alone
		if len(b) < 4+replyHead || c.run.op.Name != Null {
			return false, nil
		}
	}
	mark := binary.BigEndian.Uint32(b)
	size := int(mark &^ (1 << 31))
	if mark>>31 == 0 {
		return false, errors.New("a reply in fragments")
	}
	i := binary.BigEndian.Uint32(b[4:])
	if int(i) >= len(c.slots) || binary.BigEndian.Uint32(b[4+20:]) != 0 || binary.BigEndian.Uint32(b[8:]) != 1 {
		return false, errors.New("not the reply to a call of ours")
	}
	if c.slots[i].isRead {
		return c.nextRead(i, b, size)
	}
	if len(b) < 4+size {
		return false, nil
	}
	result := b[4+replyHead : 4+size]
	c.start += 4 + size
	if c.run.op.Name != Null && binary.BigEndian.Uint32(result) != 0 {
		c.run.result.Errors++
	} else if c.run.walking {
		more, cookie, err := c.listing(result)
		if err != nil {
			return false, err
		}
		c.slots[i].at = cookie
		if more {
			c.again(i)
			return true, nil
		}
	}
	c.finish(i)
	return true, nil
}

// nextRead takes the head of a READ's reply; the data comes to nothing.
func (c *conn) nextRead(i uint32, b []byte, size int) (ok bool, err error) {
	if len(b) < min(4+size, readData) {
		return false, nil
	}
	c.skipping, c.skip = i, 4+size
	s := &c.slots[i]
	at := 4 + replyHead
	if binary.BigEndian.Uint32(b[at:]) != 0 {
		c.run.result.Errors++
		s.at = s.node.size
		return true, nil
	}
	if at += 8; binary.BigEndian.Uint32(b[at-4:]) != 0 {
		at += attrSize
	}
	n := binary.BigEndian.Uint32(b[at:])
	c.run.result.Bytes += uint64(n)
	s.at += uint64(n)
	if binary.BigEndian.Uint32(b[at+4:]) != 0 || n == 0 {
		s.at = s.node.size
	}
	return true, nil
}

// finish ends a call, or goes on with the file that it has read a part of.
func (c *conn) finish(i uint32) {
	s := &c.slots[i]
	if c.run.walking && s.isRead {
		if s.at < s.node.size {
			c.again(i)
			return
		}
		c.run.result.Files++
	}
	c.count(i)
	c.free = append(c.free, i)
}

func (c *conn) count(i uint32) {
	c.run.delays.add(c.run.now - c.slots[i].began)
	c.run.result.Calls++
	c.run.flying--
}

func (c *conn) again(i uint32) {
	c.count(i)
	c.visit(i, c.slots[i].node, c.slots[i].at)
}

// transfer is read or write without the scheduler's knowledge: it never waits.
func transfer(trap uintptr, fd int, p []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(trap, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	return int(n), errno
}

// wait waits until something has come, without the scheduler's knowledge, and returns how many connections have something.
func (r *run) wait(atMost time.Duration) (int, error) {
	limit := unix.NsecToTimespec(int64(atMost))
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(r.ready))), uintptr(len(r.ready)),
			uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, fmt.Errorf("poll: %w", errno)
		}
	}
}

var start = time.Now()

func nanotime() int64 { return int64(time.Since(start)) }
