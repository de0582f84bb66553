package relay

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Target is a master as a slave reaches it. Two with the same Addr are the same.
type Target struct {
	Name string
	Addr netip.AddrPort
}

// String returns the name, or the address when there is none.
func (t Target) String() string { return cmp.Or(t.Name, t.Addr.String()) }

// Status is what a master thinks of this slave reading from it.
type Status uint8

// The statuses.
const (
	OK     Status = iota
	Leave         // go elsewhere now
	Unwell        // it answers, and cannot serve
)

// Answer is what a master says to a HELLO.
type Answer struct {
	Status   Status
	Why      string        // words for a Status other than OK
	Targets  []Target      // the slave's order, its home first; empty: not known
	Revision int64         // of Targets: an older one than the last is not heeded while newer ones are told
	Every    time.Duration // how often to say HELLO; 0: 500 ms
}

// Times of the course.
const (
	probeEvery   = 500 * time.Millisecond
	probeLeast   = 100 * time.Millisecond // what a master may ask of probeEvery
	probeMost    = 5 * time.Second
	suspectAfter = 100 * time.Millisecond // calls unanswered for so long bring the next probe forward
	suspectRest  = 100 * time.Millisecond // but not sooner after the last
	confirmAfter = 200 * time.Millisecond // then a second probe goes out, and others are asked
	silentAfter  = 500 * time.Millisecond // of a probe, and of replies: lost
	probeEnd     = 3 * time.Second        // then a probe is begun anew
	raceStep     = 100 * time.Millisecond // then one more is asked
	raceAnswer   = time.Second            // is what each has to answer
	raceWidth    = 2                      // are asked at once
	raceRest     = 200 * time.Millisecond // between rounds, more each time
	raceRestMost = time.Second
	preferFirst  = 10 * time.Millisecond  // the first in order may answer so much later than another
	preferHome   = 150 * time.Millisecond // at the start, and on a departure
	preferStay   = 25 * time.Millisecond  // the present master, when it closed a connection
	homeEvery    = time.Second
	homeAfter    = 30 * time.Second // of good probes of the home master, the slave goes back; longer for one that is lost again
	homeAfterMax = 10 * time.Minute
	homeProven   = 5 * time.Minute  // at home without a loss: homeAfter is as short again
	strikesMax   = 2                // connections in a row that brought no reply: the master does not serve, whatever it says
	leaveRest    = time.Second      // between attempts to find another than a master that wants the slave gone
	orderRest    = 30 * time.Second // when nobody told a newer order for so long, an older one counts: the fleet was made anew
	recent       = 10 * time.Second
	lateClock    = 150 * time.Millisecond // that this process did not run for so long is taken into account
	maxOrder     = 16
)

// What happens to a course.
type (
	tick     struct{}                   // time passes
	news     struct{}                   // this slave has more to say of itself than when it last said HELLO
	told     struct{ targets []Target } // DNS says
	answered struct {                   // a greeting was answered
		id     uint64
		answer Answer
	}
	failed struct { // a greeting was not
		id  uint64
		err error
	}
	moved struct{ err error } // what moveTo came to
)

// What a course wants done.
type (
	greet struct { // say HELLO, and tell; it is given up when the course no longer has the id
		id    uint64
		to    Target
		fresh bool // over a new connection
	}
	hold     struct{}
	resume   struct{}
	switchTo struct{ Change }
	moveTo   struct{ Change }
	arrived  struct{ Change } // what moveTo began is done: say so
	discover struct{}         // ask DNS, and tell
)

// Change is a change from one master to another.
type Change struct {
	At       time.Time     // when it was decided
	Took     time.Duration // from when readers began to wait, or from the decision for a planned one, to its end
	From, To Target        // From is zero at the start
	Why      string
	Planned  bool
}

// purpose is what a greeting is for.
type purpose uint8

const (
	forProbe purpose = iota
	forRace
	forHome
)

// ask is a greeting under way.
type ask struct {
	to   Target
	why  purpose
	sent time.Time
}

// probe is a probe of the present master: one greeting, and a second when the first stays unanswered.
type probe struct {
	began     time.Time
	confirmed bool // the second is on its way
	failures  int
	err       error
}

// course decides which master the relay is joined to. It is a pure state machine: step is given what happened, the time and
// the flow of replies, and returns what to do. It is not safe for concurrent use.
type course struct {
	now  time.Time
	flow Flow
	out  []any
	wake time.Time // when step is to be called again at the latest
	asks map[uint64]ask
	last uint64

	order    []Target // its first is home
	revision int64
	behind   time.Time // since when all orders that are told are older; zero: they are not
	every    time.Duration

	current Target // zero: none yet
	lost    bool   // current is, and a race is on for another
	lostAt  time.Time
	lostWhy string
	why     string
	since   time.Time
	change  Change // the last

	probe     *probe
	probeAt   time.Time // of the next
	probedAt  time.Time // of the last
	grace     time.Time // silence is not counted from before
	news      bool      // is to be told the present master at once
	strikes   int
	struckAt  time.Time
	race      *race
	moving    *Change
	leaveAt   time.Time // when to look again for another
	discovers time.Time // when DNS was last asked
	losses    map[netip.AddrPort]time.Time

	homeAsked bool
	homeAt    time.Time // of the next probe of home
	homeGood  time.Time // since when every probe of it was good; zero: not
	homeWait  time.Duration
	homeBack  time.Time // when it was last gone back to
}

func newCourse() *course {
	return &course{
		asks: make(map[uint64]ask), losses: make(map[netip.AddrPort]time.Time),
		every: probeEvery, homeWait: homeAfter,
	}
}

// step takes an event (tick, news, told, answered, failed, Loss or moved) into account, and returns what to do.
func (c *course) step(now time.Time, flow Flow, event any) []any {
	c.now, c.out = now, nil
	c.forgive()
	c.flow = flow
	switch e := event.(type) {
	case news:
		c.news = true
	case told:
		c.learn(e.targets)
	case answered:
		c.answered(e)
	case failed:
		c.failed(e)
	case Loss:
		c.broken(e)
	case moved:
		c.moved(e)
	}
	c.expire()
	c.watch()
	c.visitHome()
	c.run()
	c.wake = c.next()
	return c.out
}

// forgive has time stand still for everybody while this process was not running: it accuses nobody of its own silence. The
// silence of before still counts, else a process that is starved would never leave a silent master. c.flow is still that of
// before.
func (c *course) forgive() {
	late := c.now.Sub(c.wake)
	if c.wake.IsZero() || late < lateClock {
		return
	}
	c.grace = later(c.flow.Heard, c.grace).Add(late)
	for id, a := range c.asks {
		a.sent = a.sent.Add(late)
		c.asks[id] = a
	}
	if !c.behind.IsZero() {
		c.behind = c.behind.Add(late)
	}
	if c.probe != nil {
		c.probe.began = c.probe.began.Add(late)
	}
}

// next says when to step again.
func (c *course) next() time.Time {
	switch {
	case c.race != nil && c.race.kind != rehearsal:
		return c.now.Add(10 * time.Millisecond)
	case c.probe != nil || c.race != nil:
		return c.now.Add(25 * time.Millisecond)
	case c.flow.Conns > 0 || c.now.Sub(c.since) < 2*time.Second: // the kernel's connections come back at once
		next := c.now.Add(50 * time.Millisecond)
		if suspect := later(c.flow.Waiting, c.grace).Add(suspectAfter); !c.flow.Waiting.IsZero() && suspect.Before(next) {
			next = later(suspect, c.now.Add(5*time.Millisecond))
		}
		return next
	case c.current.Addr.IsValid():
		return c.now.Add(max(min(c.probeAt.Sub(c.now), c.every), 10*time.Millisecond))
	}
	return c.now.Add(raceRest)
}

func (c *course) do(action any) { c.out = append(c.out, action) }

// greet says HELLO.
func (c *course) greet(to Target, why purpose, fresh bool) {
	c.last++
	c.asks[c.last] = ask{to: to, why: why, sent: c.now}
	c.do(greet{id: c.last, to: to, fresh: fresh})
}

// forget gives up greetings.
func (c *course) forget(why purpose) {
	for id, a := range c.asks {
		if a.why == why {
			delete(c.asks, id)
		}
	}
}

// learn takes the order from DNS: a master's word is newer, so it only adds to that, in place of the last of it when there are
// too many. That nothing was found takes nothing away.
func (c *course) learn(targets []Target) {
	if targets = tidy(targets); len(targets) == 0 {
		return
	}
	if !c.current.Addr.IsValid() {
		c.order = nil
	}
	kept := c.order[:min(len(c.order), max(maxOrder-len(targets), 1))]
	c.order = tidy(slices.Concat(kept, targets))
	switch {
	case c.race != nil && c.race.kind == start && len(c.race.line) == 0:
		c.begin(start, c.race.why)
	case c.race != nil:
		c.race.add(c.order, c.current)
	}
}

// heed takes the order that a master tells.
func (c *course) heed(a Answer) {
	c.every = probeEvery
	if a.Every > 0 {
		c.every = min(max(a.Every, probeLeast), probeMost)
	}
	targets := tidy(a.Targets)
	if len(targets) == 0 || !c.counts(a.Revision) {
		return
	}
	c.revision = a.Revision
	if len(c.order) == 0 || c.order[0].Addr != targets[0].Addr {
		c.homeGood, c.homeWait = time.Time{}, homeAfter
	}
	c.order = targets
}

// counts says whether an order of that revision is to be heeded. A master that lags behind the fleet tells an older one than others
// have; all masters do when the fleet was made anew, or was restored from a backup, and they count its changes from the start.
func (c *course) counts(revision int64) bool {
	switch {
	case revision >= c.revision:
		c.behind = time.Time{}
		return true
	case c.behind.IsZero():
		c.behind = c.now
	case c.now.Sub(c.behind) >= orderRest:
		c.behind = time.Time{}
		return true
	}
	return false
}

// tidy returns the valid targets, each once, and not too many.
func tidy(targets []Target) []Target {
	var out []Target
	for _, t := range targets {
		if t.Addr.IsValid() && !slices.ContainsFunc(out, t.is) && len(out) < maxOrder {
			out = append(out, t)
		}
	}
	return out
}

func (t Target) is(o Target) bool { return t.Addr == o.Addr }

// answered sorts an answer to what asked for it.
func (c *course) answered(e answered) {
	a, ok := c.asks[e.id]
	if !ok {
		return
	}
	delete(c.asks, e.id)
	if e.answer.Revision >= c.revision && len(e.answer.Targets) > 0 {
		c.behind = time.Time{} // somebody knows the fleet as this slave does
	}
	switch {
	case a.why == forHome:
		c.homeAnswered(e.answer.Status == OK)
	case a.why == forRace && c.race != nil:
		c.race.answered(a.to, e.answer, c.current)
	case a.why == forProbe && c.probe != nil && a.to.is(c.current):
		c.probeAnswered(e.answer)
	}
}

func (c *course) failed(e failed) {
	a, ok := c.asks[e.id]
	if !ok {
		return
	}
	delete(c.asks, e.id)
	switch {
	case a.why == forHome:
		c.homeAnswered(false)
	case a.why == forRace && c.race != nil:
		c.race.failed(a.to)
		if c.race.kind == breach && a.to.is(c.current) { // it ended a connection, and takes no other
			c.lose(c.race.why)
		}
	case a.why == forProbe && c.probe != nil:
		c.probe.failures++
		c.probe.err = e.err
	}
}

// expire gives up what is unanswered for too long; a probe sees to that itself.
func (c *course) expire() {
	for id, a := range c.asks {
		if a.why != forProbe && c.now.Sub(a.sent) >= raceAnswer {
			c.failed(failed{id: id, err: fmt.Errorf("no answer within %s", raceAnswer)})
		}
	}
	for addr, at := range c.losses {
		if c.now.Sub(at) > recent {
			delete(c.losses, addr)
		}
	}
}

// visitHome probes the home master while the slave is elsewhere, and goes back when it was good for long enough.
func (c *course) visitHome() {
	settled := c.current.Addr.IsValid() && !c.lost && c.race == nil && c.moving == nil
	if !settled || len(c.order) == 0 || c.order[0].is(c.current) {
		c.homeGood = time.Time{}
		if settled && c.now.Sub(c.homeBack) > homeProven {
			c.homeWait = homeAfter
		}
		return
	}
	home := c.order[0]
	switch {
	case !c.homeGood.IsZero() && c.now.Sub(c.homeGood) >= c.homeWait:
		c.homeGood = time.Time{}
		c.homeBack = c.now
		c.move(home, "its home is well again")
	case !c.homeAsked && !c.now.Before(c.homeAt):
		c.homeAsked = true
		c.homeAt = c.now.Add(homeEvery)
		c.greet(home, forHome, false)
	}
}

func (c *course) homeAnswered(good bool) {
	c.homeAsked = false
	switch {
	case !good:
		c.homeGood = time.Time{}
	case c.homeGood.IsZero():
		c.homeGood = c.now
	}
}

// move begins a planned change.
func (c *course) move(to Target, why string) {
	c.moving = &Change{At: c.now, From: c.current, To: to, Why: why, Planned: true}
	c.do(moveTo{*c.moving})
}

// moved takes the end of a planned change into account.
func (c *course) moved(e moved) {
	m := c.moving
	c.moving = nil
	if m == nil {
		return
	}
	if e.err != nil {
		c.leaveAt = c.now.Add(leaveRest)
		return
	}
	m.Took = c.now.Sub(m.At)
	c.become(*m)
	c.do(arrived{*m})
}

// become makes a change that has happened the present state.
func (c *course) become(ch Change) {
	c.change, c.current, c.why, c.since = ch, ch.To, ch.Why, c.now
	c.lost, c.probe, c.race, c.strikes = false, nil, nil, 0
	c.leaveAt, c.probeAt, c.probedAt, c.grace = time.Time{}, c.now.Add(c.every), c.now, c.now
	c.homeAsked, c.homeGood = false, time.Time{}
	clear(c.asks)
}
