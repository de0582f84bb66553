package rpc

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"
)

// Who has a connection: its own goroutine, or the loop, which may be at it or not. Only the owner touches what is the
// reader's.
const (
	turnOwn    uint32 = iota // its goroutine
	turnRest                 // the loop, which waits for an event
	turnBusy                 // the loop, which is at it
	turnAgain                // the same, and there was another event since
	turnWanted               // the same, and its goroutine wants it back
)

// bulkAt is how many bytes of replies to one batch are so much work that other connections' calls must not wait for it: such
// connections are left to goroutines of their own, which run side by side.
const bulkAt = 64 << 10

// errRest says that the peer has nothing more to say at present.
var errRest = errors.New("nothing to read")

// errWait says that the loop cannot go on without waiting.
var errWait = errors.New("would wait")

// rest leaves the connection to the loop and waits until it comes back, for a reason that shows when its goroutine goes on,
// or until it is to be stopped, or has been silent for too long.
func (c *Conn) rest(now time.Time) error {
	l := c.loop
	c.heard.Store(now.UnixNano())
	c.turn.Store(turnRest)
	if err := l.watch(c, true); err != nil {
		c.takeBack()
		return err
	}
	idle := c.srv.cfg.IdleTimeout
	if c.idle == nil {
		c.idle = time.NewTimer(idle)
	} else {
		c.idle.Reset(idle)
	}
	defer c.idle.Stop()
	for {
		select {
		case <-c.back:
			return c.resume(time.Now())
		case <-c.kick:
			c.takeBack()
			return c.resume(time.Now()) // the loop may have left half a reply
		case <-c.idle.C:
			silent := time.Since(time.Unix(0, c.heard.Load()))
			if silent >= idle {
				c.takeBack()
				return os.ErrDeadlineExceeded
			}
			c.idle.Reset(idle - silent)
		}
	}
}

// resume does what the loop has left to be done, but for calls that are not answered yet.
func (c *Conn) resume(now time.Time) error {
	err := c.stuck
	c.stuck = nil
	n, failed := c.flush(now)
	c.bulk = c.bulk || n >= bulkAt
	if failed == nil {
		failed = c.write(nil, now) // what is unsent
	}
	c.srv.stats.moved(c.srv.cfg.Observer, 0, n)
	if failed != nil || errors.Is(err, errWait) {
		return failed
	}
	return err
}

// takeBack makes the connection its goroutine's again.
func (c *Conn) takeBack() {
	for {
		switch t := c.turn.Load(); t {
		case turnRest:
			if c.turn.CompareAndSwap(turnRest, turnOwn) {
				_ = c.loop.watch(c, false) // an event is ignored
				return
			}
		case turnOwn:
			<-c.back
			return
		default:
			if c.turn.CompareAndSwap(t, turnWanted) {
				<-c.back
				return
			}
		}
	}
}

// onEvent takes note that the peer has sent something, perhaps its last, and answers it unless another of the loop's
// goroutines is at it.
func (c *Conn) onEvent(ctx context.Context, last bool) {
	if last {
		c.ended.Store(true)
	}
	for !c.turn.CompareAndSwap(turnRest, turnBusy) {
		t := c.turn.Load()
		if t == turnOwn || t == turnAgain || t == turnWanted || t == turnBusy && c.turn.CompareAndSwap(turnBusy, turnAgain) {
			return
		}
	}
	for c.takeTurn(ctx) {
		if c.turn.CompareAndSwap(turnBusy, turnRest) {
			return
		}
		if !c.turn.CompareAndSwap(turnAgain, turnBusy) {
			break // wanted
		}
	}
	_ = c.loop.watch(c, false) // an event is ignored
	c.turn.Store(turnOwn)
	c.back <- struct{}{}
}

// takeTurn reads what there is and answers it. It reports whether the loop may keep the connection: that is so when nothing
// is left to be done.
func (c *Conn) takeTurn(ctx context.Context) bool {
	last := false
	for {
		last = c.ended.Swap(false) || last
		c.readN, c.readErr = 0, nil
		space := len(c.in.space())
		if err := c.raw.Read(c.onReadableNow); err != nil || c.readErr != nil {
			return false
		}
		c.in.end += c.readN
		came := time.Now()
		c.looped = true
		_, err := c.answerAll(ctx, came)
		c.looped = false
		sent, ok := c.flushNow()
		c.heard.Store(c.account(came, c.readN, sent).UnixNano())
		c.bulk = sent >= bulkAt
		if err != nil || !ok || c.bulk || c.in.partial() {
			c.stuck = err
			return false
		}
		// Without anything read it is not the last after all: an event may be about who had this place before.
		if c.readN == 0 || c.readN < space && !last {
			c.in.release()
			c.dropOutput()
			return true
		}
	}
}

// readNow is given to the poller: it reads once, and lets nobody park.
func (c *Conn) readNow(fd uintptr) bool {
	n, errno := readOnce(int(fd), c.in.space())
	switch {
	case errno == syscall.EAGAIN:
	case errno != 0:
		c.readErr = os.NewSyscallError("read", errno)
	case n == 0:
		c.readErr = errRest // its goroutine finds out what that means
	default:
		c.readN = n
	}
	return true
}

// flushNow writes the batch as far as it goes without waiting. It reports whether that was all of it.
func (c *Conn) flushNow() (sent int, ok bool) {
	if c.out == nil || len(c.out.b) == 0 {
		return 0, true
	}
	if c.call.body.from != nil {
		return 0, false // its goroutine writes it
	}
	if !c.wmu.TryLock() {
		return 0, false
	}
	defer c.wmu.Unlock()
	if c.torn != nil || len(c.unsent) > 0 {
		return 0, false
	}
	c.wroteN = 0
	if err := c.raw.Write(c.onWritableNow); err != nil || c.wroteN == 0 {
		return 0, false // its goroutine tries again
	}
	sent = len(c.out.b)
	c.unsent = append(c.unsent, c.out.b[c.wroteN:]...)
	c.out.b = c.out.b[:0]
	return sent, len(c.unsent) == 0
}

// writeNow is given to the poller: it writes once, and lets nobody park.
func (c *Conn) writeNow(fd uintptr) bool {
	if n, errno := sendOnce(int(fd), c.out.b, 0); errno == 0 {
		c.wroteN = n
	}
	return true
}
