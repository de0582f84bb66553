package fleet

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

func entry(name string) RosterEntry {
	return RosterEntry{Name: name, Instance: NewInstance(), Peer: name + ":7050", JoinedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
}

func mustLoad(t *testing.T, ctx context.Context, r *Registry) View {
	t.Helper()
	v, err := r.Load(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Problems) > 0 {
		t.Fatalf("unreadable: %v", v.Problems)
	}
	return v
}

func TestInstances(t *testing.T) {
	if a, b := NewInstance(), NewInstance(); a == b || ValidInstance(a) != nil {
		t.Errorf("%s, %s", a, b)
	}
	for _, bad := range []string{"", "m1", "../x", "{6ba7b810-9dad-11d1-80b4-00c04fd430c8}", "6BA7B810-9DAD-11D1-80B4-00C04FD430C8"} {
		if ValidInstance(bad) == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestRosterIsWrittenWhenItDiffers(t *testing.T) {
	r, ctx := newFleet(t)
	e := entry("m1")
	if err := r.PutRoster(ctx, e); err != nil {
		t.Fatal(err)
	}
	first := mustLoad(t, ctx, r)
	if first.Roster["m1"] != e {
		t.Errorf("%+v", first.Roster)
	}
	again := e
	again.JoinedAt = again.JoinedAt.Add(time.Hour)
	if err := r.PutRoster(ctx, again); err != nil {
		t.Fatal(err)
	}
	resp, err := r.client.Get(ctx, r.keys.Roster("m1"))
	if err != nil || resp.Kvs[0].Version != 1 || mustLoad(t, ctx, r).Roster["m1"] != e {
		t.Errorf("a master that started again was written again: %v, %v", resp, err)
	}
	again.Peer = "elsewhere:7050"
	if err := r.PutRoster(ctx, again); err != nil {
		t.Fatal(err)
	}
	if got := mustLoad(t, ctx, r).Roster["m1"]; got.Peer != "elsewhere:7050" || !got.JoinedAt.Equal(e.JoinedAt) {
		t.Errorf("after a move: %+v", got)
	}
	for _, bad := range []RosterEntry{{Name: "M 1", Instance: NewInstance()}, {Name: "m1", Instance: "x/y"}} {
		if r.PutRoster(ctx, bad) == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
}

func TestANameIsNotTakenFromALivingMaster(t *testing.T) {
	r, ctx := newFleet(t)
	e := entry("m1")
	if err := r.PutRoster(ctx, e); err != nil {
		t.Fatal(err)
	}
	// What it wrote of itself, as the election would.
	self := put(r.keys.Master("m1"), Master{Name: "m1", Instance: e.Instance})
	if _, err := r.client.Do(ctx, self); err != nil {
		t.Fatal(err)
	}
	other := entry("m1")
	if err := r.PutRoster(ctx, other); !errors.Is(err, ErrExists) {
		t.Errorf("while it lives: %v, want ErrExists", err)
	}
	if err := r.PutRoster(ctx, e); err != nil {
		t.Errorf("the master itself: %v", err)
	}
	if _, err := r.client.Delete(ctx, r.keys.Master("m1")); err != nil {
		t.Fatal(err)
	}
	if err := r.PutRoster(ctx, other); err != nil {
		t.Errorf("when it is gone: %v", err)
	}
	if got := mustLoad(t, ctx, r).Roster["m1"]; got != other {
		t.Errorf("%+v", got)
	}
}

func TestDrain(t *testing.T) {
	r, ctx := newFleet(t)
	d := Drain{Master: "m1", Since: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), By: "local"}
	if _, err := r.Drain(ctx, d, ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("a master that nobody knows: %v, want ErrNotFound", err)
	}
	if err := r.PutRoster(ctx, entry("m1")); err != nil {
		t.Fatal(err)
	}
	later := d
	later.Since = later.Since.Add(time.Hour)
	first, err := r.Drain(ctx, d, "")
	if err != nil {
		t.Fatal(err)
	}
	if v := mustLoad(t, ctx, r); !v.Includes(first) || v.Includes(first+1) {
		t.Errorf("read after revision %d: %d", first, v.Revision)
	}
	if again, err := r.Drain(ctx, later, ""); err != nil || again != first {
		t.Errorf("a second time: revision %d, %v; the first was %d", again, err, first)
	}
	if got := mustLoad(t, ctx, r).Drained["m1"]; got != d {
		t.Errorf("%+v, want the first", got)
	}
	if err := r.PutRoster(ctx, entry("m2")); err != nil {
		t.Fatal(err)
	}
	if since, err := r.Drain(ctx, Drain{Master: "m2"}, "m1"); !errors.Is(err, ErrConflict) || since != first {
		t.Errorf("the master that was to remain is drained: %v since %d, want ErrConflict since %d", err, since, first)
	}
	if _, err := r.Drain(ctx, Drain{Master: "m2"}, "m3"); err != nil {
		t.Errorf("m3 remains: %v", err)
	}
	if err := errors.Join(undrain(ctx, r, "m1"), undrain(ctx, r, "m2")); err != nil {
		t.Fatal(err)
	}
	if err := undrain(ctx, r, "m1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a second time: %v, want ErrNotFound", err)
	}
	if got := mustLoad(t, ctx, r).Drained; len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

func drain(ctx context.Context, r *Registry, master string) error {
	_, err := r.Drain(ctx, Drain{Master: master}, "")
	return err
}

func undrain(ctx context.Context, r *Registry, master string) error {
	_, err := r.Undrain(ctx, master)
	return err
}

func TestARemovedInstanceStaysAway(t *testing.T) {
	r, ctx := newFleet(t)
	e := entry("m1")
	if err := r.Remove(ctx, "m1", e.Instance); !errors.Is(err, ErrNotFound) {
		t.Errorf("a master that nobody knows: %v, want ErrNotFound", err)
	}
	if err := errors.Join(r.PutRoster(ctx, e), drain(ctx, r, "m1")); err != nil {
		t.Fatal(err)
	}
	if err := r.Remove(ctx, "m1", NewInstance()); !errors.Is(err, ErrConflict) {
		t.Errorf("another instance: %v, want ErrConflict", err)
	}
	if err := r.Remove(ctx, "m1", ""); err == nil {
		t.Error("no instance was accepted")
	}
	if err := r.Remove(ctx, "m1", e.Instance); err != nil {
		t.Fatal(err)
	}
	v := mustLoad(t, ctx, r)
	if len(v.Roster) != 0 || len(v.Drained) != 0 || v.Removed[e.Instance].Master != "m1" || v.Removed[e.Instance].RemovedAt.IsZero() {
		t.Errorf("%+v", v)
	}
	if err := r.PutRoster(ctx, e); !errors.Is(err, ErrRemoved) {
		t.Errorf("it came back: %v, want ErrRemoved", err)
	}
	if err := r.PutRoster(ctx, entry("m1")); err != nil {
		t.Errorf("a new instance of the name: %v", err)
	}
}

// However a removal and a start meet, a removed instance is not on the roster.
func TestRemovalMeetsAStart(t *testing.T) {
	r, ctx := newFleet(t)
	for range 20 {
		e := entry("m1")
		if err := r.PutRoster(ctx, e); err != nil {
			t.Fatal(err)
		}
		var removed error
		var wait sync.WaitGroup
		wait.Go(func() { removed = r.Remove(ctx, "m1", e.Instance) })
		wait.Go(func() {
			moved := e
			moved.Peer = "elsewhere:7050"
			if err := r.PutRoster(ctx, moved); err != nil && !errors.Is(err, ErrRemoved) {
				t.Error(err)
			}
		})
		wait.Wait()
		if v := mustLoad(t, ctx, r); removed == nil {
			if _, ok := v.Roster["m1"]; ok {
				t.Fatal("a removed instance is on the roster")
			}
		} else if !errors.Is(removed, ErrConflict) {
			t.Fatal(removed)
		}
	}
}

func TestStageIsFenced(t *testing.T) {
	r, ctx := newFleet(t)
	mustCreate(t, ctx, r, "www")
	old := lead(t, ctx, r, "www")
	if err := r.MoveHead(ctx, "www", old, 0, tree.Generation{Number: 1}, 0); err != nil {
		t.Fatal(err)
	}
	_, seen, err := r.Head(ctx, "www")
	if err != nil {
		t.Fatal(err)
	}
	f := lead(t, ctx, r, "www")
	g := tree.Generation{Number: 2, Epoch: f.Epoch, Era: 3}
	if err := r.Stage(ctx, "www", old, seen, g); !errors.Is(err, ErrFenced) {
		t.Errorf("a deposed leader staged: %v, want ErrFenced", err)
	}
	if err := r.Stage(ctx, "www", f, seen-1, g); !errors.Is(err, ErrConflict) {
		t.Errorf("the head has moved on: %v, want ErrConflict", err)
	}
	if err := r.Stage(ctx, "nosuch", f, 0, g); !errors.Is(err, ErrConflict) {
		t.Errorf("a shard that does not exist: %v", err)
	}
	if got := mustLoad(t, ctx, r).Staged; len(got) != 0 {
		t.Fatalf("%+v", got)
	}
	for range 2 { // a leader may change its mind
		if err := r.Stage(ctx, "www", f, seen, g); err != nil {
			t.Fatal(err)
		}
	}
	if v := mustLoad(t, ctx, r); v.Staged["www"].Generation != g || v.Staged["www"].Revision == 0 || v.Heads["www"].Number != 1 {
		t.Errorf("%+v, %+v", v.Staged, v.Heads)
	}
	if err := errors.Join(r.Stage(ctx, "www", f, seen, g), r.MoveHead(ctx, "www", f, seen, g, 0)); err != nil {
		t.Fatal(err)
	}
	if got := mustLoad(t, ctx, r).Staged; len(got) != 0 {
		t.Errorf("what was published is staged still: %+v", got)
	}
}

func TestErasAreCounted(t *testing.T) {
	r, ctx := newFleet(t)
	if _, err := r.BumpEra(ctx, 0); !errors.Is(err, ErrNotFound) {
		t.Errorf("no fleet: %v, want ErrNotFound", err)
	}
	if _, err := r.CreateIdentity(ctx, Identity{ID: "one", Era: 4}); err != nil {
		t.Fatal(err)
	}
	if id, err := r.BumpEra(ctx, 4); err != nil || id.Era != 5 || id.ID != "one" {
		t.Errorf("%+v, %v", id, err)
	}
	if _, err := r.BumpEra(ctx, 4); !errors.Is(err, ErrConflict) {
		t.Errorf("from an era that is over: %v, want ErrConflict", err)
	}
	if id, err := r.Identity(ctx); err != nil || id.Era != 5 {
		t.Errorf("%+v, %v", id, err)
	}
}

func TestTheCAIsMadeOnce(t *testing.T) {
	r, ctx := newFleet(t)
	if _, err := r.CA(ctx, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("none yet: %v, want ErrNotFound", err)
	}
	for _, pem := range []string{"one", "two", ""} {
		if got, err := r.CA(ctx, []byte(pem)); err != nil || string(got) != "one" {
			t.Errorf("%q, %v", got, err)
		}
	}
	if v := mustLoad(t, ctx, r); v.Identity != (Identity{}) || len(v.Shards) != 0 {
		t.Errorf("the view shows it: %+v", v)
	}
}
