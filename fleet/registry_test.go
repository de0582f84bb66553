package fleet

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"go.etcd.io/raft/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nfs-fleet/nfs-fleet/election/etcdtest"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// shared is one real etcd for all tests of the package; each test has a fleet of its own in it.
var shared *etcdtest.Server

func TestMain(m *testing.M) { os.Exit(etcdtest.Main(m, func(s *etcdtest.Server) { shared = s })) }

func newFleet(t *testing.T) (*Registry, context.Context) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return NewRegistry(shared.Dial(t), etcdtest.FleetName()), ctx
}

// lead puts a leader key as an election would and returns the fence it gives.
func lead(t *testing.T, ctx context.Context, r *Registry, shard string) Fence {
	t.Helper()
	key := r.Keys().Leader(shard)
	if _, err := r.client.Delete(ctx, key); err != nil {
		t.Fatal(err)
	}
	resp, err := r.client.Put(ctx, key, `{"master":"m1"}`)
	if err != nil {
		t.Fatal(err)
	}
	return Fence{key, resp.Header.Revision}
}

func mustCreate(t *testing.T, ctx context.Context, r *Registry, shard string) Shard {
	t.Helper()
	s, err := r.CreateShard(ctx, NewShard(shard, time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestIdentityIsMadeOnce(t *testing.T) {
	r, ctx := newFleet(t)
	if _, err := r.Identity(ctx); !errors.Is(err, ErrNotFound) {
		t.Fatalf("a new fleet: %v, want ErrNotFound", err)
	}
	first, err := r.CreateIdentity(ctx, Identity{ID: "one"})
	if err != nil || first.ID != "one" {
		t.Fatalf("%+v, %v", first, err)
	}
	if second, err := r.CreateIdentity(ctx, Identity{ID: "two"}); err != nil || second.ID != "one" {
		t.Errorf("a second identity was made: %+v, %v", second, err)
	}
}

func TestShardLifecycle(t *testing.T) {
	r, ctx := newFleet(t)
	s := mustCreate(t, ctx, r, "www")
	if s.FSID == 0 {
		t.Error("no fsid was allotted")
	}
	if _, err := r.CreateShard(ctx, NewShard("www", time.Now())); !errors.Is(err, ErrExists) {
		t.Errorf("second create: %v, want ErrExists", err)
	}
	got, rev, err := r.Shard(ctx, "www")
	if err != nil || got.FSID != s.FSID {
		t.Fatalf("%+v, %v", got, err)
	}
	got.Squash = SquashAll
	if now, err := r.UpdateShard(ctx, got, rev); err != nil || now <= rev {
		t.Fatalf("revision %d after %d, %v", now, rev, err)
	}
	if _, err := r.UpdateShard(ctx, got, rev); !errors.Is(err, ErrConflict) {
		t.Errorf("update from an old revision: %v, want ErrConflict", err)
	}
	f := lead(t, ctx, r, "www")
	if err := r.MoveHead(ctx, "www", f, 0, tree.Generation{Number: 1}, 0); err != nil {
		t.Fatal(err)
	}
	if err := r.DeleteShard(ctx, "www"); err != nil {
		t.Fatal(err)
	}
	if g, _, err := r.Head(ctx, "www"); err != nil || g.Number != 0 {
		t.Errorf("the head outlived its shard: %+v, %v", g, err)
	}
	if h, err := r.History(ctx, "www"); err != nil || len(h) != 0 {
		t.Errorf("the history outlived its shard: %+v, %v", h, err)
	}
	if v, err := r.Load(ctx); err != nil || !v.Deleted[s.FSID] {
		t.Errorf("nothing says that the shard was deleted: %+v, %v", v.Deleted, err)
	}
	if err := r.DeleteShard(ctx, "www"); !errors.Is(err, ErrNotFound) {
		t.Errorf("second delete: %v, want ErrNotFound", err)
	}
	if again := mustCreate(t, ctx, r, "www"); again.FSID == s.FSID {
		t.Error("an fsid was used twice")
	}
}

func TestMoveHeadIsFenced(t *testing.T) {
	r, ctx := newFleet(t)
	mustCreate(t, ctx, r, "www")
	old := lead(t, ctx, r, "www")
	if err := r.MoveHead(ctx, "www", old, 0, tree.Generation{Number: 1, Epoch: old.Epoch}, 0); err != nil {
		t.Fatal(err)
	}
	_, seen, err := r.Head(ctx, "www")
	if err != nil {
		t.Fatal(err)
	}
	now := lead(t, ctx, r, "www")
	if err := r.MoveHead(ctx, "www", old, seen, tree.Generation{Number: 2}, 0); !errors.Is(err, ErrFenced) {
		t.Errorf("a deposed leader moved the head: %v, want ErrFenced", err)
	}
	if err := r.MoveHead(ctx, "www", now, seen-1, tree.Generation{Number: 2}, 0); !errors.Is(err, ErrConflict) {
		t.Errorf("a move from an old revision: %v, want ErrConflict", err)
	}
	if err := r.MoveHead(ctx, "www", now, seen, tree.Generation{Number: 2}, 2); err != nil {
		t.Fatal(err)
	}
	if h, err := r.History(ctx, "www"); err != nil || len(h) != 1 || h[0].Number != 2 {
		t.Errorf("history %+v, %v: want generation 2 alone", h, err)
	}
	if err := r.MoveHead(ctx, "nosuch", now, 0, tree.Generation{Number: 1}, 0); err == nil {
		t.Error("the head of a shard that does not exist was moved")
	}
}

func TestMoveHeadPrunesHoweverMany(t *testing.T) {
	r, ctx := newFleet(t)
	mustCreate(t, ctx, r, "www")
	f := lead(t, ctx, r, "www")
	for n := uint64(1); n <= 150; n++ {
		_, seen, err := r.Head(ctx, "www")
		if err != nil {
			t.Fatal(err)
		}
		if err := r.MoveHead(ctx, "www", f, seen, tree.Generation{Number: n}, 0); err != nil {
			t.Fatal(err)
		}
	}
	_, seen, err := r.Head(ctx, "www")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.MoveHead(ctx, "www", f, seen, tree.Generation{Number: 151}, 150); err != nil {
		t.Fatal(err)
	}
	if h, err := r.History(ctx, "www"); err != nil || len(h) != 2 || h[0].Number != 150 || h[1].Number != 151 {
		t.Errorf("history %+v, %v: want 150 and 151", h, err)
	}
	if err := r.MoveHead(ctx, "www", f, seen, tree.Generation{Number: 152}, 999); !errors.Is(err, ErrConflict) {
		t.Errorf("a move from an old revision: %v", err)
	}
}

func TestUnavailable(t *testing.T) {
	c := etcdtest.Dial(t, "http://"+etcdtest.FreeAddress())
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, _, err := NewRegistry(c, "x").Head(ctx, "www"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("nobody listens: %v, want ErrUnavailable", err)
	}
}

func TestFollow(t *testing.T) {
	r, ctx := newFleet(t)
	mustCreate(t, ctx, r, "www")
	ctx, cancel := context.WithCancel(ctx)
	views, ended := make(chan View), make(chan error)
	go func() {
		ended <- r.Follow(ctx, time.Second, func(v View) {
			select {
			case views <- v:
			case <-ctx.Done():
			}
		}, func(err error) { t.Errorf("lost: %v", err) })
	}()
	until := func(what string, ok func(View) bool) View {
		t.Helper()
		for {
			select {
			case v := <-views:
				if ok(v) {
					return v
				}
			case <-ctx.Done():
				t.Fatalf("never saw %s", what)
			}
		}
	}
	first := until("the shard", func(v View) bool { return v.Shards["www"].FSID != 0 })
	f := lead(t, ctx, r, "www")
	if err := r.MoveHead(ctx, "www", f, 0, tree.Generation{Number: 1}, 0); err != nil {
		t.Fatal(err)
	}
	v := until("the head", func(v View) bool { return v.Heads["www"].Number == 1 })
	if v.Heads["www"].Revision == 0 {
		t.Error("the head came without its revision")
	}
	if len(first.Heads) != 0 {
		t.Error("a view that was handed out changed")
	}
	e := entry("m1")
	if err := errors.Join(r.Stage(ctx, "www", f, v.Heads["www"].Revision, tree.Generation{Number: 2}), r.PutRoster(ctx, e), drain(ctx, r, "m1")); err != nil {
		t.Fatal(err)
	}
	until("what is staged, the roster, the drained", func(v View) bool {
		return v.Staged["www"].Number == 2 && v.Roster["m1"] == e && v.Drained["m1"].Master == "m1"
	})
	if err := r.Remove(ctx, "m1", e.Instance); err != nil {
		t.Fatal(err)
	}
	until("the removed", func(v View) bool {
		return v.Removed[e.Instance].Master == "m1" && len(v.Roster) == 0 && len(v.Drained) == 0
	})
	if _, err := r.client.Put(ctx, r.Keys().Shard("bad"), "{"); err != nil {
		t.Fatal(err)
	}
	v = until("the bad value", func(v View) bool { return len(v.Problems) == 1 })
	if v.Shards["www"].FSID == 0 {
		t.Error("one bad value hid the others")
	}
	if _, err := r.client.Delete(ctx, r.Keys().Shard("bad")); err != nil {
		t.Fatal(err)
	}
	until("the bad value gone", func(v View) bool { return len(v.Problems) == 0 })
	until("the periodic re-read", func(View) bool { return true }) // nothing was written: only a re-read brings a view
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Follow returned %v", err)
	}
}

func TestADroppedWriteIsUnavailable(t *testing.T) {
	err := status.Error(codes.Unknown, raft.ErrProposalDropped.Error())
	if got := unavailable(err); !errors.Is(got, ErrUnavailable) {
		t.Errorf("%v is not ErrUnavailable", got)
	}
	if got := unavailable(status.Error(codes.Unknown, "something else")); errors.Is(got, ErrUnavailable) {
		t.Errorf("%v is ErrUnavailable", got)
	}
}
