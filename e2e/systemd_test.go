package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Systemd is a systemd of a test's own: process 1 of namespaces in which it has a machine to itself.
type Systemd struct {
	t    testing.TB
	host *Host
	pid  int // of process 1, as this machine sees it
}

// systemdScript makes an empty machine of this one and becomes its systemd. $1 is a directory of units, $2 what to start.
const systemdScript = `set -e
mount -t tmpfs none /run
mount -t tmpfs none /var/lib
umount -l /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 none /sys/fs/cgroup
mkdir -p /run/systemd/system
cp "$1"/* /run/systemd/system/
exec env container=e2e /lib/systemd/systemd --system --unit="$2" --log-target=console --show-status=no`

// StartSystemd starts a systemd on a host with units (name → text), and waits until one of them is active.
func StartSystemd(t testing.TB, h *Host, units map[string]string, unit string) *Systemd {
	t.Helper()
	needCommands(t, "systemctl", "unshare", "nsenter", "pgrep")
	if r := runOn(t, h, 20*time.Second, nil, "unshare", "-fpmC", "sh", "-ec", "test -x /lib/systemd/systemd; mount -t cgroup2 none /mnt"); r.Code != 0 {
		t.Skipf("systemd cannot run here: %v", r)
	}
	dir := t.TempDir()
	for name, text := range units {
		writeFile(t, filepath.Join(dir, name), text)
	}
	log := &procLog{}
	p := start(t, "systemd", h, log, []string{"unshare", "-fpmC", "--mount-proc", "--kill-child", "sh", "-c", systemdScript, "sh", dir, unit}, nil)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("systemd's console:\n%s", log.tail(40))
		}
	})
	s := &Systemd{t: t, host: h}
	eventually(t, 20*time.Second, "systemd boots", func() bool {
		if out, err := exec.Command("pgrep", "-P", strconv.Itoa(p.cmd.Process.Pid), "systemd").Output(); err == nil {
			s.pid, _ = strconv.Atoi(strings.TrimSpace(string(out)))
		}
		return s.pid != 0 && s.Run("systemctl", "is-active", unit).Code == 0
	})
	return s
}

// Run runs a command on systemd's machine.
func (s *Systemd) Run(args ...string) Result {
	s.t.Helper()
	return runOn(s.t, s.host, 30*time.Second, nil, append([]string{"nsenter", "-t", strconv.Itoa(s.pid), "-m", "-p", "-C"}, args...)...)
}

// must is Run for what has to succeed.
func (s *Systemd) must(args ...string) string {
	s.t.Helper()
	r := s.Run(args...)
	if r.Code != 0 {
		s.t.Fatalf("%q: %v", args, r)
	}
	return r.Stdout
}

// mainPID returns the process id of a unit's main process, as systemd's machine sees it.
func (s *Systemd) mainPID(unit string) string {
	s.t.Helper()
	return strings.TrimSpace(s.Run("systemctl", "show", "-P", "MainPID", unit).Stdout)
}

// The unit that is shipped works with a real systemd: "nfs-fleet mount" starts it, systemd holds the listeners while no agent
// runs, and hands them to the next, after a crash and after a restart.
func TestAgentUnit(t *testing.T) {
	h := NewLAN(t).Host(t, "slave")
	s := StartSystemd(t, h, map[string]string{
		"nfs-fleet-agent.service": shippedUnit(t, "nfs-fleet-agent.service"), "empty.target": "[Unit]\nDefaultDependencies=no\n",
	}, "empty.target")

	// Nobody is at the master's address: what counts is that the agent was asked, and listens.
	mount := []string{product(t), "mount", "--wait", "300ms", "--master", h.Addr + ":9", slaveName + ":/www", "/srv"}
	if r := s.Run(mount...); r.Code != 1 || !strings.Contains(r.Stderr, "no master answers") {
		t.Fatalf("mount: %v", r)
	}
	if r := s.Run("systemctl", "is-active", "nfs-fleet-agent"); r.Code != 0 {
		t.Fatalf("the unit was not started: %v", r)
	}
	listeners := func() string {
		return runOn(t, h, time.Minute, nil, "ss", "-Hltn", "src", "127.0.0.1").Stdout
	}
	before := listeners()
	if strings.Count(before, "\n") != 1 {
		t.Fatalf("the agent listens at:\n%s", before)
	}
	for what, end := range map[string]func(){
		"crash":   func() { s.Run("kill", "-9", s.mainPID("nfs-fleet-agent")) },
		"restart": func() { s.Run("systemctl", "restart", "nfs-fleet-agent") },
	} {
		old := s.mainPID("nfs-fleet-agent")
		end()
		eventually(t, restLimit, what+": another agent runs", func() bool {
			if now := listeners(); now != before {
				t.Fatalf("%s: the listener was absent: %q, then %q", what, before, now)
			}
			pid := s.mainPID("nfs-fleet-agent")
			return pid != "0" && pid != old && s.Run("systemctl", "is-active", "nfs-fleet-agent").Code == 0
		})
		if r := s.Run(product(t), "mounts"); r.Code != 0 {
			t.Errorf("%s: %v", what, r)
		}
	}
	// What was stopped is started by the next mount, at the same port.
	s.Run("systemctl", "stop", "nfs-fleet-agent")
	s.Run(mount...)
	if now := listeners(); now != before {
		t.Errorf("the port was\n%s and is\n%s", before, now)
	}
}

// The master's unit that is shipped works with a real systemd and the sample of a config that is shipped: in all that it takes away
// from the process a source of any owner is read and served; it comes back after a crash, with what it had, and stops in time.
func TestMasterUnit(t *testing.T) {
	config, err := os.ReadFile("../deploy/nfs-fleet.yaml")
	if err != nil {
		t.Fatal(err)
	}
	h := NewLAN(t).Host(t, "m1")
	s := StartSystemd(t, h, map[string]string{
		"nfs-fleet.service": shippedUnit(t, "nfs-fleet.service", "/usr/local/bin/", "/run/", "/etc/nfs-fleet.yaml", "/run/nfs-fleet.yaml"),
		"nfs-fleet.yaml":    strings.ReplaceAll(string(config), "/srv/www", "/run/www"), "empty.target": "[Unit]\nDefaultDependencies=no\n",
	}, "empty.target")
	// The unit has a /tmp of its own, where the test's files are not.
	s.must("sh", "-ec", `cp "$0" /run/nfs-fleet; mv /run/systemd/system/nfs-fleet.yaml /run; mkdir -m 700 /run/www
		echo secret >/run/www/file; chmod 600 /run/www/file; chown -R 12345:12345 /run/www`, product(t))
	serves := func(what string) {
		t.Helper()
		eventually(t, homeLimit, what, func() bool {
			var st struct {
				Shards  []struct{ Files int }
				Masters []struct{ Serves map[string]int }
			}
			r := s.Run("/run/nfs-fleet", "status", "-o", "json")
			return r.Code == 0 && json.Unmarshal([]byte(r.Stdout), &st) == nil && len(st.Shards) == 1 && st.Shards[0].Files == 1 &&
				len(st.Masters) == 1 && st.Masters[0].Serves["www"] == 1
		})
	}
	s.must("systemctl", "start", "nfs-fleet")
	serves("the source is published")
	first := s.mainPID("nfs-fleet")
	s.must("kill", "-9", first)
	eventually(t, restLimit, "it is started again", func() bool { pid := s.mainPID("nfs-fleet"); return pid != "0" && pid != first })
	serves("what was published is served again")
	began := time.Now()
	s.must("systemctl", "stop", "nfs-fleet")
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v to stop", took)
	}
	if result := s.must("systemctl", "show", "-P", "Result", "nfs-fleet"); result != "success\n" {
		t.Errorf("it ended with %s", result)
	}
}
