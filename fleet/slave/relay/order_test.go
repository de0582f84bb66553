package relay

import (
	"slices"
	"testing"
	"time"
)

func TestAnOldOrderIsNotHeeded(t *testing.T) {
	s := newSim(t, 3)
	s.run(time.Second)
	first, second := s.order[:1], s.order[1:]
	s.c.heed(Answer{Targets: second, Revision: 7})
	s.c.heed(Answer{Targets: first, Revision: 6})
	if !slices.Equal(s.c.order, second) {
		t.Errorf("order: %v", s.c.order)
	}
	s.c.heed(Answer{Targets: append(slices.Clone(first), first[0], Target{}), Revision: 7})
	if !slices.Equal(s.c.order, first) {
		t.Errorf("order: %v", s.c.order)
	}
}

// orders has masters tell orders of their own, each with its revision.
func (s *sim) orders(of ...Answer) {
	for i, a := range of {
		s.m(i).order = &a
	}
}

// A fleet that was made anew counts its changes from the start: a slave that is awake follows it after a while all the same.
func TestAFleetMadeAnewIsFollowed(t *testing.T) {
	s := newSim(t, 3)
	old := Answer{Targets: s.order, Revision: 1 << 40}
	s.orders(old, old, old)
	s.run(10 * time.Second)
	s.reads(0)
	anew := Answer{Targets: []Target{s.order[2], s.order[1], s.order[0]}, Revision: 7}
	s.orders(anew, anew, anew)
	s.run(orderRest / 2)
	if s.c.order[0] != s.order[0] {
		t.Fatal("an older order is heeded at once")
	}
	s.run(2 * orderRest)
	if !slices.Equal(s.c.order, anew.Targets) || s.c.revision != 7 {
		t.Fatalf("order %v of revision %d", s.c.order, s.c.revision)
	}
	s.reads(2) // its home in the new fleet
	s.paused(0)
}

// A master that lags behind the fleet does not lead a slave astray that reads from it, as long as the slave hears of a newer order.
func TestALaggingMasterIsNotHeeded(t *testing.T) {
	s := newSim(t, 3)
	present := Answer{Targets: []Target{s.order[1], s.order[0], s.order[2]}, Revision: 9}
	lagging := Answer{Targets: []Target{s.order[2], s.order[0], s.order[1]}, Revision: 8}
	s.orders(lagging, present, lagging)
	s.m(1).status = Unwell // so the slave stays away from home, and asks it how it is
	s.c.heed(present)
	for range 20 {
		s.run(orderRest / 3)
		if !slices.Equal(s.c.order, present.Targets) {
			t.Fatalf("order %v", s.c.order)
		}
	}
}

// Others send the slave to its home until that one's lease has run out: a slave that has lost it does not wait for that, whoever
// answers first.
func TestASlaveKnowsThatItsHomeIsLost(t *testing.T) {
	for _, dead := range []bool{false, true} {
		for _, delay := range []time.Duration{100 * time.Microsecond, time.Millisecond, 10 * time.Millisecond} {
			s := newSim(t, 3)
			s.run(10 * time.Second)
			s.m(1).status, s.m(2).status = Leave, Leave
			s.m(1).delay, s.m(2).delay = delay, delay
			bound := 700 * time.Millisecond
			if s.m(0).silent = !dead; dead {
				s.kill(0)
				bound = 20 * time.Millisecond
			}
			s.run(2 * time.Second)
			if s.target == simAddr(0) {
				t.Error("it stays")
			}
			s.paused(bound)
		}
	}
}
