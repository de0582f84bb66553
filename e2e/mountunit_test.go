package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// slaveSystemd is the systemd of a slave: it has a kernel's NFS client.
type slaveSystemd struct {
	*Slave
	pid string // of process 1, as the slave sees it
}

// startSystemd starts a systemd on a slave with units (name → text), and waits until one of them is active.
func (s *Slave) startSystemd(units map[string]string, unit string) *slaveSystemd {
	s.t.Helper()
	dir := s.t.TempDir()
	for name, text := range units {
		writeFile(s.t, filepath.Join(dir, name), text)
	}
	s.Start(nil, "unshare", "-fpmC", "--mount-proc", "--kill-child", "sh", "-c", systemdScript, "sh", dir, unit)
	d := &slaveSystemd{Slave: s}
	eventually(s.t, homeLimit, "systemd boots", func() bool {
		d.pid = strings.TrimSpace(s.Run("pgrep", "-xo", "systemd").Stdout)
		return d.pid != "" && d.run("systemctl", "is-active", unit).Code == 0
	})
	return d
}

// run runs a command where its units run.
func (d *slaveSystemd) run(args ...string) Result {
	d.t.Helper()
	return d.Run(append([]string{"nsenter", "-t", d.pid, "-m", "-p", "-C"}, args...)...)
}

// must is run for what has to succeed.
func (d *slaveSystemd) must(args ...string) string {
	d.t.Helper()
	r := d.run(args...)
	if r.Code != 0 {
		d.t.Fatalf("%q: %v\n%s", args, r, d.run("systemctl", "status", "--no-pager", "-n", "0", "srv-www.mount").Stdout)
	}
	return r.Stdout
}

// shippedUnit returns a unit of deploy/, changed by pairs of words. Only what an empty machine does not have is left out.
func shippedUnit(t *testing.T, path string, replace ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../deploy", path))
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReplacer(append(replace, "/usr/local/bin/nfs-fleet agent", product(t)+" agent", "[Unit]\n", "[Unit]\nDefaultDependencies=no\n",
		"network-online.target", "", "nss-lookup.target", "")...).Replace(string(text))
}

// fstabUnits returns what systemd makes of the fstab that is shipped, changed by pairs of words.
func fstabUnits(t *testing.T, replace ...string) map[string]string {
	t.Helper()
	const generator = "/usr/lib/systemd/system-generators/systemd-fstab-generator"
	needCommands(t, generator)
	sample, err := os.ReadFile("../deploy/slave/fstab")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "fstab"), strings.NewReplacer(replace...).Replace(string(sample)))
	if r := runOn(t, nil, time.Minute, []string{"SYSTEMD_FSTAB=" + filepath.Join(dir, "fstab")}, generator, dir, dir, dir); r.Code != 0 {
		t.Fatal(r)
	}
	units := map[string]string{}
	files, err := filepath.Glob(filepath.Join(dir, "*.*mount"))
	if err != nil || len(files) == 0 {
		t.Fatalf("the generator has made %q: %v", files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		units[filepath.Base(file)] = string(text)
	}
	return units
}

// mounted waits until the agent has a mount at a directory, or none, and its unit is as active.
func (d *slaveSystemd) mounted(dir string, want bool) {
	d.t.Helper()
	unit := strings.ReplaceAll(strings.TrimPrefix(dir, "/"), "/", "-") + ".mount"
	eventually(d.t, restLimit, fmt.Sprintf("%s is mounted: %t", unit, want), func() bool {
		var status struct{ Mounts []AgentMount }
		if err := json.Unmarshal([]byte(d.must(product(d.t), "mounts", "-o", "json")), &status); err != nil {
			d.t.Fatal(err)
		}
		here := slices.ContainsFunc(status.Mounts, func(m AgentMount) bool { return m.Dir == dir && m.State == "reading" })
		return here == want && (d.run("systemctl", "is-active", unit).Code == 0) == want
	})
}

// The mount unit and the fstab that are shipped work with a real systemd and a real kernel client: they start the agent, are mounted,
// at once or by the first access, read, and unmounted also when no master is left. What systemd cannot do with them does no harm.
func TestMountUnits(t *testing.T) {
	f, s, _ := newAgentFleet(t)
	servers := "_netdev,dns=" + strings.ReplaceAll(f.nameServers(), ",", ",dns=") + ","
	units := fstabUnits(t, "_netdev,", servers, " /srv/www ", " /srv/fstab ", ":/assets", ":/www/sub")
	units["nfs-fleet-agent.service"] = shippedUnit(t, "nfs-fleet-agent.service")
	units["srv-www.mount"] = shippedUnit(t, "slave/srv-www.mount", "_netdev,", servers)
	units["empty.target"] = "[Unit]\nDefaultDependencies=no\n"
	s.Must("sh", "-ec", "mount -t tmpfs none /srv; mkdir /srv/www /srv/fstab /srv/assets; modprobe -d /mnt/.kernel autofs4")
	d := s.startSystemd(units, "empty.target")
	reads := func(path string) {
		t.Helper()
		if got := d.must("cat", path); got != "inner" {
			t.Errorf("%s: %q", path, got)
		}
	}
	for range 2 {
		d.must("systemctl", "start", "srv-www.mount", "srv-fstab.mount")
		d.mounted("/srv/www", true)
		d.mounted("/srv/fstab", true)
		reads("/srv/www/sub/inner/file")
		reads("/srv/fstab/sub/inner/file")
		d.must("systemctl", "stop", "srv-www.mount", "srv-fstab.mount")
		d.mounted("/srv/www", false)
		d.mounted("/srv/fstab", false)
	}
	d.must("systemctl", "start", "srv-assets.automount", "srv-www.mount")
	d.mounted("/srv/assets", false)
	reads("/srv/assets/inner/file")
	d.mounted("/srv/assets", true)
	if r := d.run("systemctl", "reload", "srv-www.mount"); r.Code == 0 {
		t.Errorf("a remount, which changes nothing, was taken: %v", r)
	}
	d.mounted("/srv/www", true)
	for _, m := range f.Masters {
		m.Kill()
	}
	for _, units := range [][]string{{"srv-www.mount"}, {"srv-assets.automount", "srv-assets.mount"}} {
		began := time.Now()
		d.must(append([]string{"systemctl", "stop"}, units...)...)
		t.Logf("without a master %q took %v to stop", units, time.Since(began).Round(time.Millisecond))
	}
	if table := d.must("cat", "/proc/self/mountinfo"); strings.Contains(table, " nfs ") || strings.Contains(table, "/srv/assets") {
		t.Errorf("left is\n%s", table)
	}
}

// Systemd finds nothing wrong with what is shipped, but that it may be too old for a setting and that the program is elsewhere.
func TestShippedUnitsAreVerified(t *testing.T) {
	needCommands(t, "systemd-analyze")
	dir := t.TempDir()
	for _, path := range []string{"nfs-fleet.service", "nfs-fleet-agent.service", "slave/srv-www.mount"} {
		text, err := os.ReadFile(filepath.Join("../deploy", path))
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, filepath.Base(path)), strings.ReplaceAll(string(text), "/usr/local/bin/nfs-fleet", product(t)))
	}
	for _, unit := range []string{"nfs-fleet.service", "nfs-fleet-agent.service", "srv-www.mount"} {
		r := runOn(t, nil, time.Minute, nil, "systemd-analyze", "verify", filepath.Join(dir, unit))
		for line := range strings.Lines(r.Stdout + r.Stderr) {
			if !strings.Contains(line, "Unknown key 'FileDescriptorStorePreserve'") { // before systemd 254
				t.Errorf("%s: %s", unit, line)
			}
		}
		if r.Code != 0 {
			t.Errorf("%s: exit code %d", unit, r.Code)
		}
	}
}
