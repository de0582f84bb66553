package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

func (a *app) statusCommand() *cobra.Command {
	var (
		watch bool
		every time.Duration
	)
	cmd := &cobra.Command{
		Use: "status", Short: "Show the fleet: shards, generations, masters, slaves",
		Long: "status shows the fleet as one master sees it. With --watch it goes on until interrupted; with -o json too, one\n" +
			"object a line. docs/api.md describes the JSON.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if watch {
				return a.watchStatus(cmd.Context(), c, max(every, 100*time.Millisecond))
			}
			st, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			return a.show(st, func(w io.Writer) { statusTable(w, st) })
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it again and again")
	cmd.Flags().DurationVar(&every, "interval", 2*time.Second, "time between two looks with --watch")
	return cmd
}

// watchStatus shows the status until ctx ends, which is no error. Neither is a master that does not answer: it may be
// what the operator is waiting for.
func (a *app) watchStatus(ctx context.Context, c *console.Client, every time.Duration) error {
	if every < 100*time.Millisecond {
		return &usageError{fmt.Errorf("--interval %s: use 100ms or more", every), "nfs-fleet status"}
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for first := true; ; first = false {
		st, err := c.Status(ctx)
		if ctx.Err() != nil {
			return nil
		}
		var page strings.Builder
		switch {
		case err != nil && a.output == "json":
			fmt.Fprintf(a.err, "nfs-fleet: %s\n", oneLine(err.Error()))
		case err != nil:
			fmt.Fprintln(&page, oneLine(err.Error()))
		case a.output == "json":
			if err := json.NewEncoder(&page).Encode(st); err != nil {
				return err
			}
		default:
			statusTable(&page, st)
		}
		if _, err := io.WriteString(a.out, a.between(first)+page.String()); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// between is what separates two pages: a terminal is wiped, a file gets an empty line.
func (a *app) between(first bool) string {
	switch {
	case a.output == "json":
		return ""
	case a.terminal(a.out):
		return "\x1b[H\x1b[2J"
	case first:
		return ""
	}
	return "\n"
}

func statusTable(w io.Writer, st console.Status) {
	etcd := st.Etcd.Mode + ", healthy"
	if !st.Etcd.Healthy {
		etcd = st.Etcd.Mode + ", NOT ANSWERING"
		if st.Etcd.Error != "" {
			etcd += " (" + st.Etcd.Error + ")"
		}
	}
	fmt.Fprintf(w, "fleet %s as %s sees it; etcd %s\n\n", quoted(st.Fleet), quoted(st.Master), oneLine(etcd))
	if len(st.Shards) == 0 {
		fmt.Fprintln(w, "No shards yet: `nfs-fleet shard create NAME`, or `nfs-fleet serve --source NAME=DIR`.")
	} else {
		shardTable(w, st)
	}
	fmt.Fprintln(w)
	masterTable(w, st)
	slavesPart(w, st)
	notes := statusNotes(st)
	if len(notes) > 0 {
		fmt.Fprintln(w)
	}
	for _, n := range notes {
		fmt.Fprintln(w, oneLine(n))
	}
}

func shardTable(w io.Writer, st console.Status) {
	var cells [][]string
	for _, s := range st.Shards {
		leader := s.Leader
		if leader == "" {
			leader = "NONE"
		}
		cells = append(cells, []string{
			s.Name, generationCell(s), age(s.PublishedAt, st.Time), count(s.Files), size(s.Bytes), leader, epochCell(s.Epoch),
			fmt.Sprintf("%d/%d", s.Copies, s.MinCopies), inStepCell(s, st.Masters), strconv.Itoa(s.Mounts), sourceCell(s, st.Masters),
		})
	}
	rows(w, []string{"SHARD", "GENERATION", "PUBLISHED", "FILES", "SIZE", "LEADER", "EPOCH", "COPIES", "IN STEP", "MOUNTS", "SOURCE"}, cells)
}

func epochCell(epoch int64) string {
	if epoch == 0 {
		return ""
	}
	return strconv.FormatInt(epoch, 10)
}

// inStepCell is how many of the living masters serve a shard's head.
func inStepCell(s console.ShardStatus, masters []console.MasterStatus) string {
	living, inStep := 0, 0
	for _, m := range masters {
		if m.State == console.MasterLost {
			continue
		}
		living++
		if s.Head != 0 && m.Serves[s.Name] == s.Head {
			inStep++
		}
	}
	if s.Head == 0 {
		return ""
	}
	return fmt.Sprintf("%d/%d", inStep, living)
}

// generationCell is what a master serves, and how that differs from the head.
func generationCell(s console.ShardStatus) string {
	cell := number(s.Generation)
	if s.Head != 0 && s.Head != s.Generation {
		cell = fmt.Sprintf("%d, head is %d", s.Generation, s.Head)
	}
	if s.Stale && cell != "" {
		cell += " (stale)"
	}
	return cell
}

func masterTable(w io.Writer, st console.Status) {
	var cells [][]string
	for _, m := range st.Masters {
		clients, held, free := "", "", ""
		if m.Store != nil {
			clients, held, free = strconv.Itoa(m.Clients), size(uint64(max(m.Store.Disk, 0))), size(uint64(max(m.Store.Free, 0)))
		}
		up := ""
		if !m.StartedAt.IsZero() && m.State != console.MasterLost {
			up = strings.TrimSpace(humanize.RelTime(m.StartedAt, st.Time, "", ""))
		}
		cells = append(cells, []string{
			masterName(m), stateCell(m, st.Time), m.Version, m.Addresses.NFS, up, leaseCell(m), m.EtcdRole, strconv.Itoa(m.Leads), lagCell(m), slavesCell(m), clients, held, free,
		})
	}
	rows(w, []string{"MASTER", "STATE", "VERSION", "NFS", "UP", "LEASE", "ETCD", "LEADS", "BEHIND", "SLAVES", "CLIENTS", "STORE", "FREE"}, cells)
}

// slavesCell is how many slaves have a master as their home, of how many slots, and how many others read from it.
func slavesCell(m console.MasterStatus) string {
	cell := strconv.Itoa(m.Slaves)
	if m.Slots > 0 {
		cell += "/" + strconv.Itoa(m.Slots)
	}
	if m.Away > 0 {
		cell += fmt.Sprintf(" +%d away", m.Away)
	}
	return cell
}

// slavesPart shows the slaves, or when they are many those that want attention.
func slavesPart(w io.Writer, st console.Status) {
	s := st.Slaves
	if s.Total == 0 && len(s.Shown) == 0 {
		return
	}
	fmt.Fprintln(w)
	if s.Total > len(s.Shown) {
		fmt.Fprintf(w, "%s, %s heard of now, %s away from home, %s without a home: `nfs-fleet slave list` shows all\n",
			plural(int64(s.Total), "slave", "slaves"), humanize.Comma(int64(s.Heard)), humanize.Comma(int64(s.Away)), humanize.Comma(int64(s.Homeless)))
	}
	if len(s.Shown) > 0 {
		slaveTable(w, s.Shown, st.Time)
	}
}

// masterName marks the master that answers.
func masterName(m console.MasterStatus) string {
	if m.Self {
		return m.Name + " *"
	}
	return m.Name
}

// stateCell is what a master does, and of a lost one since when it does not.
func stateCell(m console.MasterStatus, now time.Time) string {
	if m.State != console.MasterLost {
		return m.State
	}
	return strings.TrimSpace("LOST " + age(m.LostSince, now))
}

// leaseCell is how old a master's lease is, and how old it may become.
func leaseCell(m console.MasterStatus) string {
	if m.LeaseAgeMS < 0 || m.LeaseTTLMS == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f s of %.0f s", float64(m.LeaseAgeMS)/1000, float64(m.LeaseTTLMS)/1000)
}

// lagCell is how far a master is behind the heads: by shard when there are few.
func lagCell(m console.MasterStatus) string {
	if len(m.Lag) == 0 || m.State == console.MasterLost {
		return ""
	}
	var behind []string
	for _, shard := range slices.Sorted(maps.Keys(m.Lag)) {
		behind = append(behind, fmt.Sprintf("%s by %d", shard, m.Lag[shard]))
	}
	if len(behind) > 2 {
		return plural(int64(len(behind)), "shard", "shards")
	}
	return strings.Join(behind, ", ")
}

// sourceCell is the state of the answering master's source, or else which living masters have one.
func sourceCell(s console.ShardStatus, masters []console.MasterStatus) string {
	if s.Source.State != "none" {
		return s.Source.State
	}
	var on []string
	for _, m := range masters {
		if m.State != console.MasterLost && slices.Contains(m.Sources, s.Name) {
			on = append(on, m.Name)
		}
	}
	if len(on) == 0 {
		return s.Source.State
	}
	return "on " + strings.Join(on, ", ")
}

// statusNotes are the things that want somebody's attention. What a warning says already is not said twice.
func statusNotes(st console.Status) (notes []string) {
	warnings := strings.Join(st.Warnings, "\n")
	note := func(shard, prefix, text string) {
		if text != "" && !strings.Contains(warnings, text) {
			notes = append(notes, shard+": "+prefix+text)
		}
	}
	for _, s := range st.Shards {
		note(s.Name, "", s.Problem)
		note(s.Name, "source "+s.Source.State+": ", s.Source.Reason)
		note(s.Name, "publishing from "+quoted(s.Source.Identity)+" failed: ", s.Source.Error)
		for _, warning := range s.Source.Warnings {
			note(s.Name, "", warning)
		}
	}
	for _, warning := range st.Warnings {
		notes = append(notes, "warning: "+warning)
	}
	return notes
}
