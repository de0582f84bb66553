package master

import (
	"errors"
	"testing"

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
