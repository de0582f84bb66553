package e2e

import (
	"syscall"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/e2e/wire"
)

// Watch is a reader of a known file that works on a slave until Stop, and measures how long it waits.
type Watch struct {
	s      *Slave
	number int
}

// Watch starts a reader.
func (s *Slave) Watch(w wire.Watch) *Watch {
	s.t.Helper()
	r := &Watch{s: s}
	s.call("StartWatch", w, &r.number)
	return r
}

// windowLimit is how long a read may take before it counts as one that never ends.
const windowLimit = time.Minute

// Window returns what the reader saw since the last window, and begins the next. A read under way is waited for.
func (w *Watch) Window() wire.Window { return w.next(false) }

// Stop ends the reader with its last window.
func (w *Watch) Stop() wire.Window { return w.next(true) }

func (w *Watch) next(last bool) (r wire.Window) {
	w.s.t.Helper()
	w.s.call("Window", wire.NextWindow{Number: w.number, Limit: windowLimit, Last: last}, &r)
	return r
}

// faultless demands that a window has reads, and none that failed, was wrong or went back in time.
func faultless(t testing.TB, what string, w wire.Window) {
	t.Helper()
	if w.Failed > 0 || w.Back > 0 || w.Reads == 0 {
		t.Errorf("%s: %d reads, %d failed, %d opens went back in time: %q", what, w.Reads, w.Failed, w.Back, w.Errors)
	}
}

// Process is a program that runs in the background of a slave.
type Process struct {
	s      *Slave
	number int
}

// Start starts a program on the slave. What it says is shown when the test fails.
func (s *Slave) Start(env []string, args ...string) *Process {
	s.t.Helper()
	p := &Process{s: s}
	s.call("StartProcess", wire.Process{Args: args, Env: env}, &p.number)
	s.t.Cleanup(func() {
		var r wire.Output
		if s.t.Failed() && s.rpc.Call("Slave.ProcessOutput", p.number, &r) == nil {
			s.t.Logf("%q on the slave %s, ended: %v, said:\n%s", args, s.Addr, r.Ended, lastLines(string(r.Said), 60))
		}
	})
	return p
}

// Signal sends a signal.
func (p *Process) Signal(sig syscall.Signal) {
	p.s.t.Helper()
	p.s.call("SignalProcess", wire.Signal{Number: p.number, Signal: int(sig)}, &struct{}{})
}

// Output tells what the program has said so far, and whether it has ended.
func (p *Process) Output() (r wire.Output) {
	p.s.t.Helper()
	p.s.call("ProcessOutput", p.number, &r)
	return r
}

// Wait waits until the program has ended, and returns what it said and its exit code.
func (p *Process) Wait(limit time.Duration) (r wire.Output) {
	p.s.t.Helper()
	eventually(p.s.t, limit, "the end of a program on "+p.s.Addr, func() bool { r = p.Output(); return r.Ended })
	return r
}

// Mapping is a known file that is mapped into a slave's memory.
type Mapping struct {
	s      *Slave
	number int
	name   string
}

// Map maps a known file.
func (s *Slave) Map(path, name string) *Mapping {
	s.t.Helper()
	m := &Mapping{s: s, name: name}
	s.call("Map", path, &m.number)
	return m
}

// Version faults blocks of the mapping in from the master, and returns the version that they are of.
func (m *Mapping) Version(from, to int) (version uint64) {
	m.s.t.Helper()
	m.s.call("CheckMapped", wire.Mapped{Number: m.number, Name: m.name, From: from, To: to}, &version)
	return version
}
