package election

import (
	"errors"
	"maps"
	"slices"
	"time"
)

// state is everything that decisions are made from. It does no I/O and looks at no clock: step is a function of the
// state, what happened, and when.
//
// Invariants, which valid checks: a term is only held while the lease is alive; every shard in terms has a seat in the
// view that was made under the present lease at the term's epoch; no seat in released makes a term.
type state struct {
	config Config
	lease  lease
	view   view
	read   call
	write  call
	watch  struct {
		n  int // which watch: reports of earlier ones are passed over
		on bool
		// sure is the watch during which everything was read, so that no key was missed and etcd is the same.
		sure int
	}
	fresh    bool            // the view was read since the lease last lapsed
	lapsed   instant         // when that was
	settled  bool            // what an older process of this master left behind was looked for
	touched  map[string]bool // shards that something happened to since judge
	every    bool            // something happened that concerns all shards
	crowd    bool            // candidates have changed
	unsaid   bool            // our own candidate record is to be made anew
	changed  bool            // something changed that users of Election see
	stands   map[string]bool // shards stood for; true: preferred
	declined map[string]bool // shards withdrawn from
	retired  bool            // stands for nothing, whatever stands says
	terms    map[string]int64
	released map[string]int64  // seats given up, by epoch, until their keys are seen to be gone
	resigned map[string]string // shard → heir: leaderships to be handed over
	owed     map[string]bool   // keys that are ours without a term, or are being handed over
	vacant   map[string]instant
	named    map[string]string  // shard → master that Assign names; nil: to be worked out
	records  map[string][]byte  // announced; nil: to be deleted
	unsaved  map[string]bool    // records that etcd does not have yet
	failing  bool               // the last write failed
	savedAt  map[string]instant // when each record was last written; zero: it is to be at once
	selfRev  int64              // revision at which our own candidate record was last written
	stale    []int64            // leases to revoke
	known    []Candidate        // what candidates says; nil: to be made anew
	wake     instant            // when step wants to be called again
	out      []action
}

// lease is this master's lease.
type lease struct {
	call
	id        int64
	ttl       time.Duration
	confirmed instant // when the last confirmed grant or renewal was sent
	deadline  instant // 0: not alive
	err       error
}

// call is one kind of request: at most one is under way, and the next is due at some time.
type call struct {
	busy  bool
	again bool // what happened since it was sent asks for another
	sent  instant
	due   instant
}

func (c *call) ready(now instant) bool { return !c.busy && now >= c.due }

func (c *call) start(now instant) { c.busy, c.again, c.sent = true, false, now }

// Events: what happened since the last step.
type (
	event    interface{}
	standing struct {
		shard     string
		preferred bool
	}
	withdrawal struct{ shard string }
	retirement struct{ on bool }
	handOver   struct{ shard, to string }
	announced  struct {
		key   string
		value []byte
	}
	// leaseReply answers a grant or a renewal.
	leaseReply struct {
		sent instant
		id   int64
		ttl  time.Duration
		err  error
	}
	readReply struct {
		sent  instant
		seen  int64
		watch int // the latest when it was sent
		snap  snapshot
		err   error
	}
	writeReply struct {
		sent   instant
		asked  write
		result written
		err    error
	}
	watched struct {
		n  int
		ch changes
	}
	watchEnded struct {
		n   int
		err error
	}
	// overslept says that a term's user found the deadline past before the state did.
	overslept struct{}
)

// Actions: what is to be done about it.
type (
	action  interface{}
	doGrant struct{ ttl time.Duration }
	doRenew struct{ id int64 }
	doRead  struct {
		seen  int64
		watch int
		known int // see backend
	}
	doWrite struct{ w write }
	doWatch struct {
		n   int
		rev int64
	}
	doLive struct {
		deadline instant
		renewed  bool
	} // renewed: move the deadline of the present life
	doLapse struct{ cause error }
	doBegin struct {
		shard string
		epoch int64
	}
	doEnd struct {
		shard string
		cause error
	}
	doReport struct {
		message string
		err     error
	}
)

func newState(c Config) *state {
	s := &state{
		config: c, view: newView(c.Prefix), stands: map[string]bool{}, declined: map[string]bool{},
		terms: map[string]int64{}, released: map[string]int64{}, resigned: map[string]string{}, vacant: map[string]instant{},
		touched: map[string]bool{}, owed: map[string]bool{},
		records: map[string][]byte{}, unsaved: map[string]bool{}, savedAt: map[string]instant{},
	}
	s.lease.ttl = c.TTL
	s.introduce()
	return s
}

// Times, all fractions of the granted TTL. Three attempts to renew fit between a confirmed renewal and its deadline.
func (s *state) timeout() time.Duration  { return s.lease.ttl / 4 }  // of a request for the lease
func (s *state) patience() time.Duration { return s.lease.ttl / 2 }  // of a request that costs nothing but time
func (s *state) renewal() time.Duration  { return s.lease.ttl / 4 }  // from one renewal to the next
func (s *state) pause() time.Duration    { return s.lease.ttl / 20 } // between attempts that fail at once
func (s *state) margin() time.Duration   { return s.lease.ttl / 50 } // for clocks that differ in rate, and late timers

// reread is the time between two readings of everything, beside the watch: half a TTL, or more when there is more to
// read. It is not the same for all masters, so that they do not all read at once.
func (s *state) reread() time.Duration {
	keys := len(s.view.seats) + len(s.view.candidates)
	base := s.lease.ttl / 2 * time.Duration(1+keys/250)
	return base - base/4*time.Duration(rendezvous("", s.config.Master)%256)/256
}

const (
	turn   = time.Second // how long the master next in order waits for the one before
	gather = time.Second // what is announced under one key is written this far apart
)

// step takes in events and returns what is to be done now. s.wake is when it wants to be called at the latest.
func (s *state) step(now instant, events ...event) []action {
	s.out = nil
	if s.lease.deadline != 0 && now >= s.lease.deadline {
		s.lapse(now, ErrLeaseLost)
	}
	for _, e := range events {
		s.take(now, e)
	}
	s.wake = now.add(s.lease.ttl)
	s.decide(now)
	if s.lease.deadline != 0 {
		s.at(s.lease.deadline)
	}
	return s.out
}

func (s *state) do(a action) { s.out = append(s.out, a) }

// at makes step be called at t at the latest.
func (s *state) at(t instant) { s.wake = min(s.wake, t) }

func (s *state) take(now instant, e event) {
	switch e := e.(type) {
	case standing:
		s.stands[e.shard] = e.preferred
		delete(s.declined, e.shard)
		s.touched[e.shard], s.unsaid = true, true
	case withdrawal:
		delete(s.stands, e.shard)
		s.declined[e.shard] = true
		s.giveUp(e.shard)
		s.touched[e.shard], s.unsaid = true, true
	case retirement:
		s.retired = e.on
		if e.on {
			for _, shard := range slices.Sorted(maps.Keys(s.terms)) {
				s.giveUp(shard)
			}
		}
		s.every, s.unsaid = true, true
	case handOver:
		if _, leads := s.terms[e.shard]; leads && e.to != s.config.Master && e.to != "" {
			s.resigned[e.shard] = e.to
			s.touched[e.shard] = true
		}
	case announced:
		s.announce(e.key, e.value)
	case leaseReply:
		s.leased(now, e)
	case readReply:
		s.readDone(now, e)
	case writeReply:
		s.written(now, e)
	case watched:
		s.observe(e)
	case watchEnded:
		if e.n == s.watch.n && s.watch.on {
			s.watch.on = false
			s.readSoon(now)
		}
	case overslept:
		s.lapse(now, ErrLeaseLost)
	}
}

// giveUp ends a term and lets its key go, even if the master stands again before that is decided on. One that is being
// handed over goes to its heir.
func (s *state) giveUp(shard string) {
	epoch, leads := s.terms[shard]
	if _, handed := s.resigned[shard]; leads && !handed {
		s.released[shard] = epoch
		s.endTerm(shard, ErrResigned)
	}
}

// introduce makes our own candidate record say what we stand for.
func (s *state) introduce() {
	s.unsaid, s.crowd = false, true
	c := s.self()
	s.announce(candidateKey(s.config.Prefix, c.Master), mustJSON(c))
}

func (s *state) self() Candidate {
	c := Candidate{Master: s.config.Master, Retired: s.retired, Preferred: []string{}, Withdrawn: slices.Sorted(maps.Keys(s.declined))}
	for shard, preferred := range s.stands {
		if preferred {
			c.Preferred = append(c.Preferred, shard)
		}
	}
	slices.Sort(c.Preferred)
	if c.Withdrawn == nil {
		c.Withdrawn = []string{}
	}
	return c
}

func (s *state) announce(key string, value []byte) {
	old, had := s.records[key]
	if had && string(old) == string(value) && (old == nil) == (value == nil) {
		return
	}
	s.records[key], s.unsaved[key] = value, true
}

// lapse ends all terms: the deadline has passed, or etcd has dropped the lease. What is in the view may be gone.
func (s *state) lapse(now instant, cause error) {
	if s.lease.deadline == 0 {
		return
	}
	s.lease.deadline, s.fresh, s.lapsed = 0, false, now
	clear(s.terms)
	clear(s.resigned)
	s.every, s.changed = true, true
	s.do(doLapse{cause})
	s.readSoon(now)
}

// leased takes in the answer to a grant or a renewal.
func (s *state) leased(now instant, e leaseReply) {
	l := &s.lease
	l.busy = false
	if (l.err == nil) != (e.err == nil) {
		s.changed = true
	}
	l.err = e.err
	switch {
	case errors.Is(e.err, errGone):
		s.lapse(now, ErrLeaseLost)
		s.do(doReport{"etcd has dropped the lease", nil})
		l.id, l.due, s.every = 0, now, true
		return
	case e.err != nil:
		l.due = max(now, e.sent.add(s.pause()))
		return
	}
	if l.id != e.id {
		l.id = e.id
		clear(s.released)
		for key := range s.records {
			s.unsaved[key] = true
		}
		clear(s.savedAt)
		s.changed, s.every = true, true
	}
	l.ttl, l.confirmed = e.ttl, e.sent
	l.due = e.sent.add(s.renewal())
	deadline := e.sent.add(e.ttl - s.margin())
	if deadline <= now {
		l.due = now // the answer came too late to count; ask again
		return
	}
	s.do(doLive{deadline, l.deadline != 0})
	if l.deadline == 0 {
		s.changed, s.every = true, true
	}
	l.deadline = deadline
}

func (s *state) readDone(now instant, e readReply) {
	s.read.busy = false
	if e.err != nil {
		s.read.due = max(now, e.sent.add(s.pause()))
		return
	}
	s.read.due = now.add(s.reread())
	if s.read.again {
		s.read.due = max(now, e.sent.add(s.pause()))
	}
	changed := s.view.replace(e.snap, e.seen)
	if !changed && !e.snap.partial && s.watch.on && e.watch == s.watch.n {
		s.watch.sure = s.watch.n
	}
	s.changed = s.changed || changed
	if fresh := e.sent >= s.lapsed; changed || fresh && !s.fresh {
		s.fresh, s.every = s.fresh || fresh, true
	}
	if changed || !s.watch.on {
		// Either the watch has not told us, and may have stopped doing so, or it will tell us again: both are cured by
		// a new one.
		s.watch.n++
		s.watch.on = true
		s.do(doWatch{s.watch.n, s.view.rev + 1})
	}
	me := s.config.Master
	if m, known := s.view.candidates[me]; s.lease.id != 0 && s.selfRev != 0 && e.snap.rev >= s.selfRev && (!known || m.lease != s.lease.id) {
		s.unsaved[candidateKey(s.config.Prefix, me)] = true // somebody else deleted or replaced it
	}
	if !s.settled {
		s.settled = true
		s.findStale()
	}
}

// sure returns how many keys the view holds, if they are known to be all up to its revision, or 0.
func (s *state) sure() int {
	if !s.watch.on || s.watch.sure != s.watch.n {
		return 0
	}
	return len(s.view.seats) + len(s.view.candidates)
}

// findStale notes the leases that an older process of this master left behind.
func (s *state) findStale() {
	if !s.config.Replace {
		return
	}
	found := map[int64]bool{}
	for _, seat := range s.view.seats {
		if seat.Master == s.config.Master {
			found[seat.lease] = true
		}
	}
	found[s.view.candidates[s.config.Master].lease] = true
	delete(found, 0)
	delete(found, s.lease.id)
	s.stale = slices.Sorted(maps.Keys(found))
}

// readSoon has everything read again, but not more often than attempts are made.
func (s *state) readSoon(now instant) {
	s.read.again = true
	s.read.due = min(s.read.due, max(now, s.read.sent.add(s.pause())))
}

func (s *state) observe(e watched) {
	if e.n != s.watch.n {
		return
	}
	for _, change := range e.ch.kvs {
		s.apply(change)
	}
	s.view.rev = max(s.view.rev, e.ch.rev)
}

func (s *state) written(now instant, e writeReply) {
	s.write.busy = false
	if e.err != nil {
		for key := range e.asked.puts {
			s.unsaved[key] = true
		}
		for _, key := range e.asked.deletes {
			s.unsaved[key] = true
		}
		// Nobody knows what etcd did. A dropped lease is one reason; the other answers are in the keys.
		s.write.due = max(now, e.sent.add(s.pause()))
		if !s.lease.busy {
			s.lease.due = now
		}
		s.readSoon(now)
		if !s.failing {
			s.failing = true
			s.do(doReport{"writing to etcd failed; trying again", e.err})
		}
		return
	}
	s.failing = false
	if len(e.asked.revoke) > 0 {
		s.stale = nil
	}
	for _, key := range e.asked.deletes {
		if value, kept := s.records[key]; kept && value == nil && !s.unsaved[key] {
			delete(s.records, key)
			delete(s.savedAt, key)
		}
	}
	if _, self := e.asked.puts[candidateKey(s.config.Prefix, s.config.Master)]; self {
		s.selfRev = e.result.rev
	}
	for _, seat := range e.result.seats {
		s.apply(seat)
	}
}

// apply takes in one key.
func (s *state) apply(e kv) {
	if !s.view.apply(e) {
		return
	}
	s.changed = true
	if shard, ok := s.view.shardOf(e.key); ok {
		s.touched[shard] = true
	} else {
		s.crowd = true
	}
}
