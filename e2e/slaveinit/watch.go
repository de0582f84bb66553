package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/e2e/known"
	"github.com/nfs-fleet/nfs-fleet/e2e/wire"
)

// watches are the slave's readers of known files, by number.
type watches struct {
	mu  sync.Mutex // guards all
	all map[int]*watch
}

// watch is one of them. Its goroutine owns everything but the channels and stall.
type watch struct {
	wire.Watch
	ask   chan chan wire.Window // answered between two waits
	end   chan struct{}
	stall atomic.Int64

	began  time.Time // of the window
	window wire.Window
	newest uint64 // version, of the last open that told one
	buf    []byte
}

// streamPiece is what a program that streams asks for at once.
const streamPiece = 256 << 10

// StartWatch starts a reader and returns its number.
func (s *Slave) StartWatch(a wire.Watch, number *int) error {
	w := &watch{Watch: a, ask: make(chan chan wire.Window), end: make(chan struct{}), buf: aligned(known.Size)}
	if a.Stream {
		w.buf = aligned(streamPiece)
	}
	w.reset()
	s.watches.mu.Lock()
	defer s.watches.mu.Unlock()
	*number = len(s.watches.all) + 1
	s.watches.all[*number] = w
	go w.run()
	go w.witness()
	return nil
}

// Window ends a window of a watch and returns it.
func (s *Slave) Window(a wire.NextWindow, r *wire.Window) error {
	s.watches.mu.Lock()
	w := s.watches.all[a.Number]
	s.watches.mu.Unlock()
	if w == nil {
		return fmt.Errorf("no watch %d", a.Number)
	}
	answer := make(chan wire.Window, 1)
	select {
	case w.ask <- answer:
	case <-w.end:
		return fmt.Errorf("watch %d has ended", a.Number)
	case <-time.After(a.Limit):
		return fmt.Errorf("a reader of %s waits since more than %v", w.Path, a.Limit)
	}
	*r = <-answer
	if a.Last {
		close(w.end)
	}
	return nil
}

// aligned returns memory that O_DIRECT can read into.
func aligned(size int) []byte {
	b := make([]byte, size+known.Size)
	off := -int(uintptr(unsafe.Pointer(&b[0]))) & (known.Size - 1)
	return b[off:][:size:size]
}

// run reads until the watch is ended.
func (w *watch) run() {
	for !w.ended() {
		w.pass()
	}
}

// ended hands out the window when somebody asks for it, and says whether it was the last.
func (w *watch) ended() bool {
	select {
	case <-w.end:
		return true
	case answer := <-w.ask:
		w.window.Span, w.window.Stall = time.Since(w.began), time.Duration(w.stall.Swap(0))
		answer <- w.window
		w.reset()
	default:
	}
	return false
}

func (w *watch) reset() {
	w.began, w.window = time.Now(), wire.Window{Versions: map[uint64]int{}}
}

// step does what may wait, and measures it. An error is noted, and is followed by a rest: a broken mount must not spin.
func (w *watch) step(what string, do func() error) bool {
	at := time.Now()
	err := do()
	p := wire.Pause{What: what, After: at.Sub(w.began), Took: time.Since(at), At: at}
	if p.Took > w.window.Longest.Took {
		w.window.Longest = p
	}
	if p.Took >= wire.PauseWorthNoting && len(w.window.Pauses) < 100 {
		w.window.Pauses = append(w.window.Pauses, p)
	}
	if err != nil {
		if w.window.Failed++; len(w.window.Errors) < 20 {
			w.window.Errors = append(w.window.Errors, what+": "+err.Error())
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err == nil
}

// pass opens the file once and reads in it.
func (w *watch) pass() {
	flags := unix.O_RDONLY | unix.O_CLOEXEC
	if !w.Stream {
		flags |= unix.O_DIRECT
	}
	var f *os.File
	if !w.step("open", func() (err error) { f, err = os.OpenFile(w.Path, flags, 0); return err }) {
		return
	}
	defer w.step("close", func() error { return f.Close() })
	var info os.FileInfo
	if !w.step("stat", func() (err error) { info, err = f.Stat(); return err }) {
		return
	}
	if w.Stream {
		// Nobody has it mapped and nothing of it is dirty, so all of it goes: what follows comes from the master.
		unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	first := true
	for i, n := 0, w.reads(info.Size()); i < n && !w.ended(); i++ {
		off, size := w.place(i, info.Size())
		w.step("read", func() error { return w.read(f, off, size, &first) })
		if w.Pace > 0 {
			time.Sleep(w.Pace)
		}
	}
}

// reads is how many reads one open is for.
func (w *watch) reads(size int64) int {
	if w.Stream {
		return int((size + streamPiece - 1) / streamPiece)
	}
	return w.Reads
}

// place is where the i-th read goes, and how long it is.
func (w *watch) place(i int, size int64) (off int64, length int) {
	if w.Stream {
		off = int64(i) * streamPiece
		return off, int(min(streamPiece, size-off))
	}
	return rand.Int63n(max(1, size/known.Size)) * known.Size, known.Size
}

// read reads and checks. The first read of an open tells the version, which the others must have, too.
func (w *watch) read(f *os.File, off int64, size int, first *bool) error {
	b := w.buf[:size]
	if _, err := io.ReadFull(io.NewSectionReader(f, off, int64(size)), b); err != nil {
		return fmt.Errorf("%d bytes at %d: %w", size, off, err)
	}
	w.window.Reads++
	version, err := known.Check(b, w.Name, off/known.Size)
	switch {
	case err != nil:
		return err
	case *first:
		*first = false
		w.window.Opens++
		w.window.Versions[version]++
		if version < w.newest {
			w.window.Back++
		}
		w.newest = version
	case version != w.newest:
		return errors.Join(known.ErrWrong, fmt.Errorf("an open file of version %d gives version %d at %d", w.newest, version, off))
	}
	return nil
}

// witness watches how long this machine is held up: it sleeps, and sees how much longer that took.
func (w *watch) witness() {
	const nap = 5 * time.Millisecond
	for {
		at := time.Now()
		select {
		case <-w.end:
			return
		case <-time.After(nap):
		}
		if over := int64(time.Since(at) - nap); over > w.stall.Load() {
			w.stall.Store(over)
		}
	}
}
