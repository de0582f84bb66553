package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// slaveFleet starts three masters that answer DNS questions, with a tree that is not published again unless a test does.
func slaveFleet(t *testing.T) (*Fleet, *knownTree) {
	t.Helper()
	f := StartFleet(t, FleetConfig{Masters: 3, Etcd: EtcdModule, TTL: 2 * time.Second, Flags: dnsFlags})
	return f, newKnownTree(t, f, "www")
}

// Programs that run from the mount, and files that are mapped into memory, do not notice that the master is another one, nor
// that the file has been replaced meanwhile.
func TestProgramsSurvive(t *testing.T) {
	f, tree := slaveFleet(t)
	for _, program := range []string{"bash", "sha256sum"} {
		if r := runOn(t, nil, time.Minute, nil, "cp", "-L", "/usr/bin/"+program, tree.dir+"/"+program); r.Code != 0 {
			t.Fatal(r)
		}
	}
	f.WaitServed("www", f.publishAnywhere("www", tree.dir, "").Number, restLimit)
	s := f.MountSlave(t, "web1", viaRelay, "www")
	want := s.Must("sha256sum", filepath.Join(tree.dir, bigFile))[:64]
	script := fmt.Sprintf(`cd %s; exec 8<%s; while echo 3 >/proc/sys/vm/drop_caches; do
		sum=$(./sha256sum /proc/self/fd/8); [ "${sum:0:64}" = %s ] || { echo "$sum"; exit 7; }; echo pass; done`, s.Dir, bigFile, want)
	shell := s.Start(nil, s.Dir+"/bash", "-c", script)
	passes := func() int { return strings.Count(string(shell.Output().Said), "pass") }
	mapping := s.Map(filepath.Join(s.Dir, bigFile), bigFile)
	first := mapping.Version(0, bigBlocks/2)
	for range 3 {
		victim := s.ReadsFrom()
		victim.Kill()
		before := passes()
		if v := mapping.Version(bigBlocks/4, bigBlocks); v != first {
			t.Errorf("a mapped file of version %d gives version %d", first, v)
		}
		eventually(t, restLimit, "a program from the mount goes on", func() bool {
			if r := shell.Output(); r.Ended {
				t.Fatalf("a program from the mount has ended with %d: %s", r.Code, lastLines(string(r.Said), 5))
			}
			return passes() >= before+2
		})
		victim.Start()
		victim.WaitReady()
	}
	// Now the mapped file is replaced, and removed from the tree, which nobody may notice who has it.
	for range bigEvery {
		if err := tree.write(); err != nil {
			t.Fatal(err)
		}
	}
	f.WaitServed("www", f.publishAnywhere("www", tree.dir, "").Number, restLimit)
	if err := os.Remove(filepath.Join(tree.dir, bigFile)); err != nil {
		t.Fatal(err)
	}
	f.WaitServed("www", f.publishAnywhere("www", tree.dir, "").Number, restLimit)
	s.ReadsFrom().Kill()
	if v := mapping.Version(0, bigBlocks); v != first {
		t.Errorf("a mapped file of version %d that is gone gives version %d", first, v)
	}
}

// checker is a program on a slave that digests a whole tree again and again.
type checker struct {
	*Process
	s *Mounted
}

// checkTree starts a checker of a directory below the mount, whose content is that of dir.
func (m *Mounted) checkTree(name, dir string) *checker {
	m.t.Helper()
	digest := "cd %s && find . -type f -print0 | sort -z | xargs -0 sha256sum"
	script := "set -o pipefail; want=$(" + fmt.Sprintf(digest, dir) + `); while echo 3 >/proc/sys/vm/drop_caches; do
		got=$(` + fmt.Sprintf(digest, filepath.Join(m.Dir, name)) + `) || { echo FAILED; exit 1; }
		[ "$got" = "$want" ] || { echo DIFFERENT; diff <(echo "$want") <(echo "$got"); exit 2; }; echo pass; done`
	return &checker{m.Start(nil, "bash", "-c", script), m}
}

// passes waits for some more whole passes.
func (c *checker) passes(more int) {
	c.s.t.Helper()
	count := func() int {
		r := c.Output()
		if r.Ended {
			c.s.t.Fatalf("%s: the tree is not what it was, ended with %d: %s", c.s.Name, r.Code, lastLines(string(r.Said), 20))
		}
		return strings.Count(string(r.Said), "pass")
	}
	before := count()
	eventually(c.s.t, restLimit, c.s.Name+" digests the tree", func() bool { return count() >= before+more })
}

// All masters are upgraded, one after the other, while slaves digest the tree without end and somebody publishes.
func TestRollingUpgrade(t *testing.T) {
	f, tree := slaveFleet(t)
	for i := range 200 {
		writeFile(t, fmt.Sprintf("%s/still/d%d/f%d", tree.dir, i%10, i), noise(int64(i), i*100))
	}
	f.WaitServed("www", f.publishAnywhere("www", tree.dir, "").Number, restLimit)
	ctx, stop := context.WithCancel(t.Context())
	published := make(chan error, 1)
	go func() { published <- tree.publish(ctx, publishPace) }()
	var checkers []*checker
	for i, via := range []string{viaRelay, viaDirect} {
		m := f.MountSlave(t, fmt.Sprintf("web%d", i+1), via, "www")
		checkers = append(checkers, m.checkTree("still", filepath.Join(tree.dir, "still")))
	}
	for _, c := range checkers {
		c.passes(1)
	}
	for i, m := range f.Masters {
		by := f.Masters[(i+1)%len(f.Masters)]
		by.MustCLI("master", "drain", m.Name)
		m.Stop()
		m.Start()
		m.WaitReady()
		by.MustCLI("master", "undrain", m.Name)
		for _, c := range checkers {
			c.passes(2)
		}
	}
	stop()
	if err := <-published; err != nil {
		t.Error(err)
	}
	t.Logf("%d generations published meanwhile, %d refused", tree.published.Load(), tree.refused.Load())
}

// Nothing is left of an agent: the next one finds what is mounted, and goes on. And an agent may end in the moment in which it
// is needed. Under publishing neither costs a reader more than a wait.
func TestAgentLost(t *testing.T) {
	f, tree := slaveFleet(t)
	s := f.MountSlave(t, "web1", viaRelay, "www")
	began := time.Now()
	s.Must(s.bin, "version")
	start := time.Since(began) // of a program of this size, which a slave like this one takes half a second for
	ctx, stop := context.WithCancel(t.Context())
	published := make(chan error, 1)
	go func() { published <- tree.publish(ctx, publishPace) }()
	watches := s.watchBoth()
	for _, c := range []struct {
		name  string
		bound time.Duration
		do    func()
	}{
		// Nobody listens meanwhile, and Linux is refused: it comes back after three seconds.
		{"all of it is killed, and another one started", 3500 * time.Millisecond, func() {
			_, worker := s.agentProcesses()
			s.agent.Signal(syscall.SIGKILL)
			s.Must("kill", "-9", fmt.Sprint(worker))
			s.agent.Wait(restLimit)
			s.StartAgent()
		}},
		{"its worker is killed when its master is lost", time.Second, func() {
			_, worker := s.agentProcesses()
			m := s.ReadsFrom()
			m.Kill()
			s.Must("kill", "-9", fmt.Sprint(worker))
			s.awaitAgent(worker)
			m.Start()
			m.WaitReady()
		}},
	} {
		for _, w := range watches {
			eventually(t, restLimit, "reading", func() bool { return w.Window().Reads > 0 })
		}
		c.do()
		s.ReadsFrom()
		for _, w := range watches {
			r := w.Window()
			tree.judge(t, c.name, r)
			t.Logf("%s: longest %v of %d reads, stall %v", c.name, r.Longest.Took, r.Reads, r.Stall)
			if r.Longest.Took > c.bound+2*start+3*r.Stall {
				t.Errorf("%s: a read took %v", c.name, r.Longest.Took)
			}
		}
	}
	stop()
	if err := <-published; err != nil {
		t.Error(err)
	}
}

// A file that is edited in place in the source is seen by a new open within the time of the attribute cache, whichever master
// the slave reads from.
func TestEditInPlace(t *testing.T) {
	const quiet, cache = 500 * time.Millisecond, 5 * time.Second // --scan-quiet, and acregmax as the agent mounts
	source := t.TempDir()
	path := filepath.Join(source, "page")
	writeFile(t, path, "version 0")
	f := StartFleet(t, FleetConfig{Masters: 1, Etcd: EtcdModule, TTL: 2 * time.Second, Flags: append([]string{"--source", "www=" + source}, dnsFlags...)})
	f.Flags = dnsFlags
	f.Add()
	f.Add()
	for _, m := range f.Masters {
		m.WaitReady()
	}
	f.WaitServed("www", 1, restLimit)
	s := f.MountSlave(t, "web1", viaRelay, "www")
	eventually(t, restLimit, "the slave is enrolled", func() bool { return f.Masters[0].CLI("slave", "show", "web1").Code == 0 })
	for i, m := range f.Masters {
		m.MustCLI("slave", "move", "web1", m.Name)
		eventually(t, restLimit, "the slave reads from "+m.Name, func() bool { return s.ReadsFrom() == m })
		s.Must("cat", s.Dir+"/page") // so that it is in the cache
		want := fmt.Sprintf("version %d", i+1)
		file, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			_, err = file.WriteString(want)
			file.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		eventually(t, restLimit, "a new open sees the edit", func() bool { got, err := s.ReadFile(s.Dir + "/page"); return err == nil && got == want })
		took := time.Since(began)
		t.Logf("%s: seen after %v", m.Name, took.Round(time.Millisecond))
		if limit := quiet + cache + 2*time.Second; took > limit {
			t.Errorf("%s: an edit was seen after %v, more than %v", m.Name, took, limit)
		}
	}
}

// A slave shuts down in no time when every master is dead and something still waits for them: the readers are killed, what is
// mounted is unmounted as systemd does it (umount -c, which does not look at the mount) or by our own command, and the agent
// ends with the last mount.
func TestSlaveShutsDown(t *testing.T) {
	f, _ := slaveFleet(t)
	const second = "/mnt/second"
	slaves := []*Mounted{f.MountSlave(t, "web1", viaRelay, "www"), f.MountSlave(t, "web2", viaDirect, "www")}
	for _, s := range slaves {
		s.Must("mkdir", second)
		s.Must(s.bin, "mount", "--via", s.Via, "--dns", f.DNS(), f.SRV(s.Name)+":/"+s.Shard, second)
	}
	for _, m := range f.Masters {
		m.Kill()
	}
	for _, s := range slaves {
		reader := s.Start(nil, "dd", "if="+s.Dir+"/"+bigFile, "of=/dev/null", "iflag=direct")
		began := time.Now()
		reader.Signal(syscall.SIGKILL)
		reader.Wait(10 * time.Second)
		for _, umount := range [][]string{{s.bin, "umount", s.Dir}, {"umount", "-c", second}} {
			at := time.Now()
			r := s.Run(append([]string{"timeout", "-s", "KILL", "30"}, umount...)...)
			t.Logf("%s: %q took %v", s.Via, umount, time.Since(at).Round(time.Millisecond))
			if r.Code != 0 || time.Since(at) > 10*time.Second {
				t.Errorf("%s: %q: %v", s.Via, umount, r)
			}
		}
		s.agent.Signal(syscall.SIGTERM)
		if r := s.agent.Wait(10 * time.Second); r.Code != 0 {
			t.Errorf("%s: the agent ended with %d", s.Via, r.Code)
		}
		t.Logf("%s: the reader, the mounts and the agent were gone after %v", s.Via, time.Since(began).Round(time.Millisecond))
	}
}
