package master

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/election/etcdtest"
	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
	"github.com/nfs-fleet/nfs-fleet/fleet/etcd"
)

// running is a master in this process, asked over HTTP as an operator's tools do.
type running struct {
	*testing.T
	cfg    Config
	client *console.Client
	cancel context.CancelFunc
	ended  chan error
}

// testConfig is a whole master on loopback ports of its own.
func testConfig(t *testing.T) Config {
	t.Helper()
	c := Default()
	c.Name, c.DataDir, c.LeaseTTL = "m1", filepath.Join(t.TempDir(), "data"), 10*time.Second // more than a busy machine keeps a renewal waiting
	c.Listen = ListenConfig{NFS: etcdtest.FreeAddress(), HTTP: etcdtest.FreeAddress(), Peer: etcdtest.FreeAddress(), DNS: DNSOff, Portmap: PortmapOff}
	c.Etcd.ClientListen, c.Etcd.PeerListen = etcdtest.FreeAddress(), etcdtest.FreeAddress()
	c.Scan.Quiet = 20 * time.Millisecond
	src := t.TempDir()
	write(t, src, "hello", "one")
	c.Sources = map[string]SourceConfig{"www": {Dir: src}}
	return c
}

// write makes or replaces a file in one step: a source that publishes by itself must not meet half of it.
func write(t *testing.T, dir, name, content string) {
	t.Helper()
	whole := filepath.Join(t.TempDir(), name)
	if err := errors.Join(os.WriteFile(whole, []byte(content), 0o644), os.Rename(whole, filepath.Join(dir, name))); err != nil {
		t.Fatal(err)
	}
}

// testLog writes to a test's log until the test ends: a part that did not stop in time may go on for a while.
type testLog struct {
	mu sync.Mutex // guards t
	t  *testing.T // nil: it has ended
}

func newTestLog(t *testing.T) *testLog {
	l := &testLog{t: t}
	t.Cleanup(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.t = nil
	})
	return l
}

// Write implements io.Writer.
func (l *testLog) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.t != nil {
		l.t.Logf("%s", bytes.TrimSpace(line))
	}
	return len(line), nil
}

func start(t *testing.T, c Config) *running {
	t.Helper()
	return startLogged(t, c, zerolog.New(newTestLog(t)).Level(zerolog.InfoLevel))
}

func startLogged(t *testing.T, c Config, log zerolog.Logger) *running {
	t.Helper()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	client, err := console.NewClient("http://" + c.Listen.HTTP)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{t, c, client, cancel, make(chan error, 1)}
	go func() { r.ended <- Run(ctx, c, "test", log) }()
	t.Cleanup(r.stop)
	return r
}

func (r *running) stop() {
	r.cancel()
	if err := <-r.ended; err != nil {
		r.Errorf("the master ended with %v", err)
	}
	r.ended <- nil
}

// patience is how long anything may take that a test waits for. It never does.
const patience = time.Minute

// until asks for the status until ok accepts it.
func (r *running) until(what string, ok func(console.Status) bool) console.Status {
	r.Helper()
	var last console.Status
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		st, err := r.client.Status(r.Context())
		if err == nil && ok(st) {
			return st
		}
		last = st
		select {
		case err := <-r.ended:
			r.ended <- nil
			r.Fatalf("waiting for %s: the master ended with %v", what, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	r.Fatalf("%s: not within %s; last seen %+v", what, patience, last)
	return last
}

func serves(generation uint64) func(console.Status) bool {
	return func(s console.Status) bool {
		return len(s.Shards) == 1 && s.Shards[0].Generation == generation && !s.Shards[0].Stale
	}
}

func TestMasterPublishesRollsBackAndRestarts(t *testing.T) {
	cfg := testConfig(t)
	m := start(t, cfg)
	// The head is served as soon as it has moved; that etcd tells of it too comes a moment later.
	first := m.until("generation 1", func(s console.Status) bool { return serves(1)(s) && s.Shards[0].Head == 1 }).Shards[0]
	if first.Leader != "m1" || first.Epoch == 0 || first.Files != 1 {
		t.Errorf("shard: %+v", first)
	}
	if err := m.client.Ready(); err != nil {
		t.Errorf("not ready with a generation served: %v", err)
	}
	write(t, cfg.Sources["www"].Dir, "hello", "two")
	m.until("generation 2", serves(2))
	back, err := m.client.Rollback(t.Context(), "www", console.RollbackRequest{}, nil)
	if err != nil || back.Number != 3 {
		t.Fatalf("rollback: %+v, %v", back, err)
	}
	var changed []string
	err = m.client.Diff(t.Context(), "www", 1, 3, func(c console.Change) error { changed = append(changed, c.Path); return nil })
	if err != nil || len(changed) != 0 {
		t.Errorf("the rollback differs from generation 1 in %q, %v", changed, err)
	}
	m.stop()

	m = start(t, cfg)
	again := m.until("generation 3 after the restart", serves(3)).Shards[0]
	if again.FSID != first.FSID {
		t.Errorf("fsid %s became %s", first.FSID, again.FSID)
	}
	if again.Source.State != "paused" {
		t.Errorf("after a rollback and a restart the source is %s", again.Source.State)
	}
	m.until("a leader", func(console.Status) bool { return m.client.Ready() == nil })
	if err := m.client.Source(t.Context(), "www", console.SourceResume); err != nil {
		t.Fatal(err)
	}
	m.until("generation 4", serves(4))
	if rep, err := m.client.Verify(t.Context(), console.VerifyRequest{}, nil); err != nil || !rep.Sound() || rep.Objects == 0 {
		t.Errorf("verify: %+v, %v", rep, err)
	}
}

func TestErrorsHaveTheirKind(t *testing.T) {
	m := start(t, testConfig(t))
	m.until("generation 1", serves(1))
	ctx := t.Context()
	for name, tc := range map[string]struct {
		call func() error
		want error
	}{
		"publish to no shard": {func() error { _, err := m.client.Publish(ctx, "no", console.PublishRequest{}, nil); return err }, console.ErrNotFound},
		"rollback to nothing": {func() error {
			_, err := m.client.Rollback(ctx, "www", console.RollbackRequest{Generation: 9}, nil)
			return err
		}, console.ErrNotFound},
		"a note that is a book": {func() error {
			_, err := m.client.Publish(ctx, "www", console.PublishRequest{Note: strings.Repeat("n", maxNote+1)}, nil)
			return err
		}, console.ErrInvalid},
		"rollback of the first":  {func() error { _, err := m.client.Rollback(ctx, "www", console.RollbackRequest{}, nil); return err }, console.ErrNotFound},
		"a shard that exists":    {func() error { _, err := m.client.CreateShard(ctx, fleet.NewShard("www", time.Now())); return err }, console.ErrConflict},
		"delete with a source":   {func() error { return m.client.DeleteShard(ctx, "www") }, console.ErrConflict},
		"resume what runs":       {func() error { return m.client.Source(ctx, "www", console.SourceResume) }, console.ErrConflict},
		"an upload that is none": {func() error { return m.client.PutObjects(ctx, "www", "no", strings.NewReader("")) }, console.ErrGone},
		"keep nothing": {func() error {
			_, err := m.client.SetShard(ctx, "www", console.ShardPatch{KeepGenerations: new(int)})
			return err
		}, console.ErrInvalid},
	} {
		if err := tc.call(); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
}

func TestShardsComeAndGo(t *testing.T) {
	m := start(t, testConfig(t))
	m.until("generation 1", serves(1))
	made, err := m.client.CreateShard(t.Context(), fleet.NewShard("boot", time.Now()))
	if err != nil || made.FSID == 0 {
		t.Fatalf("%+v, %v", made, err)
	}
	squash := fleet.SquashAll
	if set, err := m.client.SetShard(t.Context(), "boot", console.ShardPatch{Squash: &squash}); err != nil || set.Squash != fleet.SquashAll || set.FSID != made.FSID {
		t.Errorf("set: %+v, %v", set, err)
	}
	if all, err := m.client.Shards(t.Context()); err != nil || len(all) != 2 || all[0].Squash != fleet.SquashAll {
		t.Errorf("shards: %+v, %v", all, err)
	}
	if _, err := m.client.Publish(t.Context(), "boot", console.PublishRequest{}, nil); !errors.Is(err, console.ErrInvalid) {
		t.Errorf("publish without a source: %v, want ErrInvalid", err)
	}
	if err := m.client.DeleteShard(t.Context(), "boot"); err != nil {
		t.Fatal(err)
	}
	if all, err := m.client.Shards(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("after the delete: %+v, %v", all, err)
	}
}

func TestRecoverAfterEtcdLostEverything(t *testing.T) {
	cfg := testConfig(t)
	m := start(t, cfg)
	before := m.until("generation 1", serves(1))
	write(t, cfg.Sources["www"].Dir, "hello", "two")
	before = m.until("generation 2", serves(2))
	m.stop()
	if err := os.RemoveAll(filepath.Join(cfg.DataDir, "etcd")); err != nil {
		t.Fatal(err)
	}

	cfg.Sources = nil
	m = start(t, cfg)
	st := m.until("the loss noticed", func(s console.Status) bool {
		return len(s.Warnings) > 0 && strings.Contains(s.Warnings[0], "recover")
	})
	if len(st.Shards) != 1 || !st.Shards[0].Stale {
		t.Errorf("shards after the loss: %+v, want www, stale", st.Shards)
	}
	if _, err := m.client.CreateShard(t.Context(), fleet.NewShard("x", time.Now())); !errors.Is(err, console.ErrUnavailable) {
		t.Errorf("a shard was made in a fleet that is to be recovered: %v", err)
	}
	dry, err := m.client.Recover(t.Context(), console.RecoverRequest{DryRun: true})
	if err != nil || len(dry.Shards) != 1 || dry.Shards[0].Action != "created" || dry.Shards[0].Generation != 3 {
		t.Errorf("dry run: %+v, %v", dry, err)
	}
	rep, err := m.client.Recover(t.Context(), console.RecoverRequest{})
	if err != nil || rep.ID != before.ID || len(rep.Shards) != 1 || rep.Shards[0].Generation != 3 || rep.Shards[0].FSID != before.Shards[0].FSID {
		t.Fatalf("recover: %+v, %v", rep, err)
	}
	after := m.until("generation 3", serves(3)).Shards[0]
	if after.Root != before.Shards[0].Root {
		t.Errorf("root %s became %s", before.Shards[0].Root, after.Root)
	}
	if rep, err = m.client.Recover(t.Context(), console.RecoverRequest{}); err != nil || rep.Shards[0].Action != "kept" {
		t.Errorf("a second recover: %+v, %v", rep, err)
	}
}

// A damaged embedded etcd makes etcd panic. Readers do not care.
func TestDamagedEtcdDoesNotKeepFromServing(t *testing.T) {
	cfg := testConfig(t)
	m := start(t, cfg)
	m.until("generation 1", serves(1))
	m.stop()
	db := filepath.Join(cfg.DataDir, "etcd", "member", "snap", "db")
	if err := os.WriteFile(db, bytes.Repeat([]byte("damaged "), 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	m = start(t, cfg)
	st := m.until("the last generation, stale", func(s console.Status) bool {
		return m.client.Ready() == nil && len(s.Shards) == 1 && s.Shards[0].Generation == 1 && s.Shards[0].Stale
	})
	if st.Etcd.Healthy || !strings.Contains(st.Etcd.Error, "does not start") {
		t.Errorf("etcd: %+v, want why it does not start", st.Etcd)
	}
	if _, err := m.client.Publish(t.Context(), "www", console.PublishRequest{}, nil); !errors.Is(err, console.ErrNoQuorum) {
		t.Errorf("publish: %v, want ErrNoQuorum", err)
	}
	m.stop()

	fresh := testConfig(t)
	fresh.DataDir = filepath.Join(t.TempDir(), "data")
	fresh.Etcd.DataDir = filepath.Join(cfg.DataDir, "etcd")
	if err := Run(t.Context(), fresh, "test", zerolog.Nop()); !errors.Is(err, etcd.ErrStart) {
		t.Errorf("a master with nothing to serve and no etcd: %v, want etcd.ErrStart", err)
	}
}

func TestDiskOfAnotherFleetIsRefused(t *testing.T) {
	cfg := testConfig(t)
	m := start(t, cfg)
	m.until("generation 1", serves(1))
	m.stop()
	for name, change := range map[string]func(*Config){"fleet": func(c *Config) { c.Fleet = "other" }, "master": func(c *Config) { c.Name = "m2" }} {
		other := cfg
		change(&other)
		if err := Run(t.Context(), other, "test", zerolog.Nop()); err == nil || !strings.Contains(err.Error(), "--data-dir") {
			t.Errorf("another %s: %v, want an error that names --data-dir", name, err)
		}
	}
	other := cfg
	other.Etcd.DataDir = t.TempDir()
	stranger := other
	stranger.DataDir, stranger.Sources = filepath.Join(t.TempDir(), "data"), nil
	s := start(t, stranger)
	s.until("the other fleet", func(st console.Status) bool { return st.ID != "" })
	s.stop()
	if err := Run(t.Context(), other, "test", zerolog.Nop()); err == nil || !strings.Contains(err.Error(), "belongs to fleet") {
		t.Errorf("an etcd with another fleet of the same name: %v", err)
	}
}

func TestDiskInUseIsRefused(t *testing.T) {
	cfg := testConfig(t)
	m := start(t, cfg)
	m.until("generation 1", serves(1))
	if err := Run(t.Context(), cfg, "test", zerolog.Nop()); err == nil || !strings.Contains(err.Error(), "is used by another") {
		t.Errorf("a second master on the same disk: %v", err)
	}
}

func TestSourceThatIsNotThere(t *testing.T) {
	cfg := testConfig(t)
	src := cfg.Sources["www"].Dir
	elsewhere := filepath.Join(t.TempDir(), "moved")
	if err := os.Rename(src, elsewhere); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), cfg, "test", zerolog.Nop()); err == nil || !strings.Contains(err.Error(), "--source www=") {
		t.Errorf("a source that never was there: %v", err)
	}
	if err := os.Rename(elsewhere, src); err != nil {
		t.Fatal(err)
	}
	m := start(t, cfg)
	m.until("generation 1", serves(1))
	m.stop()
	if err := os.Rename(src, elsewhere); err != nil {
		t.Fatal(err)
	}
	m = start(t, cfg)
	m.until("generation 1 without its source", func(s console.Status) bool { return serves(1)(s) && s.Shards[0].Source.Error != "" })
	write(t, elsewhere, "hello", "back")
	if err := os.Rename(elsewhere, src); err != nil {
		t.Fatal(err)
	}
	if _, err := m.client.Publish(t.Context(), "www", console.PublishRequest{}, nil); err != nil {
		t.Fatal(err)
	}
	m.until("generation 2", serves(2))
}

func TestStaleServingWithoutEtcd(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the 10 s after which a master serves what its disk has")
	}
	cfg := testConfig(t)
	m := start(t, cfg)
	m.until("generation 1", serves(1))
	m.stop()
	cfg.Etcd = EtcdConfig{Endpoints: []string{"http://" + cfg.Etcd.ClientListen}, ClientListen: cfg.Etcd.ClientListen, PeerListen: cfg.Etcd.PeerListen}
	m = start(t, cfg)
	if err := m.client.Ready(); err == nil {
		t.Error("ready before etcd has answered and before its time was up")
	}
	m.until("stale serving", func(s console.Status) bool { return m.client.Ready() == nil && s.Shards[0].Stale && !s.Etcd.Healthy })
	if _, err := m.client.Publish(t.Context(), "www", console.PublishRequest{}, nil); !errors.Is(err, console.ErrNoQuorum) {
		t.Errorf("publish without etcd: %v, want ErrNoQuorum", err)
	}
}
