package e2e

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Diagnosis is what `doctor -o json` says.
type Diagnosis struct {
	Well     bool
	Findings []struct{ Check, Level, What, Do string }
	Code     int // exit code
}

// says tells whether some finding of a level, or of any when that is empty, contains words.
func (d Diagnosis) says(level, words string) bool {
	for _, f := range d.Findings {
		if (level == "" || f.Level == level) && strings.Contains(f.Check+": "+f.What, words) {
			return true
		}
	}
	return false
}

// Doctor runs the doctor on a slave.
func (s *Slave) Doctor(args ...string) (d Diagnosis) {
	s.t.Helper()
	r := s.Run(append([]string{product(s.t), "doctor", "-o", "json"}, args...)...)
	if err := json.Unmarshal([]byte(r.Stdout), &d); err != nil {
		s.t.Fatalf("doctor %q: %v: %v", args, err, r)
	}
	d.Code = r.Code
	return d
}

// The doctor has nothing to say of a slave that is well, and names what is wrong with one that is not; a mount whose master is
// gone does not hang it.
func TestDoctor(t *testing.T) {
	f, s, _ := newAgentFleet(t)
	ask := []string{slaveName, "--dns", f.nameServers()}
	if d := s.Doctor(ask...); !d.Well || d.Code != 0 || !d.says("ok", "3 of 3 can be read from") || !d.says("note", "no agent runs") {
		t.Errorf("before anything is mounted: %+v", d)
	}
	s.Must("mkdir", "-p", "/mnt/www")
	s.Must(product(t), "mount", "--dns", f.nameServers(), slaveName+":/www", "/mnt/www")
	d := s.Doctor("--dns", f.nameServers())
	// Not always from its home: on a busy machine that may have been silent for long enough to be left.
	if !d.Well || d.Code != 0 || !d.says("", "/mnt/www reads from") || !d.says("ok", "reads /big") {
		t.Errorf("a slave that is well: %+v", d)
	}
	t.Log(s.Must(product(t), "doctor", "--dns", f.nameServers()))

	if d := s.Doctor("_nfs._tcp.prod.exampel", "--dns", f.nameServers()); d.Well || d.Code != 1 || !d.says("fail", "exampel") {
		t.Errorf("a name that is not there: %+v", d)
	}
	if d := s.Doctor(append(ask, "--shard", "docs")...); d.Well || !d.says("fail", "it has no shard docs; it exports /www") {
		t.Errorf("a shard that is not there: %+v", d)
	}
	f.Masters[0].proc.signal(t, syscall.SIGSTOP)
	f.Masters[1].Kill()
	f.Masters[2].Host.Cut(t)
	d = s.Doctor(ask...)
	f.Masters[0].proc.signal(t, syscall.SIGCONT)
	f.Masters[2].Host.Mend(t)
	if d.Well || d.Code != 1 || !d.says("fail", "dns") {
		t.Errorf("no master: %+v", d)
	}
	f.Masters[1].Start()
	f.Masters[1].WaitReady()
	eventually(t, time.Minute, "all three masters can be read from again", func() bool {
		d = s.Doctor(ask...)
		return d.Well && d.says("ok", "3 of 3 can be read from")
	})
	s.Must("modprobe", "-d", "/mnt/.kernel", "iptable_filter")
	s.Must("iptables-legacy", "-I", "OUTPUT", "-p", "tcp", "-d", f.Masters[1].Host.Addr, "--dport", "2049", "-j", "DROP")
	d = s.Doctor(ask...)
	if d.Well || !d.says("fail", "m2") || d.says("fail", "m1") {
		t.Errorf("a firewall before m2: %+v", d)
	}
	s.Must("iptables-legacy", "-F", "OUTPUT")
}

// On hosts where no agent may run, fstab and autofs mount by SRV name with a script: the name is resolved when something is
// mounted, and a master that does not answer then is passed over.
func TestWithoutAgent(t *testing.T) {
	needCommands(t, "automount", "dig")
	f, s, source := newAgentFleet(t)
	script, err := filepath.Abs("../deploy/no-agent/nfs-srv")
	if err != nil {
		t.Fatal(err)
	}
	s.Must("ln", "-s", script, "/usr/sbin/mount.nfs-srv")
	s.Must("ln", "-s", script, "/mnt/auto.nfs-srv")
	env := "NFS_SRV_DNS='" + strings.NewReplacer(":", "#", ",", " ").Replace(f.nameServers()) + "' NFS_SRV_NAME=_nfs._tcp.web17.slaves.prod.example "
	dir := t.TempDir()

	writeFile(t, dir+"/fstab", slaveName+":/www /mnt/www nfs-srv ro,_netdev,nconnect=2 0 0\n")
	s.Must("mkdir", "-p", "/mnt/www", "/mnt/fleet")
	s.Must("sh", "-c", env+"mount -T "+dir+"/fstab /mnt/www")
	s.SameTree(source, "/mnt/www")
	options := s.Must("findmnt", "-n", "-o", "SOURCE,OPTIONS", "/mnt/www")
	for _, want := range []string{"vers=3", "hard", "nosuid", "nodev", "nconnect=2"} {
		if !strings.Contains(options, want) {
			t.Errorf("mounted without %s: %s", want, options)
		}
	}
	s.Must("umount", "/mnt/www")

	writeFile(t, dir+"/auto.master", "/mnt/fleet program:/mnt/auto.nfs-srv --timeout=60\n")
	// automount wants to write below /tmp, where this machine's files are.
	s.Must("sh", "-ec", `modprobe -d /mnt/.kernel overlay
		modprobe -d /mnt/.kernel autofs4
		mkdir /mnt/.tmp /mnt/.work
		mount -t overlay -o lowerdir=/tmp,upperdir=/mnt/.tmp,workdir=/mnt/.work none /tmp`)
	// It leads a process group, which process 1 and its children here do not.
	s.Must("sh", "-c", env+"setsid automount --foreground --debug "+dir+"/auto.master >/mnt/automount.log 2>&1 &")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("automount said:\n%s", lastLines(s.Run("cat", "/mnt/automount.log").Stderr+s.Run("cat", "/mnt/automount.log").Stdout, 60))
		}
	})
	eventually(t, restLimit, "automount is ready", func() bool { return s.Run("grep", "-q", " /mnt/fleet autofs ", "/proc/mounts").Code == 0 })
	s.SameTree(source, "/mnt/fleet/www")
	first := strings.TrimSpace(s.Must("findmnt", "-n", "-t", "nfs", "-o", "SOURCE", "/mnt/fleet/www"))
	if s.Run("ls", "/mnt/fleet/nothing").Code == 0 {
		t.Error("a shard that is not there is mounted")
	}
	for _, m := range f.Masters {
		if first == m.Host.Addr+":/www" {
			m.Kill()
		}
	}
	s.Must("umount", "-l", "/mnt/fleet/www") // what an administrator can do when the master does not come back
	s.SameTree(source, "/mnt/fleet/www")
	if second := strings.TrimSpace(s.Must("findmnt", "-n", "-t", "nfs", "-o", "SOURCE", "/mnt/fleet/www")); second == first {
		t.Errorf("mounted from the master that is gone: %s", second)
	}
}
