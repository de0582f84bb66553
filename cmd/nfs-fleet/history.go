package main

import (
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

func (a *app) historyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "history SHARD", Short: "List a shard's retained generations, the newest first", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			all, err := c.History(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.show(all, func(w io.Writer) {
				cells := make([][]string, len(all))
				for i, g := range all {
					number := strconv.FormatUint(g.Number, 10)
					if i == 0 {
						number += " (head)"
					}
					cells[i] = []string{
						number, g.PublishedAt.UTC().Format("2006-01-02 15:04:05Z"), age(g.PublishedAt, a.now()), count(g.Files), size(g.Bytes),
						strconv.Itoa(g.Copies), g.By, quoted(g.Source), asker(g), g.Note,
					}
				}
				rows(w, []string{"GENERATION", "PUBLISHED", "AGE", "FILES", "SIZE", "COPIES", "LEADER", "FROM", "ASKED BY", "NOTE"}, cells)
			})
		},
	}
}

// asker is who asked for a generation. A source that publishes by itself is a master and a directory.
func asker(g tree.Generation) string {
	kind, _, _ := strings.Cut(g.Source, ":")
	if g.Caller == "" && kind != "upload" && kind != "rollback" {
		return "its source"
	}
	return g.Caller
}
