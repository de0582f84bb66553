package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

func (a *app) rollbackCommand() *cobra.Command {
	var r console.RollbackRequest
	cmd := &cobra.Command{
		Use: "rollback SHARD [GENERATION]", Short: "Publish an earlier generation's tree again",
		Long: "rollback publishes the tree of an earlier generation as the next one: of GENERATION, or of the one before the head.\n" +
			"The shard's source does not publish by itself afterwards, until `nfs-fleet source resume SHARD`\n" +
			"or `nfs-fleet publish SHARD`.",
		Args: cobra.MatchAll(cobra.RangeArgs(1, 2), generations(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			r.Generation = generationArg(args, 1)
			m := a.meter()
			p, err := c.Rollback(cmd.Context(), args[0], r, m.report)
			m.done()
			if err != nil {
				return interrupted(err, "the rollback goes on at the master: see `nfs-fleet status`")
			}
			a.warn(p.Warnings)
			return a.show(p, func(w io.Writer) {
				if !p.Changed {
					fmt.Fprintf(w, "%s: generation %d has that tree already\n", p.Shard, p.Number)
					return
				}
				fmt.Fprintf(w, "%s: generation %d is the head (%s), %s\n", p.Shard, p.Number, quoted(p.Source), changes(p))
				servedBy(w, p)
				fmt.Fprintf(w, "A source of the shard is paused until `nfs-fleet source resume %s`.\n", p.Shard)
			})
		},
	}
	cmd.Flags().StringVar(&r.Note, "note", "", "a note for the history")
	cmd.Flags().BoolVar(&r.Wait, "wait", false, "wait until every master that can serves it, and say which do")
	return cmd
}
