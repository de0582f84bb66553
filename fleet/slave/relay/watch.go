package relay

import (
	"fmt"
	"strings"
	"time"
)

// due says whether it is time to probe the present master: after a while, because there is something to tell it, or because
// somebody waits for a reply.
func (c *course) due() bool {
	if c.news || !c.now.Before(c.probeAt) {
		return true
	}
	return !c.flow.Waiting.IsZero() && c.now.Sub(later(c.flow.Waiting, c.grace)) >= suspectAfter &&
		c.now.Sub(c.probedAt) >= suspectRest
}

// watch probes the present master, and loses it when it is silent: when neither of two greetings was answered in time,
// nor any call.
func (c *course) watch() {
	if !c.current.Addr.IsValid() || c.lost {
		return
	}
	p := c.probe
	if p == nil {
		if c.due() {
			c.probe, c.probedAt, c.news = &probe{began: c.now}, c.now, false
			c.greet(c.current, forProbe, false)
		}
		return
	}
	age := c.now.Sub(p.began)
	if !p.confirmed && (age >= confirmAfter || p.failures > 0) {
		p.confirmed = true
		c.greet(c.current, forProbe, true)
		if c.race == nil && c.moving == nil {
			c.begin(rehearsal, "")
		}
	}
	silence := c.now.Sub(later(later(p.began, c.flow.Heard), c.grace))
	switch {
	case p.failures >= 2 && c.now.Sub(c.flow.Heard) >= suspectAfter:
		c.lose(fmt.Sprintf("%s does not answer: %v", c.current, p.err))
	case p.failures >= 2 || age >= probeEnd: // replies come: it is alive, whatever happens to greetings
		c.endProbe(suspectRest)
	case age >= silentAfter && silence >= silentAfter:
		c.lose(fmt.Sprintf("%s was silent for %s", c.current, silence.Round(10*time.Millisecond)))
	}
}

// endProbe ends a probe, and what was begun in case that it fails.
func (c *course) endProbe(next time.Duration) {
	c.probe, c.probeAt = nil, c.now.Add(next)
	c.forget(forProbe)
	if c.race != nil && c.race.kind == rehearsal {
		c.endRace()
	}
}

func (c *course) probeAnswered(a Answer) {
	c.heed(a)
	c.endProbe(c.every)
	if a.Status == OK {
		c.leaveAt = time.Time{}
		if c.race != nil && c.race.kind == departure {
			c.endRace()
		}
		return
	}
	if c.race != nil || c.moving != nil || c.now.Before(c.leaveAt) {
		return
	}
	c.begin(departure, farewell(c.current, a))
}

// farewell says why a master is left that says so itself, by its name: it is read where another one is read from.
func farewell(from Target, a Answer) string {
	if state, ok := strings.CutPrefix(a.Why, "it "); ok {
		return from.String() + " " + state
	}
	if strings.HasPrefix(a.Why, "its home is ") { // the slave's
		return a.Why
	}
	why := from.String() + " wants the slave elsewhere"
	if a.Status != Leave {
		why = from.String() + " is unwell"
	}
	if a.Why != "" {
		why += ": " + a.Why
	}
	return why
}

// lose gives the present master up.
func (c *course) lose(why string) {
	c.lost, c.lostWhy = true, why
	c.blame()
	since := c.now
	switch {
	case c.race != nil && c.race.kind == breach:
		since = c.race.since
	case c.probe != nil:
		since = c.probe.began
	}
	if !c.flow.Waiting.IsZero() && c.flow.Waiting.Before(since) {
		since = c.flow.Waiting
	}
	c.lostAt = since
	c.probe, c.moving = nil, nil
	c.forget(forProbe)
	c.do(hold{})
	if c.race == nil {
		c.begin(escape, why)
	}
	c.race.kind, c.race.why, c.race.since = escape, why, since
	c.race.favour(Target{}, 0)
	c.race.add(nil, c.current)
}

// blame remembers that the present master was lost: it is asked last for a while, and a home that was lost soon after its
// return is gone back to later.
func (c *course) blame() {
	c.losses[c.current.Addr] = c.now
	if c.current.Addr == c.home() && !c.homeBack.IsZero() && c.now.Sub(c.homeBack) < homeProven {
		c.homeWait = min(2*c.homeWait, homeAfterMax)
	}
}

// broken takes a connection into account that the present master ended, or did not accept. A process that died shows itself
// so; a master that only closes a connection is gone back to.
func (c *course) broken(l Loss) {
	if l.Addr != c.current.Addr || c.lost {
		return
	}
	if !l.Useless || c.now.Sub(c.struckAt) > recent {
		c.strikes = 0
	}
	if l.Useless {
		c.strikes++
		c.struckAt = c.now
	}
	why := c.current.String() + " closed a connection"
	if l.Err != nil {
		why = fmt.Sprintf("a connection to %s broke: %v", c.current, l.Err)
	}
	if c.race != nil && (c.race.kind == breach || c.race.kind == escape) {
		return
	}
	if c.race != nil {
		c.endRace()
	}
	c.do(hold{})
	c.begin(breach, why)
	c.race.since = c.now
}
