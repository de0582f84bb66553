package rpc

import (
	"context"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A goroutine a connection is what makes a server simple, and what makes it slow when calls are answered in a microsecond:
// parking one and waking it costs more than that. So a connection that waits for its next calls, owes nothing and has sent
// whole records only is watched by the loop of its listener, together with all others like it: one goroutine takes their
// calls in, answers them and writes the replies, as long as none of that takes any waiting. As soon as it would, the
// connection's own goroutine goes on in its place (see turn.go).
//
// After the last call the loop looks for more for a little while before it parks, if experience says that they come so soon.
// It is one goroutine as long as that is enough; when it has been busy for a while without a break, others help it.
type loop struct {
	srv   *Server
	ctx   context.Context // of the calls
	epoll *os.File
	raw   syscall.RawConn // of epoll
	fd    int

	helpers atomic.Int32
	running sync.WaitGroup
	ready   [loopEvents]unix.EpollEvent // the first goroutine's own
	window  time.Duration               // the same: how long it looks before it parks
	found   int                         // the same: what look has found

	onReadable func(fd uintptr) bool

	maxSpin  time.Duration
	maxHelp  int32
	mu       sync.Mutex // guards free
	free     []int32    // places that are not used
	watching []atomic.Pointer[Conn]
}

const (
	// loopEvents is how many connections a goroutine takes at a time.
	loopEvents = 16
	// minSpin and maxSpin bound how long the loop looks for calls before it parks. A park and a wake-up take about as long as
	// the latter, all in all.
	minSpin = 5 * time.Microsecond
	maxSpin = 50 * time.Microsecond
	// yieldEvery is how often the loop lets Go's scheduler run, and those who wait for its processor: after 10 ms without, it is
	// interrupted by a signal. Were the scheduler told of its system calls, its monitor would look for it in them instead, every
	// 20 µs from then on.
	yieldEvery = 4 * time.Millisecond
	// busyFor is how long the loop is without a break before it gets help.
	busyFor = time.Millisecond
)

// newLoop returns the loop of the connections of one listener; nil when the system has none for us.
func newLoop(ctx context.Context, s *Server) *loop {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		s.log.Warn().Err(err).Msg("connections are served without epoll")
		return nil
	}
	_ = unix.SetNonblock(fd, true) // or else it would not be watched by the runtime's poller
	l := &loop{srv: s, ctx: ctx, epoll: os.NewFile(uintptr(fd), "epoll"), fd: fd}
	if l.raw, err = l.epoll.SyscallConn(); err != nil {
		l.epoll.Close()
		return nil
	}
	places := s.cfg.MaxConns + s.cfg.MaxConns/4 + 16 // those that are on their way out keep theirs
	l.watching = make([]atomic.Pointer[Conn], places)
	for i := range places {
		l.free = append(l.free, int32(places-1-i))
	}
	if procs := runtime.GOMAXPROCS(0); procs > 1 {
		l.maxSpin, l.maxHelp = maxSpin, int32(procs-1)
	}
	l.onReadable = l.look
	l.running.Go(l.run)
	return l
}

// close ends the loop. It watches nobody any more.
func (l *loop) close() {
	if l == nil {
		return
	}
	l.epoll.SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // fails only when closed
	l.running.Wait()
	l.epoll.Close()
}

// join finds a place for c; ok is false when there is none.
func (l *loop) join(c *Conn) (ok bool) {
	if c.raw == nil || !l.allot(c) {
		return false
	}
	if err := l.control(c, unix.EPOLL_CTL_ADD, unix.EPOLLET); err != nil {
		l.leave(c)
		return false
	}
	return true
}

// allot gives c a place.
func (l *loop) allot(c *Conn) (ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.free) == 0 {
		return false
	}
	c.place = l.free[len(l.free)-1]
	l.free = l.free[:len(l.free)-1]
	l.watching[c.place].Store(c)
	return true
}

// leave gives c's place back. An event that is on its way finds nobody there, or somebody who has nothing to read.
func (l *loop) leave(c *Conn) {
	l.watching[c.place].Store(nil)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.free = append(l.free, c.place)
}

// watch has epoll tell of what c's peer sends, from now on and what is there already, or stop telling. That a connection is
// broken it tells all the same, but once: whoever has the connection may not look at it for seconds.
func (l *loop) watch(c *Conn, on bool) error {
	if on {
		return l.control(c, unix.EPOLL_CTL_MOD, unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLET)
	}
	return l.control(c, unix.EPOLL_CTL_MOD, unix.EPOLLET)
}

func (l *loop) control(c *Conn, op int, events uint32) error {
	var failed error
	err := c.raw.Control(func(fd uintptr) {
		failed = unix.EpollCtl(l.fd, op, int(fd), &unix.EpollEvent{Fd: c.place, Events: events})
	})
	if err != nil {
		return err
	}
	return failed
}

// run is the loop's first goroutine.
func (l *loop) run() {
	began, busy := time.Now(), false
	yielded := began
	for {
		n := l.poll(&l.ready)
		if n == 0 {
			if n = l.await(); n == 0 {
				return
			}
			busy = false
		}
		l.serve(l.ready[:n])
		now := time.Now()
		if !busy {
			began, busy = now, true
		} else if now.Sub(began) > busyFor {
			began = now
			l.getHelp()
		}
		yielded = yield(now, yielded)
	}
}

// getHelp starts another goroutine, which ends as soon as it finds nothing to do.
func (l *loop) getHelp() {
	if l.helpers.Add(1) > l.maxHelp {
		l.helpers.Add(-1)
		return
	}
	l.running.Go(func() {
		defer l.helpers.Add(-1)
		var ready [loopEvents]unix.EpollEvent
		yielded := time.Now()
		for {
			n := l.poll(&ready)
			if n == 0 {
				return
			}
			l.serve(ready[:n])
			yielded = yield(time.Now(), yielded)
		}
	})
}

// yield lets the scheduler run when it is time, and returns when it last did.
func yield(now, last time.Time) time.Time {
	if now.Sub(last) < yieldEvery {
		return last
	}
	runtime.Gosched()
	return now
}

// serve answers the connections that epoll has named.
func (l *loop) serve(ready []unix.EpollEvent) {
	for i := range ready {
		if c := l.watching[ready[i].Fd].Load(); c != nil {
			c.onEvent(l.ctx, ready[i].Events&^unix.EPOLLIN != 0)
		}
	}
}

// poll asks which connections have something to read, without waiting. Go's scheduler is not told: its monitor looks every 20 µs
// after whoever makes system calls that it was told of.
func (l *loop) poll(ready *[loopEvents]unix.EpollEvent) int {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(l.fd), uintptr(unsafe.Pointer(ready)), loopEvents, 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// await is poll that waits until there is one, or returns 0 when the loop is to end. How long it looks before it parks is
// doubled when that would have helped, and halved when it did not.
func (l *loop) await() int {
	start := time.Now()
	for l.window > 0 && time.Since(start) < l.window {
		if n := l.poll(&l.ready); n > 0 {
			return n
		}
	}
	if err := l.raw.Read(l.onReadable); err != nil {
		return 0
	}
	if time.Since(start) < l.maxSpin {
		l.window = min(max(2*l.window, minSpin), l.maxSpin)
	} else if l.window /= 2; l.window < minSpin {
		l.window = 0
	}
	return l.found
}

// look is given to the poller.
func (l *loop) look(uintptr) bool {
	l.found = l.poll(&l.ready)
	return l.found > 0
}
