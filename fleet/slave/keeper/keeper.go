// Package keeper runs a process that must not be away for long, on a machine where systemd does not: it starts it again when
// it ends, holds the open files that it was given (package fdstore) and hands them to the next one, and changes to a new
// version of the program without closing any of them.
//
// It is made to have nothing that can fail: it knows no fleet, no DNS and no NFS. The worker talks to it as it would talk to
// systemd, so there is one way for both.
//
//	SIGTERM   the worker is told (SIGTERM), and may take its time; when it ends, so does the keeper
//	SIGINT    the worker is told to end at once (SIGINT), then killed
//	SIGHUP    the worker ends, and the keeper becomes the program that its path names now, with the same process id and files
//
// A worker that ends by itself is started again: at once at first, and ever more slowly while it fails. A worker learns that its
// keeper was killed (Orphaned), and becomes the next one (Become), which starts a worker in turn.
package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/fdstore"
)

// Config is what a Keeper needs.
type Config struct {
	Program string   // path of the worker, and of what the keeper becomes on SIGHUP
	Args    []string // of the worker, without its name
	Self    []string // arguments of this process after SIGHUP, its name included
	Check   []string // arguments with which a new Program must succeed before the keeper becomes it
	Dir     string   // where the socket for the worker is made; nobody else may write to it
	MaxFDs  int      // how many files are held at most
	Signals <-chan os.Signal
	// Output is where the worker's stderr goes.
	Output io.Writer
	Logger zerolog.Logger
}

// Keeper is a supervisor of one process. It belongs to the goroutine that runs it.
type Keeper struct {
	cfg      Config
	files    *files
	messages chan fdstore.Message
	socket   string
	life     *os.File // which every worker gets, as Life; its other end is closed with this process
	pace     pace
	ended    chan error // of the worker
	worker   *exec.Cmd  // nil: it does not run
	ready    bool       // it has said so, and heeds signals
	began    time.Time
	goal     goal
	stop     bool // SIGTERM came when the goal was become: it is the next one's
	check    check
	kill     <-chan time.Time // when a worker that was told to end at once is killed
}

// check is what the keeper knows of the program that it may become.
type check struct {
	done  chan error // what came of it
	busy  bool       // it is under way
	again bool       // there may be another program since it began
}

// goal is what the keeper has been told to do.
type goal int

const (
	keepOn goal = iota
	endWhenDone
	endNow
	become
)

// stopTime is how long a worker that is told to end at once may take.
const stopTime = 3 * time.Second

// checkTime is how long a new program may take to say that it works. The keeper keeps its worker running meanwhile.
const checkTime = 20 * time.Second

// checkEnd is how long the keeper's own end waits for a check that it has ended. It may be stuck in the kernel: a program on a
// file system that does not answer.
const checkEnd = 2 * time.Second

// New returns a keeper with the files that the keeper had that this process was before, and what that was told.
func New(cfg Config) *Keeper {
	return &Keeper{
		cfg: cfg, files: kept(cfg.MaxFDs), messages: make(chan fdstore.Message), ended: make(chan error, 1),
		check: check{done: make(chan error, 1)}, goal: told(),
	}
}

// Holds says whether a file of that name is held.
func (k *Keeper) Holds(name string) bool {
	return slices.ContainsFunc(k.files.all, func(h held) bool { return h.name == name })
}

// Hold takes a file over, which every worker gets. It is called before Run. The file stays open here, too.
func (k *Keeper) Hold(name string, f syscall.Conn) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("hold %s: %w", name, err)
	}
	var fd int
	var failed error
	err = raw.Control(func(from uintptr) { fd, failed = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 3) })
	if err = errors.Join(err, failed); err != nil {
		return fmt.Errorf("hold %s: %w", name, err)
	}
	return k.files.add(name, fd)
}

// Run keeps the worker running until it is told to end.
func (k *Keeper) Run(ctx context.Context) error {
	defer k.files.close()
	life, end, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make the worker's end of this process: %w", err)
	}
	k.life = life
	defer func() { life.Close(); end.Close() }()
	conn, err := k.listen()
	if err != nil {
		return err
	}
	received := make(chan struct{})
	ctx, cancel := context.WithCancel(ctx)
	go func() { defer close(received); k.receive(ctx, conn) }()
	defer func() {
		cancel()
		conn.Close()
		<-received
		k.awaitCheck()
	}()
	start := time.NewTimer(0)
	defer start.Stop()
	for {
		select {
		case <-start.C:
			if len(k.ended) > 0 {
				continue // a signal came first
			}
			if err := k.start(); err != nil {
				k.cfg.Logger.Error().Err(err).Msg("cannot start the agent's worker")
				k.ended <- err // there is room
			}
		case m := <-k.messages:
			k.heed(m)
		case sig := <-k.cfg.Signals:
			k.signalled(ctx, sig)
		case err := <-k.check.done:
			k.checked(ctx, err)
		case <-k.kill:
			k.signal(syscall.SIGKILL)
		case err := <-k.ended:
			done, err := k.after(ctx, err, start)
			if done {
				return err
			}
		case <-ctx.Done():
			k.signalled(ctx, syscall.SIGINT)
			ctx = context.WithoutCancel(ctx)
		}
	}
}

func (k *Keeper) listen() (*net.UnixConn, error) {
	k.socket = filepath.Join(k.cfg.Dir, "keeper.sock")
	os.Remove(k.socket) //nolint:errcheck // of a keeper that is gone
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: k.socket, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("listen for the worker: %w", err)
	}
	return conn, nil
}

// receive passes on what the worker says.
func (k *Keeper) receive(ctx context.Context, conn *net.UnixConn) {
	for {
		m, err := fdstore.Receive(conn)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			k.cfg.Logger.Warn().Err(err).Msg("a message of the worker cannot be read")
			continue
		}
		select {
		case k.messages <- m:
		case <-ctx.Done():
			m.Close()
			return
		}
	}
}

func (k *Keeper) heed(m fdstore.Message) {
	name := m.Get("FDNAME")
	switch {
	case m.Has("FDSTORE=1"):
		for _, fd := range m.FDs {
			if err := k.files.add(name, fd); err != nil {
				k.cfg.Logger.Error().Err(err).Msg("a file cannot be held")
				unix.Close(fd) //nolint:errcheck // it stays open in the worker
			}
		}
		return
	case m.Has("FDSTOREREMOVE=1"):
		k.files.drop(name)
	case m.Has("READY=1"):
		k.ready = true
		if k.goal == endWhenDone {
			k.signal(syscall.SIGTERM)
		}
	}
	m.Close()
}

func (k *Keeper) start() error {
	fds, names := k.files.list()
	cmd := exec.Command(k.cfg.Program, k.cfg.Args...)
	cmd.Env = append(os.Environ(), fdstore.Environment(k.socket, append(names, Life))...)
	cmd.Stderr = k.cfg.Output
	cmd.Dir = "/"
	for _, fd := range fds {
		f, err := duplicate(fd)
		if err != nil {
			return err
		}
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, k.life)
	if err := cmd.Start(); err != nil {
		return err
	}
	k.worker, k.began, k.ready = cmd, time.Now(), false
	go func() { k.ended <- cmd.Wait() }()
	return nil
}

func (k *Keeper) signalled(ctx context.Context, sig os.Signal) {
	switch sig {
	case syscall.SIGTERM:
		if k.goal == become {
			k.stop = true
			return
		}
		k.goal = max(k.goal, endWhenDone)
		if k.worker != nil && k.ready {
			k.signal(syscall.SIGTERM)
		}
	case syscall.SIGHUP:
		k.startCheck(ctx)
	default:
		k.goal = endNow
		k.endWorker()
	}
}

// endWorker tells the worker to end at once.
func (k *Keeper) endWorker() {
	k.signal(syscall.SIGINT)
	k.kill = time.After(stopTime)
}

// startCheck finds out beside the loop whether the program works that the keeper is to become.
func (k *Keeper) startCheck(ctx context.Context) {
	if k.check.busy || k.goal != keepOn {
		k.check.again = true
		return
	}
	k.check.busy, k.check.again = true, false
	go func() { k.check.done <- k.Check(ctx) }() // there is room; Run waits for it in the end
}

// checked takes in whether the program works that the keeper is to become, unless it has been told to end meanwhile.
func (k *Keeper) checked(ctx context.Context, err error) {
	k.check.busy = false
	switch {
	case k.goal != keepOn:
	case k.check.again:
		k.startCheck(ctx)
	case err != nil:
		k.cfg.Logger.Error().Err(err).Msg("the new program does not work: staying with the old one")
	default:
		k.goal = become
		k.endWorker()
	}
}

// awaitCheck waits for a check whose context has ended, but not for ever.
func (k *Keeper) awaitCheck() {
	if !k.check.busy {
		return
	}
	select {
	case <-k.check.done:
	case <-time.After(checkEnd):
		k.cfg.Logger.Warn().Msg("the check of the new program does not end")
	}
}

// signal sends the worker a signal; when none runs it pretends that one has ended.
func (k *Keeper) signal(sig syscall.Signal) {
	if k.worker != nil {
		k.worker.Process.Signal(sig) //nolint:errcheck // it has ended, and that is heard of
		return
	}
	select {
	case k.ended <- nil:
	default:
	}
}

// after decides what follows the end of a worker.
func (k *Keeper) after(ctx context.Context, err error, start *time.Timer) (done bool, _ error) {
	ran := time.Since(k.began)
	k.worker, k.kill = nil, nil
	switch {
	case k.goal == endNow, k.goal == endWhenDone && err == nil:
		return true, nil
	case k.goal == become:
		k.cfg.Logger.Info().Str("program", k.cfg.Program).Msg("changing to the new program")
		err = k.Become()
		if err == nil {
			return true, nil
		}
		if k.goal = keepOn; k.stop {
			k.goal = endWhenDone
		}
		k.cfg.Logger.Error().Err(err).Msg("cannot change to the new program: staying with the old one")
		start.Reset(0)
		return false, nil
	}
	wait := k.pace.next(ran)
	k.cfg.Logger.Error().AnErr("err", err).Dur("ran", ran).Dur("wait", wait).Msg("the agent's worker has ended: starting it again")
	if ctx.Err() == nil {
		start.Reset(wait)
	}
	return false, nil
}
