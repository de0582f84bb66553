package history

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// Violation is something that must not have happened.
type Violation struct {
	Rule   string
	Detail string
}

func (v Violation) String() string { return v.Rule + ": " + v.Detail }

// The rules.
const (
	RuleForward   = "heads move forward by one"
	RuleFence     = "only the living leader moves a shard"
	RuleEpochs    = "epochs never go back"
	RuleInos      = "numbers of files are never given out twice"
	RuleRecord    = "history and head change in one transaction"
	RuleUnknown   = "every generation was published by somebody"
	RuleAcked     = "what was acknowledged is there"
	RuleOrder     = "publishes take effect in order"
	RuleCopies    = "enough masters hold a generation before it is the head"
	RuleWhole     = "every read gives what one generation holds"
	RuleForMaster = "a master never goes back"
	RuleForSlave  = "no slave travels back in time"
	RuleHeld      = "an open file never changes"
	RuleNoError   = "no reader sees an error"
	RuleNoLoss    = "readers of a living master are not disturbed"
	RulePause     = "a reader that may roam finds a living master soon"
	RuleTraffic   = "something happened at all"
)

// Check returns every violation, in the order of the rules.
func Check(h History) []Violation {
	c := &checker{History: h, attempts: map[string]*Attempt{}, shards: map[string]*shard{}}
	for i := range h.Attempts {
		c.attempts[h.Attempts[i].ID] = &h.Attempts[i]
	}
	c.events()
	c.acknowledged()
	c.reads()
	return c.found
}

// checker is one run of Check.
type checker struct {
	History
	attempts map[string]*Attempt // by ID
	shards   map[string]*shard
	found    []Violation
}

// shard is what etcd's history says about one shard.
type shard struct {
	heads []head // generation n is heads[n-1], as long as heads moved forward by one
	// holds maps a path and what a read gave to the generations that hold that, ascending.
	holds map[[2]string][]uint64
}

// head is one value of the key of a shard's head, as far as it matters here.
type head struct {
	Generation uint64 `json:"generation"`
	Root       string `json:"root"`
	By         string `json:"by"`
	Epoch      int64  `json:"epoch"`
	NextIno    uint64 `json:"next_ino"`
	Copies     int    `json:"copies"`
	Note       string `json:"note"`
}

func (c *checker) violation(rule, format string, args ...any) {
	const most = 200 // of a history that is wrong throughout, the beginning says enough
	if len(c.found) < most {
		c.found = append(c.found, Violation{rule, fmt.Sprintf(format, args...)})
	}
}

func (c *checker) shard(name string) *shard {
	s := c.shards[name]
	if s == nil {
		s = &shard{holds: map[[2]string][]uint64{}}
		c.shards[name] = s
	}
	return s
}

// head returns generation n, nil when there was none.
func (s *shard) head(n uint64) *head {
	if n == 0 || n > uint64(len(s.heads)) {
		return nil
	}
	return &s.heads[n-1]
}

// acknowledged compares what publishers were told with what etcd says.
func (c *checker) acknowledged() {
	byShard := map[string][]*Attempt{}
	for i := range c.Attempts {
		a := &c.Attempts[i]
		if a.Acked {
			byShard[a.Shard] = append(byShard[a.Shard], a)
			c.acked(a)
		}
	}
	for _, shard := range slices.Sorted(maps.Keys(byShard)) {
		c.order(byShard[shard])
	}
}

func (c *checker) acked(a *Attempt) {
	h := c.shard(a.Shard).head(a.Generation)
	switch {
	case h == nil:
		c.violation(RuleAcked, "%s %s was acknowledged as generation %d, which never was the head", a.Shard, a.ID, a.Generation)
	case h.Root != a.Root:
		c.violation(RuleAcked, "%s %s was acknowledged as generation %d with root %s; etcd has %s", a.Shard, a.ID, a.Generation, a.Root, h.Root)
	case a.Changed && h.Note != a.ID:
		c.violation(RuleAcked, "%s generation %d was acknowledged to %s, and is %s", a.Shard, a.Generation, a.ID, h.Note)
	case !a.Changed && c.attempts[h.Note] != nil && !maps.Equal(c.attempts[h.Note].Manifest, a.Manifest):
		c.violation(RuleAcked, "%s %s was told that generation %d has its content already, which is that of %s", a.Shard, a.ID, a.Generation, h.Note)
	}
}

// order demands that what began after an acknowledgement came later in the sequence, too.
func (c *checker) order(attempts []*Attempt) {
	began := slices.Clone(attempts)
	slices.SortFunc(began, func(a, b *Attempt) int { return a.Began.Compare(b.Began) })
	ended := slices.Clone(attempts)
	slices.SortFunc(ended, func(a, b *Attempt) int { return a.Ended.Compare(b.Ended) })
	var last *Attempt // the highest that was acknowledged before the present one began
	for _, a := range began {
		for len(ended) > 0 && ended[0].Ended.Before(a.Began) {
			if last == nil || ended[0].Generation > last.Generation {
				last = ended[0]
			}
			ended = ended[1:]
		}
		if last != nil && (a.Generation < last.Generation || a.Changed && a.Generation == last.Generation) {
			c.violation(RuleOrder, "%s %s became generation %d although %s had been acknowledged as %d before it began",
				a.Shard, a.ID, a.Generation, last.ID, last.Generation)
		}
	}
}

// hit says whether a fault that pick chooses hit the master within span.
func (c *checker) hit(master string, span Span, pick func(Fault) bool) bool {
	return slices.ContainsFunc(c.Faults, func(f Fault) bool { return f.Master == master && pick(f) && f.overlaps(span) })
}

// spared returns the masters that no fault of the kind hit within span.
func (c *checker) spared(span Span, pick func(Fault) bool) []string {
	return slices.DeleteFunc(slices.Clone(c.Masters), func(m string) bool { return c.hit(m, span, pick) })
}

func anyFault(Fault) bool   { return true }
func mute(f Fault) bool     { return f.Mute }
func blind(f Fault) bool    { return f.Blind }
func noCopies(f Fault) bool { return f.Mute || f.Blind || f.Lame }

// round shortens a time for people.
func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
