package main

import (
	"io"
	"strconv"

	"github.com/spf13/cobra"
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
						number, age(g.PublishedAt, a.now()), count(g.Files), size(g.Bytes), strconv.Itoa(g.Copies), g.By, quoted(g.Source), g.Note,
					}
				}
				rows(w, []string{"GENERATION", "PUBLISHED", "FILES", "SIZE", "COPIES", "BY", "FROM", "NOTE"}, cells)
			})
		},
	}
}
