package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/mount"
)

// deployed returns the lines of a file that is shipped, without comments; commented-out samples count as lines.
func deployed(t *testing.T, name string) (lines []string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "deploy", name))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "#_")
		if line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	return lines
}

func checkMount(t *testing.T, name, what, options string) {
	t.Helper()
	if !strings.HasPrefix(what, "_") {
		what = "_" + what
	}
	if _, err := mount.ParseSpec(strings.ReplaceAll(what, "&", "www")); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	if _, err := mount.ParseOptions(options, false); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

// What deploy/ ships for slaves is what this program takes.
func TestDeployedMounts(t *testing.T) {
	n := 0
	for _, line := range deployed(t, "slave/fstab") {
		f := strings.Fields(line)
		if len(f) != 6 || f[2] != "nfs-fleet" {
			t.Errorf("fstab: %q", line)
			continue
		}
		checkMount(t, "fstab", f[0], f[3])
		n++
	}
	unit := strings.Join(deployed(t, "slave/srv-www.mount"), "\n")
	field := func(key string) string {
		m := regexp.MustCompile(`(?m)^` + key + `=(.*)$`).FindStringSubmatch(unit)
		if m == nil {
			t.Fatalf("srv-www.mount has no %s", key)
		}
		return m[1]
	}
	checkMount(t, "srv-www.mount", field("What"), field("Options"))
	if field("Type") != "nfs-fleet" || field("Where") != "/srv/www" {
		t.Errorf("srv-www.mount: %s", unit)
	}
	for _, line := range deployed(t, "slave/auto.fleet") {
		f := strings.Fields(line)
		options, ok := strings.CutPrefix(f[1], "-fstype=nfs-fleet")
		if len(f) != 3 || !ok {
			t.Errorf("auto.fleet: %q", line)
			continue
		}
		checkMount(t, "auto.fleet", f[2], strings.TrimPrefix(options, ","))
		n++
	}
	if n != 6 {
		t.Errorf("%d samples were looked at", n)
	}
}

// The agent's unit starts a command line that there is.
func TestDeployedAgentUnit(t *testing.T) {
	found := false
	for _, line := range deployed(t, "nfs-fleet-agent.service") {
		command, ok := strings.CutPrefix(line, "ExecStart=/usr/local/bin/nfs-fleet ")
		if !ok {
			continue
		}
		found = true
		cmd, args, err := new(app).root().Find(strings.Fields(command))
		if err != nil || cmd.Name() != "agent" {
			t.Fatalf("%q: %v", command, err)
		}
		if err := cmd.ParseFlags(args); err != nil || cmd.Flags().NArg() != 0 {
			t.Errorf("%q: %v", command, err)
		}
	}
	if !found {
		t.Error("no ExecStart")
	}
}
