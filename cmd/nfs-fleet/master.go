package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

func (a *app) masterCommand() *cobra.Command {
	return group("master", "List, drain and remove masters",
		a.masterListCommand(),
		a.masterDrainCommand(),
		a.masterVerb("undrain MASTER", "Let a drained master lead and have slaves again", "",
			(*console.Client).Undrain, "%s: takes part again%.0s\n", "undrained"),
		a.masterRemoveCommand())
}

func (a *app) masterListCommand() *cobra.Command {
	return list(a, "list", "List the masters, the lost ones too", "", (*console.Client).Masters, func(w io.Writer, all []console.MasterStatus) {
		cells := make([][]string, len(all))
		for i, m := range all {
			cells[i] = []string{
				masterName(m), stateCell(m, a.now()), m.Version, m.Addresses.NFS, m.Addresses.Peer, m.EtcdRole, strconv.Itoa(m.Leads),
				strings.Join(m.Sources, ","), m.Instance,
			}
		}
		rows(w, []string{"MASTER", "STATE", "VERSION", "NFS", "PEER", "ETCD", "LEADS", "SOURCES", "INSTANCE"}, cells)
	})
}

// masterVerb is a command that does something to a master. done gets the master's name twice.
func (a *app) masterVerb(use, short, long string, do func(*console.Client, context.Context, string) error, done, result string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Long: long, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if err := do(c, cmd.Context(), args[0]); err != nil {
				return err
			}
			return a.show(map[string]any{"master": args[0], result: true}, func(w io.Writer) { fmt.Fprintf(w, done, args[0], args[0]) })
		},
	}
}

func (a *app) masterDrainCommand() *cobra.Command {
	var r console.DrainRequest
	drain := func(c *console.Client, ctx context.Context, master string) error { return c.Drain(ctx, master, r) }
	cmd := a.masterVerb("drain MASTER", "Move a master's leaderships and slaves to others, and keep them there",
		"drain moves what a master leads, and the slaves that read from it, to other masters, and keeps them there until\n"+
			"`undrain`, after a restart too: before an upgrade, a reboot or a removal. Whoever stays is served all the same.\n"+
			"Slaves do not come back by themselves: see `nfs-fleet rebalance`. The last master that slaves can read from is drained with\n"+
			"--force only.",
		drain, "%s: drained: it leads nothing and is nobody's home until `nfs-fleet master undrain %s`\n", "drained")
	cmd.Flags().BoolVar(&r.Force, "force", false, "also the last one that slaves can read from")
	return cmd
}

func (a *app) masterRemoveCommand() *cobra.Command {
	var yes bool
	cmd := a.masterVerb("remove MASTER", "Take a drained or lost master out of the fleet for good",
		"remove takes a master out of the fleet: its etcd member, its certificate and its name. It must be drained or lost. A\n"+
			"process that starts with its data directory refuses to run; with a new data directory and a new token the machine\n"+
			"can join again.",
		(*console.Client).RemoveMaster, "%s: removed%.0s\n", "removed")
	remove := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !yes && (!a.terminal(a.in) || !a.terminal(a.err)) {
			return &usageError{errors.New("there is no terminal to ask on: say --yes to remove without being asked"), cmd.CommandPath()}
		}
		if !yes && !a.confirm(fmt.Sprintf("Remove %s from the fleet for good?", quoted(args[0])), args[0]) {
			return errors.New("not removed")
		}
		return remove(cmd, args)
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask; needed without a terminal")
	return cmd
}
