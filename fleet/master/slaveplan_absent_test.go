package master

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/spread"
)

// Slaves that are switched off have homes, and take nobody's place: those who read are even among themselves.
func TestAbsentSlavesDoNotCountInRebalancing(t *testing.T) {
	for n := range 12 {
		c := newCrowd(t, 3+n, "m1", "m2")
		there := map[string]bool{}
		for _, name := range c.at("m1") {
			if len(there) < 2 {
				there[name] = true // both at m1, and the rest is absent
			}
		}
		c.order = slaveOrder{Rebalance: true, present: there}
		c.act()
		homes := map[string]int{}
		for name := range there {
			homes[c.slaves[name].Master]++
		}
		if len(there) == 2 && homes["m1"] != 1 {
			t.Errorf("of %d slaves two are there: %v", len(c.slaves), homes)
		}
		if x, y := len(c.at("m1")), len(c.at("m2")); max(x-y, y-x) > 2 {
			t.Errorf("%d and %d in all", x, y)
		}
		if d := c.act(); len(d.moves) != 0 {
			t.Errorf("rebalanced again: %+v", d.moves)
		}
	}
}

// leave has some slaves go away, long enough ago for their records to tell, and returns those who stay.
func (c *crowd) leave(goes func(s fleet.Slave) bool) (there map[string]fleet.Slave) {
	there = map[string]fleet.Slave{}
	c.now = c.now.Add(absentAfter + time.Hour)
	for name, s := range c.slaves {
		if !goes(s) {
			s.SeenAt = c.now
			there[name] = s
		}
	}
	maps.Copy(c.slaves, there)
	c.settled = true
	return there
}

// A master that nobody reads from has room, though it is the home of as many as it takes: they were switched off.
func TestAbsentSlavesTakeNobodysPlace(t *testing.T) {
	c := newCrowd(t, 24, "m1", "m2", "m3")
	there := c.leave(func(s fleet.Slave) bool { return s.Master == "m2" })
	c.host("m2").Slots, c.host("m3").Slots = len(c.at("m2")), len(c.at("m1"))+len(c.at("m3"))
	c.lose("m1")
	c.act()
	homes := map[string]int{}
	for name := range there {
		homes[c.slaves[name].Master]++
	}
	if homes["m2"] == 0 {
		t.Errorf("those who are there: %v", homes)
	}
}

// That a slave is silent is written into its record, and nothing else of it is.
func TestASilentSlavesRecord(t *testing.T) {
	c := newCrowd(t, 3, "m1", "m2")
	was := c.slaves["s001"]
	const there, silent = time.Hour, 10 * time.Minute
	c.now = was.SeenAt.Add(there + silent)
	for _, name := range []string{"s001", "stranger"} {
		r := c.hear(name, 77)
		r.At, r.Silent, r.Version = c.now.Add(-silent), silent, "older"
	}
	d := c.act()
	now := c.slaves["s001"]
	if len(d.put) != 1 || !now.SeenAt.Equal(was.SeenAt.Add(there)) || now.Address != was.Address || now.Version != was.Version || now.Master != was.Master {
		t.Errorf("%+v, was %+v", now, was)
	}
	r := c.hear("s001", 1)
	r.At, r.Silent = was.SeenAt.Add(time.Minute), silent // an old report
	if d := c.act(); len(d.put) != 0 {
		t.Errorf("%+v", d.put)
	}
}

// By whose clock a slave was last there does not matter, only for how long it has been silent.
func TestSilenceIsCountedByTheCoordinator(t *testing.T) {
	s := &spreader{wake: make(chan struct{}, 1), reports: map[string]slaveReport{}}
	r := slaveReport{Name: "web17", Mode: fleet.ModeRelay, Master: "m1", At: time.Unix(0, 0), Silent: time.Hour}
	negative, endless := r, r
	negative.Name, negative.Silent = "web18", -time.Second
	endless.Name, endless.Silent = "web19", 2*forgetAfter
	if err := s.report([]slaveReport{r, negative, endless}); err != nil {
		t.Fatal(err)
	}
	if since := time.Since(s.reports["web17"].At); len(s.reports) != 1 || since < time.Hour || since > time.Hour+time.Minute {
		t.Errorf("%+v", s.reports)
	}
}

// What a slave's home no longer hears does not take the place of what another master hears of it now.
func TestSilenceDoesNotHideWhatIsHeard(t *testing.T) {
	s := &spreader{wake: make(chan struct{}, 1), reports: map[string]slaveReport{}}
	heard := slaveReport{Name: "web17", Mode: fleet.ModeRelay, Master: "m2", Version: "new"}
	silent := slaveReport{Name: "web17", Mode: fleet.ModeRelay, Master: "m1", Silent: time.Hour}
	for _, r := range []slaveReport{silent, heard, silent} {
		if err := s.report([]slaveReport{r}); err != nil {
			t.Fatal(err)
		}
	}
	if r := s.reports["web17"]; r.Silent > 0 || r.Version != "new" {
		t.Errorf("%+v", r)
	}
}

// Whatever is lost, joins and is reported: those who are there get the homes that they would have if the others did not exist,
// and the others keep theirs, or get another.
func TestWhoIsAbsentChangesNothing(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 11))
		c := newCrowd(t, 1+random.IntN(80), "m1", "m2", "m3", "m4", "m5")
		there := c.leave(func(fleet.Slave) bool { return random.IntN(2) > 0 })
		for range 1 + random.IntN(2) {
			c.lose(c.hosts[random.IntN(len(c.hosts))].Name)
		}
		if random.IntN(2) > 0 {
			c.hosts = append(slices.Clone(c.hosts), spread.Host{Name: "m6", Slots: 1 + random.IntN(20), InStep: true, Serving: true})
		}
		for range random.IntN(4) {
			c.hear("new"+string(rune('a'+random.IntN(26))), random.IntN(80))
		}
		alone := &crowd{t, c.situation}
		alone.slaves = there
		before := maps.Clone(c.slaves)
		alone.act()
		c.act()
		for name, want := range alone.slaves {
			if got := c.slaves[name]; got.Master != want.Master || !slices.Equal(got.Fallbacks, want.Fallbacks) {
				t.Fatalf("seed %d: %s reads from %s, %v; without the absent from %s, %v", seed, name, got.Master, got.Fallbacks, want.Master, want.Fallbacks)
			}
		}
		for name, was := range before {
			lives := func(master string) bool {
				return slices.ContainsFunc(c.hosts, func(h spread.Host) bool { return h.Name == master })
			}
			if now := c.slaves[name].Master; !lives(now) || lives(was.Master) && now != was.Master {
				t.Fatalf("seed %d: the home of %s was %s and is %s", seed, name, was.Master, now)
			}
		}
	}
}

// Before everybody has had time to be reported nobody counts as absent, however old the records: etcd may have been gone for a day.
func TestNobodyIsAbsentBeforeItIsKnown(t *testing.T) {
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 13))
		c := newCrowd(t, 60, "m1", "m2", "m3", "m4")
		fresh := &crowd{t, c.situation}
		fresh.slaves = maps.Clone(c.slaves)
		c.leave(func(fleet.Slave) bool { return random.IntN(2) > 0 })
		c.settled = false
		lost := c.hosts[random.IntN(4)].Name
		c.lose(lost)
		fresh.lose(lost)
		c.act()
		fresh.act()
		for name, want := range fresh.slaves {
			if got := c.slaves[name].Master; got != want.Master {
				t.Fatalf("seed %d: %s goes to %s, want %s", seed, name, got, want.Master)
			}
		}
	}
}
