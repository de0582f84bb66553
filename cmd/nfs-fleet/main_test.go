package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/fleet/console"
	"github.com/nfs-fleet/nfs-fleet/fleet/master"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the transcripts under testdata")

var now = time.Date(2026, 11, 21, 4, 0, 0, 0, time.UTC)

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
		"token": {
			"token create --join", "token create --shard www,docs --ttl 48h --note ci", "token create --shard www -o json", "token create", "token create --join --shard www",
			"token create --shard www extra", "token list", "token list -o json", "token revoke k3v9x2ab", "token revoke k3v9x2ab -o json",
		},
		"master": {
			"master list", "master drain m2", "master drain m2 --force", "master undrain m2", "master remove m2", "master remove m2 --yes", "master drain m2 -o json", "master drain M2",
		},
		"slave": {
			"slave list", "slave show web17", "slave show db1", "slave show no", "slave show web18 -o json", "slave move web17 m2", "slave move web17 m2 -o json",
			"slave move Web17 m2", "slave move web17 M2", "slave forget web17", "slave forget web17 -o json", "rebalance --dry-run", "rebalance", "rebalance -o json",
		},
		"lead": {
			"shard lead www m2", "shard lead www m2 -o json", "shard recover www", "shard recover www --accept-loss", "shard recover www -o json",
			"shard recover zoo --accept-loss",
		},
		"recover": {"recover", "recover --dry-run", "recover -o json"},
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
		{console.Errorf(console.ErrUnauthorized, "the token expired"), "publish www", 1, "nfs-fleet: the token expired\n"},
		{console.Errorf(console.ErrConflict, "m2 is not in step"), "shard lead www m2", 1, "not in step"},
		{console.Errorf(console.ErrConflict, "master m2 is drained"), "slave move web17 m2", 1, "is drained"},
		{console.Errorf(console.ErrNotFound, "no slave"), "slave forget web17", 3, "no slave"},
		{console.Errorf(console.ErrNoQuorum, "etcd has no quorum"), "rebalance", 4, "no quorum"},
		{nil, "slave", 2, "name what to do; see `nfs-fleet slave --help`"},
		{nil, "slave move web17", 2, "see `nfs-fleet slave move --help`"},
		{nil, "slave move a/b m2", 2, "lower-case"},
		{nil, "rebalance now", 2, "unknown command"},
		{nil, "shard lead www", 2, "see `nfs-fleet shard lead --help`"},
		{nil, "master", 2, "name what to do; see `nfs-fleet master --help`"},
		{nil, "token", 2, "name what to do"},
		{nil, "token create --shard www --ttl 1ms", 2, "use 1s to"},
		{nil, "publish www --token x", 2, "--token: not a token of nfs-fleet"},
		{nil, "publish www --token x --token-file y", 1, "give one"},
		{nil, "publish www --token-file /nonexistent", 2, "/nonexistent"},
		{nil, "publish www --token-file /dev/null", 2, "is empty"},
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
		{nil, "doctor nosuch", 2, "is no SRV name of NFS"},
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
	if s.code != 0 || s.out != "www: nothing to publish, generation 42 is up to date\nIt is served by m1, m2.\n" || s.err != "warning: a\\x1b[2J changes; all the time\n" {
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

// A fleet of many slaves is summed up, and those that want attention are shown.
func TestManySlaves(t *testing.T) {
	b := newBench(t)
	b.status.Slaves.Total, b.status.Slaves.Heard, b.status.Slaves.Shown = 10000, 9998, b.status.Slaves.Shown[2:]
	s := b.command(t, "status")
	if !strings.Contains(s.out, "10,000 slaves, 9,998 heard of now, 1 away from home, 0 without a home: `nfs-fleet slave list` shows all\n") ||
		!strings.Contains(s.out, "web18  m1 (away)") || strings.Contains(s.out, "web17") {
		t.Error(s.out)
	}
}

func TestNamesAreCompleted(t *testing.T) {
	b := newBench(t)
	for line, want := range map[string]string{
		"slave show ": "db1\nweb17\nweb18\n:4\n", "slave move web17 ": "m1\n:4\n", "slave forget web17 ": ":4\n",
	} {
		s := b.command(t, append([]string{"__complete"}, strings.Split(line, " ")...)...)
		if s.out != want {
			t.Errorf("%q is completed by %q, want %q", line, s.out, want)
		}
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
