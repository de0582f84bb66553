package master

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/exporter/hello"
	"github.com/nfs-fleet/nfs-fleet/fleet"
)

// greets is a slave's greeting so long after the beginning.
func greets(name, instance string, after time.Duration) slaveSighting {
	return slaveSighting{Greeting: hello.Greeting{Slave: name, Instance: instance}, From: netip.MustParseAddrPort("10.0.0.1:700"), At: time.Unix(1000, 0).Add(after)}
}

func TestWhoIsAskedToGoHome(t *testing.T) {
	type greeting struct {
		after    time.Duration
		revision int64 // of the fleet, as this master knows it
		reads    bool
	}
	home := fleet.Slave{Name: "web17", Master: "m2", Placed: 50}
	for _, tc := range []struct {
		name string
		said []greeting
		want string // what the last is told
	}{
		{"it came before it was placed elsewhere", []greeting{{0, 40, true}, {time.Second, 50, true}}, "m2"},
		{"it came afterwards", []greeting{{0, 60, true}, {time.Second, 61, true}}, ""},
		{"it was away in between", []greeting{{0, 40, true}, {time.Minute, 61, true}}, ""},
		{"it only looks whether it may come", []greeting{{0, 40, false}, {time.Second, 50, false}}, ""},
		{"it looked before, and came afterwards", []greeting{{0, 40, false}, {time.Second, 60, true}}, ""},
		{"it went, and looks whether it may come back", []greeting{{0, 40, true}, {time.Second, 50, true}, {2 * time.Second, 51, false}}, ""},
		{"it went, and came back", []greeting{{0, 40, true}, {time.Second, 51, false}, {2 * time.Second, 52, true}}, ""},
	} {
		var s stays
		got := ""
		for _, g := range tc.said {
			said := greets("web17", "i", g.after)
			s.note(said, g.revision, g.reads)
			got = s.moved(said, home)
		}
		if got != tc.want {
			t.Errorf("%s: %q", tc.name, got)
		}
	}
}

// A slave that looked at this master before it read anywhere, and was placed elsewhere then, comes because that is lost.
func TestComingFromALostHome(t *testing.T) {
	var s stays
	home := fleet.Slave{Name: "web17", Master: "m1", Placed: 50}
	s.note(greets("web17", "i", 0), 40, true)
	said := greets("web17", "i", 4*time.Second)
	said.Last = hello.Reattach{At: said.At, From: "m1", To: "m2"}
	s.note(said, 55, true)
	if to := s.moved(said, home); to != "" {
		t.Errorf("a slave that has just come from m1 is sent to %s", to)
	}
	home.Master, home.Placed = "m3", 60
	said.At = said.At.Add(time.Second)
	s.note(said, 60, true)
	if to := s.moved(said, home); to != "m3" {
		t.Errorf("placed elsewhere afterwards it is sent to %q", to)
	}
}

// Whoever does not go cannot go, and is left alone until it is placed anew.
func TestNobodyIsAskedForEver(t *testing.T) {
	var s stays
	home := fleet.Slave{Name: "web17", Master: "m2", Placed: 50}
	ask := func(after time.Duration) string {
		said := greets("web17", "i", after)
		s.note(said, 40, true)
		return s.moved(said, home)
	}
	asked := 0
	for i := range 1000 {
		if ask(time.Duration(i)*500*time.Millisecond) != "" {
			asked++
		}
	}
	if asked == 0 || asked > 61 {
		t.Errorf("asked %d times", asked)
	}
	home.Placed, home.Master = 70, "m3"
	if got := ask(501 * time.Second); got != "m3" {
		t.Errorf("placed anew: %q", got)
	}
}

func TestTwins(t *testing.T) {
	for _, tc := range []struct {
		name  string
		say   []slaveSighting
		twins int
	}{
		{"one machine", []slaveSighting{greets("a", "i1", 0), greets("a", "i1", time.Second), greets("a", "i1", 2*time.Second)}, 0},
		{"it was started anew", []slaveSighting{greets("a", "i1", 0), greets("a", "i2", time.Second), greets("a", "i2", 2*time.Second)}, 0},
		{"two, told of once", []slaveSighting{greets("a", "i1", 0), greets("a", "i2", time.Second), greets("a", "i1", 2*time.Second), greets("a", "i2", 3*time.Second)}, 1},
		{"back to an old system after long", []slaveSighting{greets("a", "i1", 0), greets("a", "i2", time.Hour), greets("a", "i1", 2*time.Hour)}, 0},
		{"two names", []slaveSighting{greets("a", "i1", 0), greets("b", "i2", time.Second), greets("a", "i1", 2*time.Second), greets("b", "i2", 3*time.Second)}, 0},
	} {
		var s stays
		got := 0
		for _, said := range tc.say {
			if s.note(said, 1, true) {
				got++
			}
		}
		if got != tc.twins {
			t.Errorf("%s: told %d times", tc.name, got)
		}
		last := tc.say[len(tc.say)-1].At
		if listed := s.twins(last); len(listed) != tc.twins {
			t.Errorf("%s: listed %q", tc.name, listed)
		}
		if listed := s.twins(last.Add(time.Hour)); len(listed) != 0 {
			t.Errorf("%s: listed for ever: %q", tc.name, listed)
		}
	}
}

func TestStaysAreBounded(t *testing.T) {
	var s stays
	from := func(said slaveSighting, host int) slaveSighting {
		said.From = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(host >> 8), byte(host)}), 700)
		return said
	}
	for i := range 2 * maxAtOrigin {
		s.note(from(greets(fmt.Sprint("one", i), "i", 0), 1), 1, true)
	}
	if len(s.all) != maxAtOrigin {
		t.Fatalf("%d of one address are kept", len(s.all))
	}
	s.note(from(greets("one0", "i", time.Second), 2), 1, true) // it has moved, and makes room
	s.note(from(greets("another", "i", time.Second), 1), 1, true)
	if _, kept := s.all["another"]; !kept || len(s.all) != maxAtOrigin+1 {
		t.Fatalf("%d are kept when one has moved", len(s.all))
	}
	for i := range 2 * maxHeard {
		s.note(from(greets(fmt.Sprint("s", i), "i", time.Second), 1000+i/100), 1, true)
	}
	if len(s.all) != maxHeard {
		t.Fatalf("%d are kept", len(s.all))
	}
	late := greets("late", "i", time.Hour)
	if s.note(late, 1, true); len(s.all) != 1 || len(s.origins) != 1 {
		t.Errorf("%d of %d origins are kept after all but one have gone", len(s.all), len(s.origins))
	}
	if got := s.lately(late.At, time.Minute); len(got) != 1 || !got[late.From.Addr()] {
		t.Errorf("lately: %v", got)
	}
}

func TestReceptionIsJudged(t *testing.T) {
	for _, tc := range []struct {
		name string
		r    reception
		want hello.Status
		why  string
	}{
		{"all is well", reception{}, hello.OK, ""},
		{"all is well, and there is nobody else", reception{alone: true}, hello.OK, ""},
		{"no slave of this fleet", reception{refused: errForeign, leaving: "x"}, hello.Refused, "etcd holds"},
		{"it is starting", reception{starting: true, alone: true}, hello.Unwell, "starting"},
		{"drained", reception{leaving: "it is drained"}, hello.Leave, "drained"},
		{"drained, like all", reception{leaving: "it is drained", alone: true}, hello.OK, ""},
		{"it stops, and is the last", reception{leaving: "it is stopping", closing: true, alone: true}, hello.Leave, "stopping"},
		{"the slave was moved", reception{moved: "m2"}, hello.Leave, "m2"},
		{"the slave was moved, and what it mounts is not here", reception{moved: "m2", lacks: "www"}, hello.Unwell, "www"},
		{"behind", reception{behind: true}, hello.Leave, "behind"},
		{"behind, like all", reception{behind: true, alone: true}, hello.OK, ""},
		{"the disk is stuck", reception{stuck: 4 * time.Second}, hello.Unwell, "4s"},
		{"the disk is stuck, but there is nobody else", reception{stuck: time.Hour, alone: true}, hello.OK, ""},
		{"the disk is slow", reception{stuck: 2 * time.Second}, hello.OK, ""},
	} {
		status, why := tc.r.judge()
		if status != tc.want || why == "" != (tc.why == "") || !strings.Contains(why, tc.why) {
			t.Errorf("%s: %v, %q", tc.name, status, why)
		}
	}
}
