package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"gopkg.in/natefinch/lumberjack.v2"

	"github.com/nfs-fleet/nfs-fleet/fleet/master"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/fdstore"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/keeper"
)

// defaultRunDir is where an agent and the commands that use it meet.
const defaultRunDir = "/run/nfs-fleet"

// Names in the run directory.
const (
	lockFile = "agent.lock"
	logFile  = "agent.log"
)

// keptFlag is the last argument of a keeper's worker.
const keptFlag = "--kept"

// maxHeld is how many files are held for the agent's worker: its listeners, and the lock.
const maxHeld = 2 * slave.MaxRoutes

// agentSettings are the flags of `agent`.
type agentSettings struct {
	slave.Config
	log     master.LogConfig
	logFile string
	kept    bool // this is the worker of a keeper
}

func (a *app) agentCommand() *cobra.Command {
	s := agentSettings{log: master.LogConfig{Level: "info", Format: "console"}}
	cmd := &cobra.Command{
		Use: "agent", Short: "Run a slave's agent, which keeps its mounts on living masters",
		Long: "agent keeps the mounts of this host on living masters. \"nfs-fleet mount\" starts one when none runs; with systemd it\n" +
			"should be nfs-fleet-agent.service from deploy/.\n\n" +
			"Without systemd it is two processes: a keeper, which holds the listeners, and its worker, which is started again when it\n" +
			"ends. SIGTERM ends both when nothing is mounted any more, SIGINT at once; SIGHUP changes to the program that is\n" +
			"installed now, without a mount noticing.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runAgent(cmd.Context(), s) },
	}
	f := cmd.Flags()
	f.StringVar(&s.RunDir, "run-dir", defaultRunDir, "`directory` for the socket, and for the log of an agent in the background")
	f.StringVar(&s.StateDir, "state-dir", "/var/lib/nfs-fleet/slave", "`directory` for what outlives a restart; --run-dir when it cannot be written")
	f.StringVar(&s.Name, "name", "", "this slave's `name` in fleets whose SRV name does not hold it (default: the host's)")
	f.StringSliceVar(&s.DNS, "dns", nil, "name servers `HOST:PORT,…` for mounts that name none (default: the system's)")
	f.StringVar(&s.logFile, "log-file", "", "`file` to log to, of 1 MiB at most, and one older (default: standard error)")
	f.StringVar(&s.log.Level, "log-level", s.log.Level, "`level`: trace, debug, info, warn or error")
	f.StringVar(&s.log.Format, "log-format", s.log.Format, "`format`: console or json")
	f.BoolVar(&s.Insecure, "insecure", false, "let any user of this host read through the relay, and use any port towards masters, which must allow it")
	f.BoolVar(&s.kept, keptFlag[2:], false, "this is the worker of a keeper")
	f.MarkHidden(keptFlag[2:]) //nolint:errcheck // it is there
	f.SortFlags = false
	return cmd
}

func (a *app) runAgent(ctx context.Context, s agentSettings) error {
	a.release() // from here on signals mean something else
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	ctx = context.WithoutCancel(ctx)
	if err := os.MkdirAll(s.RunDir, 0o700); err != nil {
		return fmt.Errorf("the agent must run as root: %w", err)
	}
	s.Version = version
	if s.kept || fdstore.Supervised() {
		return a.runWorker(ctx, s, signals)
	}
	return a.runKeeper(ctx, s, signals)
}

// runWorker is the agent itself.
func (a *app) runWorker(ctx context.Context, s agentSettings, signals <-chan os.Signal) error {
	var inherited []fdstore.File
	s.Store, inherited = fdstore.Inherit()
	if s.kept {
		outliveOutput()
	}
	s.Logger = limited(a.logger(s.log))
	lock, life, files, err := sort(s.RunDir, inherited)
	if err != nil {
		return err
	}
	defer lock.Close()
	s.Files = files
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	agent := slave.New(s.Config)
	done := make(chan error, 1)
	go func() { done <- agent.Run(ctx) }()
	unused, orphaned := make(chan error, 1), make(chan error, 1)
	if life != nil {
		go func() { defer life.Close(); orphaned <- keeper.Orphaned(ctx, life) }()
	}
	heirs := make(chan heir, 1)
	stopping := false
	for {
		select {
		case err := <-done:
			return err
		case <-unused:
			cancel()
		case err := <-orphaned:
			if !stopping && isOrphan(ctx, s.Logger, err) {
				orphan(s)
				go func() { heirs <- tryHeir(ctx, s, signals) }() // there is room
			}
		case h := <-heirs:
			if stopping {
				continue
			}
			if err := h.take(agent, lock); err != nil {
				s.Logger.Error().Err(err).Msg("the keeper was killed, and there is no other: nobody starts this agent again")
				continue
			}
			cancel()
			return h.become(s.Logger, <-done)
		case sig := <-signals:
			switch {
			case sig == syscall.SIGHUP: // there is nothing to read again
			case sig == syscall.SIGTERM && s.kept:
				s.Logger.Info().Msg("told to stop: waiting until nothing is mounted any more")
				stopping = true
				go func() { unused <- agent.Unused(ctx) }()
			default:
				s.Store.Notify("STOPPING=1") //nolint:errcheck // it is heard of anyhow
				cancel()
			}
		}
	}
}

// outliveOutput keeps a worker from ending with its keeper, whose output it may share. The signal is not ignored: programs that it
// runs, or becomes, would go on ignoring it.
func outliveOutput() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

// isOrphan reports whether the keeper is gone, by how the wait for that has ended.
func isOrphan(ctx context.Context, log zerolog.Logger, waited error) bool {
	if waited != nil && ctx.Err() == nil {
		log.Error().Err(waited).Msg("cannot hear of the keeper's end: if it is killed, nobody starts this agent again")
	}
	return waited == nil
}

// orphan has a worker say what it says to the log file itself: its keeper is gone, and what it wrote to ends nowhere.
func orphan(s agentSettings) {
	if s.logFile == "" {
		return // it writes where its keeper did
	}
	f, err := os.OpenFile(s.logFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		s.Logger.Error().Err(err).Msg("the keeper was killed, and its log cannot be written to") // for a debugger: nobody reads it
		return
	}
	defer f.Close()
	if err := unix.Dup3(int(f.Fd()), int(os.Stderr.Fd()), 0); err != nil {
		s.Logger.Error().Err(err).Msg("the keeper was killed, and its log cannot be written to")
	}
	s.Logger.Warn().Msg("the keeper was killed: becoming the next one")
}

// heir is the keeper that a worker is to become, because its own is gone, or why it cannot.
type heir struct {
	keeper *keeper.Keeper
	err    error
}

// tryHeir returns a keeper whose program works, which may take a while to find out. It hears of the signals that come last.
func tryHeir(ctx context.Context, s agentSettings, signals <-chan os.Signal) heir {
	k, err := newKeeper(s, s.Logger, io.Discard, signals)
	if err == nil {
		err = k.Check(ctx)
	}
	return heir{k, err}
}

// become ends this process, whose agent has ended, in favour of the keeper, unless it was told to end at once meanwhile.
func (h heir) become(log zerolog.Logger, ended error) error {
	if ended != nil {
		log.Warn().Err(ended).Msg("ending to become the keeper")
	}
	return h.keeper.Become()
}

// take has the heir hold what the next worker needs.
func (h heir) take(agent *slave.Agent, lock *os.File) error {
	if h.err != nil {
		return h.err
	}
	if err := h.keeper.Hold(lockFile, lock); err != nil {
		return err
	}
	return agent.Listeners(func(name string, ln syscall.Conn) error { return h.keeper.Hold(name, ln) })
}

// sort finds among what was handed on the lock, which makes sure that one agent runs, and is taken if it is not there; and the
// keeper's life, nil without a keeper that hands it on.
func sort(dir string, files []fdstore.File) (held, life *os.File, rest []fdstore.File, err error) {
	for _, f := range files {
		switch {
		case f.Name == lockFile && held == nil:
			held = f.File
		case f.Name == keeper.Life && life == nil:
			life = f.File
		default:
			rest = append(rest, f)
		}
	}
	if held == nil {
		held, err = lock(dir)
	}
	return held, life, rest, err
}

func lock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("an agent runs already: it holds %s", f.Name())
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

// runKeeper starts the worker and keeps its listeners.
func (a *app) runKeeper(ctx context.Context, s agentSettings, signals <-chan os.Signal) error {
	var out io.Writer = os.Stderr
	if s.logFile != "" {
		rotating := &lumberjack.Logger{Filename: s.logFile, MaxSize: 1, MaxBackups: 1}
		defer rotating.Close()
		out = rotating
		a.err = rotating
	}
	log := a.logger(s.log)
	k, err := newKeeper(s, log, out, signals)
	if err != nil {
		return err
	}
	if !k.Holds(lockFile) {
		f, err := lock(s.RunDir)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := k.Hold(lockFile, f); err != nil {
			return err
		}
	}
	spare(log)
	return k.Run(ctx)
}

// newKeeper returns a keeper of this program and these settings.
func newKeeper(s agentSettings, log zerolog.Logger, out io.Writer, signals <-chan os.Signal) (*keeper.Keeper, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	self := os.Args
	if s.kept {
		self = self[:len(self)-1] // without what the keeper has added
	}
	return keeper.New(keeper.Config{
		Program: program, Args: append(slices.Clone(self[1:]), keptFlag), Self: self, Check: []string{"version"},
		Dir: s.RunDir, MaxFDs: maxHeld, Signals: signals, Output: out, Logger: log,
	}), nil
}

// spare asks the kernel, and a sysvinit that stops the machine, not to end this process among the first: all that is mounted
// hangs without it.
func spare(log zerolog.Logger) {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-900"), 0); err != nil {
		log.Debug().Err(err).Msg("the kernel may end the agent when memory runs out")
	}
	const omit = "/run/sendsigs.omit.d"
	if info, err := os.Stat(omit); err == nil && info.IsDir() {
		if err := os.WriteFile(filepath.Join(omit, "nfs-fleet-agent"), []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
			log.Warn().Err(err).Msg("the agent may end before its mounts when the machine stops")
		}
	}
}

// limited bounds what is logged: a burst, and then a line a second.
func limited(log zerolog.Logger) zerolog.Logger {
	return log.Sample(&zerolog.BurstSampler{Burst: 100, Period: 10 * time.Second})
}
