package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
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
	f.BoolVar(&s.kept, "kept", false, "this is the worker of a keeper")
	f.MarkHidden("kept") //nolint:errcheck // it is there
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
	s.Store, s.Files = fdstore.Inherit()
	s.Logger = limited(a.logger(s.log))
	unlock, files, err := takeLock(s.RunDir, s.Files)
	if err != nil {
		return err
	}
	defer unlock()
	s.Files = files
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	agent := slave.New(s.Config)
	done := make(chan error, 1)
	go func() { done <- agent.Run(ctx) }()
	unused := make(chan error, 1)
	for {
		select {
		case err := <-done:
			return err
		case <-unused:
			cancel()
		case sig := <-signals:
			switch {
			case sig == syscall.SIGHUP: // there is nothing to read again
			case sig == syscall.SIGTERM && s.kept:
				s.Logger.Info().Msg("told to stop: waiting until nothing is mounted any more")
				go func() { unused <- agent.Unused(ctx) }()
			default:
				s.Store.Notify("STOPPING=1") //nolint:errcheck // it is heard of anyhow
				cancel()
			}
		}
	}
}

// takeLock makes sure that one agent runs: by the lock that the keeper holds for its worker, or by its own.
func takeLock(dir string, files []fdstore.File) (unlock func(), rest []fdstore.File, err error) {
	for _, f := range files {
		if f.Name == lockFile {
			unlock = func() { f.Close() }
			continue
		}
		rest = append(rest, f)
	}
	if unlock != nil {
		return unlock, rest, nil
	}
	f, err := lock(dir)
	if err != nil {
		return nil, nil, err
	}
	return func() { f.Close() }, rest, nil
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
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	log := a.logger(s.log)
	k := keeper.New(keeper.Config{
		Program: program, Args: append(append([]string{}, os.Args[1:]...), "--kept"), Self: os.Args, Check: []string{"version"},
		Dir: s.RunDir, MaxFDs: maxHeld, Signals: signals, Output: out, Logger: log,
	})
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
