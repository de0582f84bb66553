package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

func (a *app) sourceCommand() *cobra.Command {
	return group("source", "Pause, resume or rescan a shard's source",
		a.sourceAction(console.SourcePause, "Stop publishing what changes in a shard's source", "is paused"),
		a.sourceAction(console.SourceResume, "Publish a shard's source by itself again", "publishes by itself again"),
		a.sourceAction(console.SourceRescan, "Look at every file of a shard's source again", "is being read in full"))
}

func (a *app) sourceAction(action console.SourceAction, short, done string) *cobra.Command {
	return &cobra.Command{
		Use: string(action) + " SHARD", Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if err := c.Source(cmd.Context(), args[0], action); err != nil {
				return err
			}
			v := struct {
				Shard  string               `json:"shard"`
				Action console.SourceAction `json:"action"`
			}{args[0], action}
			return a.show(v, func(w io.Writer) { fmt.Fprintf(w, "%s: the source %s\n", args[0], done) })
		},
	}
}
