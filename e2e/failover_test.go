package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/e2e/history"
)

// A leader that is stopped in the middle of its publish and wakes up when another one leads is refused: it says so itself,
// and etcd's history shows that nothing of it ever took effect.
func TestPausedLeaderIsRefused(t *testing.T) {
	f := StartFleet(t, FleetConfig{Masters: 3, Etcd: EtcdModule, TTL: 2 * time.Second})
	small, large := t.TempDir(), t.TempDir()
	writeFile(t, small+"/file", "one")
	f.createShard("www")
	f.publishAnywhere("www", small, "before")
	for i := range 60 {
		writeFile(t, fmt.Sprintf("%s/f%d", large, i), noise(int64(i), 2<<20))
	}
	old := f.Master(f.WaitLeader("www"))
	before := old.Shard("www")

	// It has told the others what to fetch, and waits for their copies.
	var publisher *proc
	var said *procLog
	f.WaitKey("staged/www",
		func() { publisher, said = old.background(old.bin, "publish", "www", large, "--note", "paused") },
		func(value string) bool { return strings.Contains(value, `"paused"`) })
	old.proc.signal(t, syscall.SIGSTOP)
	var next *Master
	eventually(t, 30*time.Second, "another leader", func() bool {
		for _, m := range f.Masters {
			if m == old {
				continue
			}
			if s, err := m.Status(); err == nil && s.shard("www").Leader != old.Name && s.shard("www").Leader != "" {
				next = f.Master(s.shard("www").Leader)
			}
		}
		return next != nil
	})
	if now := next.Shard("www"); now.Generation != before.Generation {
		t.Fatalf("the head moved before the leader could be stopped: %+v", now)
	}
	writeFile(t, small+"/file", "two")
	var after Generation
	next.JSON(&after, "publish", "www", small, "--note", "after")
	old.proc.signal(t, syscall.SIGCONT)

	if code := publisher.wait(t, time.Minute); code != 4 && code != 1 {
		t.Errorf("the publish of the paused leader ended with %d: %s", code, said)
	}
	t.Logf("the paused leader's publisher was told: %s", said)
	checkSays(t, said.String(), "www")
	f.WaitServed("www", after.Number, 30*time.Second)
	writeFile(t, small+"/file", "three")
	f.publishAnywhere("www", small, "later")
	f.WaitServed("www", after.Number+1, 30*time.Second)
	f.checkHistory(t, map[string]string{"before": "", "after": next.Name, "later": ""}, "paused")
	if !strings.Contains(old.log.String(), "the lease is lost") {
		t.Errorf("the paused leader's log does not say that its terms are over:\n%s", old.log.tail(30))
	}
}

// checkHistory demands that etcd's history obeys the rules, has these generations by these masters ("": by any), and none of
// the other notes.
func (f *Fleet) checkHistory(t *testing.T, by map[string]string, never ...string) {
	t.Helper()
	h := history.History{Masters: f.Names(), Events: f.History()}
	for note := range by {
		h.Attempts = append(h.Attempts, history.Attempt{ID: note, Shard: "www"})
	}
	for _, v := range history.Check(h) {
		if v.Rule != history.RuleTraffic {
			t.Errorf("%v", v)
		}
	}
	seen := map[string]bool{}
	for _, e := range h.Events {
		if e.Key != "heads/www" || e.Deleted {
			continue
		}
		var head struct {
			Note, By          string
			Generation, Epoch uint64
		}
		if err := json.Unmarshal([]byte(e.Value), &head); err != nil {
			t.Fatal(err)
		}
		t.Logf("revision %d: generation %d, epoch %d, by %s, %s", e.Revision, head.Generation, head.Epoch, head.By, head.Note)
		seen[head.Note] = true
		if want := by[head.Note]; want != "" && want != head.By {
			t.Errorf("generation %d (%s) was made by %s, want %s", head.Generation, head.Note, head.By, want)
		}
	}
	for note := range by {
		if !seen[note] {
			t.Errorf("no generation with the note %q", note)
		}
	}
	for _, note := range never {
		if seen[note] {
			t.Errorf("there is a generation with the note %q", note)
		}
	}
}

// WaitLeader waits until the shard has a leader and returns its name.
func (f *Fleet) WaitLeader(shard string) (name string) {
	f.t.Helper()
	eventually(f.t, 30*time.Second, "a leader of "+shard, func() bool { name = f.Leader(shard); return name != "" })
	return name
}

// publishing is what somebody who publishes again and again met.
type publishing struct {
	worked  int
	refused time.Duration // the longest time from an attempt that failed to the end of the next one that worked
	longest time.Duration // the longest attempt that worked
}

// keepPublishing publishes again and again through a master until stop is closed.
func (f *Fleet) keepPublishing(t *testing.T, m *Master, shard, dir string, stop <-chan struct{}) <-chan publishing {
	result := make(chan publishing, 1)
	go func() {
		var p publishing
		var refusedSince time.Time
		defer func() { result <- p }()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := os.WriteFile(dir+"/file", []byte(fmt.Sprint("attempt ", i)), 0o644); err != nil {
				t.Error(err)
				return
			}
			began := time.Now()
			r, err := run(m.Host, time.Minute, m.env(), m.bin, "publish", shard, dir)
			switch {
			case err == nil && r.Code == 0:
				p.worked, p.longest = p.worked+1, max(p.longest, time.Since(began))
				if !refusedSince.IsZero() {
					p.refused, refusedSince = max(p.refused, time.Since(refusedSince)), time.Time{}
				}
			case refusedSince.IsZero():
				refusedSince = began
				t.Logf("refused: %s", strings.TrimSpace(r.Stderr))
			}
		}
	}()
	return result
}

// Leadership that is handed over on purpose leaves no gap worth speaking of; after a crash there is one of the lease's length.
func TestHandOver(t *testing.T) {
	f := StartFleet(t, FleetConfig{Masters: 3, Etcd: EtcdModule, EtcdMembers: 3, TTL: 2 * time.Second})
	dir := t.TempDir()
	writeFile(t, dir+"/file", "content")
	f.createShard("www")
	f.WaitServed("www", f.publishAnywhere("www", dir, "").Number, restLimit)
	away := func(from *Master) *Master { // another one than that
		for _, m := range f.Masters {
			if m != from {
				return m
			}
		}
		return nil
	}
	const slow = 4 * time.Second // what a machine that does much else adds
	for _, c := range []struct {
		name  string
		limit time.Duration
		do    func(leader, other *Master)
		undo  func(leader *Master)
	}{
		{"shard lead", time.Second, func(_, other *Master) { other.MustCLI("shard", "lead", "www", other.Name) }, func(*Master) {}},
		{"drain", time.Second, func(leader, other *Master) { other.MustCLI("master", "drain", leader.Name) },
			func(leader *Master) { leader.MustCLI("master", "undrain", leader.Name) }},
		{"SIGTERM", time.Second, func(leader, _ *Master) { leader.Stop() }, func(leader *Master) { leader.Start(); leader.WaitReady() }},
		{"SIGKILL", 3 * time.Second, func(leader, _ *Master) { leader.Kill() }, func(leader *Master) { leader.Start(); leader.WaitReady() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			leader := f.Master(f.WaitLeader("www"))
			other := away(leader)
			stop := make(chan struct{})
			result := f.keepPublishing(t, other, "www", dir, stop)
			time.Sleep(time.Second) // of undisturbed publishing
			c.do(leader, other)
			eventually(t, restLimit, "another leader", func() bool {
				s, err := other.Status()
				return err == nil && s.shard("www").Leader != leader.Name && s.shard("www").Leader != ""
			})
			time.Sleep(time.Second)
			close(stop)
			p := <-result
			t.Logf("%s: %d publishes, refused for %v (target %v), the longest of the others took %v",
				c.name, p.worked, p.refused.Round(time.Millisecond), c.limit, p.longest.Round(time.Millisecond))
			if p.refused > c.limit+slow || p.longest > c.limit+slow || p.worked == 0 {
				t.Errorf("%s: publishing was disturbed for too long", c.name)
			}
			c.undo(leader)
			f.publishAnywhere("www", dir, "")
		})
	}
}
