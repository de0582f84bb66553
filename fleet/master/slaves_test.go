package master

import (
	"fmt"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/exporter/hello"
	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

func TestWhatASlaveSaysIsShown(t *testing.T) {
	at := time.Date(2026, 11, 27, 9, 0, 0, 0, time.UTC)
	s := greeted("Web17", at)
	s.Mounts, s.More = []hello.Mount{{Name: "_nfs._tcp.x", Shard: "www", Dir: "/srv/www"}}, 2
	s.Last = hello.Reattach{At: at.Add(-time.Minute), Took: 25 * time.Millisecond, From: "m1", To: "m2", Why: "lost"}
	r, ok := s.report("m2")
	if !ok {
		t.Fatal("it is no slave")
	}
	known := r.over(fleet.Slave{Master: "m1", Fallbacks: []string{"m2"}, Since: at.Add(-time.Hour)})
	other := heardStatus(greeted("web17", at.Add(-time.Second)), r) // what another master heard before
	other.Reads, other.SeenAt = "m1", at.Add(-time.Second)
	all := slaveStatuses(map[string]fleet.Slave{"web17": known, "web18": {Name: "web18", Mode: fleet.ModeDirect}}, []console.SlaveStatus{other, heardStatus(s, r), other})
	if len(all) != 2 || all[1].Name != "web18" || all[1].Reads != "" || all[1].Mounts == nil {
		t.Fatalf("%+v", all)
	}
	got := all[0]
	if got.Name != "web17" || got.Master != "m1" || got.Reads != "m2" || !got.Away() || !got.Since.Equal(known.Since) || got.MoreMounts != 2 ||
		got.Mounts[0] != (console.SlaveMount{Name: "_nfs._tcp.x", Shard: "www", Dir: "/srv/www"}) || got.Last == nil || got.Last.TookMS != 25 || got.Last.To != "m2" {
		t.Errorf("%+v, %+v", got, got.Last)
	}
}

func TestAStatusOfManySlavesIsShort(t *testing.T) {
	known := map[string]fleet.Slave{}
	var heard []console.SlaveStatus
	for i := range 10000 {
		s := fleet.Slave{Name: fmt.Sprintf("s%05d", i), Master: "m1", Mode: fleet.ModeRelay}
		st := console.SlaveStatus{Name: s.Name, Reads: "m1"}
		switch i {
		case 77:
			s.Master = ""
			st.Reads = ""
		case 9990:
			st.Reads = "m2"
		}
		known[s.Name] = s
		if st.Reads == "m1" {
			heard = append(heard, slaveStatus(s, st))
		}
	}
	some, away := someHeard(heard)
	if len(some) != console.MaxShown || away != 0 {
		t.Errorf("%d told, %d away", len(some), away)
	}
	of2, away := someHeard([]console.SlaveStatus{slaveStatus(known["s09990"], console.SlaveStatus{Name: "s09990", Reads: "m2"})})
	masters := []console.MasterStatus{{Name: "m1", Readers: len(heard), Heard: some}, {Name: "m2", Readers: 1, Away: away, Heard: of2}}
	st := slavesStatus(known, masters)
	if st.Total != 10000 || st.Heard != 9999 || st.Away != 1 || st.Homeless != 1 || len(st.Shown) != 2 || st.Shown[0].Name != "s00077" || st.Shown[1].Reads != "m2" {
		t.Errorf("%d, %d heard, %d away, %d homeless; shown %+v", st.Total, st.Heard, st.Away, st.Homeless, st.Shown)
	}
	if masters[0].Heard != nil {
		t.Error("slaves are told twice")
	}
}

// What any master has heard of a slave that is gone is newer than its record, and says no more than when.
func TestTheLastSightingCounts(t *testing.T) {
	at := time.Date(2026, 11, 27, 9, 0, 0, 0, time.UTC)
	known := map[string]fleet.Slave{"web18": {Name: "web18", SeenAt: at}, "web17": {Name: "web17", SeenAt: at}}
	heard := []console.SlaveStatus{
		{Name: "web18", SeenAt: at.Add(20 * time.Minute)}, {Name: "web18", SeenAt: at.Add(10 * time.Minute)},
		{Name: "web17", SeenAt: at.Add(21 * time.Minute)}, {Name: "web17", Reads: "m2", SeenAt: at.Add(20 * time.Minute)}, {Name: "forgotten", SeenAt: at},
	}
	all := slaveStatuses(known, heard)
	if len(all) != 2 || all[0].Reads != "m2" || all[1].Reads != "" || !all[1].SeenAt.Equal(at.Add(20*time.Minute)) {
		t.Errorf("%+v", all)
	}
	now := at.Add(30 * time.Minute)
	if there := presentOf(all, now); !there["web17"] || there["web18"] {
		t.Errorf("present: %v", there)
	}
}

// Two masters may hear of one slave at the same time, by its two modes: the list does not flip between them.
func TestTwoModesAtTwoMasters(t *testing.T) {
	at := time.Date(2026, 11, 27, 9, 0, 0, 0, time.UTC)
	known := map[string]fleet.Slave{"web17": {Name: "web17"}}
	relay, direct := console.SlaveStatus{Name: "web17", Reads: "m1", Mode: "relay", SeenAt: at}, console.SlaveStatus{Name: "web17", Reads: "m2", Mode: "direct", SeenAt: at.Add(time.Second)}
	for _, heard := range [][]console.SlaveStatus{{relay, direct}, {direct, relay}} {
		if all := slaveStatuses(known, heard); all[0].Mode != "relay" || all[0].Reads != "m1" {
			t.Errorf("%+v", all)
		}
	}
	direct.SeenAt = at.Add(time.Minute)
	for _, heard := range [][]console.SlaveStatus{{relay, direct}, {direct, relay}} {
		if all := slaveStatuses(known, heard); all[0].Mode != "direct" {
			t.Errorf("mounted anew: %+v", all)
		}
	}
}
