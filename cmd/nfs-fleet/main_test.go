package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
	"github.com/nfs-fleet/nfs-fleet/fleet/master"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the transcripts under testdata")

var now = time.Date(2026, 11, 21, 4, 0, 0, 0, time.UTC)

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
	older.Number, older.Files, older.PublishedAt, older.Note, older.Source = 41, 12801, now.Add(-26*time.Hour), "", "upload:h:/a\x1b[31m b"
	b := &bench{
		objects: tree.NewMemory(), history: []tree.Generation{g, older},
		result: console.Published{Generation: g, Shard: "www", Changed: true, Added: 3, Modified: 1, TookMS: 1234},
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
					Name: "www", Generation: 41, Head: 42, Files: 12803, Bytes: 412 << 20, Leader: "m1", PublishedAt: now.Add(-5 * time.Minute), Copies: 1,
					MinCopies: 2, Mounts: 3, Stale: true, Problem: "object abc is missing",
					Source: console.SourceStatus{State: "paused", Reason: "rolled back to generation 41; `source resume` goes on"},
				},
			},
			Masters: []console.MasterStatus{
				{
					Name: "m1", State: "serving", Self: true, Version: "v1.2", Addresses: console.Addresses{NFS: "10.0.0.1:2049"}, StartedAt: now.Add(-50 * time.Hour),
					Clients: 10, Store: &console.StoreStatus{Disk: 500 << 20, Free: 80 << 30},
				},
				{Name: "m2", State: "draining", Version: "v1.1", Addresses: console.Addresses{NFS: "10.0.0.2:2049"}, StartedAt: now.Add(-time.Minute)},
			},
			Warnings: []string{"www: 1 copy of 2", "www: object abc is missing on m1"},
		},
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- console.NewServer(console.Config{Control: b, Logger: zerolog.Nop()}).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	b.url = "http://" + l.Addr().String()
	return b
}

// spoken is what one command line has said.
type spoken struct {
	code     int
	out, err string
}

// command runs one command line against the bench.
func (b *bench) command(t *testing.T, args ...string) spoken {
	t.Helper()
	return speak(t, &app{}, append([]string{"--server", b.url}, args...)...)
}

func speak(t *testing.T, a *app, args ...string) spoken {
	t.Helper()
	var out, errOut bytes.Buffer
	a.in, a.out, a.err, a.now = strings.NewReader(""), &out, &errOut, func() time.Time { return now }
	if a.terminal == nil {
		a.terminal = func(any) bool { return false }
	}
	code := a.run(t.Context(), args)
	return spoken{code, out.String(), errOut.String()}
}

// transcript compares got with a file of testdata, or rewrites it.
func transcript(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (make it with: go test ./cmd/nfs-fleet -rewrite)", err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test ./cmd/nfs-fleet -rewrite, when it should)\ngot:\n%s\nwant:\n%s", path, got, want)
	}
}

// Every command that asks a master, for people and for programs, as an operator sees it.
func TestTranscripts(t *testing.T) {
	for name, lines := range map[string][]string{
		"status":   {"status", "status -o json"},
		"history":  {"history www", "history www -o json"},
		"diff":     {"diff www", "diff www 3", "diff www 3 7 -o json"},
		"publish":  {"publish www", "publish www --note n --wait -o json"},
		"rollback": {"rollback www", "rollback www 41 --note n --wait", "rollback www 41 -o json"},
		"source":   {"source pause www", "source resume www", "source rescan www -o json"},
		"verify":   {"verify", "verify www --repair", "verify -o json"},
		"recover":  {"recover", "recover --dry-run", "recover -o json"},
		"shard": {
			"shard list", "shard show zoo", "shard create new --network 10.1.2.3,fd00::/8 --min-copies 1", "shard set www --squash root --keep-for 48h --network=",
			"shard delete www", "shard delete www --yes", "shard delete www --yes -o json", "shard show www -o json",
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			var all strings.Builder
			for _, l := range lines {
				s := b.command(t, strings.Fields(l)...)
				fmt.Fprintf(&all, "$ nfs-fleet %s\n%s", l, s.out)
				if s.err != "" {
					fmt.Fprintf(&all, "stderr: %s", s.err)
				}
				fmt.Fprintf(&all, "# exit %d; the master was asked: %s\n\n", s.code, b.last())
			}
			transcript(t, name, all.String())
		})
	}
}

// What is wrong is said in one line, with what to do, and in the exit code.
func TestExitCodes(t *testing.T) {
	b := newBench(t)
	for _, tc := range []struct {
		fail error
		line string
		code int
		says string
	}{
		{nil, "status", 0, ""},
		{errors.New("disk on fire"), "publish www", 1, "nfs-fleet: disk on fire\n"},
		{console.Errorf(console.ErrConflict, "shard www exists already"), "shard create www", 1, "exists already"},
		{console.Errorf(console.ErrUnavailable, "draining"), "publish www", 1, "draining"},
		{console.Errorf(console.ErrForbidden, "no"), "publish www", 1, "no"},
		{console.Errorf(console.ErrInvalid, "bad squash"), "shard set www --strict", 2, "bad squash"},
		{console.Errorf(console.ErrNotFound, "no shard www"), "history www", 3, "no shard www"},
		{nil, "shard show none", 3, "no shard \"none\""},
		{console.Errorf(console.ErrNoLeader, "nobody leads www"), "publish www", 4, "nobody leads www"},
		{console.Errorf(console.ErrNoQuorum, "etcd has no quorum"), "rollback www", 4, "no quorum"},
		{nil, "nonsense", 2, "see `nfs-fleet --help`"},
		{nil, "publish", 2, "see `nfs-fleet publish --help`"},
		{nil, "publish www /a /b", 2, "publish --help"},
		{nil, "publish WWW", 2, "lower-case"},
		{nil, "publish www --nope", 2, "unknown flag: --nope"},
		{nil, "publish www /nonexistent/dir", 3, "/nonexistent/dir"},
		{nil, "status extra", 2, "unknown command \"extra\""},
		{nil, "status -o yaml", 2, "use table or json"},
		{nil, "rollback www 0", 2, "no generation's number"},
		{nil, "rollback www x", 2, "nfs-fleet history SHARD"},
		{nil, "diff www 1 -1", 2, "unknown shorthand flag"},
		{nil, "shard", 2, "name what to do; see `nfs-fleet shard --help`"},
		{nil, "shard explode", 2, "explode"},
		{nil, "source", 2, "name what to do"},
		{nil, "shard set www", 2, "nothing to set"},
		{nil, "shard set www --squash some", 2, "use none, root or all"},
		{nil, "shard set www --network 10.0.0.0/99", 2, "--network"},
		{nil, "shard create Up", 2, "lower-case"},
		{nil, "status --server ftp://x", 2, "give a URL as in http://127.0.0.1:7049"},
		{nil, "status --server http://127.0.0.1:1", 1, "no master answers at http://127.0.0.1:1 (connection refused): is `nfs-fleet serve` running? or set --server"},
		{nil, "serve --lease-ttl 1s", 2, "use 2s or more; see `nfs-fleet serve --help`"},
		{nil, "serve --lease-ttl soon", 2, "invalid duration"},
		{nil, "serve --source www", 2, "SHARD=DIR"},
		{nil, "serve --config /nonexistent.yaml", 2, "/nonexistent.yaml"},
		{nil, "version", 0, ""},
		{nil, "", 0, ""},
		{nil, "--help", 0, ""},
		{nil, "completion bash", 0, ""},
	} {
		b.mu.Lock()
		b.fail = tc.fail
		b.mu.Unlock()
		s := b.command(t, strings.Fields(tc.line)...)
		if s.code != tc.code || !strings.Contains(s.err, tc.says) || (tc.code != 0) != (s.err != "") {
			t.Errorf("%q: exit %d, stderr %q; want %d and %q", tc.line, s.code, s.err, tc.code, tc.says)
		}
		if strings.Count(s.err, "\n") > 1 || tc.code != 0 && !strings.HasPrefix(s.err, "nfs-fleet: ") {
			t.Errorf("%q: not one line: %q", tc.line, s.err)
		}
	}
}

func TestVerifyFailsOnDamage(t *testing.T) {
	b := newBench(t)
	d := tree.Sum([]byte("x"))
	b.report.Bad, b.report.Missing = []tree.Digest{d}, []console.MissingObject{{Shard: "www", Generation: 41, Digest: d}}
	s := b.command(t, "verify")
	if s.code != 1 || !strings.Contains(s.err, "1 object damaged, 1 missing, 0 repaired: run `nfs-fleet verify --repair`") ||
		!strings.Contains(s.out, d.String()+"  damaged") || !strings.Contains(s.out, "missing  www    41") {
		t.Errorf("%+v", s)
	}
	b.report.Missing, b.report.Repaired = nil, 1
	if s := b.command(t, "verify", "--repair"); s.code != 0 || !strings.Contains(s.out, "1 object repaired, everything is whole now") {
		t.Errorf("repaired: %+v", s)
	}
}

func TestNothingToPublish(t *testing.T) {
	b := newBench(t)
	b.result.Changed, b.result.Warnings = false, []string{"a\x1b[2J changes\nall the time"}
	s := b.command(t, "publish", "www")
	if s.code != 0 || s.out != "www: nothing to publish, generation 42 is up to date\n" || s.err != "warning: a\\x1b[2J changes; all the time\n" {
		t.Errorf("%+v", s)
	}
	if s := b.command(t, "rollback", "www"); !strings.Contains(s.out, "has that tree already") {
		t.Errorf("%+v", s)
	}
}

func TestServerFromEnvironment(t *testing.T) {
	b := newBench(t)
	t.Setenv("NFS_FLEET_SERVER", b.url)
	if s := speak(t, &app{}, "status"); s.code != 0 || !strings.Contains(s.out, "www") {
		t.Errorf("%+v", s)
	}
}

// A delete on a terminal asks for the shard's name; elsewhere it wants --yes.
func TestDeleteAsks(t *testing.T) {
	for _, tc := range []struct {
		typed    string
		terminal bool
		args     []string
		want     int
	}{
		{"www\n", true, nil, 0}, {"yes\n", true, nil, 1}, {"", true, nil, 1}, {"", true, []string{"--yes"}, 0}, {"", false, nil, 2}, {"", false, []string{"--yes"}, 0},
	} {
		b := newBench(t)
		var out, errOut bytes.Buffer
		a := &app{in: strings.NewReader(tc.typed), out: &out, err: &errOut, now: time.Now, terminal: func(any) bool { return tc.terminal }}
		code := a.run(t.Context(), append([]string{"--server", b.url, "shard", "delete", "www"}, tc.args...))
		if deleted := b.last() == "delete www"; code != tc.want || deleted != (code == 0) {
			t.Errorf("%+v: exit %d, deleted %t, said %q", tc, code, deleted, errOut.String())
		}
	}
}

// status --watch goes on past a master that does not answer, and ends without an error when interrupted.
func TestStatusWatch(t *testing.T) {
	b := newBench(t)
	for _, output := range []string{"table", "json"} {
		ctx, cancel := context.WithCancel(t.Context())
		pages := 0
		w := writerFunc(func(p []byte) {
			if strings.Contains(string(p), "www") {
				pages++
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			switch {
			case pages >= 3:
				cancel()
			case b.fail == nil && pages == 1:
				b.fail = errors.New("away")
			default:
				b.fail = nil
			}
		})
		a := &app{in: strings.NewReader(""), out: w, err: io.Discard, now: time.Now, terminal: func(any) bool { return false }}
		if code := a.run(ctx, []string{"--server", b.url, "status", "-o", output, "--watch", "--interval", "100ms"}); code != 0 || pages < 3 {
			t.Errorf("%s: exit %d after %d pages", output, code, pages)
		}
		cancel()
	}
}

type writerFunc func(p []byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

// An interrupted publish says what becomes of it.
func TestInterruptedPublish(t *testing.T) {
	b := newBench(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	b.during = func(ctx context.Context, progress func(console.Progress)) error {
		progress(console.Progress{Step: "scan"})
		cancel(errInterrupted)
		<-ctx.Done() // until the server stops
		return ctx.Err()
	}
	var errOut bytes.Buffer
	a := &app{out: io.Discard, err: &errOut, now: time.Now, terminal: func(any) bool { return false }}
	if code := a.run(ctx, []string{"--server", b.url, "publish", "www"}); code != 1 || !strings.Contains(errOut.String(), "interrupted; the publish goes on at the master") {
		t.Errorf("exit %d, %q", code, errOut.String())
	}
}

func runMaster(got *master.Config, err error) func(context.Context, master.Config, string, zerolog.Logger) error {
	return func(_ context.Context, c master.Config, _ string, _ zerolog.Logger) error { *got = c; return err }
}
