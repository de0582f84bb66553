package relay

import (
	"io"
	"time"
)

// callBuffer is what is read of calls at once.
const callBuffer = 32 << 10

// upstream is the half of a session that goes to the master.
type upstream struct {
	framer framer
	unsent []byte // read, and not taken by the system yet but for its first sent bytes; callBuffer at the most
	sent   int
	began  bool // unsent begins with a call's first byte
	ended  int  // calls that end in it
	failed bool // the master's connection takes no more
	parked bool // no more calls are sent, and the stream stands between two
	gone   bool // the kernel has ended its connection
}

// resend puts calls first that an earlier session left.
func (s *session) resend(carry []byte) {
	if len(carry) == 0 {
		return
	}
	c := &s.up
	c.unsent, c.began = carry, true
	c.ended = c.framer.feed(carry)
	s.calls.Add(int64(c.ended))
	s.waiting.Store(int64(time.Since(s.loop.epoch)))
}

// passCalls passes calls until there are no more, the master takes no more, or, when the session drains, between two.
func (s *session) passCalls(l *loop, draining bool) {
	c := &s.up
	for !c.failed && !c.gone && !c.parked {
		if len(c.unsent) > 0 && !s.sendRest(l) {
			return
		}
		if draining && c.framer.between() {
			c.parked = true
			return
		}
		if !s.kernel.readable {
			return
		}
		n, err := s.kernel.read(l.buf[:callBuffer])
		switch {
		case err == io.EOF:
			c.gone = true
			s.master.closeWrite()
			s.finish = time.AfterFunc(finishTime, s.kill)
		case err != nil:
			c.gone, s.over = true, true
		case n > 0:
			s.sendCalls(l, l.buf[:n])
		}
	}
}

// sendCalls sends what was read of calls, and keeps what the system does not take.
func (s *session) sendCalls(l *loop, b []byte) {
	c := &s.up
	began := c.framer.between()
	ended := c.framer.feed(b)
	if ended > 0 || !c.framer.between() {
		if s.unanswered() <= 0 {
			s.waiting.Store(l.now)
		}
		s.calls.Add(int64(ended))
	}
	n, err := s.master.write(b)
	if n < len(b) {
		c.unsent, c.sent, c.began, c.ended = append([]byte(nil), b...), n, began, ended
	}
	if err != nil {
		s.lost(err)
	}
}

// sendRest sends what is left of calls, and says whether all is gone.
func (s *session) sendRest(l *loop) bool {
	c := &s.up
	for s.master.writable {
		n, err := s.master.write(c.unsent[c.sent:])
		if err != nil {
			s.lost(err)
			return false
		}
		if c.sent += n; c.sent == len(c.unsent) {
			c.unsent, c.sent = nil, 0
			return true
		}
	}
	return false
}

// lost is called when the master takes no more calls.
func (s *session) lost(err error) {
	s.up.failed = true
	if s.err == nil {
		s.err = err
	}
}

// settle returns what has not been sent, at the end. Calls that the master may have got in part are sent again: it is gone,
// or will be. whole is false when they are not all there.
func (c *upstream) settle(s *session) (carry []byte, whole bool) {
	if len(c.unsent) == 0 {
		return nil, c.framer.between()
	}
	s.calls.Add(int64(-c.ended))
	return c.unsent, c.began && c.framer.between()
}
