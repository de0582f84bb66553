package spread

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestRebalanceAfterAJoin(t *testing.T) {
	c := newCrowd(1, 100, 9)
	c.place(t)
	c.join("new", DefaultSlots)
	if got := Place(c.slaves, c.hosts); got != nil {
		t.Errorf("a join alone changes %v", got)
	}
	moves := c.rebalance(t)
	if len(moves) != 10 {
		t.Errorf("%d moves", len(moves))
	}
	for _, m := range moves {
		if m.To != "new" {
			t.Errorf("%+v", m)
		}
	}
	if least, most := extremes(c.loads()); least != 10 || most != 10 {
		t.Errorf("%d to %d slaves a master", least, most)
	}
	if got := Place(c.slaves, c.hosts); got != nil {
		t.Errorf("then Place changes %v", got)
	}
}

// rebalance does what Rebalance says.
func (c *crowd) rebalance(t *testing.T) []SlaveMove {
	t.Helper()
	moves := Rebalance(c.slaves, c.hosts)
	for _, m := range moves {
		s := c.slave(m.Slave)
		if s == nil || s.Master != m.From || m.From == m.To {
			t.Fatalf("%+v of %+v", m, s)
		}
		s.Master, s.Fallbacks = m.To, m.Fallbacks
	}
	return moves
}

// TestRebalanceMovesTheFewest compares with trying out everything.
func TestRebalanceMovesTheFewest(t *testing.T) {
	for seed := range uint64(400) {
		random := rand.New(rand.NewPCG(seed, 5))
		c := newCrowd(seed, random.IntN(60), 1+random.IntN(6))
		for i := range c.hosts {
			if c.hosts[i].Slots = 10; seed%2 == 0 {
				c.hosts[i].Slots = 1 + random.IntN(12)
			}
		}
		for i := range c.slaves { // anywhere, also where there is no master
			if at := random.IntN(len(c.hosts) + 2); at < len(c.hosts) {
				c.slaves[i].Master = c.hosts[at*at/len(c.hosts)].Name
			} else if at == len(c.hosts) {
				c.slaves[i].Master = "gone"
			}
		}
		want := c.fewest()
		before := cloneAll(c.slaves)
		moves := c.rebalance(t)
		if len(moves) != want {
			t.Fatalf("seed %d: %d moves, %d are enough", seed, len(moves), want)
		}
		if !slices.IsSortedFunc(moves, func(x, y SlaveMove) int { return compareNames(x.Slave, y.Slave) }) {
			t.Fatalf("seed %d: not by name", seed)
		}
		slots, loads := c.allSlots(), c.loads()
		for _, h := range c.hosts {
			part := float64(len(c.slaves)*h.Slots) / float64(slots)
			if n := float64(loads[h.Name]); n <= part-1 || n >= part+1 || len(c.slaves) <= slots && loads[h.Name] > h.Slots {
				t.Fatalf("seed %d: %v slaves on %d slots, its part is %.2f", seed, n, h.Slots, part)
			}
		}
		if again := Rebalance(c.slaves, c.hosts); again != nil {
			t.Fatalf("seed %d: and then %v", seed, again)
		}
		fit := map[string]Host{}
		for _, h := range c.hosts {
			fit[h.Name] = h
		}
		for i, s := range before {
			if now := c.slaves[i]; now.Master != s.Master {
				checkRecord(t, Slave{}, now, fit)
			}
		}
	}
}

func compareNames(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func (c *crowd) allSlots() (n int) {
	for _, h := range c.hosts {
		n += h.Slots
	}
	return n
}

// fewest is the least number of slaves that have to get another master for the fleet to be even: each way to round the
// parts is tried.
func (c *crowd) fewest() int {
	slots, loads := c.allSlots(), c.loads()
	best := -1
	for mask := range 1 << len(c.hosts) {
		sum, stay, fair := 0, 0, true
		for i, h := range c.hosts {
			want := len(c.slaves) * h.Slots / slots
			if mask>>i&1 == 1 {
				want++
				fair = fair && len(c.slaves)*h.Slots%slots != 0
			}
			sum += want
			stay += min(want, loads[h.Name])
		}
		if fair && sum == len(c.slaves) && (best < 0 || len(c.slaves)-stay < best) {
			best = len(c.slaves) - stay
		}
	}
	return best
}

// Who moves goes to a master that it knows, when there is room.
func TestRebalancePrefersFallbacks(t *testing.T) {
	c := newCrowd(1, 40, 4)
	c.place(t)
	for i := range c.slaves[:5] {
		s := &c.slaves[i]
		s.Master, s.Fallbacks = s.Fallbacks[0], []string{s.Master, s.Fallbacks[1]}
	}
	known := map[string][]string{}
	for _, s := range c.slaves {
		known[s.Name] = s.Fallbacks
	}
	moves := c.rebalance(t)
	if len(moves) == 0 {
		t.Fatal("nobody is moved")
	}
	for _, m := range moves {
		if !slices.Contains(known[m.Slave], m.To) || !slices.Contains(m.Fallbacks, m.From) {
			t.Errorf("%+v, which knew %v", m, known[m.Slave])
		}
	}
}
