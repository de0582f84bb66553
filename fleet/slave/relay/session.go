package relay

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	callBuffer  = 32 << 10
	replyBuffer = 64 << 10
	bigReply    = 32 << 10 // what is left of a reply after the first read is spliced from this size on
	headBuffer  = 4 << 10  // what is read before a splice, when replies are big
	drainTime   = 50 * time.Millisecond
	finishTime  = 3 * time.Second // for the last replies after the kernel has said that it will send no more
)

// session is one kernel connection joined to one connection to a master.
type session struct {
	kernel, master *net.TCPConn
	addr           netip.AddrPort // the master's
	epoch          time.Time      // zero of the times below
	carry          []byte         // calls that the last session could not send; whole records from the first byte

	calls, replies atomic.Int64
	waiting        atomic.Int64 // when a call was sent while none was unanswered
	heard          atomic.Int64 // when bytes of a reply last came; 0: never
	down           atomic.Int64 // bytes of replies
	parked         atomic.Bool  // no more calls are sent, and the stream of calls stands between two

	mu       sync.Mutex // guards what follows, and the order of deadlines
	draining bool
	killed   bool
	ended    bool
	timer    *time.Timer   // ends a drain
	done     chan struct{} // closed at the end
}

// outcome says how a session ended.
type outcome struct {
	gone  bool   // the kernel has ended its connection
	ours  bool   // it was ended by kill or drain
	clean bool   // the kernel's connection can be joined to another master
	err   error  // of the master's connection, when neither
	carry []byte // for the next session, when clean
}

func newSession(kernel, master *net.TCPConn, addr netip.AddrPort, epoch time.Time, carry []byte) *session {
	return &session{kernel: kernel, master: master, addr: addr, epoch: epoch, carry: carry, done: make(chan struct{})}
}

func (s *session) now() int64 { return int64(time.Since(s.epoch)) }

// unanswered says how many calls have no reply.
func (s *session) unanswered() int64 { return s.calls.Load() - s.replies.Load() }

// kill ends the session at once.
func (s *session) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.killLocked()
}

func (s *session) killLocked() {
	if s.ended {
		return
	}
	s.killed = true
	s.kernel.SetDeadline(past) //nolint:errcheck // fails only when closed
	s.master.SetDeadline(past) //nolint:errcheck // fails only when closed
}

// drain ends the session when the calls that have been sent are answered, and kills it after a time.
func (s *session) drain(most time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.draining || s.killed {
		return
	}
	s.draining = true
	s.kernel.SetReadDeadline(past) //nolint:errcheck // fails only when closed
	s.timer = time.AfterFunc(most, s.kill)
}

// run passes bytes until one side ends or the session is told to. The master's connection is closed afterwards, the
// kernel's is left to the caller.
func (s *session) run() outcome {
	var up upstream
	upDone := make(chan struct{})
	go func() {
		defer close(upDone)
		up.run(s)
	}()
	whole, err := s.passReplies()
	if s.parked.Load() {
		err = nil
	}
	s.mu.Lock()
	s.kernel.SetReadDeadline(past) //nolint:errcheck // fails only when closed
	reset(s.master)                // the calls' goroutine may be writing to it
	s.mu.Unlock()
	<-upDone
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	if s.timer != nil {
		s.timer.Stop()
	}
	close(s.done)
	s.kernel.SetDeadline(time.Time{}) //nolint:errcheck // fails only when closed
	if up.err != nil {
		err = up.err
	}
	out := outcome{gone: up.gone, ours: s.killed || s.draining, err: err, carry: up.unsent}
	out.clean = !up.gone && whole && up.whole && s.unanswered() == 0
	return out
}

// passReplies passes replies to the kernel until the master's connection ends, a deadline comes, or a drain is complete.
// whole says that nothing is left to be said to the kernel of a reply that it has begun to get.
func (s *session) passReplies() (whole bool, err error) {
	var f framer
	var p *pipe
	defer func() {
		if p != nil {
			p.close()
		}
	}()
	buf := make([]byte, replyBuffer)
	room := replyBuffer
	for {
		n, err := s.master.Read(buf[:room])
		if n > 0 {
			s.listen(n)
			ended := f.feed(buf[:n])
			room = replyBuffer
			if f.left < bigReply {
				if _, werr := s.kernel.Write(buf[:n]); werr != nil {
					return false, werr
				}
			} else {
				if p == nil {
					if p, err = newPipe(s.master, s.kernel); err != nil {
						return false, err
					}
				}
				rest := f.left
				if err := p.pass(buf[:n], rest, s.listen); err != nil {
					return false, err
				}
				ended += f.pass(rest)
				room = headBuffer
			}
			if ended > 0 {
				s.answer(ended)
				if s.parked.Load() && s.unanswered() == 0 {
					return f.between(), nil
				}
			}
		}
		if err != nil {
			return f.between(), err
		}
	}
}

// listen counts n bytes of replies.
func (s *session) listen(n int) {
	s.down.Add(int64(n))
	s.heard.Store(s.now())
}

func (s *session) answer(ended int) { s.replies.Add(int64(ended)) }

// upstream passes calls to the master: the half of a session that another goroutine runs.
type upstream struct {
	gone   bool   // the kernel has ended its connection
	whole  bool   // what was sent ends with a call's last byte
	unsent []byte // what was read and not sent, when whole
	err    error  // of the master's connection
}

// run passes calls until the kernel or the master ends, or the session is told to end.
func (u *upstream) run(s *session) {
	var f framer
	u.whole = true
	if len(s.carry) > 0 && !u.send(s, &f, s.carry) {
		return
	}
	buf := make([]byte, callBuffer)
	for last := false; ; { // last: the session drains, and this is the rest of the last call
		n, err := s.kernel.Read(buf)
		if n > 0 && !u.send(s, &f, buf[:n]) {
			return
		}
		switch {
		case err == nil:
			if last && f.between() {
				u.finish(s, &f)
				return
			}
		case errors.Is(err, os.ErrDeadlineExceeded):
			if last = u.finish(s, &f); !last {
				return
			}
		case err == io.EOF:
			u.gone = true
			s.master.CloseWrite()                                //nolint:errcheck // its reader will see
			s.master.SetReadDeadline(time.Now().Add(finishTime)) //nolint:errcheck // fails only when closed
			return
		default:
			u.gone = true
			s.stopReading()
			return
		}
	}
}

// send passes bytes to the master, and says whether it is there. What could not be sent is kept.
func (u *upstream) send(s *session, f *framer, b []byte) bool {
	began := f.between()
	ended := f.feed(b)
	if ended > 0 || !f.between() {
		if s.unanswered() <= 0 {
			s.waiting.Store(s.now())
		}
		s.calls.Add(int64(ended))
	}
	_, err := s.master.Write(b)
	if err == nil {
		u.whole = f.between()
		return true
	}
	u.err = err
	s.calls.Add(int64(-ended))
	u.whole = began && f.between()
	if u.whole {
		u.unsent = append([]byte(nil), b...)
	}
	s.stopReading()
	return false
}

// finish is called when the reader of calls is interrupted. It says whether to go on reading: a drained session reads the
// call that it is in the middle of.
func (u *upstream) finish(s *session, f *framer) (goOn bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.draining || s.killed {
		return false
	}
	if !f.between() {
		s.kernel.SetReadDeadline(time.Time{}) //nolint:errcheck // fails only when closed
		return true
	}
	s.parked.Store(true)
	if s.unanswered() == 0 {
		s.master.SetReadDeadline(past) //nolint:errcheck // fails only when closed
	}
	return false
}

// stopReading ends the reader of replies.
func (s *session) stopReading() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.master.SetReadDeadline(past) //nolint:errcheck // fails only when closed
}
