package master

import (
	"context"
	"errors"
	"testing"

	"github.com/rs/zerolog"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/nfs-fleet/nfs-fleet/election"
	"github.com/nfs-fleet/nfs-fleet/election/etcdtest"
	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

// A master is the last to be read from when all others are lost, drained, removed, starting or behind; and not when it is itself.
func TestTheLastToReadFrom(t *testing.T) {
	for name, c := range map[string]struct {
		change func(v *fleet.View)
		behind string
		want   bool
	}{
		"two are well":          {func(*fleet.View) {}, "", false},
		"the other is lost":     {func(v *fleet.View) { delete(v.Masters, "m2") }, "", true},
		"the other is drained":  {func(v *fleet.View) { v.Drained["m2"] = fleet.Drain{Master: "m2"} }, "", true},
		"the other is stopping": {func(v *fleet.View) { v.Masters["m2"] = fleet.Master{Name: "m2", State: fleet.Draining} }, "", true},
		"the other is removed":  {func(v *fleet.View) { v.Removed["i2"] = fleet.Removal{} }, "", true},
		"the other is behind":   {func(*fleet.View) {}, "m2", true},
		"it is behind itself":   {func(*fleet.View) {}, "m1", false},
		"all are behind":        {func(v *fleet.View) { delete(v.Masters, "m2") }, "m1", true},
		"it is drained itself": {func(v *fleet.View) {
			delete(v.Masters, "m2")
			v.Drained["m1"] = fleet.Drain{Master: "m1"}
		}, "", false},
		"it is lost itself": {func(v *fleet.View) { clear(v.Masters) }, "", false},
	} {
		v := fleet.View{
			Masters: map[string]fleet.Master{"m1": {Name: "m1", Instance: "i1", State: fleet.Serving}, "m2": {Name: "m2", Instance: "i2", State: fleet.Serving}},
			Drained: map[string]fleet.Drain{}, Removed: map[string]fleet.Removal{},
		}
		c.change(&v)
		remains, needed := whoRemains(v, "m1", func(m string) bool { return m != c.behind })
		if got := needed && remains == ""; got != c.want {
			t.Errorf("%s: %q remains, one is needed: %v", name, remains, needed)
		}
	}
}

// Draining all masters one after the other ends before the last; whoever insists gets it.
func TestTheLastMasterIsNotDrained(t *testing.T) {
	all, _ := several(t, "m1", "m2")
	all["m1"].until("two masters serving", inStep(2, 1))
	c := all["m2"].client
	if err := c.Drain(t.Context(), "m1", console.DrainRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := c.Drain(t.Context(), "m1", console.DrainRequest{}); err != nil {
		t.Errorf("drained twice: %v", err)
	}
	if err := c.Drain(t.Context(), "m2", console.DrainRequest{}); !errors.Is(err, console.ErrConflict) {
		t.Errorf("the last one: %v", err)
	}
	if err := c.Drain(t.Context(), "m2", console.DrainRequest{Force: true}); err != nil {
		t.Errorf("the last one by force: %v", err)
	}
}

// Of two that drain the last two masters at once, each of which counts on the other, one is told.
func TestTwoAreDrainedAtOnce(t *testing.T) {
	all, _ := several(t, "m1", "m2")
	all["m1"].until("two masters serving", inStep(2, 1))
	all["m2"].until("two masters serving", inStep(2, 1))
	errs := make(chan error, 2)
	for from, drained := range map[string]string{"m1": "m2", "m2": "m1"} {
		go func() { errs <- all[from].client.Drain(t.Context(), drained, console.DrainRequest{}) }()
	}
	first, second := <-errs, <-errs
	if (first == nil) == (second == nil) || !errors.Is(errors.Join(first, second), console.ErrConflict) {
		t.Errorf("%v; %v", first, second)
	}
}

// Whoever drains a master is not held up by one that is undrained meanwhile: neither by another on which it counted, nor by the
// same one. A view that shows the drain never comes to be.
func TestUndrainedMeanwhile(t *testing.T) {
	t.Run("the one that was to remain", func(t *testing.T) {
		d := newDraining(t)
		d.must(d.others.Drain(t.Context(), fleet.Drain{Master: "m1"}, ""))
		d.afterWrites(func(n int) {
			if n == 1 { // which was refused
				d.must(d.others.Undrain(t.Context(), "m1"))
			}
			d.see()
		})
		if err := d.Drain(t.Context(), "m2", console.DrainRequest{}); err != nil {
			t.Error(err)
		}
	})
	t.Run("the same one", func(t *testing.T) {
		d := newDraining(t)
		d.afterWrites(func(int) {
			d.must(d.others.Undrain(t.Context(), "m2"))
			d.see()
		})
		if err := d.Drain(t.Context(), "m2", console.DrainRequest{}); !errors.Is(err, console.ErrConflict) {
			t.Errorf("%v, want ErrConflict", err)
		}
	})
}

// draining is what a master is asked to drain others by; it sees of the fleet what the test shows it.
type draining struct {
	control
	t      *testing.T
	others *fleet.Registry // what somebody else does
	client *clientv3.Client
}

// newDraining knows the masters m1 and m2, which serve.
func newDraining(t *testing.T) *draining {
	server, name := etcdtest.New(t), etcdtest.FleetName()
	client := server.Dial(t)
	idle, err := election.NewMemory().New(election.Config{Prefix: "/", Master: "m3"})
	if err != nil {
		t.Fatal(err)
	}
	m := &Master{registry: fleet.NewRegistry(client, name), election: idle, log: zerolog.Nop(), changed: make(chan struct{})}
	d := &draining{control{m}, t, fleet.NewRegistry(server.Dial(t), name), client}
	for _, master := range []string{"m1", "m2"} {
		if err := d.others.PutRoster(t.Context(), fleet.RosterEntry{Name: master, Instance: fleet.NewInstance()}); err != nil {
			t.Fatal(err)
		}
	}
	d.see()
	return d
}

// see shows the master what etcd holds.
func (d *draining) see() {
	v, err := d.others.Load(d.t.Context())
	if err != nil {
		d.t.Error(err)
	}
	v.Identity.ID = "f"
	for name := range v.Roster {
		v.Masters[name] = fleet.Master{Name: name, State: fleet.Serving}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.view, d.reconciled = v, v
	d.tellLocked()
}

func (d *draining) must(_ int64, err error) {
	if err != nil {
		d.t.Error(err)
	}
}

// afterWrites has do run after every transaction of the master's, the n-th, before the master knows what came of it.
func (d *draining) afterWrites(do func(n int)) { d.client.KV = &hookedKV{KV: d.client.KV, after: do} }

type hookedKV struct {
	clientv3.KV
	n     int
	after func(n int)
}

func (k *hookedKV) Txn(ctx context.Context) clientv3.Txn { return &hookedTxn{k.KV.Txn(ctx), k} }

type hookedTxn struct {
	clientv3.Txn
	kv *hookedKV
}

func (h *hookedTxn) If(c ...clientv3.Cmp) clientv3.Txn  { h.Txn = h.Txn.If(c...); return h }
func (h *hookedTxn) Then(o ...clientv3.Op) clientv3.Txn { h.Txn = h.Txn.Then(o...); return h }
func (h *hookedTxn) Else(o ...clientv3.Op) clientv3.Txn { h.Txn = h.Txn.Else(o...); return h }

func (h *hookedTxn) Commit() (*clientv3.TxnResponse, error) {
	resp, err := h.Txn.Commit()
	h.kv.n++
	h.kv.after(h.kv.n)
	return resp, err
}
