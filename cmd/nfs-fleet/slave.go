package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

func (a *app) slaveCommand() *cobra.Command {
	return group("slave", "List, show, move and forget slaves",
		a.slaveListCommand(), a.slaveShowCommand(), a.slaveMoveCommand(), a.slaveForgetCommand())
}

func (a *app) slaveListCommand() *cobra.Command {
	return list(a, "list", "List the slaves: which master each reads from, and which it is to read from",
		"list shows every slave that the fleet knows. READS FROM is the master that hears of it now; HOME is the one that it is\n"+
			"to read from, since when. A slave is enrolled by itself, and forgotten when it was not heard of for seven days.",
		(*console.Client).Slaves, func(w io.Writer, all []console.SlaveStatus) {
			if len(all) == 0 {
				fmt.Fprintln(w, "No slaves yet: a host is one from its first mount on.")
				return
			}
			slaveTable(w, all, a.now())
		})
}

func slaveTable(w io.Writer, all []console.SlaveStatus, now time.Time) {
	cells := make([][]string, len(all))
	for i, s := range all {
		reattached, lasted := "", ""
		if s.Last != nil {
			reattached, lasted = age(s.Last.At, now), took(s.Last.TookMS)
		}
		cells[i] = []string{s.Name, readsCell(s), s.Master, age(s.Since, now), s.Mode, addressCell(s), reattached, lasted, age(s.SeenAt, now)}
	}
	rows(w, []string{"SLAVE", "READS FROM", "HOME", "SINCE", "MODE", "ADDRESS", "REATTACHED", "TOOK", "SEEN"}, cells)
}

// readsCell is the master that a slave reads from, marked when that is not its home.
func readsCell(s console.SlaveStatus) string {
	if s.Away() {
		return s.Reads + " (away)"
	}
	return s.Reads
}

func addressCell(s console.SlaveStatus) string {
	if !s.Address.IsValid() {
		return ""
	}
	return s.Address.String()
}

func (a *app) slaveShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show SLAVE", Short: "Show one slave, its mounts, and its last change of master", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSlaves,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			s, err := c.Slave(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.show(s, func(w io.Writer) { slavePage(w, s, a.now()) })
		},
	}
}

func slavePage(w io.Writer, s console.SlaveStatus, now time.Time) {
	stamp := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format(time.RFC3339) + " (" + age(t, now) + ")"
	}
	reads := readsCell(s)
	if reads == "" {
		reads = "nobody hears of it now"
	}
	cells := [][]string{
		{"slave", s.Name}, {"reads from", reads}, {"home", s.Master}, {"since", stamp(s.Since)}, {"fallbacks", strings.Join(s.Fallbacks, ", ")},
		{"mode", s.Mode}, {"address", addressCell(s)}, {"version", s.Version}, {"instance", s.Instance}, {"enrolled", stamp(s.EnrolledAt)}, {"seen", stamp(s.SeenAt)},
	}
	if l := s.Last; l != nil {
		cells = append(cells, []string{"reattached", stamp(l.At)}, []string{"went", fmt.Sprintf("from %s to %s in %s", quoted(l.From), quoted(l.To), took(l.TookMS))}, []string{"because", l.Why})
	}
	rows(w, nil, cells)
	if len(s.Mounts) == 0 {
		return
	}
	fmt.Fprintln(w)
	var mounts [][]string
	for _, m := range s.Mounts {
		mounts = append(mounts, []string{m.Dir, m.Shard, m.Name})
	}
	rows(w, []string{"MOUNTED ON", "SHARD", "BY NAME"}, mounts)
	if s.MoreMounts > 0 {
		fmt.Fprintf(w, "and %d more\n", s.MoreMounts)
	}
}

func (a *app) slaveMoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "move SLAVE MASTER", Short: "Give a slave another home",
		Long: "move makes a master the home of a slave. The slave goes there by itself, without an error, and stays until that master\n" +
			"is lost, drained, or too far behind.",
		Args: cobra.ExactArgs(2), ValidArgsFunction: a.completeSlaves,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if err := c.MoveSlave(cmd.Context(), args[0], args[1]); err != nil {
				return err
			}
			v := struct {
				Slave  string `json:"slave"`
				Master string `json:"master"`
			}{args[0], args[1]}
			return a.show(v, func(w io.Writer) { fmt.Fprintf(w, "%s: its home is %s\n", args[0], args[1]) })
		},
	}
}

func (a *app) slaveForgetCommand() *cobra.Command {
	return &cobra.Command{
		Use: "forget SLAVE", Short: "Forget a slave that is gone for good",
		Long: "forget frees the place that a slave has at its home, before the seven days are over after which an absent slave is\n" +
			"forgotten by itself. One that is still there is enrolled anew within seconds.",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeSlaves,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if err := c.ForgetSlave(cmd.Context(), args[0]); err != nil {
				return err
			}
			return a.show(map[string]any{"slave": args[0], "forgotten": true}, func(w io.Writer) { fmt.Fprintf(w, "%s: forgotten\n", args[0]) })
		},
	}
}

func (a *app) rebalanceCommand() *cobra.Command {
	var r console.RebalanceRequest
	cmd := &cobra.Command{
		Use: "rebalance", Short: "Even the slaves out over the masters",
		Long: "rebalance gives as few slaves as possible another home, so that every master has its part of them, by its slots. The\n" +
			"fleet never does this by itself: a master that joins or comes back gets slaves only by this, or when others are lost.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			moves, err := c.Rebalance(cmd.Context(), r)
			if err != nil {
				return err
			}
			return a.show(moves, func(w io.Writer) { moveTable(w, moves, r.DryRun) })
		},
	}
	cmd.Flags().BoolVar(&r.DryRun, "dry-run", false, "show who would move, and move nobody")
	return cmd
}

func moveTable(w io.Writer, moves []console.SlaveMove, dry bool) {
	if len(moves) == 0 {
		fmt.Fprintln(w, "Nothing to do: the slaves are even.")
		return
	}
	cells := make([][]string, len(moves))
	for i, m := range moves {
		cells[i] = []string{m.Slave, m.From, m.To}
	}
	rows(w, []string{"SLAVE", "FROM", "TO"}, cells)
	verb := "moved"
	if dry {
		verb = "would move"
	}
	fmt.Fprintf(w, "\n%s %s\n", plural(int64(len(moves)), "slave", "slaves"), verb)
}

// completeSlaves completes the name of a slave, and after it that of a master.
func (a *app) completeSlaves(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	c, err := a.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	switch {
	case len(args) == 0:
		all, _ := c.Slaves(cmd.Context()) // without an answer there is nothing to complete
		for _, s := range all {
			names = append(names, s.Name)
		}
	case len(args) == 1 && cmd.Name() == "move":
		all, _ := c.Masters(cmd.Context())
		for _, m := range all {
			if m.State == console.MasterServing {
				names = append(names, m.Name)
			}
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
