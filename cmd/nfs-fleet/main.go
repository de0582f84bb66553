// Command nfs-fleet serves read-only trees over NFSv3 (`serve`), and asks and tells a running master what an operator
// wants to know and have done (everything else). One file holds one subcommand; they share an app.
//
// What a command has to say goes to standard output, as a table or, with -o json, as JSON. Warnings, progress and the
// one line of an error go to standard error. Exit codes are in one table, exitCodes.
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
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/nfs-fleet/nfs-fleet/fleet/master"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := interruptible(context.Background())
	a := &app{
		serve: master.Run, connection: connection{user: whoami()},
		in: os.Stdin, out: os.Stdout, err: os.Stderr, now: time.Now,
		terminal: func(f any) bool { file, ok := f.(*os.File); return ok && term.IsTerminal(int(file.Fd())) },
		release:  stop,
	}
	var code int
	if filepath.Base(os.Args[0]) == helperName {
		code = a.runHelper(ctx, os.Args[1:])
	} else {
		code = a.run(ctx, os.Args[1:])
	}
	stop()
	os.Exit(code)
}

var errInterrupted = errors.New("interrupted")

// interruptible returns a context that the first SIGINT or SIGTERM cancels. A second one ends the process at once.
func interruptible(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, ok := <-signals; !ok {
			return
		}
		cancel(errInterrupted)
		if _, ok := <-signals; ok {
			os.Exit(exitFailed)
		}
	}()
	return ctx, sync.OnceFunc(func() { signal.Stop(signals); close(signals); <-done; cancel(nil) })
}

// app is what all commands share.
type app struct {
	in       io.Reader
	out, err io.Writer
	now      func() time.Time
	terminal func(f any) bool // reports whether a stream is a terminal
	release  func()           // gives signals up: the command has its own use for them; its context ends

	serve func(context.Context, master.Config, string, zerolog.Logger) error // master.Run

	connection
	output  string // -o: table or json
	wide    bool   // -o wide: a table with all there is, for commands that have it
	running bool   // flags and arguments were accepted: what fails from here on is no mistake in usage
}

// hasWide is the annotation of commands with -o wide.
const hasWide = "wide"

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "nfs-fleet",
		Short: "Identical read-only trees, served over NFSv3 by a fleet of masters",
		Long: "nfs-fleet serves identical read-only trees over NFSv3 from a fleet of masters.\n\n" +
			"`nfs-fleet serve` is a master. The other commands ask one: on a master's machine just so, from elsewhere with a token.\n" +
			"Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 no leader or no quorum.",
		SilenceErrors: true, SilenceUsage: true, Args: cobra.NoArgs,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if _, has := cmd.Annotations[hasWide]; a.output == "wide" && has {
				a.output, a.wide = "table", true
			}
			if !slices.Contains([]string{"table", "json"}, a.output) {
				return fmt.Errorf("-o %s: use table or json", a.output)
			}
			a.running = true
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	a.bind(root.PersistentFlags())
	root.PersistentFlags().StringVarP(&a.output, "output", "o", "table", "table or json")
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.AddCommand(
		a.serveCommand(), a.statusCommand(), a.publishCommand(), a.rollbackCommand(), a.historyCommand(), a.diffCommand(),
		a.sourceCommand(), a.shardCommand(), a.masterCommand(), a.slaveCommand(), a.rebalanceCommand(), a.tokenCommand(), a.verifyCommand(), a.recoverCommand(),
		a.mountCommand(), a.umountCommand(), a.mountsCommand(), a.agentCommand(), a.doctorCommand(), a.versionCommand(),
	)
	return root
}

// run runs one command line and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	if !a.running {
		err = &usageError{err, cmd.CommandPath()}
	}
	fmt.Fprintf(a.err, "nfs-fleet: %s\n", oneLine(err.Error()))
	return exitCode(err)
}

// group is a command that only has subcommands.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return &usageError{errors.New("name what to do"), cmd.CommandPath()}
		},
	}
	c.AddCommand(subs...)
	return c
}
