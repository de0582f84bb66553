package relay

import (
	"testing"
	"time"
)

// What a slave has to tell of itself is told at once, also when a greeting is under way that says less; one is enough.
func TestNewsAreToldAtOnce(t *testing.T) {
	s := newSim(t, 1)
	s.run(10 * time.Second)
	s.reads(0)
	c := s.c
	for c.probe != nil {
		s.run(time.Millisecond)
	}
	probes := func(event any) (ids []uint64) {
		for _, action := range c.step(s.now, s.flow(), event) {
			if g, ok := action.(greet); ok && g.to.Addr == s.target {
				ids = append(ids, g.id)
			}
		}
		return ids
	}
	first := probes(news{})
	if len(first) != 1 {
		t.Fatalf("%d greetings", len(first))
	}
	for range 3 {
		if more := probes(news{}); len(more) != 0 {
			t.Fatalf("%d more while one is under way", len(more))
		}
	}
	second := probes(answered{first[0], s.answer(s.m(0))})
	if len(second) != 1 {
		t.Fatalf("%d greetings when that is answered", len(second))
	}
	if third := probes(answered{second[0], s.answer(s.m(0))}); len(third) != 0 {
		t.Errorf("%d greetings when there is nothing new", len(third))
	}
}
