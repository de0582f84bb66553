package relay

import (
	"strings"
	"testing"
	"time"
)

// While no master answers, the course says since when and why, by the name of the one that is meant; and it is the order that was
// known that is asked, whatever DNS does not tell.
func TestNobodyAnswers(t *testing.T) {
	s := newSim(t, 2)
	s.run(time.Second)
	began := s.now
	s.m(0).silent, s.m(1).dead = true, true
	s.run(10 * time.Second)
	if c := s.c; !c.lost || c.lostAt.Sub(began) > time.Second || !strings.HasPrefix(c.lostWhy, "m0 was silent for ") {
		t.Errorf("lost: %v at %v (%v), %q", c.lost, c.lostAt, began, c.lostWhy)
	}
	s.step(told{})
	if len(s.c.order) != 2 {
		t.Errorf("the order is %v", s.c.order)
	}
	s.m(1).dead = false
	s.run(3 * time.Second)
	if s.target != simAddr(1) {
		t.Errorf("it reads from %v", s.target)
	}
}

// A look-up that tells nothing takes nothing away, and one that tells more than there is room for is heeded.
func TestLearn(t *testing.T) {
	many := func(from int) (out []Target) {
		for i := range maxOrder {
			out = append(out, Target{Addr: simAddr(from + i)})
		}
		return out
	}
	c := newCourse()
	c.learn(many(0))
	c.learn(nil)
	if len(c.order) != maxOrder {
		t.Errorf("after an empty answer: %v", c.order)
	}
	c.current, c.lost = c.order[3], true
	c.learn(many(100)[:2])
	if len(c.order) != maxOrder || c.order[0].Addr != simAddr(0) || c.order[maxOrder-1].Addr != simAddr(101) {
		t.Errorf("there was no room for what is new: %v", c.order)
	}
}

// Whoever sends a slave away is named: the reason is read where another master is read from.
func TestFarewell(t *testing.T) {
	m := Target{Name: "m2", Addr: simAddr(2)}
	for want, a := range map[string]Answer{
		"m2 is drained":                        {Status: Leave, Why: "it is drained"},
		"its home is m3 now":                   {Status: Leave, Why: "its home is m3 now"},
		"m2 wants the slave elsewhere":         {Status: Leave},
		"m2 wants the slave elsewhere: a test": {Status: Leave, Why: "a test"},
		"m2 is unwell":                         {Status: Unwell},
		"m2 is unwell: its oldest READ waits":  {Status: Unwell, Why: "its oldest READ waits"},
	} {
		if got := farewell(m, a); got != want {
			t.Errorf("%+v: %q, want %q", a, got, want)
		}
	}
}
