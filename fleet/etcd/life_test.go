package etcd

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// three starts a fleet of three voters. Steer runs on the first until stop is called.
func three(t *testing.T) (f *testFleet, m1, m2, m3 *testMaster, stop func()) {
	t.Helper()
	f = newTestFleet(t)
	m1, m2, m3 = f.master("m1"), f.master("m2"), f.master("m3")
	m1.start(true)
	m1.works()
	m2.start(false)
	m3.start(false)
	stop = m1.steer()
	m1.shape("m1 m2 m3", "")
	return f, m1, m2, m3, stop
}

// A voter that starts alone starts at once, without the others; with the quorum back, all goes on.
func TestQuorumLostAndBack(t *testing.T) {
	t.Parallel()
	_, m1, m2, m3, stop := three(t)
	stop()
	m2.crash()
	m3.crash()
	eventually(t, "no more writes", func() error {
		if m1.put("/x", 500*time.Millisecond) == nil {
			return errors.New("one voter of three still writes")
		}
		return nil
	})
	m1.stop()
	opened := make(chan error, 1)
	go func() { opened <- m1.tryStart(false) }()
	select {
	case err := <-opened:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(patience):
		t.Fatal("Open waits for the other voters")
	}
	if s := m1.member.Status(); !s.Running || s.Ready || s.MemberID == 0 || s.Err != nil {
		t.Errorf("alone it is %+v", s)
	}
	select {
	case <-m1.member.Ready():
		t.Error("it is ready without a quorum")
	default:
	}
	m2.start(false)
	m1.works()
	m2.works()
	eventually(t, "ready", func() error {
		if s := m1.member.Status(); !s.Ready || !s.Voter || s.Learner {
			return errors.New("it is not")
		}
		return nil
	})
	m3.start(false)
	m3.shape("m1 m2 m3", "")
}

// Two of three are gone for good: what the third has goes on as a cluster of one, and grows again.
func TestRescue(t *testing.T) {
	t.Parallel()
	f, m1, m2, m3, stop := three(t)
	stop()
	if err := m1.put("/kept", patience); err != nil {
		t.Fatal(err)
	}
	m1.stop()
	m3.stop()
	m2.stop()
	if err := m2.startBy(func(ctx context.Context, m *Member) error { return m.Rescue(ctx) }); err != nil {
		t.Fatal(err)
	}
	m2.works()
	resp, err := m2.etcd.Get(t.Context(), "/kept")
	if err != nil || len(resp.Kvs) != 1 {
		t.Fatalf("what was written before: %v, %v", resp, err)
	}
	m2.shape("m2", "")
	m2.steer()
	m1.start(false) // with the data of the cluster that was
	m2.shape("m2", "m1")
	m1.works()
	if err := New(f.master("m4").config()).Rescue(t.Context()); err == nil || !strings.Contains(err.Error(), "no member") {
		t.Errorf("nothing to rescue: %v", err)
	}
}

// A master whose member was taken out while it did not run does not come back with its old data.
func TestRemovedAndBackWithOldData(t *testing.T) {
	t.Parallel()
	f, m1, _, m3, _ := three(t)
	old := m3.member.Status().MemberID
	m3.stop()
	f.mu.Lock()
	m3.removed = true
	f.mu.Unlock()
	m1.shape("m1", "m2") // m2 gives up its vote, and waits as a learner
	f.mu.Lock()
	m3.removed = false // the operator lets it join again
	f.mu.Unlock()
	m3.start(false)
	m1.shape("m1 m2 m3", "")
	if id := m3.member.Status().MemberID; id == old || id == 0 {
		t.Errorf("it is back as %x, and was %x", id, old)
	}
	if aside, _ := filepath.Glob(m3.member.cfg.Dir + ".old-*"); len(aside) != 1 {
		t.Errorf("set aside: %v", aside)
	}
	m3.works()
}

// A member that is taken out while it runs ends, and its master goes on as a client.
func TestRemovedWhileItRuns(t *testing.T) {
	t.Parallel()
	_, m1, _, m3, stop := three(t)
	stop()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	eventually(t, "remove", func() error { // etcd wants to have known its members for five seconds
		_, err := m1.etcd.MemberRemove(ctx, m3.member.Status().MemberID)
		return err
	})
	eventually(t, "ended", func() error {
		if s := m3.member.Status(); s.Running || s.MemberID != 0 || s.Err != nil {
			return errors.New("it has not")
		}
		return nil
	})
	m3.works()
	if m3.member.Holds() {
		t.Error("the old data is still in place")
	}
}

// A master that has lost its disk gets a new member in the place of the old one, by itself.
func TestReplacedAfterADiskIsLost(t *testing.T) {
	t.Parallel()
	_, m1, _, m3, _ := three(t)
	old := m3.member.Status().MemberID
	m3.stop()
	if err := os.RemoveAll(m3.dir); err != nil {
		t.Fatal(err)
	}
	m3.start(false)
	eventually(t, "a new member", func() error {
		if s := m3.member.Status(); !s.Voter || s.MemberID == old {
			return errors.New("not yet")
		}
		return nil
	})
	m1.shape("m1 m2 m3", "")
}

func TestAnotherAddress(t *testing.T) {
	t.Parallel()
	_, m1, m2, _, _ := three(t)
	m2.stop()
	m2.raft = freeAddress()
	m2.start(false)
	eventually(t, "moved", func() error {
		seats, err := Members(context.Background(), m1.etcd, m1.routes)
		if err != nil {
			return err
		}
		for _, s := range seats {
			if s.Name == "m2" && s.PeerURL == "https://"+m2.raft && s.Healthy {
				return nil
			}
		}
		return errors.New("not yet")
	})
}

func TestMoveLeader(t *testing.T) {
	t.Parallel()
	_, m1, m2, m3, stop := three(t)
	stop()
	leader := func() *testMaster {
		for _, m := range []*testMaster{m1, m2, m3} {
			if m.member.Status().Leader {
				return m
			}
		}
		return nil
	}
	before := leader()
	if before == nil {
		t.Fatal("no leader")
	}
	if err := before.member.MoveLeader(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another leader", func() error {
		if l := leader(); l == nil || l == before {
			return errors.New("not yet")
		}
		return nil
	})
	if err := before.member.MoveLeader(t.Context()); err != nil {
		t.Errorf("nothing to hand over: %v", err)
	}
	// Others can ask for it as well, as Steer does before it takes a leader out.
	asker := newAsker(m1.routes)
	defer asker.close()
	l := leader()
	if err := asker.moveLeader(t.Context(), m1.routes.Endpoint(l.name), before.member.Status().MemberID); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first leader again", func() error {
		if leader() != before {
			return errors.New("not yet")
		}
		return nil
	})
	// A leader that is stopped hands over too, so that no write waits for an election.
	before.stop()
	if err := l.put("/after", 3*time.Second); err != nil {
		t.Errorf("after the leader has ended in good order: %v", err)
	}
}

// What etcd takes for the end of its process ends it alone; it is started again, with everything it had.
func TestFailureIsOutlived(t *testing.T) {
	t.Parallel()
	f := newTestFleet(t)
	m := f.master("m1")
	failures := make(chan error, 10)
	m.failed = func(err error) { failures <- err }
	m.start(true)
	m.works()
	r := m.member.present()
	go r.server.GetLogger().Fatal("failed to save Raft hard state and entries")
	select {
	case err := <-failures:
		if !strings.Contains(err.Error(), "failed to save Raft") {
			t.Errorf("told: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("nobody was told")
	}
	m.works()
	eventually(t, "well again", func() error { return m.member.Status().Err })
	if m.member.present() == r {
		t.Error("it is the same start")
	}
}

func TestOpenSaysWhatToDo(t *testing.T) {
	f := newTestFleet(t)
	m := f.master("m1")
	for flag, address := range map[string]string{"--etcd-client-listen": m.client, "--etcd-peer-listen": m.raft} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.tryStart(true); err == nil || !strings.Contains(err.Error(), flag) || errors.Is(err, ErrStart) {
			t.Errorf("with %s taken: %v", address, err)
		}
		l.Close()
	}
	m.start(true)
	if err := New(m.config()).Open(t.Context(), false); err == nil || !strings.Contains(err.Error(), "another nfs-fleet") {
		t.Errorf("with another on the same directory: %v", err)
	}
}

// A damaged log is an error of the kind that a master goes on with, and costs the process nothing.
func TestOpenOfADamagedLog(t *testing.T) {
	f := newTestFleet(t)
	m := f.master("m1")
	m.start(true)
	m.works()
	m.stop()
	logs, _ := filepath.Glob(filepath.Join(m.dir, "etcd", "member", "wal", "*.wal"))
	for _, name := range logs {
		if err := os.WriteFile(name, []byte(strings.Repeat("damaged!", 100)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	member := New(m.config())
	defer member.Close()
	err := member.Open(t.Context(), false)
	if !errors.Is(err, ErrStart) || !strings.Contains(err.Error(), m.dir) {
		t.Fatalf("it says %v", err)
	}
	if s := member.Status(); s.Running || s.Err == nil || s.MemberID == 0 {
		t.Errorf("it is %+v", s)
	}
}

// What was set aside last is kept, whatever failed attempts leave behind.
func TestSetAside(t *testing.T) {
	m := New(newTestFleet(t).master("m1").config())
	create := func(files ...string) {
		t.Helper()
		for _, name := range files {
			name = filepath.Join(m.cfg.Dir, name)
			if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, files := range [][]string{nil, {"member/wal/0.wal", "one"}, {"member/snap/db"}, {idFile, "two"}, {"member/snap/db"}} {
		create(files...)
		if err := m.setAside(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(m.cfg.Dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%d: it is still there", i)
		}
		time.Sleep(2 * time.Millisecond) // the name has milliseconds
	}
	aside, _ := filepath.Glob(m.cfg.Dir + ".old-*")
	if len(aside) != 1 {
		t.Fatalf("set aside: %v", aside)
	}
	if _, err := os.Lstat(filepath.Join(aside[0], "two")); err != nil {
		t.Errorf("the last one is not kept: %v", err)
	}
}
