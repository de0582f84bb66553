package console

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// fake is a Control that remembers what it was asked and answers what a test sets. Publish, Rollback and Verify run
// the operation that the test gives, if any.
type fake struct {
	mu      sync.Mutex // guards what follows
	calls   []string
	fail    error
	objects map[tree.Digest][]byte

	status   Status
	shards   []Shard
	history  []tree.Generation
	changes  []Change
	verified VerifyReport
	found    RecoverReport
	result   Published
	made     TokenMade
	lost     RecoverShardReport
	op       func(ctx context.Context, progress func(Progress)) error
}

func (f *fake) asked(format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	return f.fail
}

// last returns the latest call, in the words of asked.
func (f *fake) last() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.calls) == 0 {
		return ""
	}
	return f.calls[len(f.calls)-1]
}

func (f *fake) Status(context.Context) (Status, error)  { return f.status, f.asked("status") }
func (f *fake) Shards(context.Context) ([]Shard, error) { return f.shards, f.asked("shards") }

func (f *fake) CreateShard(_ context.Context, s Shard) (Shard, error) {
	s.FSID = 7
	return s, f.asked("create %s", s.Name)
}

func (f *fake) SetShard(_ context.Context, name string, p ShardPatch) (Shard, error) {
	return p.Apply(fleet.NewShard(name, epoch)), f.asked("set %s", name)
}

func (f *fake) DeleteShard(_ context.Context, name string) error { return f.asked("delete %s", name) }

func (f *fake) Publish(ctx context.Context, shard string, r PublishRequest, progress func(Progress)) (Published, error) {
	return f.run(ctx, progress, "publish %s %+v", shard, r)
}

func (f *fake) Rollback(ctx context.Context, shard string, r RollbackRequest, progress func(Progress)) (Published, error) {
	return f.run(ctx, progress, "rollback %s %+v", shard, r)
}

func (f *fake) run(ctx context.Context, progress func(Progress), format string, args ...any) (Published, error) {
	err := f.asked(format, args...)
	if err == nil && f.op != nil {
		err = f.op(ctx, progress)
	}
	return f.result, err
}

func (f *fake) History(_ context.Context, shard string) ([]tree.Generation, error) {
	return f.history, f.asked("history %s", shard)
}

func (f *fake) Diff(_ context.Context, shard string, a, b uint64, fn func(Change) error) error {
	if err := f.asked("diff %s %d %d", shard, a, b); err != nil {
		return err
	}
	for _, c := range f.changes {
		if err := fn(c); err != nil {
			return err
		}
	}
	return nil
}

func (f *fake) Source(_ context.Context, shard string, a SourceAction) error {
	return f.asked("source %s %s", shard, a)
}

func (f *fake) Verify(ctx context.Context, r VerifyRequest, progress func(Progress)) (VerifyReport, error) {
	_, err := f.run(ctx, progress, "verify %+v", r)
	return f.verified, err
}

func (f *fake) Recover(_ context.Context, r RecoverRequest) (RecoverReport, error) {
	return f.found, f.asked("recover %+v", r)
}

func (f *fake) Lead(_ context.Context, shard, master string) error {
	return f.asked("lead %s %s", shard, master)
}

func (f *fake) RecoverShard(_ context.Context, shard string, r RecoverShardRequest) (RecoverShardReport, error) {
	return f.lost, f.asked("recover shard %s %+v", shard, r)
}

func (f *fake) Masters(context.Context) ([]MasterStatus, error) {
	return f.status.Masters, f.asked("masters")
}

func (f *fake) Self(context.Context) (MasterStatus, error) {
	err := f.asked("self")
	if len(f.status.Masters) == 0 {
		return MasterStatus{}, err
	}
	return f.status.Masters[0], err
}

func (f *fake) Drain(_ context.Context, master string, r DrainRequest) error {
	return f.asked("drain %s %+v", master, r)
}

func (f *fake) Undrain(_ context.Context, master string) error { return f.asked("undrain %s", master) }

func (f *fake) RemoveMaster(_ context.Context, master string) error {
	return f.asked("remove %s", master)
}

func (f *fake) Slaves(context.Context) ([]SlaveStatus, error) {
	return f.status.Slaves.Shown, f.asked("slaves")
}

func (f *fake) HeardSlaves(context.Context) ([]SlaveStatus, error) {
	return f.status.Slaves.Shown, f.asked("heard slaves")
}

func (f *fake) Slave(_ context.Context, name string) (SlaveStatus, error) {
	return f.status.Slaves.Shown[0], f.asked("slave %s", name)
}

func (f *fake) MoveSlave(_ context.Context, name, master string) error {
	return f.asked("move slave %s to %s", name, master)
}

func (f *fake) ForgetSlave(_ context.Context, name string) error {
	return f.asked("forget slave %s", name)
}

func (f *fake) Rebalance(_ context.Context, r RebalanceRequest) ([]SlaveMove, error) {
	return []SlaveMove{{"web17", "m1", "m2"}}, f.asked("rebalance %+v", r)
}

func (f *fake) CreateToken(_ context.Context, r TokenRequest) (TokenMade, error) {
	return f.made, f.asked("token %+v", r)
}

func (f *fake) Tokens(context.Context) ([]Token, error) {
	return []Token{f.made.Token}, f.asked("tokens")
}

func (f *fake) RevokeToken(_ context.Context, id string) error { return f.asked("revoke %s", id) }

func (f *fake) BeginUpload(_ context.Context, shard string) (string, error) {
	return "u/1 ?", f.asked("begin %s", shard)
}

func (f *fake) EndUpload(_ context.Context, shard, upload string) error {
	return f.asked("end %s %s", shard, upload)
}

func (f *fake) Missing(_ context.Context, shard, upload string, want []tree.Digest) ([]tree.Digest, error) {
	err := f.asked("missing %s %s", shard, upload)
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(want), func(d tree.Digest) bool { return f.objects[d] != nil }), err
}

func (f *fake) PutObjects(_ context.Context, shard, upload string, r io.Reader) error {
	if err := f.asked("put %s %s", shard, upload); err != nil {
		return err
	}
	for object, err := range DecodeObjects(r) {
		if err != nil {
			return err
		}
		f.mu.Lock()
		f.objects[tree.Sum(object)] = slices.Clone(object)
		f.mu.Unlock()
	}
	return nil
}

func (f *fake) Healthy() error { return f.asked("healthy") }
func (f *fake) Ready() error   { return f.asked("ready") }

var epoch = time.Date(2026, 11, 21, 4, 0, 0, 123456789, time.UTC)

// newFake returns a fake whose answers fill every field, so that a field that does not travel is missed.
func newFake() *fake {
	s := fleet.NewShard("www", epoch)
	s.FSID, s.Networks = 0xfedcba9876543210, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	g := tree.Generation{
		Number: 42, Root: tree.Sum([]byte("root")), Files: 12803, Bytes: 1 << 62, NextIno: 99, PublishedAt: epoch,
		By: "m1", Epoch: 7, Source: "m1:/srv/www", Copies: 1, Note: "why\nnot",
	}
	d := tree.Sum([]byte("x"))
	slave := SlaveStatus{
		Name: "web17", Master: "m1", Reads: "m2", Fallbacks: []string{"m2"}, Since: epoch, Mode: "relay", Address: netip.MustParseAddr("10.0.0.17"), Instance: "i",
		Version: "v1", EnrolledAt: epoch, SeenAt: epoch, Mounts: []SlaveMount{{"_nfs._tcp.x", "www", "/srv/www"}}, MoreMounts: 3, Last: &SlaveReattach{epoch, 25, "m1", "m2", "lost"},
	}
	return &fake{
		objects: map[tree.Digest][]byte{},
		status: Status{
			Fleet: "prod", ID: "cafe", Master: "m1", Version: "v1", Time: epoch,
			Etcd: EtcdStatus{Mode: "embedded", Endpoints: []string{"http://127.0.0.1:2379"}, Error: "slow", Revision: 12},
			Shards: []ShardStatus{{
				Name: "www", FSID: s.FSID, Generation: 41, Head: 42, Root: g.Root, Files: 3, Bytes: 4, Leader: "m1", Epoch: 7, PublishedAt: epoch,
				AgeS: 5, By: "m1", From: g.Source, Note: "n", Copies: 1, MinCopies: 2, Retained: 6, Mounts: 8, Stale: true, Problem: "p",
				Source: SourceStatus{"m1:/srv/www", "paused", "why", true, 9, epoch, epoch, "e", []string{"w"}},
			}},
			Masters: []MasterStatus{{
				Name: "m1", Instance: "i", State: "serving", Self: true, Version: "v1", Addresses: Addresses{"10.0.0.1:2049", "127.0.0.1:7049", "10.0.0.1:7050"},
				StartedAt: epoch, LostSince: epoch, LeaseAgeMS: 10, LeaseTTLMS: 5000, EtcdRole: "voter", Leads: 7, Serves: map[string]uint64{"www": 41},
				Lag: map[string]uint64{"www": 1}, Sources: []string{"www"}, Clients: 10, Slots: 10, Slaves: 9, Readers: 8, Away: 1,
				Store: &StoreStatus{1, 2, 3, 4, 5, 6}, Heard: []SlaveStatus{slave},
			}},
			Slaves:   SlavesStatus{Total: 10000, Heard: 9000, Away: 3, Homeless: 2, Shown: []SlaveStatus{slave}},
			Warnings: []string{"1 copy of 2"},
		},
		shards: []Shard{s, fleet.NewShard("zoo", epoch)}, history: []tree.Generation{g, {Number: 41, PublishedAt: epoch}},
		changes: []Change{
			{Op: "added", Path: "a b", New: &Node{Type: "file", Mode: "0644", UID: 1, GID: 2, Links: 3, Size: 4, Mtime: "x", Ino: 5, Digest: d}},
			{Op: "modified", Path: "odd \xff\n\"name", Old: &Node{Type: "symlink", Target: "t"}, New: &Node{Type: "dir"}},
			{Op: "removed", Path: "gone", Old: &Node{Type: "fifo"}},
		},
		verified: VerifyReport{Objects: 1, Bytes: 2, Bad: []tree.Digest{d}, Missing: []MissingObject{{"www", 42, d}}, Repaired: 1, TookMS: 3},
		made:     TokenMade{Token{"t/1 ?", TokenPublish, []string{"www"}, epoch, epoch, "root", "n"}, "nfp1_x"},
		lost:     RecoverShardReport{"www", 42, 41, epoch, "m2", 43, []string{"w"}},
		found:    RecoverReport{ID: "cafe", Shards: []RecoveredShard{{"www", s.FSID, "raised", 41, 42, 99}}, Warnings: []string{"w"}},
		result:   Published{Generation: g, Shard: "www", Changed: true, Added: 1, Modified: 2, Removed: 3, ServedBy: []string{"m1"}, Warnings: []string{"w"}, TookMS: 4},
	}
}

// serve starts a server for c on loopback and returns a client of it, the server's base URL, and a function that stops
// it and waits.
func serve(t *testing.T, c Control) (*Client, string, func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "nfs_fleet_up"}, func() float64 { return 1 }))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- NewServer(Config{Control: c, Metrics: metrics, Logger: zerolog.New(zerolog.NewTestWriter(t))}).Serve(ctx, l)
	}()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(stop)
	base := "http://" + l.Addr().String()
	client, err := NewClient(base)
	if err != nil {
		t.Fatal(err)
	}
	return client, base, stop
}
