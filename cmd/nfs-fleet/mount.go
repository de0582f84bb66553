package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/control"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/mount"
)

// mountFlags are the flags of `mount`, each of which is an option, too.
type mountFlags struct {
	options []string
	via     string
	dns     []string
	masters []string
	name    string
	wait    time.Duration
	runDir  string
	verbose bool
	fake    bool
}

func (a *app) mountCommand() *cobra.Command {
	var f mountFlags
	cmd := &cobra.Command{
		Use: "mount SRVNAME:/SHARD[/SUB] DIR", Short: "Mount a shard by its SRV name, and keep it on a living master",
		Long: "mount has this kernel's NFS client mount a shard, read-only, from the masters that a SRV name lists, and leaves an agent\n" +
			"that keeps it on one that lives. It is also a mount helper: with a link /sbin/mount.nfs-fleet to this program, fstab,\n" +
			"systemd and autofs can name the type nfs-fleet.\n\n" +
			"Options of nfs(5) that change nothing about safety may follow -o; the flags below can be written there, too:\n" +
			"via=, dns=, master=, name=, wait=; dns= and master= several times. readahead=SIZE says how far the kernel reads ahead\n" +
			"(default: 4 READs of full size; \"default\": as the kernel has it).",
		Example: "  nfs-fleet mount _nfs._tcp.web17.slaves.prod.example:/www /srv/www\n" +
			"  nfs-fleet mount --dns 10.0.0.1:5353,10.0.0.2:5353 -o nconnect=4,noexec _nfs._tcp.prod.example:/www/static /srv/static",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := a.mount(cmd.Context(), args[0], args[1], f)
			if errors.Is(err, mount.ErrUsage) {
				return &usageError{err, cmd.CommandPath()}
			}
			return err
		},
	}
	fs := cmd.Flags()
	fs.String("output", "table", "") // the other commands' -o; here it is what it is to mount(8)
	fs.MarkHidden("output")          //nolint:errcheck // it is there
	fs.StringArrayVarP(&f.options, "options", "o", nil, "mount `options`, comma-separated; repeatable")
	fs.StringVar(&f.via, "via", "", "relay or direct: `how` the mount is kept on a living master (default relay)")
	fs.StringSliceVar(&f.dns, "dns", nil, "name servers `HOST:PORT,…`, as those of the masters (default: the agent's, or the system's)")
	fs.StringSliceVar(&f.masters, "master", nil, "masters `HOST:PORT,…` to begin with, without DNS")
	fs.StringVar(&f.name, "name", "", "this slave's `name` in the fleet (default: from the SRV name, or the agent's)")
	fs.DurationVar(&f.wait, "wait", mount.DefaultWait, "how long a master may take to answer")
	fs.StringVar(&f.runDir, "run-dir", defaultRunDir, "`directory` of the agent's socket")
	fs.BoolVarP(&f.verbose, "verbose", "v", false, "say what is done")
	fs.BoolVarP(&f.fake, "fake", "f", false, "do everything but the mount")
	fs.SortFlags = false
	return cmd
}

// text returns all options as one text, flags last.
func (f mountFlags) text() string {
	list := f.options
	if f.via != "" {
		list = append(list, "via="+f.via)
	}
	for _, s := range f.dns {
		list = append(list, "dns="+s)
	}
	for _, m := range f.masters {
		list = append(list, "master="+m)
	}
	if f.name != "" {
		list = append(list, "name="+f.name)
	}
	if f.wait != mount.DefaultWait {
		list = append(list, "wait="+f.wait.String())
	}
	return strings.Join(list, ",")
}

func (a *app) mount(ctx context.Context, what, dir string, f mountFlags) error {
	spec, err := mount.ParseSpec(what)
	if err != nil {
		return fmt.Errorf("%w: %w", mount.ErrUsage, err)
	}
	options, err := mount.ParseOptions(f.text(), false)
	if err != nil {
		return fmt.Errorf("%w: %w", mount.ErrUsage, err)
	}
	return mount.Do(ctx, a.request(spec, dir, options, f))
}

// request is a mount to be made, with an agent to be started if need be.
func (a *app) request(spec mount.Spec, dir string, options mount.Options, f mountFlags) mount.Request {
	agent := agentClient(f.runDir)
	start := func(ctx context.Context) error {
		program, err := os.Executable()
		if err != nil {
			return err
		}
		l := mount.Launcher{Agent: agent, Program: program, Args: []string{"agent"}}
		if f.runDir == defaultRunDir {
			l.Systemd = "/run/systemd/system"
		} else {
			l.Args = append(l.Args, "--run-dir", f.runDir, "--state-dir", f.runDir)
		}
		l.Args = append(l.Args, "--log-file", filepath.Join(f.runDir, logFile))
		return l.Start(ctx)
	}
	r := mount.Request{Spec: spec, Dir: dir, Options: options, Agent: agent, Start: start, Fake: f.fake}
	r.Warn = func(text string) { fmt.Fprintf(a.err, "nfs-fleet: %s\n", oneLine(text)) }
	if f.verbose {
		r.Say = r.Warn
	}
	return r
}

func agentClient(runDir string) *control.Client {
	return control.NewClient(filepath.Join(runDir, slave.Socket))
}

func (a *app) umountCommand() *cobra.Command {
	var lazy bool
	cmd := &cobra.Command{
		Use: "umount DIR", Short: "Unmount what \"mount\" mounted",
		Long: "umount unmounts a mount of a fleet, as umount(8) does; the agent notices either. The agent goes on for other mounts.",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return mount.Undo(args[0], lazy) },
	}
	cmd.Flags().BoolVarP(&lazy, "lazy", "l", false, "succeed also while files are open: the mount ends with the last of them")
	return cmd
}
