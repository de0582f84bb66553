package spread

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// counted sets the hosts' loads.
func (c *crowd) counted() []Host {
	loads, hosts := c.loads(), slices.Clone(c.hosts)
	for i := range hosts {
		hosts[i].Load = loads[hosts[i].Name]
	}
	return hosts
}

func TestOrderOfAKnownSlave(t *testing.T) {
	c := newCrowd(1, 80, 10)
	c.place(t)
	hosts := c.counted()
	s := c.slaves[17]
	got := Order(s.Name, &s, hosts)
	if len(got) != MaxOrder || got[0] != s.Master || !slices.Equal(got[1:3], s.Fallbacks) || distinct(got) != MaxOrder {
		t.Errorf("%v of %+v", got, s)
	}
	if again := Order(s.Name, &s, shuffled(hosts)); !slices.Equal(got, again) {
		t.Errorf("%v, then %v", got, again)
	}

	set := func(name string, change func(*Host)) []Host {
		hosts := slices.Clone(hosts)
		change(&hosts[slices.IndexFunc(hosts, func(h Host) bool { return h.Name == name })])
		return hosts
	}
	for what, c := range map[string]struct {
		hosts []Host
		first []string
	}{
		"its master is drained":       {set(s.Master, func(h *Host) { h.Serving = false }), s.Fallbacks},
		"a fallback is lost":          {set(s.Fallbacks[0], func(h *Host) { h.Serving = false }), []string{s.Master, s.Fallbacks[1]}},
		"its master is not in step":   {set(s.Master, func(h *Host) { h.InStep = false }), s.Fallbacks},
		"its master is over-full":     {set(s.Master, func(h *Host) { h.Load = 50 }), []string{s.Master, s.Fallbacks[0], s.Fallbacks[1]}},
		"another is lost":             {set(got[4], func(h *Host) { h.Serving = false }), got[:4]},
		"another one has more slaves": {set(got[4], func(h *Host) { h.Load++ }), got[:4]},
	} {
		if now := Order(s.Name, &s, c.hosts); len(now) != MaxOrder || !slices.Equal(now[:len(c.first)], c.first) {
			t.Errorf("when %s: %v, not %v…", what, now, c.first)
		}
	}
}

func distinct(names []string) int {
	names = slices.Clone(names)
	slices.Sort(names)
	return len(slices.Compact(names))
}

func shuffled(hosts []Host) []Host {
	hosts = slices.Clone(hosts)
	rand.New(rand.NewPCG(3, 4)).Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
	return hosts
}

// What an unknown slave is told is where it is then seated.
func TestOrderOfAnUnknownSlave(t *testing.T) {
	for _, slots := range []func(int) int{func(int) int { return 10 }, func(i int) int { return 3 + 2*i }} {
		c := newCrowd(2, 0, 10)
		for i := range c.hosts {
			c.hosts[i].Slots = slots(i)
		}
		for i := range 150 {
			name := fmt.Sprintf("new%d", i)
			got := Order(name, nil, c.counted())
			if len(got) != MaxOrder || distinct(got) != MaxOrder {
				t.Fatalf("%s: %v", name, got)
			}
			c.slaves = append(c.slaves, Slave{Name: name})
			c.place(t)
			if s := c.slave(name); s.Master != got[0] {
				t.Fatalf("%s was told %v, and is at %s", name, got, s.Master)
			}
		}
	}
}

// The answer to an unknown slave does not change with everything that happens.
func TestOrderIsStable(t *testing.T) {
	c := newCrowd(3, 200, 20)
	for i := range c.hosts {
		c.hosts[i].Slots = 20
	}
	c.place(t)
	hosts := c.counted()
	changed := 0
	for i := range 500 {
		name := fmt.Sprintf("new%d", i)
		before := Order(name, nil, hosts)
		if after := Order(name, nil, hosts[1:]); before[0] != hosts[0].Name && before[0] != after[0] {
			changed++
		}
	}
	if changed > 50 { // the average rises, and some that were over it take slaves again
		t.Errorf("a loss changes what %d of 500 others are told first", changed)
	}
}

func TestOrderWithoutAnybodyInStep(t *testing.T) {
	c := newCrowd(4, 20, 4)
	c.place(t)
	hosts := c.counted()
	s := c.slaves[0]
	for i := range hosts {
		hosts[i].InStep = false
	}
	want := append([]string{s.Master}, s.Fallbacks...)
	if got := Order(s.Name, &s, hosts); len(got) != 4 || !slices.Equal(got[:3], want) {
		t.Errorf("%v, not %v…", got, want)
	}
	hosts[3].InStep = true
	if got := Order(s.Name, &s, hosts); len(got) != 4 || got[0] != hosts[3].Name {
		t.Errorf("%v", got)
	}
	for i := range hosts {
		hosts[i].Serving = false
	}
	if got := Order(s.Name, &s, hosts); len(got) != 0 {
		t.Errorf("nobody serves: %v", got)
	}
	if got := Order("new", nil, nil); len(got) != 0 {
		t.Errorf("nobody is there: %v", got)
	}
}

// A master with twice the slots is drawn twice as often, and those of one size equally often.
func TestDraw(t *testing.T) {
	hosts := []Host{{Name: "a", Slots: 10}, {Name: "b", Slots: 20}, {Name: "c", Slots: 10}, {Name: "d", Slots: 40}, {Name: "e", Slots: 20}}
	count := map[string]int{}
	const n = 50_000
	for i := range n {
		slave := hashOf(fmt.Sprintf("web%d", i))
		best, lowest := "", uint64(math.MaxUint64)
		for _, h := range hosts {
			if d := newTicket(h).draw(slave); d < lowest {
				best, lowest = h.Name, d
			}
		}
		count[best]++
	}
	for _, h := range hosts {
		if got := float64(count[h.Name]) / n * 100; math.Abs(got-float64(h.Slots)) > 1.5 {
			t.Errorf("%s, with %d of 100 slots, is drawn by %.1f%%", h.Name, h.Slots, got)
		}
	}
}

func TestLogarithm(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	hashes := []uint64{0, 1, 2, 3, 1 << 31, 1 << 32, 1<<63 - 1, 1 << 63, 1<<63 + 1, math.MaxUint64}
	for range 10_000 {
		hashes = append(hashes, random.Uint64()>>random.IntN(64))
	}
	slices.Sort(hashes)
	last := uint64(math.MaxUint64)
	for _, h := range hashes {
		got := logarithm(h)
		if got > last {
			t.Fatalf("of %#x it is more than of less", h)
		}
		last = got
		if want := 64 - math.Log2(float64(h|1)); math.Abs(float64(got)/(1<<32)-want) > 0.01 {
			t.Fatalf("of %#x: %v, not %v", h, float64(got)/(1<<32), want)
		}
	}
	widest := newTicket(Host{Name: "a", Slots: 1})
	if high := logarithm(0); high > math.MaxUint64/widest.inverse {
		t.Errorf("%#x times %#x is too much", high, widest.inverse)
	}
	if newTicket(Host{Name: "a", Slots: math.MaxInt}).inverse == 0 {
		t.Error("a host with a great many slots would be drawn always")
	}
}

func BenchmarkOrder(b *testing.B) {
	c := newCrowd(6, 10_000, 1000)
	c.place(b)
	hosts, s := c.counted(), c.slaves[123]
	b.ReportAllocs()
	for b.Loop() {
		Order(s.Name, &s, hosts)
	}
}
