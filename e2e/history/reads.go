package history

import (
	"slices"
	"time"
)

// reads judges what readers saw.
func (c *checker) reads() {
	byShard := map[string][]*Read{}
	for i := range c.Reads {
		r := &c.Reads[i]
		switch {
		case r.Status != "":
			c.violation(RuleNoError, "%s read %s of %s from %s and was told %s", r.Reader, r.Path, r.Shard, r.Master, r.Status)
		case r.Lost != "":
			c.lost(r)
		case r.Held != "" && r.Held != r.Digest:
			c.violation(RuleHeld, "%s held %s of %s open, which gave %.12s and from %s gives %.12s", r.Reader, r.Path, r.Shard, r.Held, r.Master, r.Digest)
		case r.Held == "":
			byShard[r.Shard] = append(byShard[r.Shard], r)
		}
		c.pause(r)
	}
	if len(c.Reads) == 0 {
		c.violation(RuleTraffic, "nothing was read")
	}
	for name, reads := range byShard {
		c.sequence(name, reads)
	}
}

func (c *checker) lost(r *Read) {
	if !r.Roams && !c.hit(r.Master, r.Span, mute) {
		c.violation(RuleNoLoss, "%s lost %s while it read %s of %s, for %v: %s", r.Reader, r.Master, r.Path, r.Shard, round(r.Ended.Sub(r.Began)), r.Lost)
	}
}

func (c *checker) pause(r *Read) {
	took := r.Ended.Sub(r.Began)
	if !r.Roams || c.PauseBound == 0 || took <= c.PauseBound {
		return
	}
	if well := c.spared(r.Span, anyFault); len(well) > 0 {
		c.violation(RulePause, "%s waited %v for %s of %s although %v were well", r.Reader, round(took), r.Path, r.Shard, well)
	}
}

// seen is a generation that somebody is known to have met by some time.
type seen struct {
	at         time.Time
	generation uint64
}

// bound tells the highest generation that was met before a time; times are asked in ascending order.
type bound struct {
	later []seen // by time
	high  uint64
}

func (b *bound) before(t time.Time) uint64 {
	for len(b.later) > 0 && b.later[0].at.Before(t) {
		b.high = max(b.high, b.later[0].generation)
		b.later = b.later[1:]
	}
	return b.high
}

func (b *bound) add(s seen) {
	at, _ := slices.BinarySearchFunc(b.later, s, func(x, y seen) int { return x.at.Compare(y.at) })
	b.later = slices.Insert(b.later, at, s)
}

// sequence gives each read of a shard the oldest generation that explains it, and finds those that nothing explains. A read
// that began after another one had ended cannot have met an older generation than that: not on the same master, and not on
// a connection begun after it.
func (c *checker) sequence(name string, reads []*Read) {
	slices.SortFunc(reads, func(a, b *Read) int { return a.Began.Compare(b.Began) })
	connected := slices.Clone(reads)
	slices.SortFunc(connected, func(a, b *Read) int { return a.Conn.Compare(b.Conn) })
	s := c.shard(name)
	masters := map[string]*bound{}
	for _, m := range c.Masters {
		masters[m] = &bound{}
	}
	all := &bound{}
	for i := range c.Attempts {
		a := &c.Attempts[i]
		if !a.Acked || a.Shard != name {
			continue
		}
		all.add(seen{a.Ended, a.Generation})
		for _, m := range a.ServedBy {
			if masters[m] != nil {
				masters[m].add(seen{a.Ended, a.Generation})
			}
		}
	}
	// First what each master showed, in its own order; then, knowing that, what a new connection had to show.
	met := make(map[*Read]uint64, len(reads))
	for _, r := range reads {
		if b := masters[r.Master]; b != nil {
			met[r] = c.explain(s, r, b)
			all.add(seen{r.Ended, met[r]})
		}
	}
	for _, r := range connected {
		low := all.before(r.Conn)
		if g := met[r]; g != 0 && s.newest(r, g) < low && !c.hit(r.Master, Span{r.Conn, r.Ended}, blind) {
			c.violation(RuleForSlave, "%s saw generation %d of %s at %s (%s) on a connection begun when %d had been seen",
				r.Reader, s.newest(r, g), name, r.Master, r.Path, low)
		}
	}
}

// explain returns the oldest generation that r can have met, 0 when there is none, and has b remember it.
func (c *checker) explain(s *shard, r *Read, b *bound) uint64 {
	holding := s.holds[[2]string{r.Path, r.Digest}]
	if len(holding) == 0 {
		c.violation(RuleWhole, "%s read %s of %s from %s and got %.12s, which no generation holds", r.Reader, r.Path, r.Shard, r.Master, r.Digest)
		return 0
	}
	low := b.before(r.Began)
	at, _ := slices.BinarySearch(holding, low)
	if at == len(holding) {
		c.violation(RuleForMaster, "%s read %s of %s from %s and got generation %d; that master had shown %d",
			r.Reader, r.Path, r.Shard, r.Master, holding[at-1], low)
		return holding[at-1]
	}
	b.add(seen{r.Ended, holding[at]})
	return holding[at]
}

// newest returns the newest generation that holds what r read.
func (s *shard) newest(r *Read, oldest uint64) uint64 {
	holding := s.holds[[2]string{r.Path, r.Digest}]
	if len(holding) == 0 {
		return oldest
	}
	return holding[len(holding)-1]
}
