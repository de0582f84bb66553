package relay

import (
	"net/netip"
	"slices"
	"time"
)

// raceKind says what a race is for.
type raceKind uint8

const (
	start     raceKind = iota // there is no master yet
	rehearsal                 // the present one is slow to answer: others are asked, in case
	breach                    // it ended a connection: it is asked too, and stays when it answers
	escape                    // it is lost: it is asked last
	departure                 // it wants the slave gone, and serves until another is found
)

// race greets several masters for the first good answer.
type race struct {
	kind      raceKind
	why       string
	since     time.Time // since when readers wait
	began     time.Time // this round
	asked     time.Time // when the last was asked
	line      []Target  // whom to ask, in order
	next      int       // in line
	open      map[netip.AddrPort]bool
	good      map[netip.AddrPort]Answer
	grudging  []Target // those that answered, but not well
	unaware   []Target // of those, who sends the slave to the master that it has lost
	favourite Target   // is waited for until patience is over
	patience  time.Duration
	round     int
	restUntil time.Time // between rounds
}

// home is the address of the home master; not valid: none is known.
func (c *course) home() netip.AddrPort {
	if len(c.order) == 0 {
		return netip.AddrPort{}
	}
	return c.order[0].Addr
}

// lineup is whom to ask besides the present master: in order, but for those that were lost just now.
func (c *course) lineup() []Target {
	var line []Target
	for _, fresh := range []bool{true, false} {
		for _, t := range c.order {
			if _, lost := c.losses[t.Addr]; lost != fresh && !t.is(c.current) {
				line = append(line, t)
			}
		}
	}
	return line
}

// begin begins a race.
func (c *course) begin(kind raceKind, why string) {
	r := &race{kind: kind, why: why, since: c.now}
	c.race = r
	r.reset(c.now, c.lineup())
	switch {
	case kind == breach && c.strikes < strikesMax:
		r.line = slices.Insert(r.line, 0, c.current)
		r.favour(c.current, preferStay)
	case kind == breach || kind == escape:
		r.add(nil, c.current)
	case (kind == start || kind == departure) && len(r.line) > 0: // who departs reads meanwhile
		r.favour(r.line[0], preferHome)
	}
}

func (r *race) reset(now time.Time, line []Target) {
	r.line, r.next, r.began, r.asked = line, 0, now, time.Time{}
	r.open, r.good, r.grudging, r.unaware = make(map[netip.AddrPort]bool), make(map[netip.AddrPort]Answer), nil, nil
	r.favourite, r.patience = Target{}, 0
}

// favour says who is waited for a little; nobody: the first in line.
func (r *race) favour(t Target, patience time.Duration) { r.favourite, r.patience = t, patience }

// add lengthens the line by those that are not in it, and by the present master at the end if it is lost.
func (r *race) add(more []Target, current Target) {
	for _, t := range more {
		if !t.is(current) && !slices.ContainsFunc(r.line, t.is) {
			r.line = append(r.line, t)
		}
	}
	if current.Addr.IsValid() && (r.kind == escape || r.kind == breach) && !slices.ContainsFunc(r.line, current.is) {
		r.line = append(r.line, current)
	}
}

func (r *race) answered(t Target, a Answer, lost Target) {
	delete(r.open, t.Addr)
	switch {
	case a.Status == OK:
		r.good[t.Addr] = a
		return
	case a.Status == Leave && len(a.Targets) > 0 && a.Targets[0].is(lost) && !t.is(lost):
		r.unaware = append(r.unaware, t)
	}
	r.grudging = append(r.grudging, t)
}

func (r *race) failed(t Target) { delete(r.open, t.Addr) }

func (c *course) endRace() {
	c.race = nil
	c.forget(forRace)
}

// run asks the next in line, and ends the race when it is decided.
func (c *course) run() {
	if c.race == nil && !c.current.Addr.IsValid() {
		c.begin(start, "it is the first")
	}
	r := c.race
	if r == nil || c.now.Before(r.restUntil) {
		return
	}
	if !r.restUntil.IsZero() {
		r.restUntil = time.Time{}
		r.reset(c.now, c.lineup())
		r.add(nil, c.current)
	}
	width := raceWidth
	if r.kind == breach {
		width++ // the present master is the one more
	}
	for r.next < len(r.line) && (len(r.open) < width || c.now.Sub(r.asked) >= raceStep) {
		t := r.line[r.next]
		r.next++
		r.open[t.Addr], r.asked = true, c.now
		c.greet(t, forRace, r.kind == breach && t.is(c.current))
	}
	if r.kind == rehearsal {
		return
	}
	if to, ok := r.winner(c.now); ok {
		c.choose(to, r.good[to.Addr])
	} else if to, ok := r.lastResort(c.current); ok {
		c.choose(to, Answer{})
	} else if len(r.open) == 0 && r.next == len(r.line) && len(r.good) == 0 {
		c.fruitless()
	}
}

// winner says who has won: the favourite if it is good, else the first in line of those that are, once the favourite has
// failed or had its time.
func (r *race) winner(now time.Time) (Target, bool) {
	favourite, patience := r.favourite, r.patience
	if !favourite.Addr.IsValid() && len(r.line) > 0 {
		favourite, patience = r.line[0], preferFirst
	}
	if len(r.good) == 0 || r.open[favourite.Addr] && now.Sub(r.began) < patience {
		return Target{}, false
	}
	if _, good := r.good[favourite.Addr]; good {
		return favourite, true
	}
	i := slices.IndexFunc(r.line, func(t Target) bool { _, good := r.good[t.Addr]; return good })
	return r.line[i], true
}

// lastResort is who sends the slave back to the master that it has lost, when everybody but that one was asked and nobody is
// good: a slave knows better than the others, who learn of it when the lost master's lease runs out.
func (r *race) lastResort(lost Target) (Target, bool) {
	waited := len(r.open)
	if r.open[lost.Addr] {
		waited--
	}
	left := slices.ContainsFunc(r.line[r.next:], func(t Target) bool { return !t.is(lost) })
	if r.kind != escape || waited > 0 || left || len(r.good) > 0 || len(r.unaware) == 0 {
		return Target{}, false
	}
	return r.unaware[0], true
}

// choose ends a race.
func (c *course) choose(to Target, a Answer) {
	r := c.race
	c.endRace()
	switch {
	case r.kind == breach && to.is(c.current):
		c.heed(a)
		c.probeAt = c.now.Add(c.every)
		c.do(resume{})
		return
	case r.kind == departure:
		c.heed(a)
		c.move(to, r.why)
		return
	}
	if r.kind == breach && !to.is(c.current) {
		c.blame()
	}
	c.moving = nil
	ch := Change{At: c.now, Took: c.now.Sub(r.since), From: c.current, To: to, Why: r.why}
	c.become(ch)
	c.heed(a)
	c.do(switchTo{ch})
}

// fruitless is a round in which nobody was good. Whoever serves, but does not want the slave, is better than nobody.
func (c *course) fruitless() {
	r := c.race
	switch {
	case r.kind == departure:
		c.leaveAt = c.now.Add(leaveRest)
		c.endRace()
	case len(r.grudging) > 0 && r.round > 0:
		c.choose(r.grudging[0], Answer{})
		return
	default:
		r.round++
		r.restUntil = c.now.Add(min(time.Duration(r.round)*raceRest, raceRestMost))
	}
	if c.now.Sub(c.discovers) >= raceRestMost {
		c.discovers = c.now
		c.do(discover{})
	}
}
