package master

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/spread"
)

// crowd is a fleet of slaves and masters, in which a test does what is decided.
type crowd struct {
	testing.TB
	situation
}

func newCrowd(t testing.TB, slaves int, masters ...string) *crowd {
	c := &crowd{t, situation{now: time.Date(2026, 11, 27, 9, 0, 0, 0, time.UTC), slaves: map[string]fleet.Slave{}, steady: true}}
	for _, name := range masters {
		c.hosts = append(c.hosts, spread.Host{Name: name, Slots: 10, InStep: true, Serving: true})
	}
	for i := range slaves {
		c.hear(fmt.Sprintf("s%03d", i), i)
	}
	c.act()
	return c
}

// hear reports a slave.
func (c *crowd) hear(name string, host int) *slaveReport {
	c.reports = append(c.reports, slaveReport{
		Name: name, Address: netip.AddrFrom4([4]byte{10, 77, byte(host / 250), byte(host%250 + 1)}), Mode: fleet.ModeRelay, Instance: "i", Version: "v", At: c.now,
	})
	return &c.reports[len(c.reports)-1]
}

// act does what is decided, and checks what holds for every decision.
func (c *crowd) act() decision {
	c.Helper()
	c.now = c.now.Add(time.Second)
	d := decide(c.situation)
	before := maps.Clone(c.slaves)
	for _, s := range d.put {
		if err := s.Validate(); err != nil {
			c.Fatalf("%+v: %v", s, err)
		}
		if was := c.slaves[s.Name]; s.Revision != was.Revision || reflect.DeepEqual(s, was) || s.Since.Equal(c.now) != (s.Master != was.Master) {
			c.Fatalf("%+v over %+v", s, was)
		}
		s.Revision++
		c.slaves[s.Name] = s
	}
	for _, s := range d.gone {
		if _, there := c.slaves[s.Name]; !there {
			c.Fatalf("%s goes, and was not there", s.Name)
		}
		delete(c.slaves, s.Name)
	}
	moved := 0
	for name, was := range before {
		if now, there := c.slaves[name]; there && was.Master != "" && now.Master != was.Master {
			moved++
		}
	}
	if moved != len(d.moves) {
		c.Fatalf("%d slaves moved, %v told", moved, d.moves)
	}
	if i := slices.IndexFunc(d.put, func(s fleet.Slave) bool { return before[s.Name].Master == s.Master }); i >= 0 {
		for _, s := range d.put[i:] {
			if before[s.Name].Master != s.Master {
				c.Fatalf("who needs a home waits for who does not: %v", d.put)
			}
		}
	}
	evened := c.order.Rebalance
	c.reports, c.order = nil, slaveOrder{}
	again := decide(c.situation)
	if c.steady && !evened && len(again.put)+len(again.gone) > 0 || evened && len(again.moves) > 0 {
		c.Fatalf("and then %d records are other, %d go, and %v move", len(again.put), len(again.gone), again.moves)
	}
	return d
}

// host returns a master to be changed.
func (c *crowd) host(name string) *spread.Host {
	i := slices.IndexFunc(c.hosts, func(h spread.Host) bool { return h.Name == name })
	if i < 0 {
		c.Fatalf("no master %s", name)
	}
	return &c.hosts[i]
}

// lose takes a master away.
func (c *crowd) lose(name string) {
	c.hosts = slices.DeleteFunc(slices.Clone(c.hosts), func(h spread.Host) bool { return h.Name == name })
}

// at are the slaves of a master.
func (c *crowd) at(name string) []string {
	var out []string
	for _, s := range c.slaves {
		if s.Master == name {
			out = append(out, s.Name)
		}
	}
	slices.Sort(out)
	return out
}

func names(moves []spread.SlaveMove) []string {
	var out []string
	for _, m := range moves {
		out = append(out, m.Slave)
	}
	return out
}

func TestALostMastersSlavesMove(t *testing.T) {
	c := newCrowd(t, 100, "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "m9", "m10")
	lost := c.at("m4")
	c.now = c.now.Add(time.Hour)
	c.lose("m4")
	d := c.act()
	if !slices.Equal(names(d.moves), lost) || len(d.put) > 100 || len(d.gone) > 0 {
		t.Errorf("moved %v, want %v; %d records in all", names(d.moves), lost, len(d.put))
	}
	for _, h := range c.hosts {
		if n := len(c.at(h.Name)); n > 13 {
			t.Errorf("%s has %d slaves", h.Name, n)
		}
	}
	c.hosts = append(c.hosts, spread.Host{Name: "m4", Slots: 10, InStep: true, Serving: true})
	if d := c.act(); len(d.put) > 0 {
		t.Errorf("it is back, and %+v", d)
	}
}

func TestADrainedMastersSlavesMove(t *testing.T) {
	c := newCrowd(t, 30, "m1", "m2", "m3")
	c.host("m2").Serving = false
	had := c.at("m2")
	if d := c.act(); !slices.Equal(names(d.moves), had) {
		t.Errorf("moved %v, want %v", names(d.moves), had)
	}
	c.host("m2").Serving = true
	if d := c.act(); len(d.moves) > 0 {
		t.Errorf("undrained: %+v", d.moves)
	}
}

func TestOneThatIsBehindLosesItsSlaves(t *testing.T) {
	c := newCrowd(t, 30, "m1", "m2", "m3")
	c.host("m3").InStep = false
	if had, d := c.at("m3"), c.act(); !slices.Equal(names(d.moves), had) {
		t.Errorf("moved %v, want %v", names(d.moves), had)
	}
	c.host("m3").InStep = true
	c.order.Rebalance = true
	c.act()
	c.act() // fallbacks
	c.host("m2").InStep, c.host("m3").InStep = false, false
	if d := c.act(); len(d.put) > 0 {
		t.Errorf("all but one are behind, and its slaves would be three times as many: %+v", d.moves)
	}
	c.host("m1").InStep = false
	if d := c.act(); len(d.put) > 0 {
		t.Errorf("all are behind: %+v", d.moves)
	}
}

// A master that joins does not serve anything yet: it gets nobody, even while most are behind.
func TestNobodyIsSentToANewcomer(t *testing.T) {
	c := newCrowd(t, 30, "m1", "m2", "m3")
	c.host("m2").InStep, c.host("m3").InStep = false, false
	c.hosts = append(c.hosts, spread.Host{Name: "m4", Slots: 1000, Serving: true})
	for i := range 20 {
		c.hear(fmt.Sprint("new", i), 100+i)
	}
	c.act()
	if n := c.at("m4"); len(n) > 0 {
		t.Errorf("%v", n)
	}
}

func TestNobodyIsMovedUntilEtcdIsSteady(t *testing.T) {
	c := newCrowd(t, 30, "m1", "m2", "m3")
	c.steady = false
	c.lose("m1")
	c.hear("new", 100)
	if d := c.act(); len(d.moves) > 0 || len(d.put) != 1 || c.slaves["new"].Master == "" {
		t.Errorf("%+v", d)
	}
	c.order = slaveOrder{Move: "s001", To: "m2"} // an operator knows better
	if c.act(); c.slaves["s001"].Master != "m2" {
		t.Errorf("%+v", c.slaves["s001"])
	}
	c.steady = true
	if had, d := c.at("m1"), c.act(); len(had) == 0 || !slices.Equal(names(d.moves), had) {
		t.Errorf("moved %v, want %v", names(d.moves), had)
	}
}

func TestAnEnrolledSlaveStaysWhereItReads(t *testing.T) {
	c := newCrowd(t, 0, "m1", "m2", "m3")
	for i := range 9 {
		c.hear(fmt.Sprint("s", i), i).Master = "m2"
	}
	c.act()
	if n := c.at("m2"); len(n) != 9 {
		t.Errorf("%v", c.slaves)
	}
	s := c.slaves["s1"]
	if s.EnrolledAt.IsZero() || s.Since.IsZero() || s.Address != netip.MustParseAddr("10.77.0.2") || len(s.Fallbacks) != 2 {
		t.Errorf("%+v", s)
	}
	c.now = c.now.Add(time.Hour)
	c.hear("s1", 77).Version = "v2"
	d := c.act()
	if now := c.slaves["s1"]; len(d.put) != 1 || now.Address == s.Address || now.Version != "v2" || now.Master != s.Master || !now.Since.Equal(s.Since) || !now.EnrolledAt.Equal(s.EnrolledAt) {
		t.Errorf("%+v became %+v", s, now)
	}
}

func TestWithoutAMasterASlaveIsEnrolledAllTheSame(t *testing.T) {
	c := newCrowd(t, 1, "m1")
	c.hosts = nil
	c.hear("new", 9)
	if d := c.act(); len(d.put) != 1 || c.slaves["new"].Master != "" || c.slaves["s000"].Master != "m1" {
		t.Errorf("%+v", d)
	}
}

func TestSlavesAreForgotten(t *testing.T) {
	c := newCrowd(t, 10, "m1", "m2")
	c.now = c.now.Add(6 * 24 * time.Hour)
	c.hear("s001", 1)
	c.act()
	c.now = c.now.Add(2 * 24 * time.Hour)
	if d := c.act(); len(d.gone) > 0 {
		t.Errorf("although not everybody has had time to tell: %+v", d.gone)
	}
	c.complete = true
	c.hear("s002", 2)
	c.act()
	if got := slices.Sorted(maps.Keys(c.slaves)); !slices.Equal(got, []string{"s001", "s002"}) {
		t.Errorf("known are %v", got)
	}
	c.order.Forget = "s001"
	if c.act(); len(c.slaves) != 1 {
		t.Errorf("known are %v", c.slaves)
	}
}

// One machine is one slave: what its kernel mounts under another name than its agent's is no other.
func TestAMountIsNotASecondSlave(t *testing.T) {
	mount := func(r *slaveReport) { r.Mode, r.Instance, r.Version = fleet.ModeMount, "", "" }
	c := newCrowd(t, 0, "m1", "m2")
	mount(c.hear("web17.prod", 17))
	c.act()
	if len(c.slaves) != 1 {
		t.Fatalf("a mount alone: %v", c.slaves)
	}
	c.hear("web17", 17)
	c.act()
	if _, ok := c.slaves["web17"]; !ok || len(c.slaves) != 1 {
		t.Errorf("then its agent: %v", c.slaves)
	}
	mount(c.hear("web17.prod", 17))
	mount(c.hear("web17", 17))
	mount(c.hear("web18.prod", 18))
	c.hear("web18", 18)
	c.act()
	if got := slices.Sorted(maps.Keys(c.slaves)); !slices.Equal(got, []string{"web17", "web18"}) || c.slaves["web17"].Mode != fleet.ModeRelay {
		t.Errorf("known are %v", c.slaves)
	}
}

func TestMoveAndRebalance(t *testing.T) {
	c := newCrowd(t, 20, "m1", "m2")
	s := c.slaves["s001"]
	to := map[string]string{"m1": "m2", "m2": "m1"}[s.Master]
	c.order = slaveOrder{Move: "s001", To: to}
	if d := c.act(); len(d.moves) != 1 || c.slaves["s001"].Master != to || !slices.Contains(c.slaves["s001"].Fallbacks, s.Master) {
		t.Errorf("%+v", d)
	}
	c.order = slaveOrder{Move: "s001", To: to}
	if d := c.act(); len(d.put) != 0 {
		t.Errorf("moved to where it is: %+v", d)
	}
	c.hosts = append(c.hosts, spread.Host{Name: "m3", Slots: 10, InStep: true, Serving: true})
	c.act()
	if len(c.at("m3")) != 0 {
		t.Error("a join moved somebody")
	}
	c.order.Rebalance = true
	if c.act(); len(c.at("m3")) < 6 {
		t.Errorf("m3 has %v", c.at("m3"))
	}
}

func TestWhatCannotBeOrdered(t *testing.T) {
	c := newCrowd(t, 3, "m1", "m2", "m3")
	c.host("m2").Serving, c.host("m3").InStep = false, false
	for _, o := range []slaveOrder{{Move: "no", To: "m1"}, {Forget: "no"}, {Move: "s001", To: "m9"}, {Move: "s001", To: "m2"}, {Move: "s001", To: "m3"}} {
		if c.order = o; c.possible() == nil {
			t.Errorf("%+v", o)
		}
	}
	c.order = slaveOrder{Rebalance: true}
	if err := c.possible(); err != nil {
		t.Error(err)
	}
	if c.steady = false; c.possible() == nil {
		t.Error("a rebalance right after etcd is back")
	}
}

func TestSlavesAreBounded(t *testing.T) {
	c := newCrowd(t, maxSlaves, "m1")
	c.hear("s001", 1).Version = "v2"
	c.hear("s999999", 1)
	if d := c.act(); len(d.put) != 1 || d.refused != 1 {
		t.Errorf("%d written, %d refused", len(d.put), d.refused)
	}
}

func TestOneAddressDoesNotFillTheFleet(t *testing.T) {
	c := newCrowd(t, 3, "m1")
	for i := range maxAtOrigin + 10 {
		c.hear(fmt.Sprintf("x%04d", i), 1) // where s001 is
	}
	c.hear("s001", 1).Version = "v2"
	c.hear("web17", 7)
	for i := range maxAtOrigin + 10 {
		r := c.hear(fmt.Sprintf("y%04d", i), 0)
		r.Address = netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i+1))
	}
	if d := c.act(); len(d.put) != maxAtOrigin-1+1+1+maxAtOrigin || d.refused != 11+10 {
		t.Errorf("%d written, %d refused", len(d.put), d.refused)
	}
	if c.slaves["web17"].Master != "m1" || c.slaves["s001"].Version != "v2" {
		t.Error("others are refused too")
	}
}

// Whatever happens, and in whatever order: nobody moves from a master that is good, and everybody has a good one as long as
// there is one.
func TestDecisionsOverALongTime(t *testing.T) {
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 7))
		c := newCrowd(t, random.IntN(60), "m1", "m2", "m3")
		next := 4
		for range 60 {
			c.now = c.now.Add(time.Duration(random.IntN(3600)) * time.Second)
			c.steady, c.settled, c.complete = random.IntN(5) > 0, random.IntN(2) > 0, random.IntN(3) > 0
			switch i := random.IntN(6); {
			case i == 0 && len(c.hosts) > 0:
				c.lose(c.hosts[random.IntN(len(c.hosts))].Name)
			case i == 1:
				c.hosts = append(slices.Clone(c.hosts), spread.Host{Name: fmt.Sprint("m", next), Slots: random.IntN(20), InStep: random.IntN(2) > 0, Serving: true})
				next++
			case i == 2 && len(c.hosts) > 0:
				h := &c.hosts[random.IntN(len(c.hosts))]
				h.Serving, h.InStep = random.IntN(4) > 0, random.IntN(4) > 0
			case i == 3:
				c.hear(fmt.Sprintf("s%03d", random.IntN(80)), random.IntN(80))
			}
			before, good := maps.Clone(c.slaves), map[string]bool{}
			for _, h := range c.hosts {
				good[h.Name] = h.Serving && h.InStep
			}
			d := c.act()
			for _, m := range d.moves {
				if good[m.From] || !c.steady {
					t.Fatalf("seed %d: %+v, steady %t", seed, m, c.steady)
				}
			}
			for name, s := range c.slaves {
				served := slices.ContainsFunc(c.hosts, func(h spread.Host) bool { return h.Name == s.Master && h.Serving })
				if c.steady && !served && slices.ContainsFunc(c.hosts, func(h spread.Host) bool { return good[h.Name] }) {
					t.Fatalf("seed %d: %s reads from %q, was %+v", seed, name, s.Master, before[name])
				}
			}
		}
	}
}

// BenchmarkDecide is a fleet of 10,000 slaves on 1,000 masters, one of which is lost.
func BenchmarkDecide(b *testing.B) {
	c := newCrowd(b, 0)
	for i := range 1000 {
		c.hosts = append(c.hosts, spread.Host{Name: fmt.Sprintf("m%03d", i), Slots: 10, InStep: true, Serving: true})
	}
	for i := range 10000 {
		c.hear(fmt.Sprintf("s%05d", i), i)
	}
	d := decide(c.situation)
	b.Run("enrol all", func(b *testing.B) {
		for b.Loop() {
			decide(c.situation)
		}
	})
	for _, s := range d.put {
		c.slaves[s.Name] = s
	}
	c.reports = nil
	c.lose("m500")
	b.Run("lose a master", func(b *testing.B) {
		for b.Loop() {
			d = decide(c.situation)
		}
		b.ReportMetric(float64(len(d.put)), "records")
	})
}

// A coordinator whose clock is days ahead of the one before forgets nobody who lives: it waits until all that do were reported,
// and then it goes by what its own clock said.
func TestAClockThatIsAheadForgetsNobodyWhoLives(t *testing.T) {
	truth := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	const ahead = 8 * 24 * time.Hour
	slaves, lives := map[string]fleet.Slave{}, map[string]slaveReport{}
	for i := range 20 {
		s := fleet.Slave{Name: fmt.Sprintf("s%02d", i), Master: "m1", Mode: fleet.ModeRelay, SeenAt: truth.Add(-time.Duration(i) * 12 * time.Minute)}
		slaves[s.Name] = s
		lives[s.Name] = slaveReport{Name: s.Name, Mode: s.Mode, Master: "m1"}
	}
	slaves["gone"] = fleet.Slave{Name: "gone", Master: "m1", Mode: fleet.ModeRelay, SeenAt: truth.Add(-seenEvery)}
	s := &spreader{began: truth.Add(ahead)}
	for ; truth.Add(ahead).Sub(s.began) < 2*seenEvery; truth = truth.Add(time.Minute) {
		clock := truth.Add(ahead)
		now := situation{now: clock, slaves: slaves, hosts: []spread.Host{{Name: "m1", Slots: 100, InStep: true, Serving: true}}, steady: true}
		now.settled = clock.Sub(s.began) >= settleTime
		now.complete = now.settled && s.sweeps(clock)
		for name, r := range lives {
			if r.At = truth; r.news(slaves[name]) { // which its master judges by its own clock
				r.At = clock
				now.reports = append(now.reports, r)
			}
		}
		d := decide(now)
		for _, put := range d.put {
			slaves[put.Name] = put
		}
		for _, gone := range d.gone {
			delete(slaves, gone.Name)
		}
		for name := range lives {
			if _, known := slaves[name]; !known {
				t.Fatalf("%s is forgotten after %s", name, clock.Sub(s.began))
			}
		}
	}
	if _, known := slaves["gone"]; known {
		t.Error("who was not heard of is not forgotten")
	}
}
