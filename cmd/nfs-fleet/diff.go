package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

func (a *app) diffCommand() *cobra.Command {
	return &cobra.Command{
		Use: "diff SHARD [A] [B]", Short: "List what differs between two generations",
		Long: "diff lists what differs between generations A and B; without B, between A and the head; without both, between the\n" +
			"head and the one before it. + is added, - removed, ~ modified. With -o json, one object a line.",
		Args: cobra.MatchAll(cobra.RangeArgs(1, 3), generations(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			w := bufio.NewWriter(a.out)
			show := func(ch console.Change) error { _, err := fmt.Fprintln(w, changeLine(ch)); return err }
			if a.output == "json" {
				e := json.NewEncoder(w)
				e.SetEscapeHTML(false)
				show = func(ch console.Change) error { return e.Encode(ch) }
			}
			err = c.Diff(cmd.Context(), args[0], generationArg(args, 1), generationArg(args, 2), show)
			return errors.Join(err, w.Flush())
		},
	}
}

var opMarks = map[string]string{"added": "+", "removed": "-", "modified": "~"}

// changeLine is one change for people: a mark, the path, and for a modified one what of it.
func changeLine(c console.Change) string {
	name := c.Path
	if n := c.New; n != nil && n.Type == "dir" || n == nil && c.Old != nil && c.Old.Type == "dir" {
		name = strings.TrimSuffix(name, "/") + "/"
	}
	mark := opMarks[c.Op]
	if mark == "" {
		mark = "?"
	}
	line := mark + " " + quoted(name)
	if c.Old == nil || c.New == nil {
		return line
	}
	if what := differences(*c.Old, *c.New); len(what) > 0 {
		line += "  (" + strings.Join(what, ", ") + ")"
	}
	return line
}

func differences(o, n console.Node) (out []string) {
	if o.Type != n.Type {
		return []string{fmt.Sprintf("%s → %s", o.Type, n.Type)}
	}
	if o.Size != n.Size && n.Type == "file" {
		out = append(out, fmt.Sprintf("%s → %s", size(o.Size), size(n.Size)))
	} else if o.Digest != n.Digest {
		out = append(out, "content")
	}
	if o.Target != n.Target {
		out = append(out, fmt.Sprintf("%s → %s", quoted(o.Target), quoted(n.Target)))
	}
	if o.Mode != n.Mode {
		out = append(out, fmt.Sprintf("mode %s → %s", o.Mode, n.Mode))
	}
	if o.UID != n.UID || o.GID != n.GID {
		out = append(out, fmt.Sprintf("owner %d:%d → %d:%d", o.UID, o.GID, n.UID, n.GID))
	}
	if o.Links != n.Links && n.Type != "dir" {
		out = append(out, fmt.Sprintf("%d → %s", o.Links, plural(int64(n.Links), "link", "links")))
	}
	if o.Mtime != n.Mtime {
		out = append(out, "mtime")
	}
	return out
}
