package rpc

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Conn is one connection, or, over UDP, where one packet came from.
type Conn struct {
	remote, local netip.AddrPort
	srv           *Server
	nc            net.Conn
	raw           syscall.RawConn // of nc; nil when it has none
	since         time.Time
	opened        time.Time          // when it passed the gate; guarded by srv.mu
	evicted       bool               // it made room for another, and has not ended yet; guarded by srv.mu
	spoken        atomic.Bool        // a call has come: not silent
	release       context.CancelFunc // ends the wait at the gate

	// The reader's own.
	in          input
	call        Call
	out         *buffer // nil while idle
	tally       tally
	onReadable  func(fd uintptr) bool
	readN       int
	readErr     error
	stuck       error     // what the loop could not go on for
	held        []byte    // a record, within in, whose call is to be postponed
	looped      bool      // nothing may wait: the loop is at it
	owing       bool      // unsent may hold the end of a reply
	bulk        bool      // the last batch was large: the loop is not for it
	readBy      time.Time // the deadline that is set
	recordBegan time.Time // when the record under way began to come; zero: none is

	// What the loop needs; see turn.go.
	loop          *loop // nil when there is none for this connection
	place         int32 // in the loop
	turn          atomic.Uint32
	ended         atomic.Bool   // the peer seems to have sent its last
	back          chan struct{} // the loop gives the connection back
	kick          chan struct{} // holds a token when stopping or cut
	heard         atomic.Int64  // when the loop last answered, in Unix nanoseconds
	idle          *time.Timer
	onReadableNow func(fd uintptr) bool
	onWritableNow func(fd uintptr) bool
	onLend        func(fd uintptr) bool
	onSend        func(fd uintptr) bool
	onLent        func(mem []byte)
	wroteN        int

	wmu       sync.Mutex // one writer at a time; taken after no other lock, and before mu
	writeBy   time.Time  // guarded by wmu: the deadline that is set
	unsent    []byte     // guarded by wmu: what is to be written before anything else
	torn      error      // guarded by wmu: why a write ended in the middle of a reply
	lending   lending    // guarded by wmu
	sending   []byte     // guarded by wmu, as what follows: what writeAll has left to write
	sendFlags int
	sendErr   error

	mu       sync.Mutex    // guards what follows, and the order of SetReadDeadline against stopping; taken before no other lock
	stopping bool          // the reader is to end when it has answered what it holds
	pending  int           // calls being answered by workers, or whose replies are not yet written
	cost     int           // bytes that their replies may take
	late     []*job        // replies to be written
	writing  bool          // a worker is writing late replies
	freed    chan struct{} // holds a token after pending went down
}

// Remote is the peer's address.
func (c *Conn) Remote() netip.AddrPort { return c.remote }

// Local is the address that the peer reached; its address part may be unspecified for UDP.
func (c *Conn) Local() netip.AddrPort { return c.local }

// Stop makes the connection close once every call that has been read is answered.
func (c *Conn) Stop() {
	if c.nc == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopping = true
	c.nc.SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // fails only when closed
	if c.release != nil {
		c.release()
	}
	c.wake()
}

// wake makes the connection's goroutine go on if it has left the connection to the loop.
func (c *Conn) wake() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// cut closes the connection under whatever it is about, the wait at the gate too. It waits for a write that is being made,
// which may wait for the disk if memory is lent to it: no lock of the server may be held. epoll tells nothing of a socket
// that this process has closed.
func (c *Conn) cut() {
	c.mu.Lock()
	c.stopping = true
	if c.release != nil {
		c.release()
	}
	c.mu.Unlock()
	c.nc.Close()
	c.wake()
}

var errStopped = errors.New("connection stopped")

func newConn(s *Server, nc net.Conn) *Conn {
	c := &Conn{srv: s, nc: nc, since: time.Now(), freed: make(chan struct{}, 1),
		back: make(chan struct{}, 1), kick: make(chan struct{}, 1)}
	c.remote, c.local = addrPort(nc.RemoteAddr()), addrPort(nc.LocalAddr())
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			c.raw = raw
		}
	}
	c.onReadable = c.tryRead
	c.onReadableNow, c.onWritableNow = c.readNow, c.writeNow
	c.onLend, c.onSend, c.onLent = c.lend, c.send, c.lent
	c.call.Conn = c
	return c
}

// addrPort converts a TCP or UDP address; others become the zero value.
func addrPort(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.TCPAddr:
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	case *net.UDPAddr:
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

// serve answers the connection's calls until the peer goes away, misbehaves or is told to stop. It returns when its
// workers are done too.
func (c *Conn) serve(ctx context.Context) error {
	err := c.read(ctx)
	if errors.Is(err, errStopped) || errors.Is(err, ErrClose) || errors.Is(err, io.EOF) {
		c.settle()
		c.farewell()
	}
	c.nc.Close()
	c.settle()
	c.call.body.drop()
	c.dropOutput()
	c.in.giveBack()
	return err
}

// read is the reader's loop: take in what has come, answer it, write the answers. Between them the connection may be the
// loop's.
func (c *Conn) read(ctx context.Context) error {
	now, n, err := time.Now(), 0, error(nil)
	if c.loop != nil && c.loop.join(c) {
		defer c.loop.leave(c)
		err = c.rest(now)
	} else {
		c.loop = nil
		n, err = c.fill(now)
	}
	for err == nil {
		if now, err = c.answer(ctx, n); err != nil {
			break
		}
		if n, err = c.fill(now); err == errRest { //nolint:errorlint // made by fill
			n, err = 0, c.rest(now)
		}
	}
	return err
}

// answer answers what has come, n bytes more than before, and returns the time.
func (c *Conn) answer(ctx context.Context, n int) (now time.Time, err error) {
	came := time.Now()
	sent, err := c.answerAll(ctx, came)
	now = came
	if sent > 0 { // which may have taken long
		now = time.Now()
	}
	more, failed := c.flush(now)
	now = c.account(came, n, sent+more)
	if n > 0 { // else it is what the loop has left
		c.bulk = sent+more >= bulkAt
	}
	if err == nil {
		err = failed
	}
	return now, err
}

// answerAll answers every whole record that is buffered. It returns the bytes that it wrote itself because they were
// many.
func (c *Conn) answerAll(ctx context.Context, came time.Time) (sent int, err error) {
	if c.held != nil {
		rec := c.held
		c.held = nil
		if err := c.postpone(ctx, rec, came); err != nil {
			return sent, err
		}
	}
	for {
		rec, ok, err := c.in.next(c.srv.cfg.MaxRecord)
		if err != nil || !ok {
			return sent, err
		}
		c.recordBegan = time.Time{} // what follows, if anything, is another
		if c.out == nil {
			c.out = getBuffer(0)
			c.call.out = c.out
		}
		switch err := c.srv.respond(ctx, &c.call, rec); {
		case err == nil:
			c.tally.add(c.call.Prog, c.call.Proc)
		case errors.Is(err, ErrDefer):
			if err := c.postpone(ctx, rec, came); err != nil {
				return sent, err
			}
		case errors.Is(err, ErrDrop):
		default:
			return sent, err
		}
		if len(c.out.b) >= flushAt || c.call.body.from != nil {
			if c.looped {
				return sent, errWait
			}
			n, err := c.flush(time.Now()) // the peer has its time for each batch: they may be hundreds
			sent += n
			if err != nil {
				return sent, err
			}
		}
	}
}

// flush writes the batch.
func (c *Conn) flush(now time.Time) (int, error) {
	if c.call.body.from != nil {
		return c.writeBody(now)
	}
	n := 0
	if c.out != nil {
		n = len(c.out.b)
	}
	if n == 0 && !c.owing {
		return 0, nil
	}
	c.owing = false
	if n == 0 {
		return 0, c.write(nil, now)
	}
	err := c.write(c.out.b, now)
	c.out.b = c.out.b[:0]
	return n, err
}

// write sends what is unsent and then b, whole, within the time allowed, or closes the connection: what came after half a
// reply would be taken for the rest of it.
func (c *Conn) write(b []byte, now time.Time) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	err := c.prepareWrite(now)
	if err == nil && len(c.unsent) > 0 {
		more := 0
		if len(b) > 0 {
			more = unix.MSG_MORE
		}
		err = c.writeAll(c.unsent, more)
		if c.unsent = c.unsent[:0]; cap(c.unsent) > Headroom {
			c.unsent = nil
		}
	}
	if err == nil && len(b) > 0 {
		err = c.writeAll(b, 0)
	}
	return c.tear(err)
}

// prepareWrite sets the deadline. The caller has wmu.
func (c *Conn) prepareWrite(now time.Time) error {
	if c.torn != nil {
		return c.torn
	}
	// setting a deadline costs as much as answering a call: it is moved when an eighth of it has gone
	if limit := c.srv.cfg.WriteTimeout; c.writeBy.Sub(now) < limit-limit/8 {
		c.writeBy = now.Add(limit)
		if err := c.nc.SetWriteDeadline(c.writeBy); err != nil {
			return err
		}
	}
	return nil
}

// tear closes the connection when err says that a write has ended early.
func (c *Conn) tear(err error) error {
	if err != nil && c.torn == nil {
		c.torn = err
		c.cut()
	}
	return err
}

// account tells the statistics of a batch and returns the time.
func (c *Conn) account(came time.Time, in, out int) time.Time {
	now := time.Now()
	if n := c.tally.report(c.srv.cfg.Observer, now.Sub(came)); n > 0 {
		c.srv.stats.calls.Add(uint64(n))
		if !c.spoken.Load() {
			c.spoken.Store(true)
		}
	}
	c.srv.stats.moved(c.srv.cfg.Observer, in, out)
	return now
}

// fill reads what there is, waiting for at least a byte. now is a recent time.
func (c *Conn) fill(now time.Time) (int, error) {
	if err := c.armRead(now); err != nil {
		return 0, err
	}
	var err error
	if c.raw != nil {
		c.readN, c.readErr = 0, nil
		if err = c.raw.Read(c.onReadable); err == nil {
			err = c.readErr
		}
	} else {
		c.dropOutput()
		c.readN, err = c.nc.Read(c.in.space())
	}
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) && c.isStopping() {
			return 0, errStopped
		}
		return 0, err
	}
	c.in.end += c.readN
	return c.readN, nil
}

// tryRead is given to the poller: it reads without waiting, and gives the buffers back before it lets the reader park.
func (c *Conn) tryRead(fd uintptr) bool {
	n, errno := readOnce(int(fd), c.in.space())
	switch {
	case errno == syscall.EAGAIN:
		c.in.release()
		c.dropOutput()
		if c.loop == nil || c.bulk || c.in.partial() {
			return false
		}
		c.readErr = errRest
	case errno != 0:
		c.readErr = os.NewSyscallError("read", errno)
	case n == 0:
		c.readErr = io.EOF
	default:
		c.readN = n
	}
	return true
}

// dropOutput gives the output buffer back. It is empty: only a batch that was written is followed by a wait.
func (c *Conn) dropOutput() {
	if c.out != nil {
		putBuffer(c.out)
		c.out, c.call.out = nil, nil
	}
}

// armRead sees to it that waiting for the peer ends: after the idle time, or sooner when a record has begun.
func (c *Conn) armRead(now time.Time) error {
	var by time.Time
	if c.in.partial() {
		if c.recordBegan.IsZero() {
			c.recordBegan = now
		}
		limit := c.srv.cfg.RecordTimeout
		by = c.recordBegan.Add(limit)
		// a deadline that is there is good enough when it is no later, and not much sooner
		if sooner := by.Sub(c.readBy); sooner >= 0 && sooner < limit/8 {
			return nil
		}
	} else {
		idle := c.srv.cfg.IdleTimeout
		by = now.Add(idle)
		if sooner := by.Sub(c.readBy); sooner >= 0 && sooner < idle/8 {
			return nil
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopping {
		return errStopped
	}
	c.readBy = by
	return c.nc.SetReadDeadline(by)
}

func (c *Conn) isStopping() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stopping
}

// lingerTime is how long a connection that is closed in good order waits for its peer to close too.
const lingerTime = 250 * time.Millisecond

// farewell closes the sending side and lets the peer take what was sent: closing with unread calls in the socket would
// make the kernel throw replies away that are on their way.
func (c *Conn) farewell() {
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	c.nc.SetReadDeadline(time.Now().Add(lingerTime)) //nolint:errcheck // a failure shows in the read below
	scrap := getBuffer(0)
	defer putBuffer(scrap)
	for {
		if _, err := c.nc.Read(scrap.b[:cap(scrap.b)]); err != nil {
			return
		}
	}
}
