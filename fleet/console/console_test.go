package console

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// exchange is one method: how to call it, what the fake behind the server must have been asked, and what must come back.
type exchange struct {
	name  string
	call  func(ctx context.Context, c Control) (any, error)
	asked string
	want  func(f *fake) any
}

func exchanges() []exchange {
	root := tree.Sum([]byte("root"))
	publish := PublishRequest{Note: "why", Wait: true, Root: root, Upload: "u1", Origin: "host:/dir"}
	rollback := RollbackRequest{Generation: 3, Note: "back", Wait: true}
	squash, forever := fleet.SquashAll, fleet.Duration(time.Hour)
	networks, n, yes, uid := []netip.Prefix{netip.MustParsePrefix("fd00::/8")}, 4, true, uint32(9)
	patch := ShardPatch{&networks, &squash, &uid, &uid, &yes, &n, &yes, &n, &forever}
	ok := func(err error) (any, error) { return nil, err }
	nothing := func(*fake) any { return nil }
	return []exchange{
		{"Status", func(ctx context.Context, c Control) (any, error) { return c.Status(ctx) }, "status", func(f *fake) any { return f.status }},
		{"Shards", func(ctx context.Context, c Control) (any, error) { return c.Shards(ctx) }, "shards", func(f *fake) any { return f.shards }},
		{"CreateShard", func(ctx context.Context, c Control) (any, error) {
			return c.CreateShard(ctx, fleet.NewShard("new", epoch))
		}, "create new",
			func(*fake) any { s := fleet.NewShard("new", epoch); s.FSID = 7; return s }},
		{"SetShard", func(ctx context.Context, c Control) (any, error) { return c.SetShard(ctx, "www", patch) }, "set www",
			func(*fake) any { return patch.Apply(fleet.NewShard("www", epoch)) }},
		{"DeleteShard", func(ctx context.Context, c Control) (any, error) { return ok(c.DeleteShard(ctx, "www")) }, "delete www", nothing},
		{"Publish", func(ctx context.Context, c Control) (any, error) { return c.Publish(ctx, "www", publish, nil) },
			"publish www {Note:why Wait:true Root:" + root.String() + " Upload:u1 Origin:host:/dir Caller:local}", func(f *fake) any { return f.result }},
		{"Rollback", func(ctx context.Context, c Control) (any, error) { return c.Rollback(ctx, "www", rollback, nil) },
			"rollback www {Generation:3 Note:back Wait:true Caller:local}", func(f *fake) any { return f.result }},
		{"History", func(ctx context.Context, c Control) (any, error) { return c.History(ctx, "www") }, "history www", func(f *fake) any { return f.history }},
		{"Diff", func(ctx context.Context, c Control) (any, error) {
			var all []Change
			err := c.Diff(ctx, "www", 3, 18446744073709551615, func(c Change) error { all = append(all, c); return nil })
			return all, err
		}, "diff www 3 18446744073709551615", func(f *fake) any { return f.changes }},
		{"Source", func(ctx context.Context, c Control) (any, error) { return ok(c.Source(ctx, "www", SourceRescan)) }, "source www rescan", nothing},
		{"Verify", func(ctx context.Context, c Control) (any, error) {
			return c.Verify(ctx, VerifyRequest{"www", true}, nil)
		},
			"verify {Shard:www Repair:true}", func(f *fake) any { return f.verified }},
		{"Recover", func(ctx context.Context, c Control) (any, error) { return c.Recover(ctx, RecoverRequest{DryRun: true}) },
			"recover {DryRun:true LostQuorum:false}", func(f *fake) any { return f.found }},
		{"Lead", func(ctx context.Context, c Control) (any, error) { return ok(c.Lead(ctx, "www", "m2")) }, "lead www m2", nothing},
		{"RecoverShard", func(ctx context.Context, c Control) (any, error) {
			return c.RecoverShard(ctx, "www", RecoverShardRequest{true})
		}, "recover shard www {AcceptLoss:true}", func(f *fake) any { return f.lost }},
		{"Masters", func(ctx context.Context, c Control) (any, error) { return c.Masters(ctx) }, "masters", func(f *fake) any { return f.status.Masters }},
		{"Self", func(ctx context.Context, c Control) (any, error) { return c.Self(ctx) }, "self", func(f *fake) any { return f.status.Masters[0] }},
		{"Drain", func(ctx context.Context, c Control) (any, error) { return ok(c.Drain(ctx, "m2", DrainRequest{true})) }, "drain m2 {Force:true}", nothing},
		{"Undrain", func(ctx context.Context, c Control) (any, error) { return ok(c.Undrain(ctx, "m2")) }, "undrain m2", nothing},
		{"RemoveMaster", func(ctx context.Context, c Control) (any, error) { return ok(c.RemoveMaster(ctx, "m2")) }, "remove m2", nothing},
		{"Slaves", func(ctx context.Context, c Control) (any, error) { return c.Slaves(ctx) }, "slaves", func(f *fake) any { return f.status.Slaves.Shown }},
		{"HeardSlaves", func(ctx context.Context, c Control) (any, error) { return c.HeardSlaves(ctx) }, "heard slaves", func(f *fake) any { return f.status.Slaves.Shown }},
		{"Slave", func(ctx context.Context, c Control) (any, error) { return c.Slave(ctx, "web17.prod") }, "slave web17.prod", func(f *fake) any { return f.status.Slaves.Shown[0] }},
		{"MoveSlave", func(ctx context.Context, c Control) (any, error) { return ok(c.MoveSlave(ctx, "web17", "m2")) }, "move slave web17 to m2", nothing},
		{"ForgetSlave", func(ctx context.Context, c Control) (any, error) { return ok(c.ForgetSlave(ctx, "web17")) }, "forget slave web17", nothing},
		{"Rebalance", func(ctx context.Context, c Control) (any, error) {
			return c.Rebalance(ctx, RebalanceRequest{DryRun: true})
		}, "rebalance {DryRun:true}", func(*fake) any { return []SlaveMove{{"web17", "m1", "m2"}} }},
		{"CreateToken", func(ctx context.Context, c Control) (any, error) {
			return c.CreateToken(ctx, TokenRequest{TokenPublish, []string{"www"}, forever, "n"})
		}, "token {Kind:publish Shards:[www] TTL:3600000000000 Note:n}", func(f *fake) any { return f.made }},
		{"Tokens", func(ctx context.Context, c Control) (any, error) { return c.Tokens(ctx) }, "tokens", func(f *fake) any { return []Token{f.made.Token} }},
		{"RevokeToken", func(ctx context.Context, c Control) (any, error) { return ok(c.RevokeToken(ctx, "t/1 ?")) }, "revoke t/1 ?", nothing},
		{"BeginUpload", func(ctx context.Context, c Control) (any, error) { return c.BeginUpload(ctx, "www") }, "begin www", func(*fake) any { return "u/1 ?" }},
		{"Missing", func(ctx context.Context, c Control) (any, error) {
			return c.Missing(ctx, "www", "u/1 ?", []tree.Digest{root})
		}, "missing www u/1 ?", func(*fake) any { return []tree.Digest{root} }},
		{"PutObjects", func(ctx context.Context, c Control) (any, error) {
			return ok(c.PutObjects(ctx, "www", "u/1 ?", objectStream("one", "two")))
		}, "put www u/1 ?", nothing},
		{"EndUpload", func(ctx context.Context, c Control) (any, error) { return ok(c.EndUpload(ctx, "www", "u/1 ?")) }, "end www u/1 ?", nothing},
		{"Healthy", func(_ context.Context, c Control) (any, error) { return ok(c.Healthy()) }, "healthy", nothing},
		{"Ready", func(_ context.Context, c Control) (any, error) { return ok(c.Ready()) }, "ready", nothing},
	}
}

func objectStream(objects ...string) *bytes.Buffer {
	var b bytes.Buffer
	for _, o := range objects {
		if _, err := EncodeObject(&b, []byte(o)); err != nil {
			panic(err) // a bytes.Buffer does not fail
		}
	}
	if err := EncodeEnd(&b); err != nil {
		panic(err)
	}
	return &b
}

// Every method of Control is there, does what it says, and gives back what the Control behind the server gave.
func TestEveryMethodTravels(t *testing.T) {
	f := newFake()
	c, _, _ := serve(t, f)
	all := exchanges()
	if n := reflect.TypeFor[Control]().NumMethod(); n != len(all) {
		t.Errorf("%d methods are tried, Control has %d", len(all), n)
	}
	for _, x := range all {
		t.Run(x.name, func(t *testing.T) {
			got, err := x.call(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			if f.last() != x.asked {
				t.Errorf("asked %q, want %q", f.last(), x.asked)
			}
			if want := x.want(f); !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
	if string(f.objects[tree.Sum([]byte("two"))]) != "two" || len(f.objects) != 2 {
		t.Errorf("the upload left %d objects", len(f.objects))
	}
}

// Every kind of error of every method comes out as the sentinel that went in, with the same text.
func TestEveryErrorTravels(t *testing.T) {
	f := newFake()
	c, _, _ := serve(t, f)
	for _, kind := range []error{ErrInvalid, ErrNotFound, ErrConflict, ErrNoLeader, ErrNoQuorum, ErrUnavailable, ErrForbidden, context.DeadlineExceeded, io.ErrNoProgress} {
		f.fail = fmt.Errorf("shard \"www\"\n: %w", kind)
		for _, x := range exchanges() {
			_, err := x.call(t.Context(), c)
			if err == nil || err.Error() != f.fail.Error() {
				t.Errorf("%s: error %q, want %q", x.name, err, f.fail)
			}
			probed := x.name == "Healthy" || x.name == "Ready"
			switch {
			case probed:
				kind = ErrUnavailable
			case kind == io.ErrNoProgress: // no kind of ours: only the text travels
				for _, k := range kinds {
					if errors.Is(err, k.err) {
						t.Errorf("%s: an error without a kind came back as %v", x.name, k.err)
					}
				}
				continue
			}
			if !errors.Is(err, kind) {
				t.Errorf("%s: %v is no %v", x.name, err, kind)
			}
			kind = errors.Unwrap(f.fail)
		}
	}
}

func TestProgressComesBeforeTheResult(t *testing.T) {
	f := newFake()
	c, _, _ := serve(t, f)
	seen := make(chan struct{})
	f.op = func(_ context.Context, progress func(Progress)) error {
		progress(Progress{Step: "scan", Files: 1, TotalFiles: 2, Bytes: 3, TotalBytes: 4, Path: "p"})
		<-seen // it has reached the client although the operation goes on
		progress(Progress{Step: "scan", Files: 2})
		progress(Progress{Step: "store"})
		return nil
	}
	var got []Progress
	p, err := c.Publish(t.Context(), "www", PublishRequest{}, func(p Progress) {
		if got = append(got, p); len(got) == 1 {
			close(seen)
		}
	})
	if err != nil || p.Number != 42 {
		t.Fatalf("%+v, %v", p, err)
	}
	if want := (Progress{"scan", 1, 2, 3, 4, "p"}); got[0] != want {
		t.Errorf("first %+v, want %+v", got[0], want)
	}
	if got[len(got)-1].Step != "store" {
		t.Errorf("a new step was held back: %+v", got)
	}
}

func TestErrorAfterProgressKeepsItsKind(t *testing.T) {
	f := newFake()
	c, _, _ := serve(t, f)
	f.op = func(_ context.Context, progress func(Progress)) error {
		progress(Progress{Step: "scan"})
		return fmt.Errorf("lease is gone: %w", ErrNoLeader)
	}
	if _, err := c.Publish(t.Context(), "www", PublishRequest{}, nil); !errors.Is(err, ErrNoLeader) || err.Error() != "lease is gone: no leader" {
		t.Errorf("publish: %v", err)
	}
	f.op = nil
	f.changes = append(f.changes, Change{})
	stop := errors.New("enough")
	if err := c.Diff(t.Context(), "www", 0, 0, func(Change) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("diff: %v, want what its function returned", err)
	}
}

// A client that hangs up stops a verify; a publish and a rollback go on to their end.
func TestHangingUp(t *testing.T) {
	for _, tc := range []struct {
		name  string
		stops bool
		call  func(ctx context.Context, c *Client, progress func(Progress)) error
	}{
		{"verify", true, func(ctx context.Context, c *Client, p func(Progress)) error {
			_, err := c.Verify(ctx, VerifyRequest{}, p)
			return err
		}},
		{"publish", false, func(ctx context.Context, c *Client, p func(Progress)) error {
			_, err := c.Publish(ctx, "www", PublishRequest{}, p)
			return err
		}},
		{"rollback", false, func(ctx context.Context, c *Client, p func(Progress)) error {
			_, err := c.Rollback(ctx, "www", RollbackRequest{}, p)
			return err
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake()
			c, _, stop := serve(t, f)
			ctx, hangUp := context.WithCancel(t.Context())
			hungUp, ended := make(chan struct{}), make(chan error, 1)
			f.op = func(ctx context.Context, progress func(Progress)) error {
				progress(Progress{Step: "scan"})
				<-hungUp
				if !tc.stops {
					go stop() // the client is gone for certain only when the server has closed; it may not take long
				}
				<-ctx.Done()
				ended <- ctx.Err()
				return ctx.Err()
			}
			err := tc.call(ctx, c, func(Progress) { hangUp() })
			if !errors.Is(err, context.Canceled) {
				t.Errorf("the caller got %v", err)
			}
			select {
			case <-ended:
				t.Error("the operation ended before it could know")
			default:
			}
			close(hungUp)
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("the operation ended with %v", err)
			}
		})
	}
}

func TestServerThatGoesAwayIsSaid(t *testing.T) {
	c, _, stop := serve(t, newFake())
	stop()
	_, err := c.Status(t.Context())
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "no master answers at http://127.0.0.1:") ||
		!strings.Contains(err.Error(), "connection refused") || !strings.Contains(err.Error(), "--server") {
		t.Errorf("%v", err)
	}
	if err := c.Healthy(); !errors.Is(err, ErrUnreachable) {
		t.Errorf("healthy: %v", err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Status(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled call: %v", err)
	}
}

func TestAnswerThatBreaksOff(t *testing.T) {
	f := newFake()
	c, _, _ := serve(t, f)
	f.op = func(_ context.Context, progress func(Progress)) error {
		progress(Progress{Step: "scan"})
		panic(http.ErrAbortHandler) // as the client sees a master that is killed
	}
	_, err := c.Publish(t.Context(), "www", PublishRequest{}, nil)
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "nfs-fleet status") {
		t.Errorf("%v", err)
	}
}

func TestNewClient(t *testing.T) {
	for server, want := range map[string]string{
		"http://127.0.0.1:7049": "http://127.0.0.1:7049", "https://h:1/": "https://h:1", "localhost:7049": "http://localhost:7049",
		"[::1]:7049": "http://[::1]:7049", "": "", "ftp://h": "", "http://": "", "http://h?x=1": "", "http://%zz": "",
	} {
		c, err := NewClient(server)
		switch {
		case want == "" && !errors.Is(err, ErrInvalid):
			t.Errorf("%q: %v, want ErrInvalid", server, err)
		case want != "" && (err != nil || c.Server() != want):
			t.Errorf("%q: %v, %v", server, c, err)
		}
	}
}

func TestNamesThatCannotBeAreNotSent(t *testing.T) {
	f := newFake()
	c, _, _ := serve(t, f)
	for _, name := range []string{"", "..", "a/b", "W", "_fleet"} {
		if _, err := c.History(t.Context(), name); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
		if _, err := c.Publish(t.Context(), name, PublishRequest{}, nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if f.last() != "" {
		t.Errorf("the server was asked %q", f.last())
	}
}

func TestShowShard(t *testing.T) {
	f := newFake()
	c, _, _ := serve(t, f)
	if s, err := c.Shard(t.Context(), "www"); err != nil || !reflect.DeepEqual(s, f.shards[0]) {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := c.Shard(t.Context(), "none"); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "none") {
		t.Errorf("%v", err)
	}
}

// Readers of the JSON find lists where lists are documented, never null.
func TestEmptyListsAreLists(t *testing.T) {
	c, base, _ := serve(t, &fake{objects: map[tree.Digest][]byte{}, status: Status{Masters: []MasterStatus{{}}}})
	for path, method := range map[string]string{
		"/v1/status": "GET", "/v1/shards": "GET", "/v1/shards/www/generations": "GET", "/v1/shards/www/publish": "POST",
		"/v1/shards/www/rollback": "POST", "/v1/verify": "POST", "/v1/recover": "POST",
	} {
		if code, body := get(t, method, base+path, nil); code != 200 || strings.Contains(body, "null") {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	if lacks, err := c.Missing(t.Context(), "www", "u", nil); err != nil || lacks == nil {
		t.Errorf("%v, %v", lacks, err)
	}
}

func TestChangeOf(t *testing.T) {
	file := &tree.Entry{Type: tree.Regular, Mode: 0o4755, Links: 2, Size: 3, Ino: 9, Mtime: tree.Time{Sec: -1, Nsec: 5}, Content: tree.Content{Form: tree.Blob, Digest: tree.Sum([]byte("abc"))}}
	dir := &tree.Entry{Type: tree.Directory, Mode: 0o755, Mtime: tree.Time{Sec: 1 << 40}, Content: tree.Content{Form: tree.Dir, Digest: tree.Sum(nil)}}
	c := ChangeOf("p", file, dir)
	if c.Op != "modified" || c.Old.Mode != "4755" || c.Old.Mtime != "1969-12-31T23:59:59.000000005Z" || c.Old.Digest != tree.Sum([]byte("abc")) {
		t.Errorf("%+v %+v", c, c.Old)
	}
	if c.New.Type != "dir" || c.New.Mtime != "@1099511627776.000000000" || !c.New.Digest.IsZero() {
		t.Errorf("%+v", c.New)
	}
	if ChangeOf("p", nil, dir).Op != "added" || ChangeOf("p", dir, nil).Op != "removed" {
		t.Error("op")
	}
}

func TestChangeJSONOfAnyName(t *testing.T) {
	for _, path := range []string{"plain", "odd \xff\xfe", "\n\"\\", "é", ""} {
		b, err := json.Marshal(Change{Op: "added", Path: path})
		if err != nil {
			t.Fatal(err)
		}
		var back Change
		if err := json.Unmarshal(b, &back); err != nil || back.Path != path {
			t.Errorf("%q came back as %q, %v", path, back.Path, err)
		}
		if strings.Contains(string(b), "path_bytes") != strings.Contains(path, "\xff") {
			t.Errorf("%s", b)
		}
	}
}

func TestSound(t *testing.T) {
	bad := []tree.Digest{{1}}
	for want, reports := range map[bool][]VerifyReport{
		true: {{}, {Objects: 5}, {Bad: bad, Repaired: 1}}, false: {{Bad: bad}, {Missing: []MissingObject{{}}, Repaired: 9}},
	} {
		for _, r := range reports {
			if r.Sound() != want {
				t.Errorf("%+v: sound %t", r, r.Sound())
			}
		}
	}
}
