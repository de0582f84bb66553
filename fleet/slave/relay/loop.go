package relay

import (
	"fmt"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// turnBytes is what a session may pass before others have their turn.
const turnBytes = 2 << 20

// yieldEvery is how often the loop lets the scheduler run, and those who wait for its processor: Go interrupts a goroutine that has
// not for 10 ms by a signal. Were the scheduler told of the loop's system calls, its monitor would look for it in them instead,
// every 20 µs from then on, which costs more than passing the bytes.
const yieldEvery = 4 * time.Millisecond

// minSpin and maxSpin bound how long the loop looks for events before it sleeps, where there is more than one processor. To sleep
// and to be woken takes about as long as the latter, and a call passes the loop twice.
const (
	minSpin = 5 * time.Microsecond
	maxSpin = 50 * time.Microsecond
)

// sparePipes are kept for later.
const sparePipes = 4

// loop passes the bytes of all sessions of a Relay: one thread that waits for all of their sockets at once and does what
// there is to do. A goroutine for each direction costs twice as much processor time: each is woken by another thread, which is
// woken itself for it, and on a machine that is busy they push the master and the reader aside.
type loop struct {
	epoll, bell int
	epoch       time.Time // zero of the sessions' times
	maxSpin     time.Duration

	// The loop's own.
	events  []unix.EpollEvent
	now     int64         // since epoch, when it was woken
	window  time.Duration // how long it looks before it sleeps
	yielded int64         // when it last let the scheduler run
	ends    map[int32]end
	again   []*session // have more to pass
	spare   []*session // again, while it is filled anew
	buf     []byte     // for what is read, whoever's it is
	pipes   []*pipe    // empty

	mu      sync.Mutex // guards what follows; taken after a session's
	called  []*session // to be looked at
	stopped bool
	done    chan struct{} // closed at the end
}

// end is a socket of a session.
type end struct {
	*socket
	session *session
}

func newLoop(epoch time.Time) (*loop, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	bell, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		unix.Close(ep) //nolint:errcheck // nothing to be done about it
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	l := &loop{
		epoll: ep, bell: bell, epoch: epoch, ends: make(map[int32]end), buf: make([]byte, max(callBuffer, replyBuffer)),
		events: make([]unix.EpollEvent, 64), done: make(chan struct{}),
	}
	if runtime.GOMAXPROCS(0) > 1 {
		l.maxSpin = maxSpin
	}
	if err := l.watch(bell, unix.EPOLLIN); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *loop) watch(fd int, events uint32) error {
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	return nil
}

func (l *loop) close() {
	for _, p := range l.pipes {
		p.close()
	}
	unix.Close(l.bell)  //nolint:errcheck // nothing to be done about it
	unix.Close(l.epoll) //nolint:errcheck // nothing to be done about it
}

// pass passes a session's bytes until it ends.
func (l *loop) pass(s *session) outcome {
	l.call(s)
	<-s.done
	return s.out
}

// call has the loop look at a session soon.
func (l *loop) call(s *session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.called = append(l.called, s)
	l.ring()
}

// stop ends the loop and waits for it. No session is under way, nor comes.
func (l *loop) stop() {
	l.mu.Lock()
	l.stopped = true
	l.ring()
	l.mu.Unlock()
	<-l.done
}

// ring wakes the loop. l.mu is held.
func (l *loop) ring() {
	unix.Write(l.bell, []byte{1, 7: 0}) //nolint:errcheck // fails only when it rings already
}

// run is the loop. It returns after stop.
func (l *loop) run() {
	defer close(l.done)
	defer l.close()
	for {
		wait := -1
		if len(l.again) > 0 {
			wait = 0
		}
		if l.turn(wait) {
			return
		}
	}
}

// turn waits for something to do, for so many milliseconds at the most, and does it. It says whether the loop is to end.
func (l *loop) turn(wait int) (over bool) {
	n := l.await(wait)
	l.now = int64(time.Since(l.epoch))
	if l.now-l.yielded > int64(yieldEvery) {
		l.yielded = l.now
		runtime.Gosched()
	}
	again := l.again
	l.again = l.spare[:0]
	for _, s := range again {
		s.queued = false
	}
	rung := false
	for _, e := range l.events[:n] {
		if e.Fd == int32(l.bell) {
			rung = true
		} else if at, ok := l.ends[e.Fd]; ok {
			at.note(e.Events)
			l.advance(at.session)
		}
	}
	for _, s := range again {
		l.advance(s)
	}
	clear(again)
	l.spare = again
	return rung && l.answer()
}

// await waits for events, for so many milliseconds at the most. Before it sleeps it looks for a little while, if experience says
// that they come so soon: how long is doubled when that would have helped, and halved when it did not.
func (l *loop) await(wait int) int {
	n := l.poll()
	if n > 0 || wait == 0 {
		return n
	}
	start := time.Now()
	for l.window > 0 && time.Since(start) < l.window {
		if n := l.poll(); n > 0 {
			return n
		}
	}
	n, err := unix.EpollWait(l.epoll, l.events, wait)
	if err != nil {
		n = 0 // a signal: nothing else can be wrong
	}
	if time.Since(start) < l.maxSpin {
		l.window = min(max(2*l.window, minSpin), l.maxSpin)
	} else if l.window /= 2; l.window < minSpin {
		l.window = 0
	}
	return n
}

// poll asks for events without waiting; Go's scheduler need not know.
func (l *loop) poll() int {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(l.epoll), uintptr(unsafe.Pointer(unsafe.SliceData(l.events))),
		uintptr(len(l.events)), 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// answer looks at the sessions that called, and says whether the loop is to end.
func (l *loop) answer() (over bool) {
	var count [8]byte
	unix.Read(l.bell, count[:]) //nolint:errcheck // it never blocks
	l.mu.Lock()
	called := l.called
	l.called = nil
	over = l.stopped
	l.mu.Unlock()
	for _, s := range called {
		if s.stage == fresh {
			l.begin(s)
		}
		l.advance(s)
	}
	return over
}

// begin takes a session on.
func (l *loop) begin(s *session) {
	s.stage = passing
	for _, sock := range []*socket{s.kernel, s.master} {
		sock.readable, sock.writable, sock.ending = false, true, false // the first event says what is
		l.ends[int32(sock.fd)] = end{sock, s}
		if err := l.watch(sock.fd, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP|unix.EPOLLET); err != nil {
			s.fail(err)
		}
	}
}

// advance passes what there is of a session's, and lets go of it when it is over.
func (l *loop) advance(s *session) {
	if s.stage != passing {
		return
	}
	more := s.step(l)
	if !s.over {
		if more && !s.queued {
			s.queued = true
			l.again = append(l.again, s)
		}
		return
	}
	s.stage = ended
	for _, sock := range []*socket{s.kernel, s.master} {
		delete(l.ends, int32(sock.fd))
		unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, sock.fd, nil) //nolint:errcheck // fails only when it was never there
	}
	s.end(l)
}

// takePipe returns an empty pipe.
func (l *loop) takePipe() (*pipe, error) {
	if n := len(l.pipes); n > 0 {
		p := l.pipes[n-1]
		l.pipes = l.pipes[:n-1]
		return p, nil
	}
	return newPipe()
}

// givePipe takes a pipe back.
func (l *loop) givePipe(p *pipe) {
	if p.held > 0 || len(l.pipes) >= sparePipes {
		p.close()
		return
	}
	l.pipes = append(l.pipes, p)
}
