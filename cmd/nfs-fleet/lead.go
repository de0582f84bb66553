package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

func (a *app) shardLeadCommand() *cobra.Command {
	return &cobra.Command{
		Use: "lead SHARD MASTER", Short: "Hand the leadership of a shard over to a master",
		Long: "lead hands a shard over to a master that is in step, without a gap that anybody who publishes would notice.",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if err := c.Lead(cmd.Context(), args[0], args[1]); err != nil {
				return err
			}
			v := struct {
				Shard  string `json:"shard"`
				Leader string `json:"leader"`
			}{args[0], args[1]}
			return a.show(v, func(w io.Writer) { fmt.Fprintf(w, "%s: %s leads it\n", args[0], args[1]) })
		},
	}
}

func (a *app) shardRecoverCommand() *cobra.Command {
	var r console.RecoverShardRequest
	cmd := &cobra.Command{
		Use: "recover SHARD --accept-loss", Short: "Go on from the newest generation that is left when every copy of the head is lost",
		Long: "recover is for a shard whose head no living master holds, and none ever will: bring lost masters back first, if\n" +
			"that can be done. It publishes the newest tree that the living masters hold whole as the next generation. What was\n" +
			"published after that tree is lost, which is why it says what that is, and does nothing, without --accept-loss.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			rep, err := c.RecoverShard(cmd.Context(), args[0], r)
			if err != nil {
				return err
			}
			a.warn(rep.Warnings)
			if err := a.show(rep, func(w io.Writer) { a.lossSheet(w, rep) }); err != nil {
				return err
			}
			switch {
			case rep.Tree == 0:
				return errors.New("no generation is whole on any living master: bring a lost master back, or publish the shard anew")
			case rep.Generation == 0:
				return errors.New("nothing was changed: say --accept-loss to go on from that generation")
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&r.AcceptLoss, "accept-loss", false, "do it, and lose what was published after the newest generation that is left")
	return cmd
}

// lossSheet says what the recovery of a shard keeps.
func (a *app) lossSheet(w io.Writer, rep console.RecoverShardReport) {
	left := "none"
	if rep.Tree != 0 {
		left = fmt.Sprintf("%d, published %s, on %s", rep.Tree, age(rep.PublishedAt, a.now()), rep.Master)
	}
	now := "unchanged"
	if rep.Generation != 0 {
		now = strconv.FormatUint(rep.Generation, 10)
	}
	rows(w, nil, [][]string{{"shard", rep.Shard}, {"lost head", number(rep.Was)}, {"newest left", left}, {"head now", now}})
}
