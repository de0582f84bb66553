package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/e2e/known"
	"github.com/nfs-fleet/nfs-fleet/e2e/wire"
)

// AgentMount is a mount as `mounts -o json` shows it.
type AgentMount struct {
	Name, Path, Dir, Via, Addr, Slave, Master, State, Since, Why, Home string
	Order                                                              []string
	Reattach                                                           *struct {
		TookMS   float64 `json:"took_ms"`
		From, To string
		Why      string
		Planned  bool
	} `json:"last_reattach"`
}

// Mounts returns the mounts of a slave, as its agent tells them.
func (s *Slave) Mounts() []AgentMount {
	s.t.Helper()
	var status struct{ Mounts []AgentMount }
	out := s.Must(product(s.t), "mounts", "-o", "json")
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		s.t.Fatalf("mounts -o json: %v\n%s", err, out)
	}
	return status.Mounts
}

// mountOf returns the mount at a directory.
func (s *Slave) mountOf(dir string) AgentMount {
	s.t.Helper()
	for _, m := range s.Mounts() {
		if m.Dir == dir {
			return m
		}
	}
	s.t.Fatalf("the agent knows no mount at %s: %+v", dir, s.Mounts())
	return AgentMount{}
}

// agentProcesses returns the process ids of the agent's keeper and its worker.
func (s *Slave) agentProcesses() (keeper, worker int) {
	s.t.Helper()
	for line := range strings.Lines(s.Must("ps", "-eo", "pid,args")) {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[1] != product(s.t) || fields[2] != "agent" {
			continue
		}
		pid, err := strconv.Atoi(fields[0])
		if err != nil {
			s.t.Fatal(err)
		}
		if fields[len(fields)-1] == "--kept" {
			worker = pid
		} else {
			keeper = pid
		}
	}
	return keeper, worker
}

// mountHelper makes mount(8) of the slave find this product as the helper for the type nfs-fleet.
func (s *Slave) mountHelper() {
	s.t.Helper()
	s.Must("sh", "-ec", `mkdir /mnt/.sbin
		mount --bind /usr/sbin /mnt/.sbin
		mount -t tmpfs none /usr/sbin
		ln -s /mnt/.sbin/* /usr/sbin/
		ln -s "$0" /usr/sbin/mount.nfs-fleet`, product(s.t))
}

// nameServers are the fleet's masters as name servers.
func (f *Fleet) nameServers() string {
	var list []string
	for _, m := range f.Masters {
		list = append(list, m.Host.Addr+":5353")
	}
	return strings.Join(list, ",")
}

// slaveName is the SRV name of the slave web17 in the fleets of these tests.
const slaveName = "_nfs._tcp.web17.slaves.prod.example"

// agentPause bounds a read while the agent is started anew: a slave takes a second to load a program of this size, and several
// on a machine that is busy.
const agentPause = 10 * time.Second

// newAgentFleet starts three masters that serve a shard, and a slave that can look their domain up.
func newAgentFleet(t *testing.T) (f *Fleet, s *Slave, source string) {
	t.Helper()
	source = t.TempDir()
	writeFile(t, filepath.Join(source, "big"), string(known.File("big", 1, 2048)))
	writeFile(t, filepath.Join(source, "sub/inner/file"), "inner")
	f = StartFleet(t, FleetConfig{Masters: 3, Flags: []string{"--domain", "prod.example"}})
	f.createShard("www")
	f.publishAnywhere("www", source, "first")
	f.WaitServed("www", 1, restLimit)
	s = f.LAN.Slave(t)
	s.mountHelper()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the agent's log:\n%s", s.Run("cat", "/run/nfs-fleet/agent.log").Stdout)
		}
	})
	return f, s, source
}

// A slave mounts by SRV name, with the kernel's own client and an agent that nobody started before, and reads on while its
// master is killed, while the agent is, and while the agent is changed for a new version: no error, no remount.
func TestAgent(t *testing.T) {
	f, s, source := newAgentFleet(t)
	bin := product(t)
	s.Must("mkdir", "-p", "/mnt/www")
	s.Must(bin, "mount", "-v", "--dns", f.nameServers(), slaveName+":/www", "/mnt/www")
	s.SameTree(source, "/mnt/www")
	reader := s.Watch(wire.Watch{Path: "/mnt/www/big", Name: "big", Reads: 100, Pace: time.Millisecond})
	stream := s.Watch(wire.Watch{Path: "/mnt/www/big", Name: "big", Stream: true, Pace: 5 * time.Millisecond})
	look := func(what string) {
		t.Helper()
		for _, w := range []*Watch{reader, stream} {
			r := w.Window()
			faultless(t, what, r)
			t.Logf("%s: %d reads, longest %v, stall %v", what, r.Reads, r.Longest, r.Stall)
			if r.Longest.Took > agentPause+r.Stall {
				t.Errorf("%s: a read took %v, want %v at most", what, r.Longest.Took, agentPause)
			}
		}
	}
	time.Sleep(time.Second) // of undisturbed reading
	look("undisturbed")

	first := s.mountOf("/mnt/www")
	if first.Slave != "web17" || first.Via != "relay" || first.State != "reading" || len(first.Order) != 3 {
		t.Errorf("the mount: %+v", first)
	}
	f.Master(first.Master).Kill()
	eventually(t, restLimit, "the slave reads from another master", func() bool {
		m := s.mountOf("/mnt/www")
		return m.State == "reading" && m.Master != first.Master && m.Reattach != nil && m.Reattach.From == first.Master
	})
	look("the master is killed")
	f.Master(first.Master).Start()

	keeper, worker := s.agentProcesses()
	before := s.Must("grep", "_nfs", "/proc/self/mountinfo")
	s.Must("kill", "-9", fmt.Sprint(worker))
	s.awaitAgent(worker)
	look("the agent is killed")

	_, worker = s.agentProcesses()
	s.Must("kill", "-HUP", fmt.Sprint(keeper))
	s.awaitAgent(worker)
	look("the agent is changed for a new one")
	if k, _ := s.agentProcesses(); k != keeper {
		t.Errorf("the keeper was %d and is %d", keeper, k)
	}

	_, worker = s.agentProcesses()
	s.Must("kill", "-9", fmt.Sprint(keeper))
	s.awaitAgent(worker)
	look("the agent's keeper is killed")
	if keeper, _ = s.agentProcesses(); keeper != worker {
		t.Errorf("the keeper is %d, and its worker was %d: nobody has taken its place", keeper, worker)
	}
	if after := s.Must("grep", "_nfs", "/proc/self/mountinfo"); after != before {
		t.Errorf("mounts changed:\n%s%s", before, after)
	}

	s.Must("kill", fmt.Sprint(keeper)) // it waits for the mounts
	look("the agent is told to stop")
	reader.Stop()
	stream.Stop()
	s.Must(bin, "umount", "/mnt/www")
	eventually(t, restLimit, "the agent ends with the last mount", func() bool { k, w := s.agentProcesses(); return k == 0 && w == 0 })
}

// A worker whose keeper was killed is told to stop while it tries the program that it is to become, which takes its time: it stops.
func TestAnOrphanStops(t *testing.T) {
	dir := t.TempDir()
	program, fifo := filepath.Join(dir, "nfs-fleet"), filepath.Join(dir, "fifo")
	runOn(t, nil, time.Minute, nil, "cp", product(t), program)
	keeper := start(t, "agent", nil, &procLog{}, []string{program, "agent", "--run-dir", dir, "--state-dir", dir, "--insecure"}, nil)
	t.Cleanup(func() {
		for _, pid := range processesOf(t, dir) {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	var worker int
	eventually(t, homeLimit, "the agent listens", func() bool {
		kept := processesOf(t, "--kept")
		mine := slices.DeleteFunc(processesOf(t, dir), func(pid int) bool { return !slices.Contains(kept, pid) })
		if len(mine) == 1 {
			worker = mine[0]
		}
		return len(mine) == 1 && runOn(t, nil, time.Minute, nil, product(t), "mounts", "--run-dir", dir).Code == 0
	})
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	writeFile(t, program+".new", "#!/bin/sh\nread word <"+fifo+"\n")
	if err := errors.Join(os.Chmod(program+".new", 0o700), os.Rename(program+".new", program)); err != nil {
		t.Fatal(err)
	}
	keeper.kill(t)
	var trying *os.File
	eventually(t, homeLimit, "the program is tried", func() bool {
		var err error
		trying, err = os.OpenFile(fifo, os.O_WRONLY|syscall.O_NONBLOCK, 0)
		return err == nil
	})
	defer trying.Close()
	if err := syscall.Kill(worker, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, homeLimit, "the agent has ended", func() bool { return len(processesOf(t, dir)) == 0 })
}

// fstab and mount(8) know the type nfs-fleet; what is wrong is said in plain words; both ways of reattaching read on past
// the end of a master.
func TestMountHelper(t *testing.T) {
	f, s, source := newAgentFleet(t)
	s.Must("mkdir", "-p", "/mnt/www", "/mnt/sub", "/mnt/direct", "/mnt/free")
	var dns []string
	for name := range strings.SplitSeq(f.nameServers(), ",") {
		dns = append(dns, "dns="+name)
	}
	common := strings.Join(dns, ",") + ",_netdev,nofail,x-systemd.requires=nfs-fleet-agent.service"
	s.Must("sh", "-c", `printf '%s /mnt/www nfs-fleet %s 0 0\n%s /mnt/sub nfs-fleet defaults,noexec 0 0\n%s /mnt/direct nfs-fleet via=direct,%s 0 0\n' "$@" >/mnt/fstab`,
		"sh", slaveName+":/www", common, slaveName+":/www/sub", slaveName+":/www", common)
	s.Must("mount", "-T", "/mnt/fstab", "-a")
	table := s.Must("grep", "_nfs", "/proc/self/mountinfo")
	s.Must("mount", "-T", "/mnt/fstab", "-a") // what is mounted is left alone
	if again := s.Must("grep", "_nfs", "/proc/self/mountinfo"); again != table {
		t.Errorf("mount -a mounts again:\n%s%s", table, again)
	}
	if n := strings.Count(table, "\n"); n != 3 {
		t.Fatalf("%d mounts:\n%s", n, table)
	}
	t.Logf("mounts:\n%s", s.Must(product(t), "mounts"))
	for dir, want := range map[string]string{"/mnt/www": "relay", "/mnt/sub": "relay", "/mnt/direct": "direct"} {
		if m := s.mountOf(dir); m.Via != want || m.State != "reading" {
			t.Errorf("%s: %+v", dir, m)
		}
	}
	s.sayWhatIsWrong(t)
	s.callTheHelper(t, dns)

	// A new version is seen by the next open, and in listings within the attribute cache's 5 seconds.
	writeFile(t, filepath.Join(source, "sub/inner/file"), "changed")
	writeFile(t, filepath.Join(source, "sub/inner/more"), "more")
	for _, dir := range []string{"/mnt/www", "/mnt/direct"} {
		s.ReadDir(dir + "/sub/inner")
		if got, err := s.ReadFile(dir + "/sub/inner/file"); got != "inner" || err != nil {
			t.Errorf("%s: %q, %v", dir, got, err)
		}
	}
	g := f.publishAnywhere("www", source, "second")
	f.WaitServed("www", g.Number, restLimit)
	for _, dir := range []string{"/mnt/www", "/mnt/direct"} {
		if got, err := s.ReadFile(dir + "/sub/inner/file"); got != "changed" || err != nil {
			t.Errorf("%s: a new open reads %q, %v", dir, got, err)
		}
		eventually(t, 8*time.Second, "the new name is listed in "+dir, func() bool { return slices.Contains(s.ReadDir(dir+"/sub/inner"), "more") })
	}

	old := s.mountOf("/mnt/direct").Master
	s.DropCaches()
	f.Master(old).Kill()
	for _, path := range []string{"/mnt/www/sub/inner/file", "/mnt/sub/inner/file", "/mnt/direct/sub/inner/file"} {
		if r := s.Run("timeout", "-s", "KILL", "30", "cat", path); r.Stdout != "changed" {
			t.Errorf("%s: %v", path, r)
		}
	}
	if m := s.mountOf("/mnt/direct"); m.Master == old {
		t.Errorf("direct: %+v", m)
	}
	for _, dir := range []string{"/mnt/www", "/mnt/sub", "/mnt/direct"} {
		s.Must("umount", dir) // by umount.nfs, which talks to the master, too
	}
	if all := s.Mounts(); len(all) != 0 {
		t.Errorf("the agent still knows %+v", all)
	}
}

// autofs knows the type, too, and the map that is shipped.
func TestAutofs(t *testing.T) {
	needCommands(t, "automount")
	f, s, source := newAgentFleet(t)
	sample, err := os.ReadFile("../deploy/slave/auto.fleet")
	if err != nil {
		t.Fatal(err)
	}
	option := "-fstype=nfs-fleet,dns=" + strings.ReplaceAll(f.nameServers(), ",", ",dns=")
	dir := t.TempDir()
	writeFile(t, dir+"/auto.fleet", strings.ReplaceAll(string(sample), "-fstype=nfs-fleet", option))
	writeFile(t, dir+"/auto.master", "/mnt/fleet "+dir+"/auto.fleet --timeout=5\n")
	s.Must("mkdir", "-p", "/mnt/fleet")
	s.Must("modprobe", "-d", "/mnt/.kernel", "autofs4")
	s.Must("sh", "-ec", `mkdir /mnt/.run; mount --bind "$0" /mnt/.run
		mount -t tmpfs none /tmp # where automount tries whether it can
		mkdir -p "$0"; mount --bind /mnt/.run "$0"`, theRun.dir)
	// It wants a process group, which the slave's first process does not have.
	s.Must("setsid", "-w", "automount", "--pid-file", "/run/automount.pid", dir+"/auto.master")
	s.SameTree(source, "/mnt/fleet/www")
	if m := s.mountOf("/mnt/fleet/www"); m.State != "reading" || m.Via != "relay" {
		t.Errorf("the mount: %+v", m)
	}
	if r := s.Run("ls", "/mnt/fleet/nothing"); r.Code == 0 {
		t.Errorf("a shard that is not there: %v", r)
	}
	eventually(t, restLimit, "autofs unmounts what nobody uses", func() bool { return len(s.Mounts()) == 0 })
}

// callTheHelper mounts in all the ways in which mount(8) calls its helpers, for people and for systemd.
func (s *Slave) callTheHelper(t *testing.T, options []string) {
	t.Helper()
	spec, dir, o := slaveName+":/www", "/mnt/free", strings.Join(options, ",")
	for _, args := range [][]string{
		{spec, dir, "-t", "nfs-fleet", "-o", o}, // a mount unit
		{spec, dir, "-t", "nfs-fleet", "-s", "-o", "nobodyknows," + o},
		{"-v", "-n", "-r", "-t", "nfs-fleet", "-o", o, spec, dir},
		{"-w", "-t", "nfs-fleet", "-o", o, spec, dir}, // as it is without a word: rw is what mount(8) always says
	} {
		if r := s.Run(append([]string{"mount"}, args...)...); r.Code != 0 {
			t.Errorf("mount %q: %v", args, r)
			continue
		}
		if options := s.Must("findmnt", "-nro", "OPTIONS", dir); !strings.HasPrefix(options, "ro,") {
			t.Errorf("mount %q: %s", args, options)
		}
		s.Must("umount", dir)
	}
	s.Must("mount", "-f", "-v", "-t", "nfs-fleet", "-o", o, spec, dir)
	if r := s.Run("findmnt", dir); r.Code == 0 {
		t.Errorf("mount -f has mounted: %v", r)
	}
	if r := s.Run("mount.nfs-fleet", spec, dir, "-N", "/proc/1/ns/mnt", "-o", o); r.Code != 1 || !strings.Contains(r.Stderr, "nsenter") {
		t.Errorf("another namespace: %v", r)
	}
}

// sayWhatIsWrong makes mounts that cannot be.
func (s *Slave) sayWhatIsWrong(t *testing.T) {
	t.Helper()
	for _, c := range []struct {
		args string
		code int
		word string
	}{
		{slaveName + ":/nothing /mnt/free", 32, "no directory /nothing, or no such shard"},
		{slaveName + ":/nothing /mnt/www", 32, "unmount it first"},
		{slaveName + ":/www /mnt/www", 32, "already mounted"},
		{slaveName + ":/www /mnt/absent", 32, "does not exist"},
		{slaveName + ":/www /etc/hostname", 32, "not a directory"},
		{"filer:/www /mnt", 1, "no SRV name"},
		{slaveName + ":/www /mnt -o soft", 1, "hard"},
		{slaveName + ":/www /mnt -o dns=a:b", 1, "name server"},
	} {
		r := s.Run(append([]string{"/usr/sbin/mount.nfs-fleet"}, strings.Fields(c.args)...)...)
		if r.Code != c.code || !strings.Contains(r.Stderr, c.word) {
			t.Errorf("mount %s: %v; want exit %d and %q", c.args, r, c.code, c.word)
		}
	}
}

// awaitAgent waits until an agent answers that is not the worker of old.
func (s *Slave) awaitAgent(old int) {
	s.t.Helper()
	eventually(s.t, restLimit, "the next agent reads", func() bool {
		if _, w := s.agentProcesses(); w == 0 || w == old {
			return false
		}
		if s.Run(product(s.t), "mounts").Code != 0 {
			return false
		}
		for _, m := range s.Mounts() {
			if m.State != "reading" {
				return false
			}
		}
		return len(s.Mounts()) > 0
	})
}
