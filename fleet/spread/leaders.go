package spread

import (
	"cmp"
	"slices"
)

// Batch is the most moves that Leaders returns. Each is a hand-over during which its shard takes no publish for some
// tens of milliseconds, so the rest waits until these are done.
const Batch = 8

// Shard is a shard and who leads it.
type Shard struct {
	Name string
	// Leader is a master's name. A shard whose leader is "", or is not among the masters given, is the election's to
	// fill: it is counted, and not moved.
	Leader string
	// Pinned says that somebody has chosen the leader: only a drain moves the shard.
	Pinned bool
}

// Master is a living master, as a leader.
type Master struct {
	Name string
	// Sources are the shards whose source directory it has.
	Sources []string
	// InStep reports whether the master serves a shard's head, without which it is not made its leader; nil: it serves
	// them all. A shard that was never published has no head, and every master is in step with it. It is called often
	// and must answer from memory.
	InStep func(shard string) bool
	// Drained says that the master is to lead nothing.
	Drained bool
}

// Move is a planned hand-over of one shard.
type Move struct {
	Shard, From, To string
}

// Leaders returns the hand-overs, Batch at the most, that bring the leaderships nearer to this, in order of weight:
//
//  1. A drained master leads nothing.
//  2. Every other master leads as many shards as the others, give or take one from the average.
//  3. A shard is led by a master that has its source.
//
// Leaderships are sticky: no more are moved than it takes to come within the bound, and none is exchanged for another of
// the same worth. Whoever carries out the moves, in any number of rounds, comes to a state for which Leaders returns
// none, and the order of the arguments does not matter. A master that is not in step with a shard is never its To.
func Leaders(shards []Shard, masters []Master) []Move {
	b := newBoard(shards, masters)
	b.drain()
	for len(b.moves) < Batch && (b.even() || b.source()) {
	}
	return b.moves
}

// board is the state of one run: the leaderships as they will be after the moves found so far.
type board struct {
	masters []*master // that may lead, by name
	drained []*master
	low     int // what each master is to lead at the least, and
	high    int // at the most
	moves   []Move
}

type master struct {
	*Master
	sources map[string]bool
	leads   []*Shard // by name
}

func (m *master) load() int                 { return len(m.leads) }
func (m *master) mayLead(shard string) bool { return m.InStep == nil || m.InStep(shard) }

func newBoard(shards []Shard, all []Master) *board {
	b := &board{}
	byName := make(map[string]*master, len(all))
	for i := range all {
		m := &master{Master: &all[i], sources: make(map[string]bool, len(all[i].Sources))}
		for _, shard := range m.Sources {
			m.sources[shard] = true
		}
		byName[m.Name] = m
		if m.Drained {
			b.drained = append(b.drained, m)
		} else {
			b.masters = append(b.masters, m)
		}
	}
	for i := range shards {
		s := shards[i]
		if m := byName[s.Leader]; m != nil {
			m.leads = append(m.leads, &s)
		}
	}
	for _, m := range byName {
		slices.SortFunc(m.leads, func(x, y *Shard) int { return cmp.Compare(x.Name, y.Name) })
	}
	byNames := func(x, y *master) int { return cmp.Compare(x.Name, y.Name) }
	slices.SortFunc(b.masters, byNames)
	slices.SortFunc(b.drained, byNames)
	if n := len(b.masters); n > 0 {
		b.low, b.high = (len(shards)+n-1)/n-1, len(shards)/n+1
	}
	return b
}

// move carries out one hand-over on the board. The shard then stays where it is until the next call: a second move would
// be a hand-over for nothing.
func (b *board) move(s *Shard, from, to *master) {
	s.Pinned = true
	from.leads = slices.DeleteFunc(from.leads, func(have *Shard) bool { return have == s })
	i, _ := slices.BinarySearchFunc(to.leads, s, func(x, y *Shard) int { return cmp.Compare(x.Name, y.Name) })
	to.leads = slices.Insert(to.leads, i, s)
	b.moves = append(b.moves, Move{s.Name, from.Name, to.Name})
}

// drain hands over what drained masters lead, pinned or not: to a master with the source that has room, or else to the
// one that leads least.
func (b *board) drain() {
	for _, from := range b.drained {
		for _, s := range slices.Clone(from.leads) {
			if len(b.moves) == Batch {
				return
			}
			to := b.least(s, func(m *master) bool { return m.sources[s.Name] && m.load() < b.high })
			if to == nil {
				to = b.least(s, func(*master) bool { return true })
			}
			if to != nil {
				b.move(s, from, to)
			}
		}
	}
}

// least returns the master that leads least among those that are fit for s and may lead it.
func (b *board) least(s *Shard, fit func(*master) bool) *master {
	var best *master
	for _, m := range b.masters {
		if (best == nil || m.load() < best.load()) && fit(m) && m.mayLead(s.Name) {
			best = m
		}
	}
	return best
}

// even makes one hand-over that brings a master within the bound, from one that leads most to one that leads least. Each
// such move lessens the sum of the squares of what masters are above or below the bound, which source leaves as it is.
func (b *board) even() bool {
	from, to := slices.Clone(b.masters), slices.Clone(b.masters)
	slices.SortStableFunc(from, func(x, y *master) int { return cmp.Compare(y.load(), x.load()) })
	slices.SortStableFunc(to, func(x, y *master) int { return cmp.Compare(x.load(), y.load()) })
	for _, f := range from {
		for _, t := range to {
			if f.load()-t.load() < 2 {
				break
			}
			if f.load() <= b.high && t.load() >= b.low {
				continue
			}
			if s := cheapest(f, t); s != nil {
				b.move(s, f, t)
				return true
			}
		}
	}
	return false
}

// cheapest returns the shard that from gives away to the master to with the least loss, nil if there is none: one whose
// source to has rather than one whose source neither has, and one that is at its source only at the last.
func cheapest(from, to *master) *Shard {
	var best *Shard
	for _, s := range from.leads {
		if (best == nil || gain(s, from, to) > gain(best, from, to)) && !s.Pinned && to.mayLead(s.Name) {
			best = s
		}
	}
	return best
}

// gain is 1 for a move to a source, -1 for one away from a source.
func gain(s *Shard, from, to *master) int {
	n := 0
	if to.sources[s.Name] {
		n++
	}
	if from.sources[s.Name] {
		n--
	}
	return n
}

// source hands one shard over to a master that has its source, if that keeps to the bound or another hand-over beside it
// makes up for it.
func (b *board) source() bool {
	for _, from := range b.masters {
		for _, s := range from.leads {
			if s.Pinned || from.sources[s.Name] {
				continue
			}
			for _, to := range b.masters {
				if to.sources[s.Name] && to.mayLead(s.Name) && b.bring(s, from, to) {
					return true
				}
			}
		}
	}
	return false
}

// bring hands s over and sees to it that neither master leaves the bound by that.
func (b *board) bring(s *Shard, from, to *master) bool {
	over, under := to.load() >= b.high, from.load() <= b.low
	if !over && !under {
		b.move(s, from, to)
		return true
	}
	if len(b.moves)+2 > Batch {
		return false
	}
	for _, f := range b.masters {
		// What from gives up is not what it gets back, and who is to shed one is the only one that does.
		if over && f != to || f == from || f.load() <= b.low && f != to {
			continue
		}
		for _, t := range b.masters {
			if under && t != from || t == to || t.load() >= b.high && t != from {
				continue
			}
			if back := cheapest(f, t); back != nil && gain(back, f, t) >= 0 {
				b.move(s, from, to)
				b.move(back, f, t)
				return true
			}
		}
	}
	return false
}
