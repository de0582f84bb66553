package main

import (
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

func (a *app) recoverCommand() *cobra.Command {
	var r console.RecoverRequest
	cmd := &cobra.Command{
		Use: "recover", Short: "Rebuild an etcd that has lost the fleet, from the master's disk",
		Long: "recover writes the fleet's identity, shards and heads into an etcd that lost them or was restored from an old\n" +
			"backup, above every number that the masters have seen. What etcd has and what is newer stays as it is.\n\n" +
			"With --lost-quorum it first makes the etcd inside this master a cluster of one, when the other voters are gone for good.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			rep, err := c.Recover(cmd.Context(), r)
			if err != nil {
				return err
			}
			a.warn(rep.Warnings)
			if rep.Restart {
				return a.show(rep, func(w io.Writer) {
					fmt.Fprintln(w, "Restart this master now: its etcd becomes a cluster of one. Then restart the other masters that are left, and run `nfs-fleet recover`.")
				})
			}
			return a.show(rep, func(w io.Writer) {
				verb := "recovered"
				if r.DryRun {
					verb = "would be recovered (dry run)"
				}
				fmt.Fprintf(w, "fleet %s: %s %s\n", rep.ID, plural(int64(len(rep.Shards)), "shard", "shards"), verb)
				cells := make([][]string, len(rep.Shards))
				for i, s := range rep.Shards {
					cells[i] = []string{s.Name, s.FSID.String(), s.Action, number(s.Was), number(s.Generation)}
				}
				if len(cells) > 0 {
					rows(w, []string{"SHARD", "FSID", "ACTION", "HEAD WAS", "HEAD IS"}, cells)
				}
			})
		},
	}
	cmd.Flags().BoolVar(&r.LostQuorum, "lost-quorum", false, "most voters of the embedded etcd are gone for good: go on from this master's, at its next start")
	cmd.Flags().BoolVar(&r.DryRun, "dry-run", false, "only say what would be written")
	return cmd
}

// number writes a generation's number; none is empty.
func number(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}
