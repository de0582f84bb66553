package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

func (a *app) publishCommand() *cobra.Command {
	var (
		r    console.PublishRequest
		skip bool
	)
	cmd := &cobra.Command{
		Use: "publish SHARD [DIR]", Short: "Publish a shard's source, or a directory of this machine, as the next generation",
		Long: "publish makes the present state of the shard's source the next generation. With DIR it publishes that directory\n" +
			"of this machine: what the fleet does not hold yet is uploaded. It returns when the generation is the head, and with\n" +
			"--wait when every master that can serves it.\n\n" +
			"From a machine that is no master it needs a token, which `nfs-fleet token create --shard SHARD` on a master prints.",
		Example: "  nfs-fleet publish www\n  NFS_FLEET_TOKEN=nfp1_… nfs-fleet publish www ./public --note \"build 7\" --wait",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			m := a.meter()
			p, err := publish(cmd.Context(), c, args, r, skip, m)
			m.done()
			if err != nil {
				return err
			}
			a.warn(p.Warnings)
			return a.show(p, func(w io.Writer) {
				if !p.Changed {
					fmt.Fprintf(w, "%s: nothing to publish, generation %d is up to date\n", p.Shard, p.Number)
					servedBy(w, p)
					return
				}
				fmt.Fprintf(w, "%s: generation %d is the head, %s\n", p.Shard, p.Number, changes(p))
				servedBy(w, p)
			})
		},
	}
	cmd.Flags().StringVar(&r.Note, "note", "", "a note for the history")
	cmd.Flags().BoolVar(&r.Wait, "wait", false, "wait until every master that can serves it, and say which do")
	cmd.Flags().BoolVar(&skip, "skip-unreadable", false, "with DIR: leave out files that cannot be read or keep changing, instead of failing")
	return cmd
}

// uploadTries is how often a directory is uploaded when the master that takes it goes away in the middle.
const uploadTries = 3

// publish publishes a source, or uploads a directory and publishes that. Masters hold an upload only while they lead the
// shard: when another one takes over, it gets what it lacks.
func publish(ctx context.Context, c *console.Client, args []string, r console.PublishRequest, skip bool, m *meter) (p console.Published, err error) {
	if len(args) == 1 {
		p, err = c.Publish(ctx, args[0], r, m.report)
		return p, interrupted(err, goesOn)
	}
	for try := 1; ; try++ {
		p, err = publishDir(ctx, c, args, r, skip, m)
		if try >= uploadTries || !errors.Is(err, console.ErrGone) {
			return p, err
		}
	}
}

const goesOn = "the publish goes on at the master: see `nfs-fleet status`"

func publishDir(ctx context.Context, c *console.Client, args []string, r console.PublishRequest, skip bool, m *meter) (console.Published, error) {
	u, err := upload(ctx, c, args[0], args[1], skip, m)
	if err != nil {
		return console.Published{}, interrupted(err, "nothing was published")
	}
	defer u.end(ctx)
	r.Root, r.Upload, r.Origin = u.root, u.ID(), u.origin
	p, err := c.Publish(ctx, args[0], r, m.report)
	p.Warnings = append(append([]string{}, u.warnings...), p.Warnings...)
	return p, interrupted(err, goesOn)
}

// servedBy says which masters serve a generation, when that was waited for.
func servedBy(w io.Writer, p console.Published) {
	if len(p.ServedBy) > 0 {
		fmt.Fprintf(w, "It is served by %s.\n", oneLine(strings.Join(p.ServedBy, ", ")))
	}
}

// interrupted adds what becomes of an operation to the error of one whose waiting was interrupted.
func interrupted(err error, then string) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, errInterrupted) {
		return fmt.Errorf("interrupted; %s", then)
	}
	return err
}

// changes sums up what a publish did.
func changes(p console.Published) string {
	return fmt.Sprintf("%d added, %d modified, %d removed: %s, %s, in %s",
		p.Added, p.Modified, p.Removed, plural(int64(min(p.Files, math.MaxInt64)), "file", "files"), size(p.Bytes), took(p.TookMS))
}

// generations accepts arguments from the first on that are generations' numbers.
func generations(first int) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		for _, arg := range args[min(first, len(args)):] {
			if n, err := strconv.ParseUint(arg, 10, 64); err != nil || n == 0 || strings.HasPrefix(arg, "+") {
				return fmt.Errorf("%q is no generation's number: `nfs-fleet history SHARD` lists them", arg)
			}
		}
		return nil
	}
}

// generationArg returns an argument that generations has accepted, 0 when it is not there.
func generationArg(args []string, i int) uint64 {
	if i >= len(args) {
		return 0
	}
	n, _ := strconv.ParseUint(args[i], 10, 64)
	return n
}
