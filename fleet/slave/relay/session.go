package relay

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	drainTime  = 50 * time.Millisecond
	finishTime = 3 * time.Second // for the last replies after the kernel has said that it will send no more
)

// stage is how far the loop is with a session.
type stage uint8

const (
	fresh stage = iota
	passing
	ended
)

// session is one kernel connection joined to one connection to a master. The loop passes its bytes.
type session struct {
	kernel, master *socket
	addr           netip.AddrPort // the master's
	loop           *loop

	calls, replies atomic.Int64
	waiting        atomic.Int64 // when a call was sent while none was unanswered
	heard          atomic.Int64 // when bytes of a reply last came; 0: never
	down           atomic.Int64 // bytes of replies

	// The loop's own.
	stage  stage
	queued bool // for another turn
	over   bool
	up     upstream
	back   downstream
	err    error       // of the master's connection
	finish *time.Timer // ends a session whose kernel sends no more

	mu       sync.Mutex // guards what follows, and that master is open
	draining bool
	killed   bool
	closed   bool
	timer    *time.Timer // ends a drain

	done chan struct{} // closed at the end, when out is set
	out  outcome
}

// outcome says how a session ended.
type outcome struct {
	gone  bool   // the kernel has ended its connection
	ours  bool   // it was ended by kill or drain
	clean bool   // the kernel's connection can be joined to another master
	err   error  // of the master's connection, when neither
	carry []byte // for the next session, when clean
}

// newSession returns a session for a loop's pass. carry are calls that the last session could not send: whole records.
func newSession(l *loop, kernel, master *socket, addr netip.AddrPort, carry []byte) *session {
	s := &session{kernel: kernel, master: master, addr: addr, loop: l, done: make(chan struct{})}
	s.resend(carry)
	return s
}

// unanswered says how many calls have no reply.
func (s *session) unanswered() int64 { return s.calls.Load() - s.replies.Load() }

// kill ends the session at once.
func (s *session) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.killed = true
		s.loop.call(s)
	}
}

// drain ends the session when the calls that have been sent are answered, and kills it after a time.
func (s *session) drain(most time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.draining || s.killed {
		return
	}
	s.draining = true
	s.timer = time.AfterFunc(most, s.kill)
	s.loop.call(s)
}

// lastHeard says when bytes of a reply last came, also when they have not been read yet: the loop waits for many at once, and
// for the kernel to take what came before. 0: never.
func (s *session) lastHeard(now int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	heard := s.heard.Load()
	if s.closed {
		return heard
	}
	if ago, ok := s.master.lastCame(); ok {
		heard = max(heard, now-int64(ago))
	}
	return heard
}

// step passes what there is to pass, and says whether there may be more.
func (s *session) step(l *loop) (more bool) {
	s.mu.Lock()
	killed, draining := s.killed, s.draining
	s.mu.Unlock()
	if killed || s.over {
		s.over = true
		return false
	}
	s.passCalls(l, draining)
	if s.over {
		return false
	}
	more = s.passReplies(l)
	switch {
	case s.up.failed && !more: // what had come of replies is passed: no more will
		s.over = true
	case s.up.parked && s.unanswered() == 0 && s.back.whole():
		s.over = true
	}
	return more
}

// fail ends the session because of the master's connection.
func (s *session) fail(err error) {
	s.over = true
	if s.err == nil {
		s.err = err
	}
}

// end closes the master's connection and says how it went.
func (s *session) end(l *loop) {
	if s.finish != nil {
		s.finish.Stop()
	}
	carry, sent := s.up.settle(s)
	whole := sent && s.back.whole()
	s.back.release(l)
	if s.up.parked {
		s.err = nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
	}
	s.master.reset()
	s.out = outcome{gone: s.up.gone, ours: s.killed || s.draining, err: s.err}
	if s.out.clean = !s.up.gone && whole && s.unanswered() == 0; s.out.clean {
		s.out.carry = carry
	}
	close(s.done)
}
