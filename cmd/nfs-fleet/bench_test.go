package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// bench is a master behind HTTP that answers what a test sets, and a command line before it.
type bench struct {
	console.Control // what a test does not set fails it, by a nil call

	mu      sync.Mutex // guards what follows
	asked   []string
	fail    error
	objects *tree.Memory
	root    tree.Digest // of the last publish
	puts    int

	status  console.Status
	changes []console.Change
	history []tree.Generation
	result  console.Published
	tokens  []console.Token
	moves   []console.SlaveMove
	report  console.VerifyReport
	found   console.RecoverReport
	during  func(ctx context.Context, progress func(console.Progress)) error

	url string
}

func (b *bench) ask(format string, args ...any) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked = append(b.asked, fmt.Sprintf(format, args...))
	return b.fail
}

func (b *bench) last() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.asked) == 0 {
		return ""
	}
	return b.asked[len(b.asked)-1]
}

func (b *bench) Status(context.Context) (console.Status, error) { return b.status, b.ask("status") }

func (b *bench) Shards(context.Context) ([]console.Shard, error) {
	zoo := fleet.NewShard("zoo", now)
	zoo.FSID, zoo.Insecure, zoo.Squash, zoo.Strict, zoo.Paused, zoo.MinCopies = 0xbeef, true, fleet.SquashAll, true, true, 1
	zoo.Networks = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	zoo.Keep = fleet.Keep{Generations: 100, For: fleet.Duration(90 * time.Minute)}
	www := fleet.NewShard("www", now)
	www.FSID = 0xfedcba9876543210
	return []console.Shard{www, zoo}, b.ask("shards")
}

func (b *bench) CreateShard(_ context.Context, s console.Shard) (console.Shard, error) {
	err := b.ask("create %s networks %v copies %d", s.Name, s.Networks, s.MinCopies)
	s.FSID = 7
	return s, err
}

func (b *bench) SetShard(_ context.Context, name string, p console.ShardPatch) (console.Shard, error) {
	s := p.Apply(fleet.NewShard(name, now))
	return s, b.ask("set %s %+v", name, s)
}

func (b *bench) DeleteShard(_ context.Context, name string) error { return b.ask("delete %s", name) }

func (b *bench) run(ctx context.Context, progress func(console.Progress), format string, args ...any) error {
	if err := b.ask(format, args...); err != nil || b.during == nil {
		return err
	}
	return b.during(ctx, progress)
}

func (b *bench) Publish(ctx context.Context, shard string, r console.PublishRequest, progress func(console.Progress)) (console.Published, error) {
	b.mu.Lock()
	b.root = r.Root
	b.mu.Unlock()
	return b.result, b.run(ctx, progress, "publish %s note=%q wait=%t root=%t upload=%q origin=%t", shard, r.Note, r.Wait, !r.Root.IsZero(), r.Upload, strings.Contains(r.Origin, ":/"))
}

func (b *bench) Rollback(ctx context.Context, shard string, r console.RollbackRequest, progress func(console.Progress)) (console.Published, error) {
	p := b.result
	p.Source = "rollback:41"
	return p, b.run(ctx, progress, "rollback %s %d note=%q wait=%t", shard, r.Generation, r.Note, r.Wait)
}

func (b *bench) History(_ context.Context, shard string) ([]tree.Generation, error) {
	return b.history, b.ask("history %s", shard)
}

func (b *bench) Diff(_ context.Context, shard string, x, y uint64, fn func(console.Change) error) error {
	if err := b.ask("diff %s %d %d", shard, x, y); err != nil {
		return err
	}
	for _, c := range b.changes {
		if err := fn(c); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) Source(_ context.Context, shard string, a console.SourceAction) error {
	return b.ask("source %s %s", a, shard)
}

func (b *bench) Verify(ctx context.Context, r console.VerifyRequest, progress func(console.Progress)) (console.VerifyReport, error) {
	return b.report, b.run(ctx, progress, "verify %q repair=%t", r.Shard, r.Repair)
}

func (b *bench) Recover(_ context.Context, r console.RecoverRequest) (console.RecoverReport, error) {
	return b.found, b.ask("recover dry=%t", r.DryRun)
}

func (b *bench) Lead(_ context.Context, shard, master string) error {
	return b.ask("lead %s %s", shard, master)
}

func (b *bench) RecoverShard(_ context.Context, shard string, r console.RecoverShardRequest) (console.RecoverShardReport, error) {
	rep := console.RecoverShardReport{Shard: shard, Was: 42, Tree: 41, PublishedAt: now.Add(-26 * time.Hour), Master: "m2"}
	if r.AcceptLoss {
		rep.Generation = 43
	}
	if shard == "zoo" {
		rep = console.RecoverShardReport{Shard: shard, Was: 7, Warnings: []string{"m3 does not answer"}}
	}
	return rep, b.ask("recover shard %s accept=%t", shard, r.AcceptLoss)
}

func (b *bench) Masters(context.Context) ([]console.MasterStatus, error) {
	return b.status.Masters, b.ask("masters")
}

func (b *bench) Drain(_ context.Context, master string, r console.DrainRequest) error {
	return b.ask("drain %s force=%t", master, r.Force)
}

func (b *bench) Undrain(_ context.Context, master string) error { return b.ask("undrain %s", master) }

func (b *bench) RemoveMaster(_ context.Context, master string) error {
	return b.ask("remove %s", master)
}

func (b *bench) Slaves(context.Context) ([]console.SlaveStatus, error) {
	return b.status.Slaves.Shown, b.ask("slaves")
}

func (b *bench) HeardSlaves(context.Context) ([]console.SlaveStatus, error) {
	return b.status.Slaves.Shown[:1], b.ask("heard slaves")
}

func (b *bench) Slave(_ context.Context, name string) (console.SlaveStatus, error) {
	for _, s := range b.status.Slaves.Shown {
		if s.Name == name {
			return s, b.ask("slave %s", name)
		}
	}
	return console.SlaveStatus{}, console.Errorf(console.ErrNotFound, "no slave %q", name)
}

func (b *bench) MoveSlave(_ context.Context, name, master string) error {
	return b.ask("move slave %s to %s", name, master)
}

func (b *bench) ForgetSlave(_ context.Context, name string) error {
	return b.ask("forget slave %s", name)
}

func (b *bench) Rebalance(_ context.Context, r console.RebalanceRequest) ([]console.SlaveMove, error) {
	return b.moves, b.ask("rebalance dry=%t", r.DryRun)
}

func (b *bench) CreateToken(_ context.Context, r console.TokenRequest) (console.TokenMade, error) {
	prefix := map[console.TokenKind]string{console.TokenJoin: "nfj1_", console.TokenPublish: "nfp1_"}
	t := console.Token{ID: "k3v9x2ab", Kind: r.Kind, Shards: r.Shards, CreatedAt: now, ExpiresAt: now.Add(time.Duration(r.TTL)), By: "root@m1", Note: r.Note}
	return console.TokenMade{Token: t, Text: prefix[r.Kind] + "secret"}, b.ask("token for %s %v ttl=%s note=%q", r.Kind, r.Shards, time.Duration(r.TTL), r.Note)
}

func (b *bench) Tokens(context.Context) ([]console.Token, error) { return b.tokens, b.ask("tokens") }

func (b *bench) RevokeToken(_ context.Context, id string) error { return b.ask("revoke %s", id) }

func (b *bench) BeginUpload(_ context.Context, shard string) (string, error) {
	return "u1", b.ask("begin %s", shard)
}

func (b *bench) EndUpload(_ context.Context, shard, id string) error {
	return b.ask("end %s %s", shard, id)
}

func (b *bench) Missing(_ context.Context, _, _ string, want []tree.Digest) ([]tree.Digest, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(want), b.objects.Has), nil
}

func (b *bench) PutObjects(ctx context.Context, _, _ string, r io.Reader) error {
	for object, err := range console.DecodeObjects(r) {
		if err != nil {
			return err
		}
		b.mu.Lock()
		b.puts++
		b.mu.Unlock()
		if _, err := b.objects.Put(ctx, object); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) Healthy() error { return nil }
func (b *bench) Ready() error   { return nil }

func newBench(t *testing.T) *bench {
	t.Helper()
	root := tree.Sum([]byte("root"))
	g := tree.Generation{
		Number: 42, Root: root, Files: 12803, Bytes: 412 << 20, NextIno: 99, PublishedAt: now.Add(-5 * time.Minute), By: "m1", Epoch: 7,
		Source: "m1:/srv/www", Copies: 1, Note: "the new\nfront page",
	}
	older := g
	g.Caller = "root@web1 token k3v9x2ab from 10.0.0.9"
	older.Number, older.Files, older.PublishedAt, older.Note, older.Source = 41, 12801, now.Add(-26*time.Hour), "", "upload:h:/a\x1b[31m b"
	b := &bench{
		objects: tree.NewMemory(), history: []tree.Generation{g, older},
		result: console.Published{Generation: g, Shard: "www", Changed: true, Added: 3, Modified: 1, TookMS: 1234, ServedBy: []string{"m1", "m2"}},
		tokens: []console.Token{
			{ID: "k3v9x2ab", Kind: console.TokenPublish, Shards: []string{"docs", "www"}, CreatedAt: now.Add(-time.Hour), ExpiresAt: now.Add(47 * time.Hour), By: "root@m1", Note: "ci\x1b[2J"},
			{ID: "aaaaaaaa", Kind: console.TokenJoin, CreatedAt: now.Add(-2 * time.Hour), ExpiresAt: now.Add(-time.Hour), By: "root@m2"},
		},
		moves:  []console.SlaveMove{{Slave: "web17", From: "m1", To: "m2"}, {Slave: "web19", From: "m1", To: "m3"}},
		report: console.VerifyReport{Objects: 15000, Bytes: 412 << 20, TookMS: 2100},
		found:  console.RecoverReport{ID: "cafe", Shards: []console.RecoveredShard{{Name: "www", FSID: 7, Action: "created", Generation: 42}}},
		changes: []console.Change{
			{Op: "added", Path: "new dir", New: &console.Node{Type: "dir"}},
			{Op: "removed", Path: "old\nname\xff", Old: &console.Node{Type: "file"}},
			{Op: "modified", Path: "a/b.html", Old: &console.Node{Type: "file", Mode: "0644", Size: 1 << 20}, New: &console.Node{Type: "file", Mode: "0600", Size: 3 << 20, Mtime: "x", UID: 5}},
			{Op: "modified", Path: "x", Old: &console.Node{Type: "symlink", Target: "a", Links: 1}, New: &console.Node{Type: "symlink", Target: "\u202eb", Links: 2}},
			{Op: "modified", Path: "same size", Old: &console.Node{Type: "file", Digest: root}, New: &console.Node{Type: "file"}},
			{Op: "modified", Path: "kind", Old: &console.Node{Type: "file"}, New: &console.Node{Type: "fifo"}},
		},
		status: console.Status{
			Fleet: "prod", ID: "cafe", Master: "m1", Version: "v1.2", Time: now,
			Etcd: console.EtcdStatus{Mode: "embedded", Healthy: true},
			Shards: []console.ShardStatus{
				{Name: "empty", MinCopies: 2, Source: console.SourceStatus{State: "none"}},
				{
					Name: "www", Generation: 41, Head: 42, Files: 12803, Bytes: 412 << 20, Leader: "m1", Epoch: 1234, PublishedAt: now.Add(-5 * time.Minute), Copies: 1,
					MinCopies: 2, Mounts: 3, Stale: true, Problem: "object abc is missing",
					Source: console.SourceStatus{State: "paused", Reason: "rolled back to generation 41; `source resume` goes on"},
				},
			},
			Masters: []console.MasterStatus{
				{
					Name: "m1", Instance: "5f1c", State: "serving", Self: true, Version: "v1.2", Addresses: console.Addresses{NFS: "10.0.0.1:2049", Peer: "10.0.0.1:7050"},
					StartedAt: now.Add(-50 * time.Hour), LeaseAgeMS: 840, LeaseTTLMS: 5000, EtcdRole: "leader", Leads: 1, Serves: map[string]uint64{"www": 41},
					Lag: map[string]uint64{"www": 1}, Sources: []string{"www"}, Clients: 10, Slots: 10, Slaves: 1, Readers: 2, Away: 1, Store: &console.StoreStatus{Disk: 500 << 20, Free: 80 << 30},
				},
				{
					Name: "m2", State: "draining", Version: "v1.1", Addresses: console.Addresses{NFS: "10.0.0.2:2049", Peer: "10.0.0.2:7050"},
					StartedAt: now.Add(-time.Minute), LeaseAgeMS: -1, EtcdRole: "voter", Serves: map[string]uint64{"www": 42},
				},
				{
					Name: "m3", State: "lost", Addresses: console.Addresses{NFS: "10.0.0.3:2049"}, LostSince: now.Add(-4 * time.Hour), LeaseAgeMS: -1,
					Lag: map[string]uint64{"www": 2}, Serves: map[string]uint64{"www": 40},
				},
			},
			Slaves: console.SlavesStatus{Total: 3, Heard: 2, Away: 1, Shown: []console.SlaveStatus{
				{
					Name: "db1", Master: "m2", Since: now.Add(-3 * time.Hour), Mode: "mount", Address: netip.MustParseAddr("10.0.0.77"),
					EnrolledAt: now.Add(-72 * time.Hour), SeenAt: now.Add(-26 * time.Hour),
				},
				{
					Name: "web17", Master: "m1", Reads: "m1", Fallbacks: []string{"m2", "m3"}, Since: now.Add(-50 * time.Hour), Mode: "relay",
					Address: netip.MustParseAddr("10.0.0.17"), Instance: "b2c4", Version: "v1.2", EnrolledAt: now.Add(-72 * time.Hour), SeenAt: now,
					Mounts: []console.SlaveMount{{Name: "_nfs._tcp.web17.slaves.prod.example", Shard: "www", Dir: "/srv/www"}}, MoreMounts: 2,
					Last: &console.SlaveReattach{At: now.Add(-4 * time.Hour), TookMS: 19, From: "m3", To: "m1", Why: "connection closed\x1b[2J"},
				},
				{
					Name: "web18", Master: "m2", Reads: "m1", Since: now.Add(-time.Minute), Mode: "direct", Address: netip.MustParseAddr("10.0.0.18"), SeenAt: now,
					Last: &console.SlaveReattach{At: now.Add(-20 * time.Second), TookMS: 1310, From: "m2", To: "m1", Why: "no answer"},
				},
			}},
			Warnings: []string{"www: 1 copy of 2", "www: object abc is missing on m1"},
		},
	}
	b.url = serveBench(t, b)
	return b
}

// serveBench serves a Control over plain HTTP and returns its URL.
func serveBench(t *testing.T, c console.Control) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- console.NewServer(console.Config{Control: c, Logger: zerolog.Nop()}).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return "http://" + l.Addr().String()
}
