package master

import (
	"slices"
	"strings"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
	"github.com/nfs-fleet/nfs-fleet/fleet/spread"
)

// Why a master cannot lead a shard is said in so many words.
func TestWhyAMasterCannotLead(t *testing.T) {
	v := fleet.View{
		Masters: map[string]fleet.Master{"m1": {Name: "m1", State: fleet.Serving}, "m2": {Name: "m2", State: fleet.Serving}, "m3": {Name: "m3", State: fleet.Draining}, "m4": {Name: "m4", State: fleet.Serving}},
		Drained: map[string]fleet.Drain{"m2": {Master: "m2"}},
		Heads:   map[string]fleet.Head{}, Replicas: map[string]fleet.Replica{"m1": {Serves: map[string]uint64{"www": 100}}},
	}
	head := fleet.Head{}
	head.Number = 100
	v.Heads["www"] = head
	for name, want := range map[string]string{"m1": "", "m2": "is drained", "m3": "does not serve", "m4": "is behind its head", "m5": "is lost"} {
		if got := unfit(v, name, "www"); !strings.HasPrefix(got, want) || (got == "") != (want == "") {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestWhyAMasterCannotBeAHome(t *testing.T) {
	s := situation{hosts: []spread.Host{{Name: "m1", Serving: true, InStep: true}, {Name: "m2", InStep: true}, {Name: "m3", Serving: true}}}
	for name, want := range map[string]string{"m1": "", "m2": "is drained", "m3": "does not serve every head", "m4": "is lost: nobody can read from it"} {
		if s.order = (slaveOrder{Move: "web17", To: name}); s.unfitHome() != want {
			t.Errorf("%s: %q, want %q", name, s.unfitHome(), want)
		}
	}
}

// A shard that nobody leads because everybody is drained says so.
func TestAllMastersDrained(t *testing.T) {
	v := fleet.View{Masters: map[string]fleet.Master{"m1": {}, "m2": {}}, Drained: map[string]fleet.Drain{"m1": {}}}
	if allDrained(v) || allDrained(fleet.View{}) {
		t.Error("not all are")
	}
	if v.Drained["m2"] = (fleet.Drain{}); !allDrained(v) {
		t.Error("all are")
	}
}

// Homes are sticky, so that failovers leave masters without slaves: the status tells of the remedy.
func TestUnevenHomesAreTold(t *testing.T) {
	for _, test := range []struct {
		homes, slots []int
		state        string // of the last master
		want         string
	}{
		{[]int{5, 0, 0}, []int{10, 10, 10}, "serving", "the slaves' homes are uneven (m1 5, m2 0, m3 0): `nfs-fleet rebalance` evens them out"},
		{[]int{3, 2, 0}, []int{10, 10, 10}, "serving", ""},
		{[]int{2, 2, 1}, []int{10, 10, 10}, "serving", ""},
		{[]int{2, 0}, []int{10, 10}, "serving", ""},
		{[]int{10, 0}, []int{10, 10}, "lost", ""},
		{[]int{10, 0}, []int{10, 10}, "drained", ""},
		{[]int{20, 10}, []int{20, 10}, "serving", ""},
		{[]int{10, 20}, []int{20, 10}, "serving", "the slaves' homes are uneven (m1 10, m2 20): `nfs-fleet rebalance` evens them out"},
		{[]int{110, 90}, []int{100, 100}, "serving", ""},
		{[]int{120, 80}, []int{100, 100}, "serving", "the slaves' homes are uneven (m1 120, m2 80): `nfs-fleet rebalance` evens them out"},
		{nil, nil, "", ""},
	} {
		var masters []console.MasterStatus
		for i, n := range test.homes {
			masters = append(masters, console.MasterStatus{Name: "m" + string(rune('1'+i)), State: console.MasterServing, Slaves: n, Slots: test.slots[i]})
		}
		drained := ""
		if last := len(masters) - 1; last >= 0 {
			if drained = masters[last].Name; test.state != "drained" {
				drained, masters[last].State = "", test.state
			}
		}
		var want []string
		if test.want != "" {
			want = []string{test.want}
		}
		if got := unevenWarnings(masters, func(name string) bool { return name == drained }); !slices.Equal(got, want) {
			t.Errorf("%v of %v: %q, want %q", test.homes, test.slots, got, want)
		}
	}
}
