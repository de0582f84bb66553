package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/nfs-fleet/nfs-fleet/e2e/wire"
)

// Slave is what a test can have done. Its methods are net/rpc's; calls run at once, each in a goroutine of its own.
type Slave struct {
	mu    sync.Mutex // guards what follows
	next  int
	files map[int]*os.File
	loops map[int]*loop

	watches   watches
	processes processes
	mappings  mappings
}

func newSlave() *Slave {
	return &Slave{
		files: map[int]*os.File{}, loops: map[int]*loop{},
		watches: watches{all: map[int]*watch{}}, processes: processes{all: map[int]*process{}},
		mappings: mappings{all: map[int]mapping{}},
	}
}

// Setup brings the network up.
func (s *Slave) Setup(a wire.Setup, _ *struct{}) error {
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"addr", "add", a.Address, "dev", "vec0"},
		{"link", "set", "vec0", "up"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %q: %w: %s", args, err, out)
		}
	}
	return nil
}

// Run runs a program to its end.
func (s *Slave) Run(c wire.Command, r *wire.Result) error {
	ctx, cancel := context.WithTimeout(context.Background(), c.Limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("run %q: %w", c.Args, err)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("run %q: not done after %v: %s%s", c.Args, c.Limit, stdout.Bytes(), stderr.Bytes())
	}
	*r = wire.Result{Code: cmd.ProcessState.ExitCode(), Stdout: stdout.Bytes(), Stderr: stderr.Bytes()}
	return nil
}

// Lstat looks a name up.
func (s *Slave) Lstat(path string, r *wire.Stat) error {
	info, err := os.Lstat(path)
	if r.Errno = wire.Errno(err); err == nil {
		r.Attr = wire.AttrOf(info)
	}
	return nil
}

// Readlink reads a symbolic link.
func (s *Slave) Readlink(path string, r *wire.Data) error {
	target, err := os.Readlink(path)
	r.Errno, r.Data = wire.Errno(err), []byte(target)
	return nil
}

// ReadDir lists a directory.
func (s *Slave) ReadDir(path string, r *wire.Names) error {
	f, err := os.Open(path)
	if err == nil {
		defer f.Close()
		r.Names, err = f.Readdirnames(-1)
	}
	r.Errno = wire.Errno(err)
	return nil
}

// Open opens a file for reading and keeps it open.
func (s *Slave) Open(path string, r *wire.Opened) error {
	f, err := os.Open(path)
	if r.Errno = wire.Errno(err); err != nil {
		return nil
	}
	info, err := f.Stat()
	if r.Errno = wire.Errno(err); err != nil {
		return f.Close()
	}
	r.Attr = wire.AttrOf(info)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	s.files[s.next], r.Handle = f, s.next
	return nil
}

func (s *Slave) file(handle int) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.files[handle]
	if f == nil {
		return nil, fmt.Errorf("no open file %d", handle)
	}
	return f, nil
}

// Fstat asks for an open file's attributes, past the client's attribute cache as far as a system call can.
func (s *Slave) Fstat(handle int, r *wire.Stat) error {
	f, err := s.file(handle)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if r.Errno = wire.Errno(err); err == nil {
		r.Attr = wire.AttrOf(info)
	}
	return nil
}

// ReadAt reads from an open file.
func (s *Slave) ReadAt(a wire.ReadAt, r *wire.Data) error {
	f, err := s.file(a.Handle)
	if err != nil {
		return err
	}
	buf := make([]byte, a.Length)
	n, err := f.ReadAt(buf, a.Offset)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	r.Errno, r.Data = wire.Errno(err), buf[:n]
	return nil
}

// Close closes an open file.
func (s *Slave) Close(handle int, _ *struct{}) error {
	f, err := s.file(handle)
	if err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.files, handle)
	s.mu.Unlock()
	return f.Close()
}

// Summarize digests a tree.
func (s *Slave) Summarize(l wire.Listing, r *wire.Summary) error {
	*r = wire.Summarize(l)
	return nil
}

// loop is a reader in the background.
type loop struct {
	stop, done chan struct{}
	report     wire.Report // the loop's own until done is closed
}

// StartLoop starts a reader and returns its number.
func (s *Slave) StartLoop(l wire.Loop, number *int) error {
	lp := &loop{stop: make(chan struct{}), done: make(chan struct{})}
	lp.report.Sums, lp.report.Inos = map[string]int{}, map[uint64]int{}
	pass := func() (string, uint64, error) { return openAndRead(l.Path) }
	if l.Keep {
		f, err := openDirect(l.Path)
		if err != nil {
			return err
		}
		pass = func() (string, uint64, error) { return readAll(f) }
	}
	go lp.run(pass)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	s.loops[s.next], *number = lp, s.next
	return nil
}

// Collect ends a reader and returns what it saw.
func (s *Slave) Collect(number int, r *wire.Report) error {
	s.mu.Lock()
	lp := s.loops[number]
	delete(s.loops, number)
	s.mu.Unlock()
	if lp == nil {
		return fmt.Errorf("no loop %d", number)
	}
	close(lp.stop)
	<-lp.done
	*r = lp.report
	return nil
}

func (lp *loop) run(pass func() (string, uint64, error)) {
	defer close(lp.done)
	for {
		select {
		case <-lp.stop:
			return
		default:
		}
		began := time.Now()
		sum, ino, err := pass()
		lp.report.Longest = max(lp.report.Longest, time.Since(began))
		lp.report.Reads++
		if err == nil {
			lp.report.Sums[sum]++
			lp.report.Inos[ino]++
			continue
		}
		lp.report.Failed++
		if len(lp.report.Errors) < 20 {
			lp.report.Errors = append(lp.report.Errors, err.Error())
		}
	}
}

// openDirect opens a file so that reads go to the server: the page cache would hide it.
func openDirect(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECT, 0)
}

func openAndRead(path string) (string, uint64, error) {
	f, err := openDirect(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	return readAll(f)
}

func readAll(f *os.File) (string, uint64, error) {
	info, err := f.Stat()
	if err != nil {
		return "", 0, err
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, 1<<62)); err != nil {
		return "", 0, err
	}
	return fmt.Sprintf("%x", sum.Sum(nil)), wire.AttrOf(info).Ino, nil
}
