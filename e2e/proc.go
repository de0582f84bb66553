package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// onSpawner runs fn on the operating-system thread that starts all processes. The kernel sends a parent-death signal when the
// *thread* that forked ends, so that thread must live as long as the test binary.
func onSpawner(fn func()) {
	done := make(chan struct{})
	spawner() <- func() { fn(); close(done) }
	<-done
}

var spawner = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for fn := range work {
			fn()
		}
	}()
	return work
})

// procLog keeps what a process said. Safe for concurrent use.
type procLog struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *procLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *procLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// tail returns the last lines, for a failure's report.
func (l *procLog) tail(lines int) string { return lastLines(l.String(), lines) }

func lastLines(s string, lines int) string {
	all := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// proc is a process that runs beside the test, and dies with it.
type proc struct {
	name string
	cmd  *exec.Cmd
	log  *procLog
	done chan struct{} // closed when it has ended; err is set by then
	err  error
}

// start runs argv on host (nil: this machine). Output goes to log. The process is killed when the test ends.
func start(t testing.TB, name string, host *Host, log *procLog, argv []string, prepare func(*exec.Cmd)) *proc {
	t.Helper()
	p := &proc{name: name, log: log, done: make(chan struct{})}
	argv = host.argv(argv)
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.WaitDelay = time.Second
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if prepare != nil {
		prepare(p.cmd)
	}
	var err error
	onSpawner(func() { err = p.cmd.Start() })
	if err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() { p.err = p.cmd.Wait(); close(p.done) }()
	t.Cleanup(func() { p.kill(t) })
	return p
}

// signal sends sig; a process that has ended already is no error.
func (p *proc) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal %s with %v: %v", p.name, sig, err)
	}
}

// kill sends SIGKILL and waits for the end.
func (p *proc) kill(t testing.TB) {
	t.Helper()
	p.signal(t, syscall.SIGKILL)
	<-p.done
}

// wait waits for the process to end by itself and returns its exit code, -1 when a signal ended it.
func (p *proc) wait(t testing.TB, limit time.Duration) int {
	t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		t.Fatalf("%s has not ended within %v; its last words:\n%s", p.name, limit, p.log.tail(30))
		return 0
	}
}

func (p *proc) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Result is what a command that has ended left.
type Result struct {
	Code           int // exit code, -1 for a signal
	Stdout, Stderr string
}

func (r Result) String() string {
	return fmt.Sprintf("exit code %d\nstdout: %s\nstderr: %s", r.Code, clip(r.Stdout), clip(r.Stderr))
}

// clip shortens what would drown a failure's report.
func clip(s string) string {
	if len(s) > 4000 {
		return s[:4000] + fmt.Sprintf("… (%d bytes)", len(s))
	}
	return s
}

// errLimit: a command took too long and was killed.
var errLimit = errors.New("took too long and was killed")

// run runs argv on host (nil: this machine) to its end, or for limit. Any goroutine may use it.
func run(host *Host, limit time.Duration, env []string, argv ...string) (Result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	full := host.argv(argv)
	cmd := exec.CommandContext(ctx, full[0], full[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var err error
	onSpawner(func() { err = cmd.Start() })
	if err == nil {
		err = cmd.Wait()
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return Result{}, fmt.Errorf("run %q: %w", argv, err)
	}
	r := Result{Code: cmd.ProcessState.ExitCode(), Stdout: stdout.String(), Stderr: stderr.String()}
	if ctx.Err() != nil {
		return r, fmt.Errorf("run %q: %w after %v", argv, errLimit, limit)
	}
	return r, nil
}

// runOn is run for a test: a command that cannot be started or exceeds limit fails it.
func runOn(t testing.TB, host *Host, limit time.Duration, env []string, argv ...string) Result {
	t.Helper()
	r, err := run(host, limit, env, argv...)
	if err != nil {
		t.Fatalf("%v: %v", err, r)
	}
	return r
}

// eventually waits until ok holds, asking every 20 ms; what says what was waited for.
func eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}
