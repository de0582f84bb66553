package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

func (a *app) tokenCommand() *cobra.Command {
	return group("token", "Let machines join the fleet, or publish to it", a.tokenCreateCommand(), a.tokenListCommand(), a.tokenRevokeCommand())
}

func (a *app) tokenCreateCommand() *cobra.Command {
	var (
		r    console.TokenRequest
		join bool
	)
	cmd := &cobra.Command{
		Use: "create {--join | --shard SHARD}", Short: "Make a token and print it",
		Long: "create prints a token on standard output, and what it is good for on standard error. The token is a secret: the\n" +
			"fleet keeps a hash of it only, and it cannot be shown again.\n\n" +
			"With --join, a machine that runs `nfs-fleet serve --join TOKEN` becomes a master of this fleet; each token makes\n" +
			"one. With --shard, whoever has the token may publish these shards and roll them back until it expires, from any\n" +
			"machine: `nfs-fleet publish SHARD DIR --token TOKEN`. The token knows the masters, and their CA by its hash.",
		Example: "  nfs-fleet token create --join\n  nfs-fleet token create --shard www --ttl 8760h --note ci > token",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r.Kind = console.TokenPublish
			if join {
				r.Kind = console.TokenJoin
			}
			if join == (len(r.Shards) > 0) {
				return &usageError{errors.New("give either --join or --shard"), cmd.CommandPath()}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			t, err := c.CreateToken(cmd.Context(), r)
			if err != nil {
				return err
			}
			return a.show(t, func(w io.Writer) {
				fmt.Fprintln(a.err, oneLine(tokenPurpose(t)))
				fmt.Fprintln(w, oneLine(t.Text))
			})
		},
	}
	cmd.Flags().BoolVar(&join, "join", false, "for becoming a master, once")
	cmd.Flags().StringSliceVar(&r.Shards, "shard", nil, "for publishing these `shards`; comma-separated or repeated")
	cmd.Flags().DurationVar((*time.Duration)(&r.TTL), "ttl", console.DefaultTokenTTL, "how long it is good")
	cmd.Flags().StringVar(&r.Note, "note", "", "a note for the list of tokens")
	return cmd
}

// tokenPurpose says what a new token is good for.
func tokenPurpose(t console.TokenMade) string {
	until := t.ExpiresAt.UTC().Format(time.RFC3339)
	if t.Kind == console.TokenJoin {
		return fmt.Sprintf("Token %s makes one machine a master, until %s: nfs-fleet serve --join TOKEN", t.ID, until)
	}
	return fmt.Sprintf("Token %s may publish %s until %s: nfs-fleet publish %s DIR --token TOKEN", t.ID, strings.Join(t.Shards, ", "), until, t.Shards[0])
}

func (a *app) tokenListCommand() *cobra.Command {
	return list(a, "list", "List the tokens, without their secrets", "", (*console.Client).Tokens, func(w io.Writer, all []console.Token) {
		if len(all) == 0 {
			fmt.Fprintln(w, "No tokens: `nfs-fleet token create` makes one.")
			return
		}
		now := a.now()
		cells := make([][]string, len(all))
		for i, t := range all {
			expires := strings.TrimSuffix(age(t.ExpiresAt, now), " from now")
			if !now.Before(t.ExpiresAt) {
				expires = "EXPIRED"
			}
			cells[i] = []string{t.ID, string(t.Kind), strings.Join(t.Shards, ","), age(t.CreatedAt, now), expires, t.By, t.Note}
		}
		rows(w, []string{"TOKEN", "FOR", "SHARDS", "MADE", "EXPIRES IN", "BY", "NOTE"}, cells)
	})
}

func (a *app) tokenRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "revoke TOKEN", Short: "End a token now; give its id, as `token list` shows it", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if err := c.RevokeToken(cmd.Context(), args[0]); err != nil {
				return err
			}
			v := struct {
				ID      string `json:"id"`
				Revoked bool   `json:"revoked"`
			}{args[0], true}
			return a.show(v, func(w io.Writer) { fmt.Fprintf(w, "%s: revoked\n", quoted(args[0])) })
		},
	}
}
