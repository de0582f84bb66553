package keeper

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/fdstore"
)

// envDir makes this test binary a keeper, or with an argument its worker, and says where they meet.
const envDir = "KEEPER_TEST_DIR"

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(envDir) == "":
		os.Exit(m.Run())
	case len(os.Args) == 1:
		os.Exit(beKeeper())
	case os.Args[1] == "worker":
		os.Exit(beWorker())
	case os.Args[1] == "heir":
		os.Exit(beHeir(os.Args[2]))
	case os.Args[1] == "check": // whether a new program works: who has made the file says when that is known
		if f, err := os.Open(filepath.Join(os.Getenv(envDir), "check")); err == nil {
			io.ReadAll(f)
		}
		os.Exit(0)
	}
	os.Exit(1)
}

func beKeeper() int {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	k := keeperHere(signals)
	if err := k.Run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// beHeir becomes a keeper when a signal has just come.
func beHeir(number string) int {
	sig, _ := strconv.Atoi(number)
	signals := make(chan os.Signal, 1)
	signals <- syscall.Signal(sig)
	if err := keeperHere(signals).Become(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// keeperHere returns the keeper that this process is, or is to become.
func keeperHere(signals <-chan os.Signal) *Keeper {
	return New(Config{
		Program: os.Args[0], Args: []string{"worker"}, Self: os.Args[:1], Check: []string{"check"},
		Dir: os.Getenv(envDir), MaxFDs: 4, Signals: signals, Output: os.Stderr, Logger: zerolog.New(os.Stderr),
	})
}

// beWorker listens, hands its listener on, and tells who connects its process id. "die" ends it with an error; SIGTERM waits for
// "done".
func beWorker() int {
	store, files := fdstore.Inherit()
	var ln net.Listener
	var life *os.File
	for _, f := range files {
		switch f.Name {
		case "listener":
			ln, _ = net.FileListener(f.File)
			f.Close()
		case Life:
			life = f.File
		}
	}
	if ln == nil {
		var err error
		if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return 1
		}
		if err := store.Keep("listener", ln.(*net.TCPListener)); err != nil {
			return 1
		}
		port := ln.Addr().(*net.TCPAddr).Port
		if err := os.WriteFile(filepath.Join(os.Getenv(envDir), "port"), []byte(strconv.Itoa(port)), 0o600); err != nil {
			return 1
		}
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		<-term
		<-done
		os.Exit(0)
	}()
	go func() {
		k := keeperHere(nil)
		err := errors.Join(Orphaned(context.Background(), life), k.Check(context.Background()), k.Hold("listener", ln.(*net.TCPListener)))
		fmt.Fprintln(os.Stderr, "no heir:", errors.Join(err, k.Become()))
	}()
	if err := store.Notify("READY=1"); err != nil {
		return 1
	}
	for {
		conn, err := ln.Accept()
		if err != nil {
			return 1
		}
		line, _ := bufio.NewReader(conn).ReadString('\n')
		fmt.Fprintln(conn, os.Getpid())
		conn.Close()
		switch line {
		case "die\n":
			return 3
		case "done\n":
			close(done)
		}
	}
}

// keptWorker is a keeper under test, with its worker.
type keptWorker struct {
	t    *testing.T
	cmd  *exec.Cmd
	dir  string
	port string
	done chan error
}

// startKeeper starts this test binary, with arguments that make it a keeper.
func startKeeper(t *testing.T, args ...string) *keptWorker {
	dir := t.TempDir()
	k := &keptWorker{t: t, dir: dir, cmd: exec.Command(os.Args[0], args...), done: make(chan error, 1)}
	k.cmd.Env = append(os.Environ(), envDir+"="+dir)
	log := &lockedBuffer{}
	k.cmd.Stderr = log
	if err := k.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { k.done <- k.cmd.Wait() }()
	t.Cleanup(func() {
		k.cmd.Process.Signal(syscall.SIGINT)
		select {
		case <-k.done:
		case <-time.After(10 * time.Second):
			t.Error("the keeper does not end")
			k.cmd.Process.Kill()
		}
		if t.Failed() {
			t.Log(log.String())
		}
	})
	k.await("a worker listens", func() bool {
		b, err := os.ReadFile(filepath.Join(dir, "port"))
		k.port = string(b)
		return err == nil && k.port != ""
	})
	return k
}

// changeSlowly tells the keeper to change to a new program, and returns when it has begun to check that. The check goes on until
// succeed is called.
func (k *keptWorker) changeSlowly() (succeed func()) {
	k.t.Helper()
	fifo := filepath.Join(k.dir, "check")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		k.t.Fatal(err)
	}
	k.cmd.Process.Signal(syscall.SIGHUP)
	checking, err := os.OpenFile(fifo, os.O_WRONLY, 0) // waits for somebody who reads
	if err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { checking.Close() })
	return func() {
		if err := errors.Join(os.Remove(fifo), checking.Close()); err != nil {
			k.t.Fatal(err)
		}
	}
}

func (k *keptWorker) await(what string, ok func() bool) {
	k.t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			k.t.Fatalf("not within 20s: %s", what)
		}
	}
}

// say says something to the worker and returns its process id. Being refused is an error: a listener was absent.
func (k *keptWorker) say(word string) int {
	k.t.Helper()
	for {
		conn, err := net.Dial("tcp", "127.0.0.1:"+k.port)
		if err != nil {
			k.t.Fatalf("the listener is absent: %v", err)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintln(conn, word)
		answer, err := io.ReadAll(conn)
		conn.Close()
		if pid, perr := strconv.Atoi(strings.TrimSpace(string(answer))); err == nil && perr == nil {
			return pid
		}
	}
}

func TestTheListenerIsNeverAbsent(t *testing.T) {
	k := startKeeper(t)
	first := k.say("hello")
	for name, end := range map[string]func(pid int){
		"killed":  func(pid int) { syscall.Kill(pid, syscall.SIGKILL) },
		"died":    func(int) { k.say("die") },
		"changed": func(int) { k.cmd.Process.Signal(syscall.SIGHUP) },
	} {
		before := k.say("hello")
		end(before)
		k.await(name+": another worker answers", func() bool { return k.say("hello") != before })
		select {
		case err := <-k.done:
			t.Fatalf("%s: the keeper has ended: %v", name, err)
		default:
		}
	}
	if k.say("hello") == first {
		t.Error("it is still the first worker")
	}
}

// A new program takes its time to say whether it works. The worker is looked after meanwhile.
func TestACheckHoldsUpNothing(t *testing.T) {
	k := startKeeper(t)
	succeed := k.changeSlowly()
	before := k.say("hello")
	k.say("die")
	k.await("another worker is started during the check", func() bool { return k.say("hello") != before })
	before = k.say("hello")
	succeed()
	k.await("the new program has a worker", func() bool { return k.say("hello") != before })
}

// A keeper that is told to end while it checks a program does so, and does not become that.
func TestACheckDoesNotHoldTheEndUp(t *testing.T) {
	k := startKeeper(t)
	k.changeSlowly()
	k.cmd.Process.Signal(syscall.SIGINT)
	k.ends()
}

// Not even one that cannot be killed.
func TestACheckThatIsStuckDoesNotHoldTheEndUp(t *testing.T) {
	signals := make(chan os.Signal, 1)
	k := New(Config{Program: "/nonexistent", Dir: t.TempDir(), Signals: signals, Logger: zerolog.Nop()})
	k.check.busy = true // and says nothing, ever
	signals <- syscall.SIGINT
	done := make(chan error, 1)
	go func() { done <- k.Run(context.Background()) }()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("the keeper ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the keeper does not end")
	}
}

// Nobody is left alone: a worker whose keeper is killed becomes the keeper of another worker.
func TestAKilledKeeperHasAnHeir(t *testing.T) {
	k := startKeeper(t)
	heir := k.say("hello")
	if err := k.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Kill(heir, syscall.SIGINT) }) //nolint:errcheck // it has ended
	k.await("another worker answers", func() bool { return k.say("hello") != heir })
	before := k.say("hello")
	k.say("die")
	k.await("the heir starts one again", func() bool { pid := k.say("hello"); return pid != before && pid != heir })
	if err := syscall.Kill(heir, syscall.SIGINT); err != nil {
		t.Errorf("the heir: %v", err)
	}
	k.await("the heir ends with its worker", func() bool {
		conn, err := net.Dial("tcp", "127.0.0.1:"+k.port)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
}

func TestSIGTERMWaitsForTheWorker(t *testing.T) {
	k := startKeeper(t)
	pid := k.say("hello")
	k.cmd.Process.Signal(syscall.SIGTERM)
	if again := k.say("hello"); again != pid {
		t.Errorf("worker %d became %d", pid, again)
	}
	syscall.Kill(pid, syscall.SIGKILL) // it is started again, and told again
	k.await("another worker", func() bool { return k.say("hello") != pid })
	k.say("done")
	k.ends()
}

// ends waits for the keeper's end.
func (k *keptWorker) ends() {
	k.t.Helper()
	select {
	case err := <-k.done:
		k.done <- err
		if err != nil {
			k.t.Errorf("the keeper ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		k.t.Error("the keeper does not end")
	}
}

// A keeper that is told to end while it changes to another program does so as that.
func TestSIGTERMDuringAChange(t *testing.T) {
	k := startKeeper(t)
	pid := k.say("hello")
	succeed := k.changeSlowly()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil { // it takes its time to end
		t.Fatal(err)
	}
	succeed()
	k.await("the worker is told to end", func() bool { return pending(t, pid, syscall.SIGINT) })
	k.cmd.Process.Signal(syscall.SIGTERM)
	if k.say("hello") == pid {
		t.Error("it is still the first worker")
	}
	k.say("done")
	k.ends()
}

// pending says whether a process has not got a signal yet that was sent to it.
func pending(t *testing.T, pid int, sig syscall.Signal) bool {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "\nShdPnd:\t")
	mask, _, _ := strings.Cut(rest, "\n")
	bits, err := strconv.ParseUint(mask, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return bits&(1<<(sig-1)) != 0
}

// What somebody was told just before he becomes a keeper is not lost: that ends when its worker does, or is never there.
func TestSignalsBeforeBecoming(t *testing.T) {
	k := startKeeper(t, "heir", strconv.Itoa(int(syscall.SIGTERM)))
	k.say("done")
	k.ends()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	dir := t.TempDir()
	cmd := exec.CommandContext(ctx, os.Args[0], "heir", strconv.Itoa(int(syscall.SIGINT)))
	cmd.Env = append(os.Environ(), envDir+"="+dir)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	if err := cmd.Run(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	if made, err := os.ReadDir(dir); err != nil || len(made) > 0 {
		t.Errorf("it has become a keeper: %v, %v", made, err)
	}
}

func TestPace(t *testing.T) {
	var p pace
	var got []time.Duration
	for range 10 {
		got = append(got, p.next(time.Second))
	}
	want := []time.Duration{0, 50e6, 100e6, 200e6, 400e6, 800e6, 1e9, 1e9, 1e9, 1e9}
	if !slices.Equal(got, want) {
		t.Errorf("waits %v, want %v", got, want)
	}
	if d := p.next(time.Minute); d != 0 {
		t.Errorf("a wait of %s after a long run", d)
	}
}

func TestKeptFilesAreParsed(t *testing.T) {
	for text, want := range map[string][]held{
		"":                        nil,
		"relay-300=7":             {{"relay-300", 7}},
		"relay-300=7:relay-301=9": {{"relay-300", 7}, {"relay-301", 9}},
		"relay-300=2:x:=5:a=b":    nil,
	} {
		if got := parseKept(text); !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

func TestFilesAreBounded(t *testing.T) {
	f := files{most: 1}
	for name, want := range map[string]bool{"a b": false, "a=b": false, "": false} {
		if err := f.add(name, 100); (err == nil) != want {
			t.Errorf("%q: %v", name, err)
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	fd, err := syscall.Dup(int(r.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.add("one", fd); err != nil {
		t.Error(err)
	}
	if err := f.add("two", fd); err == nil {
		t.Error("there is no bound")
	}
	f.drop("one")
	if fds, _ := f.list(); len(fds) != 0 {
		t.Errorf("%v are held", fds)
	}
	if err := syscall.Close(fd); err == nil {
		t.Error("a dropped file is open")
	}
}

// lockedBuffer collects what processes say.
type lockedBuffer struct {
	mu sync.Mutex // guards b
	b  strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
