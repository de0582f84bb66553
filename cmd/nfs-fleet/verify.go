package main

import (
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

func (a *app) verifyCommand() *cobra.Command {
	var r console.VerifyRequest
	cmd := &cobra.Command{
		Use: "verify [SHARD]", Short: "Read and hash everything that a master holds",
		Long: "verify reads and hashes what the master's store holds, of one shard or of all, and looks whether every retained\n" +
			"generation is whole. Damaged objects are quarantined. It fails when something is damaged or missing at its end.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if len(args) > 0 {
				r.Shard = args[0]
			}
			m := a.meter()
			v, err := c.Verify(cmd.Context(), r, m.report)
			m.done()
			if err != nil {
				return interrupted(err, "the verify was stopped")
			}
			if err := a.show(v, func(w io.Writer) { verifyTable(w, v) }); err != nil || v.Sound() {
				return err
			}
			hint := "run `nfs-fleet verify --repair`"
			if r.Repair {
				hint = "publish the shard again, or restore the master's data"
			}
			return fmt.Errorf("%s damaged, %d missing, %d repaired: %s", plural(int64(len(v.Bad)), "object", "objects"), len(v.Missing), v.Repaired, hint)
		},
	}
	cmd.Flags().BoolVar(&r.Repair, "repair", false, "get damaged and missing objects again, from the source or another master")
	return cmd
}

func verifyTable(w io.Writer, v console.VerifyReport) {
	verdict := "everything is whole"
	switch {
	case !v.Sound():
		verdict = "not everything is whole"
	case v.Repaired > 0:
		verdict = plural(v.Repaired, "object", "objects") + " repaired, everything is whole now"
	}
	fmt.Fprintf(w, "%s, %s, read in %s: %s\n", plural(v.Objects, "object", "objects"), size(uint64(max(v.Bytes, 0))), took(v.TookMS), verdict)
	var cells [][]string
	for _, d := range v.Bad {
		cells = append(cells, []string{d.String(), "damaged", "", ""})
	}
	for _, o := range v.Missing {
		cells = append(cells, []string{o.Digest.String(), "missing", o.Shard, strconv.FormatUint(o.Generation, 10)})
	}
	if len(cells) > 0 {
		rows(w, []string{"OBJECT", "STATE", "SHARD", "GENERATION"}, cells)
	}
}
