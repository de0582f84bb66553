package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

// show writes v as JSON when that was asked for, and otherwise lets table write it for people.
func (a *app) show(v any, table func(w io.Writer)) error {
	if a.output == "json" {
		e := json.NewEncoder(a.out)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(v)
	}
	table(a.out)
	return nil
}

// list is a command that asks a master for something and shows it.
func list[T any](a *app, use, short, long string, get func(*console.Client, context.Context) (T, error), table func(w io.Writer, v T)) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Long: long, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			v, err := get(c, cmd.Context())
			if err != nil {
				return err
			}
			return a.show(v, func(w io.Writer) { table(w, v) })
		},
	}
}

// warn writes warnings for people; programs find them in the JSON.
func (a *app) warn(warnings []string) {
	for _, w := range warnings {
		fmt.Fprintf(a.err, "warning: %s\n", oneLine(w))
	}
}

// rows writes an aligned table. Cells are made safe for a terminal; the last column is not padded.
func rows(w io.Writer, header []string, cells [][]string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if header != nil {
		fmt.Fprintln(t, strings.Join(header, "\t"))
	}
	for _, row := range cells {
		safe := make([]string, len(row))
		for i, c := range row {
			if safe[i] = oneLine(c); c == "" {
				safe[i] = "-"
			}
		}
		fmt.Fprintln(t, strings.Join(safe, "\t"))
	}
	t.Flush()
}

// quoted returns a name as it is when a terminal shows it as it is, and otherwise in Go's quotes: names hold any bytes,
// escape sequences and text that runs backwards among them.
func quoted(name string) string {
	if name == "" || strings.ContainsAny(name, `"\`) || strings.TrimSpace(name) != name || !printable(name) {
		return strconv.Quote(name)
	}
	return name
}

func printable(s string) bool {
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return utf8.ValidString(s)
}

// oneLine makes text safe for a terminal and folds it into one line.
func oneLine(text string) string {
	if printable(text) {
		return text
	}
	var b strings.Builder
	for i, l := range strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }) {
		if i > 0 {
			b.WriteString("; ")
		}
		if l = strings.TrimSpace(l); printable(l) {
			b.WriteString(l)
			continue
		}
		q := strconv.Quote(l)
		b.WriteString(strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`))
	}
	return b.String()
}

func size(n uint64) string  { return humanize.IBytes(n) }
func count(n uint64) string { return humanize.Comma(int64(min(n, 1<<63-1))) }

// age says how long before now t was.
func age(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	if d := now.Sub(t); d > -time.Second && d < 10*time.Second {
		return "just now" // the clocks of two machines, too
	}
	return humanize.RelTime(t, now, "ago", "from now")
}

// took says how long something lasted.
func took(ms int64) string {
	d := time.Duration(ms) * time.Millisecond
	switch {
	case d < time.Second:
		return d.String()
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}

func plural(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return humanize.Comma(n) + " " + many
}
