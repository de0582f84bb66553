package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/control"
)

func (a *app) mountsCommand() *cobra.Command {
	var runDir string
	cmd := &cobra.Command{
		Use: "mounts", Short: "Show this host's mounts: what each reads from, since when and why",
		Long: "mounts asks this host's agent. -o wide shows the SRV names and the last change of master, too; -o json all there is.",
		Args: cobra.NoArgs, Annotations: map[string]string{hasWide: ""},
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := agentClient(runDir).Status(cmd.Context())
			if err != nil {
				return err
			}
			return a.show(s, func(w io.Writer) { a.mountsTable(w, s) })
		},
	}
	cmd.Flags().StringVar(&runDir, "run-dir", defaultRunDir, "`directory` of the agent's socket")
	return cmd
}

// mountsTable prints mounts for people.
func (a *app) mountsTable(w io.Writer, s control.Status) {
	if len(s.Mounts) == 0 {
		fmt.Fprintln(w, "Nothing is mounted.")
		return
	}
	if a.wide {
		mountsWide(w, s.Mounts, a.now())
		return
	}
	var cells [][]string
	for _, m := range s.Mounts {
		took := ""
		if m.Reattach != nil {
			took = tookCell(m)
		}
		cells = append(cells, []string{dirCell(m), cmp.Or(m.Path, m.Name), m.Via, fromCell(m), age(parseTime(m.Since), a.now()), took, m.Why})
	}
	header := []string{"AT", "SHARD", "VIA", "READS FROM", "SINCE", "TOOK", "WHY"}
	cut := fit(header, cells)
	rows(w, header, cells)
	for i, m := range s.Mounts {
		if cut[i] && m.State == control.Searching { // what to do about it is not to be cut off
			fmt.Fprintf(w, "\n%s: %s\n", oneLine(dirCell(m)), oneLine(m.Why))
		}
	}
}

func mountsWide(w io.Writer, mounts []control.Mount, now time.Time) {
	var cells [][]string
	for _, m := range mounts {
		last := ""
		if r := m.Reattach; r != nil {
			last = fmt.Sprintf("%s, from %s, in %s", age(parseTime(r.At), now), r.From, tookCell(m))
		}
		cells = append(cells, []string{m.Name + ":" + m.Path, dirCell(m), m.Via, fromCell(m), age(parseTime(m.Since), now), m.Why, last})
	}
	rows(w, []string{"MOUNT", "AT", "VIA", "READS FROM", "SINCE", "WHY", "LAST REATTACH"}, cells)
}

func dirCell(m control.Mount) string {
	if m.Dir == "" {
		return "(not seen)" // in another mount namespace
	}
	return m.Dir
}

func fromCell(m control.Mount) string {
	if m.State == control.Searching {
		return strings.TrimSpace(m.Master + " (no answer)")
	}
	return m.Master
}

func tookCell(m control.Mount) string { return took(int64(m.Reattach.TookMS + 0.5)) }

// terminalWidth is what tables that fit take at the most.
const terminalWidth = 120

// fit shortens the last cell of each row so that the table is as wide as a terminal, unless the others are that wide already. It
// says which rows it has shortened.
func fit(header []string, cells [][]string) (cut []bool) {
	last, room := len(header)-1, terminalWidth
	for i := range last {
		widest := utf8.RuneCountInString(header[i])
		for _, row := range cells {
			widest = max(widest, utf8.RuneCountInString(oneLine(row[i])))
		}
		room -= widest + 2
	}
	room = max(room, 20)
	cut = make([]bool, len(cells))
	for i, row := range cells {
		text := []rune(oneLine(row[last]))
		if cut[i] = len(text) > room; cut[i] {
			row[last] = strings.TrimSpace(string(text[:room-1])) + "…"
		}
	}
	return cut
}

// parseTime reads a time as the agent writes it; zero when it is none.
func parseTime(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}
	}
	return t
}
