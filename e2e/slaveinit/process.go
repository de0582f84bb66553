package main

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"github.com/nfs-fleet/nfs-fleet/e2e/wire"
)

// processes are the programs that run in the background, by number.
type processes struct {
	mu  sync.Mutex // guards all
	all map[int]*process
}

type process struct {
	cmd  *exec.Cmd
	said tail
	done chan struct{} // closed when it has ended
}

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex // guards b
	b  []byte
}

const tailSize = 256 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > 2*tailSize {
		t.b = append([]byte(nil), t.b[len(t.b)-tailSize:]...)
	}
	return len(p), nil
}

func (t *tail) bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]byte(nil), t.b[max(0, len(t.b)-tailSize):]...)
}

// StartProcess starts a program and returns its number.
func (s *Slave) StartProcess(a wire.Process, number *int) error {
	p := &process{cmd: exec.Command(a.Args[0], a.Args[1:]...), done: make(chan struct{})}
	p.cmd.Dir = "/"
	p.cmd.Env = append(os.Environ(), a.Env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.said, &p.said
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("start %q: %w", a.Args, err)
	}
	go func() {
		defer close(p.done)
		p.cmd.Wait() // what came of it is in ProcessState
	}()
	s.processes.mu.Lock()
	defer s.processes.mu.Unlock()
	*number = len(s.processes.all) + 1
	s.processes.all[*number] = p
	return nil
}

func (s *Slave) process(number int) (*process, error) {
	s.processes.mu.Lock()
	defer s.processes.mu.Unlock()
	p := s.processes.all[number]
	if p == nil {
		return nil, fmt.Errorf("no process %d", number)
	}
	return p, nil
}

// SignalProcess sends a signal; one that comes too late is no error.
func (s *Slave) SignalProcess(a wire.Signal, _ *struct{}) error {
	p, err := s.process(a.Number)
	if err != nil {
		return err
	}
	if err := p.cmd.Process.Signal(syscall.Signal(a.Signal)); err != nil && err != os.ErrProcessDone {
		return fmt.Errorf("signal %q: %w", p.cmd.Args, err)
	}
	return nil
}

// ProcessOutput tells what a program has said so far.
func (s *Slave) ProcessOutput(number int, r *wire.Output) error {
	p, err := s.process(number)
	if err != nil {
		return err
	}
	select {
	case <-p.done:
		r.Ended, r.Code = true, p.cmd.ProcessState.ExitCode()
	default:
	}
	r.Said = p.said.bytes()
	return nil
}
