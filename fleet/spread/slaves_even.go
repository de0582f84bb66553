package spread

import (
	"cmp"
	"slices"
)

// even seats everybody so that each table has its part of the slaves, by its slots, give or take the rounding, with as few
// slaves as possible getting another table.
func (s *seating) even() {
	want := s.parts()
	room := func(at int32) bool { return at != nowhere && s.tables[at].load < want[at] }
	toFallback := func(t *seat) bool {
		i := slices.IndexFunc(t.next[:], room)
		if i >= 0 {
			s.sit(t, t.next[i])
		}
		return i >= 0
	}
	for _, t := range s.open { // who moves anyway has the first choice
		if t.table == nowhere {
			toFallback(t)
		}
	}
	over := func(t *seat) bool { return t.table != nowhere && s.tables[t.table].load > want[t.table] }
	for _, t := range s.open { // of a full table those give way who have somewhere to go
		if from := t.table; over(t) && slices.ContainsFunc(t.next[:], room) {
			s.rise(t)
			toFallback(t)
			if t.next[MaxFallbacks-1] == nowhere {
				t.next[MaxFallbacks-1] = from // it was good enough until now
			}
		}
	}
	for _, t := range s.open {
		if over(t) {
			s.rise(t)
		}
	}
	for _, t := range s.open {
		if t.table != nowhere {
			continue
		}
		best, lowest := nowhere, uint64(0)
		for at := range s.tables {
			if draw := s.tickets[at].draw(t.hash); room(int32(at)) && (best == nowhere || draw < lowest) {
				best, lowest = int32(at), draw
			}
		}
		s.sit(t, best)
	}
}

// rise takes a slave from its table.
func (s *seating) rise(t *seat) {
	s.tables[t.table].load--
	s.seated--
	t.table = nowhere
}

// parts returns how many slaves each table is to have: its part of them, rounded down or up, so that they add up. Up is for
// those that have more than the part rounded down already, for that saves moves.
func (s *seating) parts() []int {
	want := make([]int, len(s.tables))
	left := len(s.seats)
	var up []int
	for i, t := range s.tables {
		want[i] = len(s.seats) * t.slots / s.slots
		left -= want[i]
		if len(s.seats)*t.slots%s.slots != 0 {
			up = append(up, i)
		}
	}
	rest := func(i int) int { return len(s.seats) * s.tables[i].slots % s.slots }
	slices.SortStableFunc(up, func(x, y int) int {
		fullX, fullY := s.tables[x].load > want[x], s.tables[y].load > want[y]
		switch {
		case fullX && !fullY:
			return -1
		case fullY && !fullX:
			return 1
		}
		return cmp.Compare(rest(y), rest(x))
	})
	for _, i := range up[:left] {
		want[i]++
	}
	return want
}
