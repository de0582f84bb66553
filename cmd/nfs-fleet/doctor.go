package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/control"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/doctor"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/mounts"
)

// doctorTime is how long the doctor may take.
const doctorTime = time.Minute

// errUnwell is that the doctor has found something; it has said what.
var errUnwell = errors.New("not all is well")

func (a *app) doctorCommand() *cobra.Command {
	var o doctor.Options
	var runDir, via string
	cmd := &cobra.Command{
		Use: "doctor [SRVNAME]", Short: "Find out on a slave what keeps it from reading, or will one day",
		Long: "doctor looks at what a mount by SRVNAME needs (without one: at what is mounted here): name servers, every master\n" +
			"(connecting, HELLO, MOUNT, reading one file), clocks, this host's kernel, ports and agent. It says in plain words\n" +
			"what is wrong and what to do. It changes nothing, and touches no file below a mount.\n\n" +
			"Exit codes: 0 when all is well, 1 when something is not, 2 when SRVNAME cannot be one.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if via != "" && via != control.Relay && via != control.Direct {
				return &usageError{fmt.Errorf("--via %s: want %s or %s", via, control.Relay, control.Direct), cmd.CommandPath()}
			}
			if len(args) == 1 {
				name, shard, _ := strings.Cut(args[0], ":/")
				if err := mounts.CheckName(mounts.Canonical(name)); err != nil {
					return &usageError{err, cmd.CommandPath()}
				}
				o.Name = name
				if o.Shard == "" {
					o.Shard, _, _ = strings.Cut(shard, "/")
				}
			}
			o.Direct, o.Socket, o.Version = via == control.Direct, filepath.Join(runDir, slave.Socket), version
			return a.doctor(cmd, o)
		},
	}
	fs := cmd.Flags()
	fs.StringSliceVar(&o.DNS, "dns", nil, "name `servers` to ask, HOST:PORT,… (default the system's)")
	fs.StringVar(&o.Shard, "shard", "", "the `shard` to mount (default what is mounted, or the first that is exported)")
	fs.StringVar(&via, "via", "", "relay or direct: `how` you mean to mount")
	fs.StringVar(&runDir, "run-dir", defaultRunDir, "`directory` of the agent's socket")
	return cmd
}

func (a *app) doctor(cmd *cobra.Command, o doctor.Options) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), doctorTime)
	defer cancel()
	facts, err := doctor.Gather(ctx, o)
	if err != nil {
		return err
	}
	findings := doctor.Judge(facts)
	well := doctor.Well(findings)
	err = a.show(struct {
		Well     bool             `json:"well"`
		Findings []doctor.Finding `json:"findings"`
	}{well, findings}, func(w io.Writer) { doctorTable(w, findings) })
	if err == nil && !well {
		err = errUnwell
	}
	return err
}

// doctorTable prints findings for people.
func doctorTable(w io.Writer, findings []doctor.Finding) {
	for _, f := range findings {
		fmt.Fprintf(w, "%-4s  %s: %s\n", f.Level, oneLine(f.Check), oneLine(f.What))
		if f.Do != "" {
			fmt.Fprintf(w, "      → %s\n", oneLine(f.Do))
		}
	}
}
