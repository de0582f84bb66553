package spread

import (
	"math"
	"math/bits"
	"slices"
)

// hasRoom says whether a table takes one more of total slaves without being too full: while slots are free, one of its
// own, else no more than the next whole number above its part of them. Some table always has room when fewer than total are
// seated.
func (s *seating) hasRoom(t *table, total int) bool {
	if total <= s.slots {
		return t.load < t.slots
	}
	return t.load*s.slots < total*t.slots
}

// home seats everybody.
func (s *seating) home() {
	var least, fresh []*seat
	for _, t := range s.open {
		switch {
		case t.table != nowhere || s.toFallback(t):
		case t.was.Master != "":
			least = append(least, t)
		default:
			fresh = append(fresh, t)
		}
	}
	for _, t := range least {
		s.sit(t, s.leastFull(t))
	}
	for _, t := range fresh {
		s.sit(t, s.drawn(t))
	}
}

// toFallback seats a slave at the first of its fallbacks that has room.
func (s *seating) toFallback(t *seat) bool {
	for _, at := range t.next {
		if at != nowhere && s.hasRoom(&s.tables[at], len(s.seats)) {
			s.sit(t, at)
			return true
		}
	}
	return false
}

// leastFull returns, of the tables with room, the one that will be the least full by its slots.
func (s *seating) leastFull(t *seat) int32 {
	best, bestDraw := nowhere, uint64(0)
	for i := range s.tables {
		c := &s.tables[i]
		if !s.hasRoom(c, len(s.seats)) {
			continue
		}
		draw := s.tickets[i].draw(t.hash)
		if best != nowhere {
			b := &s.tables[best]
			if x, y := (c.load+1)*b.slots, (b.load+1)*c.slots; x > y || x == y && draw >= bestDraw {
				continue
			}
		}
		best, bestDraw = int32(i), draw
	}
	return best
}

// drawn returns the table that a new slave's name is hashed to, among those that are not much fuller than others.
func (s *seating) drawn(t *seat) int32 {
	best, lowest := nowhere, uint64(math.MaxUint64)
	var high, inverse uint64 // of the best
	for i := range s.tickets {
		// the greater hash is the lower draw, but for more slots: most can be told without the logarithm
		c := &s.tickets[i]
		h := c.meet(t.hash)
		if h < high && c.inverse >= inverse {
			continue
		}
		if draw := logarithm(h) * c.inverse; draw < lowest && admits(s.tables[i].load, s.tables[i].slots, s.seated+1, s.slots) {
			best, lowest = int32(i), draw
			high, inverse = h, c.inverse
		}
	}
	return best
}

// admits says whether a master that has a number of slaves is to get a new one, which makes it total on all slots: it
// must have a slot free, and be less than a quarter above the average; when there are more slaves than slots, below it.
// It is true of some master always.
func admits(load, of, total, slots int) bool {
	if total > slots {
		return load*slots < total*of
	}
	return load < of && 4*load*slots < 5*total*of
}

// fallBack finds the fallbacks that are missing.
func (s *seating) fallBack() {
	var p *pairs
	for _, t := range s.open {
		others := len(s.tables) - 1
		for _, at := range t.next {
			if at != nowhere {
				others--
			}
		}
		prev := t.table
		for k, at := range t.next {
			if at == nowhere && others > 0 {
				if p == nil {
					p = s.pairs()
				}
				at = s.behind(t, k, prev, p)
				t.next[k] = at
				others--
				*p.at(k, prev, at)++
				s.tables[at].behind[k]++
			}
			if at != nowhere {
				prev = at
			}
		}
	}
}

// In a fleet of more than manyTables, only someTables of them are looked at for a fallback, drawn by the slave's name: that
// comes out almost as even, and costs the same however large the fleet is.
const (
	manyTables = 64
	someTables = 12
)

// behind returns the table that is to be the fallback number k of a slave, behind prev: one that comes behind prev for few
// others, so that a loss is spread, and of those the one with the most room, when those are counted whose fallback it is.
func (s *seating) behind(t *seat, k int, prev int32, p *pairs) int32 {
	best, bestPairs := nowhere, uint16(0)
	look := func(at int32) {
		n := *p.at(k, prev, at)
		if best != nowhere && n > bestPairs || at == t.table || slices.Contains(t.next[:], at) {
			return
		}
		if best != nowhere && n == bestPairs {
			c, b := &s.tables[at], &s.tables[best]
			x, y := (c.load+c.behind[k])*b.slots, (b.load+b.behind[k])*c.slots
			if x > y || x == y && s.tickets[at].draw(t.hash) >= s.tickets[best].draw(t.hash) {
				return
			}
		}
		best, bestPairs = at, n
	}
	if n := uint64(len(s.tables)); n > manyTables {
		for h, i := mix(t.hash+uint64(prev)), 0; i < someTables; h, i = mix(h), i+1 {
			at, _ := bits.Mul64(h, n)
			look(int32(at))
		}
	}
	if best == nowhere {
		for at := range s.tables {
			look(int32(at))
		}
	}
	return best
}

// pairs counts, for each number of a fallback, for how many slaves one table comes right behind another. With very many
// tables some pairs are counted together, which makes the spread a little less even.
type pairs struct {
	tables uint64
	count  [MaxFallbacks][]uint16
}

const maxPairs = 1 << 20

// pairs counts what there is, and behind of each table.
func (s *seating) pairs() *pairs {
	p := &pairs{tables: uint64(len(s.tables))}
	for k := range p.count {
		p.count[k] = make([]uint16, min(p.tables*p.tables, maxPairs))
	}
	for i := range s.seats {
		t := &s.seats[i]
		prev := t.table
		for k, at := range t.next {
			if at != nowhere {
				s.tables[at].behind[k]++
				if prev != nowhere {
					*p.at(k, prev, at)++
				}
			}
			prev = at
		}
	}
	return p
}

// at is the count of b behind a as fallback number k.
func (p *pairs) at(k int, a, b int32) *uint16 {
	i, n := uint64(a)*p.tables+uint64(b), uint64(len(p.count[k]))
	if i >= n {
		i %= n
	}
	return &p.count[k][i]
}
