package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

func (a *app) shardCommand() *cobra.Command {
	return group("shard", "Create, list, show, change, hand over, recover and delete shards",
		a.shardCreateCommand(), a.shardListCommand(), a.shardShowCommand(), a.shardSetCommand(), a.shardDeleteCommand(),
		a.shardLeadCommand(), a.shardRecoverCommand())
}

// shardFlags are the settings of a shard as flags.
type shardFlags struct {
	s  fleet.Shard
	fs *pflag.FlagSet
}

func bindShard(fs *pflag.FlagSet) *shardFlags {
	f := &shardFlags{fleet.NewShard("", time.Time{}), fs}
	s := &f.s
	fs.Var(&networks{p: &s.Networks}, "network", "`networks` that may mount it, comma-separated; repeatable; all is everybody")
	fs.StringVar((*string)(&s.Squash), "squash", string(s.Squash), "callers that become anonymous: none, root or all")
	fs.Uint32Var(&s.AnonUID, "anon-uid", s.AnonUID, "uid of the anonymous")
	fs.Uint32Var(&s.AnonGID, "anon-gid", s.AnonGID, "gid of the anonymous")
	fs.BoolVar(&s.Insecure, "insecure", s.Insecure, "clients may use ports from 1024")
	fs.IntVar(&s.MinCopies, "min-copies", s.MinCopies, "masters that hold a generation before it is the head; 1 to 5")
	fs.BoolVar(&s.Strict, "strict", s.Strict, "refuse to publish while fewer masters than that are alive")
	fs.IntVar(&s.Keep.Generations, "keep-generations", s.Keep.Generations, "generations retained at least")
	fs.DurationVar((*time.Duration)(&s.Keep.For), "keep-for", time.Duration(s.Keep.For), "age up to which all generations are retained")
	return f
}

// patch returns what the flags have set; none reports that it is nothing.
func (f *shardFlags) patch() (p console.ShardPatch, none bool) {
	none = true
	set := func(name string, then func()) {
		if f.fs.Changed(name) {
			none = false
			then()
		}
	}
	set("network", func() { p.Networks = &f.s.Networks })
	set("squash", func() { p.Squash = &f.s.Squash })
	set("anon-uid", func() { p.AnonUID = &f.s.AnonUID })
	set("anon-gid", func() { p.AnonGID = &f.s.AnonGID })
	set("insecure", func() { p.Insecure = &f.s.Insecure })
	set("min-copies", func() { p.MinCopies = &f.s.MinCopies })
	set("strict", func() { p.Strict = &f.s.Strict })
	set("keep-generations", func() { p.KeepGenerations = &f.s.Keep.Generations })
	set("keep-for", func() { p.KeepFor = &f.s.Keep.For })
	return p, none
}

func (a *app) shardCreateCommand() *cobra.Command {
	var flags *shardFlags
	cmd := &cobra.Command{
		Use: "create SHARD", Short: "Create a shard", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			s := flags.s
			s.Name, s.CreatedAt = args[0], a.now().UTC()
			if err := s.Validate(); err != nil {
				return &usageError{err, cmd.CommandPath()}
			}
			if s, err = c.CreateShard(cmd.Context(), s); err != nil {
				return err
			}
			return a.show(s, func(w io.Writer) {
				fmt.Fprintf(w, "%s: created, fsid %s; publish with `nfs-fleet publish %s DIR`\n", s.Name, s.FSID, s.Name)
			})
		},
	}
	flags = bindShard(cmd.Flags())
	return cmd
}

func (a *app) shardSetCommand() *cobra.Command {
	var flags *shardFlags
	cmd := &cobra.Command{
		Use: "set SHARD", Short: "Change a shard's settings; what no flag names stays as it is", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			p, none := flags.patch()
			if none {
				return &usageError{errors.New("nothing to set: name a setting"), cmd.CommandPath()}
			}
			probe := fleet.NewShard("probe", time.Time{}) // other settings are none of the flags' mistakes
			if err := p.Apply(probe).Validate(); err != nil {
				return &usageError{errors.New(strings.TrimPrefix(err.Error(), "shard probe: ")), cmd.CommandPath()}
			}
			s, err := c.SetShard(cmd.Context(), args[0], p)
			if err != nil {
				return err
			}
			if p.Networks != nil && len(s.Networks) > 0 {
				a.warnShutOut(cmd.Context(), c, s)
			}
			return a.show(s, func(w io.Writer) { shardSheet(w, s) })
		},
	}
	flags = bindShard(cmd.Flags())
	return cmd
}

// warnShutOut says how many slaves that read a shard may do so no more. That the question fails is not worth a word: the
// settings are changed.
func (a *app) warnShutOut(ctx context.Context, c *console.Client, s fleet.Shard) {
	all, err := c.Slaves(ctx)
	if err != nil {
		return
	}
	if out := shutOut(all, s); len(out) > 0 {
		a.warn([]string{fmt.Sprintf("%s of shard %s shut out by its networks: %s",
			plural(int64(len(out)), "reader", "readers"), s.Name, strings.Join(out[:min(len(out), 10)], ", "))})
	}
}

// shutOut names the slaves that have a shard mounted and are outside its networks.
func shutOut(all []console.SlaveStatus, s fleet.Shard) (names []string) {
	for _, slave := range all {
		mounted := slices.ContainsFunc(slave.Mounts, func(m console.SlaveMount) bool { return m.Shard == s.Name })
		if slave.Reads != "" && mounted && !s.Covers(slave.Address) {
			names = append(names, slave.Name)
		}
	}
	return names
}

func (a *app) shardListCommand() *cobra.Command {
	return list(a, "list", "List the shards and their settings", "", (*console.Client).Shards, func(w io.Writer, all []console.Shard) {
		cells := make([][]string, len(all))
		for i, s := range all {
			cells[i] = []string{s.Name, s.FSID.String(), networksCell(s), string(s.Squash), portsCell(s), strconv.Itoa(s.MinCopies), keepCell(s.Keep)}
		}
		rows(w, []string{"SHARD", "FSID", "NETWORKS", "SQUASH", "PORTS", "MIN COPIES", "KEEP"}, cells)
	})
}

func (a *app) shardShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show SHARD", Short: "Show a shard's settings", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			s, err := c.Shard(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.show(s, func(w io.Writer) { shardSheet(w, s) })
		},
	}
}

func (a *app) shardDeleteCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "delete SHARD", Short: "Delete a shard and its history; its clients get errors", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if _, err := c.Shard(cmd.Context(), args[0]); err != nil {
				return err // before anybody is asked whether to delete it
			}
			if !yes && (!a.terminal(a.in) || !a.terminal(a.err)) {
				return &usageError{errors.New("there is no terminal to ask on: say --yes to delete without being asked"), cmd.CommandPath()}
			}
			if !yes && !a.confirm(fmt.Sprintf("Delete %s, its head and its history, on every master?", quoted(args[0])), args[0]) {
				return errors.New("not deleted")
			}
			if err := c.DeleteShard(cmd.Context(), args[0]); err != nil {
				return err
			}
			v := struct {
				Shard   string `json:"shard"`
				Deleted bool   `json:"deleted"`
			}{args[0], true}
			return a.show(v, func(w io.Writer) { fmt.Fprintf(w, "%s: deleted\n", args[0]) })
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask; needed without a terminal")
	return cmd
}

// confirm asks whoever sits at the terminal a question that only typing the name answers with yes.
func (a *app) confirm(question, name string) bool {
	fmt.Fprintf(a.err, "%s Type its name: ", question)
	line, _ := bufio.NewReader(a.in).ReadString('\n')
	return strings.TrimSpace(line) == name
}

// shardSheet shows one shard's settings, one a line.
func shardSheet(w io.Writer, s fleet.Shard) {
	strict := ""
	if s.Strict {
		strict = ", strict"
	}
	source := "publishes by itself"
	if s.Paused {
		source = "paused"
	}
	leader := "any master"
	if s.Lead != "" {
		leader = s.Lead + " rather than others"
	}
	rows(w, nil, [][]string{
		{"shard", s.Name}, {"fsid", s.FSID.String()}, {"networks", networksCell(s)}, {"ports", portsCell(s)},
		{"squash", fmt.Sprintf("%s (anonymous is %d:%d)", s.Squash, s.AnonUID, s.AnonGID)},
		{"min copies", strconv.Itoa(s.MinCopies) + strict}, {"keep", keepCell(s.Keep)}, {"source", source}, {"leader", leader},
		{"created", s.CreatedAt.UTC().Format(time.RFC3339)},
	})
}

func networksCell(s fleet.Shard) string {
	if len(s.Networks) == 0 {
		return allNetworks
	}
	return (&networks{p: &s.Networks}).String()
}

func portsCell(s fleet.Shard) string {
	if s.Insecure {
		return "any"
	}
	return "below 1024"
}

func keepCell(k fleet.Keep) string {
	return fmt.Sprintf("%d, and all of the last %s", k.Generations, shortDuration(time.Duration(k.For)))
}

// shortDuration is d without the zero minutes and seconds at its end.
func shortDuration(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
