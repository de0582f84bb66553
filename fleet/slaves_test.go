package fleet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func slave(name, master string) Slave {
	return Slave{
		Name: name, Master: master, Fallbacks: []string{"m8", "m9"}, Since: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
		Address: netip.MustParseAddr("10.77.0.100"), Mode: ModeRelay, Instance: "i1", Version: "v1",
		EnrolledAt: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), SeenAt: time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC),
	}
}

func mustWrite(t *testing.T, ctx context.Context, r *Registry, f Fence, put ...Slave) {
	t.Helper()
	if _, err := r.WriteSlaves(ctx, f, put, nil); err != nil {
		t.Fatal(err)
	}
}

// loaded is the fleet with its slaves, as somebody sees it who knew what known says.
func loaded(t *testing.T, ctx context.Context, r *Registry, known View) View {
	t.Helper()
	v, err := r.loadAll(ctx, known, false)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestSlaveNames(t *testing.T) {
	for _, good := range []string{"web17", "web17.prod.example", "a_b", "1"} {
		if err := ValidSlaveName(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "Web17", "a..b", "a.-b", "a-.b", ".a", "a.", "a/b", "a b", strings.Repeat("a", 64)} {
		if ValidSlaveName(bad) == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestSlavesAreValidated(t *testing.T) {
	if err := slave("s1", "m1").Validate(); err != nil {
		t.Error(err)
	}
	if err := (Slave{Name: "s1", Mode: ModeMount}).Validate(); err != nil {
		t.Errorf("one without a home: %v", err)
	}
	for what, spoil := range map[string]func(*Slave){
		"name": func(s *Slave) { s.Name = "S 1" }, "mode": func(s *Slave) { s.Mode = "fuse" }, "master": func(s *Slave) { s.Master = "a/b" },
		"fallback": func(s *Slave) { s.Fallbacks = []string{""} }, "version": func(s *Slave) { s.Version = strings.Repeat("v", maxSlaveText+1) },
	} {
		s := slave("s1", "m1")
		if spoil(&s); s.Validate() == nil {
			t.Errorf("a bad %s was accepted: %+v", what, s)
		}
	}
}

func TestSlavesAreWrittenUnderTheCoordinatorsEpoch(t *testing.T) {
	r, ctx := newFleet(t)
	old := lead(t, ctx, r, CoordinatorSubject)
	mustWrite(t, ctx, r, old, slave("s1", "m1"), slave("s2", "m2"))
	v := loaded(t, ctx, r, View{})
	s1 := v.Slaves["s1"]
	want := slave("s1", "m1")
	if want.Revision, want.Placed = s1.Revision, s1.Revision; len(v.Slaves) != 2 || s1.Revision == 0 || !reflect.DeepEqual(s1, want) {
		t.Fatalf("%+v, want %+v", v.Slaves, want)
	}
	if v := mustLoad(t, ctx, r); len(v.Slaves) != 0 {
		t.Errorf("Load has %d slaves", len(v.Slaves))
	}

	now := lead(t, ctx, r, CoordinatorSubject)
	if _, err := r.WriteSlaves(ctx, old, []Slave{s1}, nil); !errors.Is(err, ErrFenced) {
		t.Errorf("the coordinator before: %v, want ErrFenced", err)
	}
	for what, stale := range map[string]Slave{"made anew": slave("s1", "m3"), "read before": {Name: "s1", Mode: ModeMount, Revision: s1.Revision - 1}} {
		if _, err := r.WriteSlaves(ctx, now, []Slave{stale}, nil); !errors.Is(err, ErrConflict) {
			t.Errorf("a record that was %s: %v, want ErrConflict", what, err)
		}
		if _, err := r.WriteSlaves(ctx, now, []Slave{v.Slaves["s2"]}, []Slave{stale}); !errors.Is(err, ErrConflict) {
			t.Errorf("to delete a record that was %s: %v, want ErrConflict", what, err)
		}
	}
	revision, err := r.WriteSlaves(ctx, now, []Slave{v.Slaves["s2"]}, []Slave{s1})
	if err != nil {
		t.Fatal(err)
	}
	if v = loaded(t, ctx, r, View{}); len(v.Slaves) != 1 || v.Slaves["s2"].Revision != revision {
		t.Errorf("after s1 was forgotten: %+v, written at %d", v.Slaves, revision)
	}
	if _, err := r.WriteSlaves(ctx, now, []Slave{{Name: "../heads/www", Mode: ModeMount}}, nil); err == nil {
		t.Error("a name that is none was accepted")
	}
	gone, cancel := context.WithDeadline(ctx, time.Now())
	defer cancel()
	if _, err := r.WriteSlaves(gone, now, []Slave{slave("s3", "m1")}, nil); !errors.Is(err, ErrUnavailable) {
		t.Errorf("no answer: %v, want ErrUnavailable", err)
	}
}

func TestManySlavesAreWrittenInTurn(t *testing.T) {
	r, ctx := newFleet(t)
	var all []Slave
	for i := range 2*maxOps + 50 {
		all = append(all, slave(fmt.Sprint("s", i), "m1"))
	}
	mustWrite(t, ctx, r, lead(t, ctx, r, CoordinatorSubject), all...)
	revisions := map[int64]int{}
	for _, s := range loaded(t, ctx, r, View{}).Slaves {
		revisions[s.Revision]++
	}
	if len(revisions) != 3 {
		t.Errorf("written at %v, want three transactions", revisions)
	}
}

// A master tells from Placed whether a slave was moved, or something else of it was written.
// What somebody has put there by hand, or a later release, must not keep the coordinator from writing the others.
func TestARecordThatCannotBeUsedIsInNobodysWay(t *testing.T) {
	r, ctx := newFleet(t)
	f := lead(t, ctx, r, CoordinatorSubject)
	for name, value := range map[string]string{
		"torn": `{"name": "to`, "nowhere": `{"mode": "relay", "master": "a/b"}`, "A B": `{"mode": "relay"}`,
		"later": `{"mode": "teleport", "master": "m1"}`, "other": `{"name": "torn", "mode": "relay", "master": "m1"}`,
	} {
		if _, err := r.client.Put(ctx, r.keys.Slave(name), value); err != nil {
			t.Fatal(err)
		}
	}
	v := loaded(t, ctx, r, View{})
	if len(v.Slaves) != 4 || len(v.Problems) != 3 {
		t.Errorf("slaves %v, problems %v", v.Slaves, v.Problems)
	}
	for name, want := range map[string]Slave{
		"torn": {Mode: ModeMount}, "nowhere": {Mode: ModeMount}, "later": {Mode: ModeMount, Master: "m1"}, "other": {Mode: ModeRelay, Master: "m1"},
	} {
		got := v.Slaves[name]
		if got.Name != name || got.Mode != want.Mode || got.Master != want.Master || got.Revision == 0 {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
		s := slave(name, "m2")
		s.Revision = got.Revision
		mustWrite(t, ctx, r, f, s, slave("beside-"+name, "m2"))
	}
	if v = loaded(t, ctx, r, View{}); len(v.Slaves) != 8 || len(v.Problems) != 1 {
		t.Errorf("written anew: slaves %v, problems %v", v.Slaves, v.Problems)
	}
}

func TestPlacedIsWhenTheHomeChanged(t *testing.T) {
	r, ctx := newFleet(t)
	f := lead(t, ctx, r, CoordinatorSubject)
	mustWrite(t, ctx, r, f, slave("s1", "m1"))
	first := loaded(t, ctx, r, View{})
	s := first.Slaves["s1"]
	s.SeenAt = s.SeenAt.Add(time.Hour)
	mustWrite(t, ctx, r, f, s)
	seen := loaded(t, ctx, r, first)
	if got := seen.Slaves["s1"]; got.Placed != first.Slaves["s1"].Placed || got.Revision <= first.Slaves["s1"].Revision {
		t.Errorf("seen again: %+v, before %+v", got, first.Slaves["s1"])
	}
	s = seen.Slaves["s1"]
	s.Since = s.Since.Add(time.Minute) // it was away and is back: another stay
	mustWrite(t, ctx, r, f, s)
	moved := loaded(t, ctx, r, seen)
	if got := moved.Slaves["s1"]; got.Placed != got.Revision {
		t.Errorf("moved: %+v", got)
	}
	if whole, err := r.loadAll(ctx, moved, true); err != nil || !reflect.DeepEqual(whole.Slaves, moved.Slaves) {
		t.Errorf("%+v read as a whole, %v, want %+v", whole.Slaves, err, moved.Slaves)
	}
}

// What is known is completed, whatever happened meanwhile: it must be what a first reading finds.
func TestSlavesReadAgain(t *testing.T) {
	for name, meanwhile := range map[string]func(t *testing.T, ctx context.Context, r *Registry, f Fence, v View){
		"nothing": func(*testing.T, context.Context, *Registry, Fence, View) {},
		"one more": func(t *testing.T, ctx context.Context, r *Registry, f Fence, _ View) {
			mustWrite(t, ctx, r, f, slave("s3", "m3"))
		},
		"one changed": func(t *testing.T, ctx context.Context, r *Registry, f Fence, v View) {
			s := v.Slaves["s2"]
			s.Master = "m7"
			mustWrite(t, ctx, r, f, s)
		},
		"one less": func(t *testing.T, ctx context.Context, r *Registry, f Fence, v View) {
			forget(t, ctx, r, f, v.Slaves["s1"])
		},
		"one for another": func(t *testing.T, ctx context.Context, r *Registry, f Fence, v View) {
			forget(t, ctx, r, f, v.Slaves["s1"])
			mustWrite(t, ctx, r, f, slave("s3", "m3"))
		},
		"one made anew": func(t *testing.T, ctx context.Context, r *Registry, f Fence, v View) {
			forget(t, ctx, r, f, v.Slaves["s1"])
			mustWrite(t, ctx, r, f, slave("s1", "m3"))
		},
		"one unreadable": func(t *testing.T, ctx context.Context, r *Registry, _ Fence, _ View) {
			if _, err := r.client.Put(ctx, r.keys.Slave("s1"), "{"); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, ctx := newFleet(t)
			f := lead(t, ctx, r, CoordinatorSubject)
			mustWrite(t, ctx, r, f, slave("s1", "m1"), slave("s2", "m2"))
			known := loaded(t, ctx, r, View{})
			meanwhile(t, ctx, r, f, known)
			fresh, again := loaded(t, ctx, r, View{}), loaded(t, ctx, r, known)
			for name, s := range again.Slaves {
				s.Placed = fresh.Slaves[name].Placed // which only who was there knows
				again.Slaves[name] = s
			}
			if !reflect.DeepEqual(again.Slaves, fresh.Slaves) || len(again.Problems) != len(fresh.Problems) {
				t.Errorf("%+v (%v), want %+v (%v)", again.Slaves, again.Problems, fresh.Slaves, fresh.Problems)
			}
			if len(known.Slaves) != 2 || known.Slaves["s2"].Master != "m2" {
				t.Errorf("a View that was handed out has become %+v", known.Slaves)
			}
		})
	}
}

func forget(t *testing.T, ctx context.Context, r *Registry, f Fence, gone ...Slave) {
	t.Helper()
	if _, err := r.WriteSlaves(ctx, f, nil, gone); err != nil {
		t.Fatal(err)
	}
}

func TestFollowSeesSlaves(t *testing.T) {
	r, ctx := newFleet(t)
	views := make(chan View, 100)
	following, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		ended <- r.Follow(following, 50*time.Millisecond, func(v View) { views <- v }, func(err error) { t.Error(err) })
	}()
	await := func(what string, ok func(View) bool) View {
		t.Helper()
		for {
			select {
			case v := <-views:
				if ok(v) {
					return v
				}
			case <-ctx.Done():
				t.Fatalf("never seen: %s", what)
			}
		}
	}
	f := lead(t, ctx, r, CoordinatorSubject)
	mustWrite(t, ctx, r, f, slave("s1", "m1"))
	v := await("a slave", func(v View) bool { return len(v.Slaves) == 1 })
	s := v.Slaves["s1"]
	s.Master = "m2"
	mustWrite(t, ctx, r, f, s)
	next := await("its move", func(v View) bool { return v.Slaves["s1"].Master == "m2" })
	if v.Slaves["s1"].Master != "m1" || next.SlavesRevision <= v.SlavesRevision {
		t.Errorf("a View that was handed out has changed, or SlavesRevision has not: %d, %d", v.SlavesRevision, next.SlavesRevision)
	}
	forget(t, ctx, r, f, next.Slaves["s1"])
	await("its end", func(v View) bool { return len(v.Slaves) == 0 })
	for range 2 * wholeEvery { // readings of both kinds find nothing else
		if v := await("nothing", func(View) bool { return true }); len(v.Slaves) != 0 {
			t.Errorf("%+v", v.Slaves)
		}
	}
	cancel()
	<-ended
}

func kvOf(op clientv3.Op) *mvccpb.KeyValue {
	return &mvccpb.KeyValue{Key: op.KeyBytes(), Value: op.ValueBytes()}
}

// BenchmarkNext is a View after something has happened in a fleet of 10,000 slaves: to a master, and to one of them.
func BenchmarkNext(b *testing.B) {
	keys := KeysOf("f")
	v := newView(1)
	for i := range 10000 {
		s := slave(fmt.Sprint("s", i), "m1")
		v.Slaves[s.Name] = s
	}
	for what, kv := range map[string]*mvccpb.KeyValue{
		"replica": kvOf(put(keys.Replica("m1"), Replica{Master: "m1"})), "slave": kvOf(put(keys.Slave("s1"), slave("s1", "m2"))),
	} {
		b.Run(what, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				v.next(keys, 2, []*clientv3.Event{{Kv: kv}})
			}
		})
	}
}
