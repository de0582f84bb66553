package election

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"
)

// decide compares what is with what should be.
func (s *state) decide(now instant) {
	if s.unsaid {
		s.introduce()
	}
	s.judge(now)
	s.askLease(now)
	if s.read.ready(now) {
		s.read.start(now)
		s.do(doRead{s.view.rev, s.watch.n, s.sure()})
	}
	s.askWrite(now)
	for _, c := range []*call{&s.lease.call, &s.read} {
		if !c.busy {
			s.at(c.due)
		}
	}
}

func (s *state) askLease(now instant) {
	if !s.lease.ready(now) {
		return
	}
	s.lease.start(now)
	if s.lease.id == 0 {
		s.do(doGrant{s.config.TTL})
	} else {
		s.do(doRenew{s.lease.id})
	}
}

// holds reports whether shard's leader key is ours, under the present lease.
func (s *state) holds(shard string) (epoch int64, ok bool) {
	seat, led := s.view.seats[shard]
	return seat.epoch, led && s.lease.id != 0 && seat.lease == s.lease.id
}

// judge brings what follows from the shards that something happened to up to date: terms, vacancies, keys that are
// owed. With many shards and masters nearly every event is about one shard only.
func (s *state) judge(now instant) {
	if s.every {
		for _, of := range []map[string]int64{s.terms, s.released} {
			s.touchAll(maps.Keys(of))
		}
		s.touchAll(maps.Keys(s.stands))
		s.touchAll(maps.Keys(s.view.seats))
		s.touchAll(maps.Keys(s.resigned))
		s.touchAll(maps.Keys(s.vacant))
		s.touchAll(maps.Keys(s.owed))
		s.every, s.crowd = false, true
	}
	if len(s.touched) == 0 && !s.crowd {
		return
	}
	for shard := range s.touched {
		s.noteClaim(shard)
		s.endTermOf(shard)
		s.beginTermOf(shard)
		s.noteVacancy(now, shard)
		s.noteOwed(shard)
	}
	if s.crowd {
		s.crowd, s.known, s.named = false, nil, nil
	}
	clear(s.touched)
}

// noteClaim keeps the naming of the other vacant shards when one is taken by the master that was named for it. Otherwise a
// hundred shards that fall vacant at once would be named anew for each of them that is taken.
func (s *state) noteClaim(shard string) {
	_, vacant := s.vacant[shard]
	if seat, led := s.view.seats[shard]; !vacant || !led || s.named[shard] != seat.Master {
		s.named = nil
	}
}

func (s *state) touchAll(shards iter.Seq[string]) {
	for shard := range shards {
		s.touched[shard] = true
	}
}

func (s *state) endTermOf(shard string) {
	now, held := s.holds(shard)
	heir, handed := s.resigned[shard]
	if epoch, leads := s.terms[shard]; leads {
		switch {
		case !held || now != epoch:
			s.endTerm(shard, ErrDeposed)
		case handed && s.view.seats[shard].Heir != heir: // it goes on until etcd has the heir's name
		case handed || !s.standsFor(shard):
			s.endTerm(shard, ErrResigned)
		}
	}
	if seat, led := s.view.seats[shard]; !led || seat.epoch != s.released[shard] {
		delete(s.released, shard)
	}
	if !held {
		delete(s.resigned, shard)
	}
}

func (s *state) endTerm(shard string, cause error) {
	delete(s.terms, shard)
	s.do(doEnd{shard, cause})
}

func (s *state) beginTermOf(shard string) {
	if s.lease.deadline == 0 || !s.fresh || !s.standsFor(shard) {
		return
	}
	epoch, held := s.holds(shard)
	_, leads := s.terms[shard]
	_, handed := s.resigned[shard]
	if !held || leads || handed || s.released[shard] == epoch {
		return
	}
	s.terms[shard] = epoch
	s.do(doBegin{shard, epoch})
}

// noteVacancy keeps since when a shard that is stood for has had no leader.
func (s *state) noteVacancy(now instant, shard string) {
	_, led := s.view.seats[shard]
	if led || !s.fresh || !s.standsFor(shard) {
		delete(s.vacant, shard)
	} else if _, known := s.vacant[shard]; !known {
		s.vacant[shard] = now
	}
}

// noteOwed keeps which leader keys are ours and may have to be given up.
func (s *state) noteOwed(shard string) {
	epoch, held := s.holds(shard)
	_, handed := s.resigned[shard]
	if held && (s.terms[shard] != epoch || handed) {
		s.owed[shard] = true
	} else {
		delete(s.owed, shard)
	}
}

// name returns whom Assign names to lead a vacant shard. It is worked out when it is asked for, because a shard that was
// handed over to an heir needs no naming, and kept until something changes.
func (s *state) name(shard string) string {
	if s.named == nil {
		load := make(map[string]int, len(s.view.candidates))
		for shard, seat := range s.view.seats {
			load[seat.Master] += weight(shard)
		}
		b := &ballot{vacant: slices.Sorted(maps.Keys(s.vacant))}
		s.named = b.assign(load, s.candidates())
	}
	return s.named[shard]
}

func (s *state) standsFor(shard string) bool {
	_, ok := s.stands[shard]
	return ok && !s.retired
}

// candidates is the living masters, this one as it is now rather than as etcd knows it.
func (s *state) candidates() []Candidate {
	if s.known != nil {
		return s.known
	}
	all := make([]Candidate, 0, len(s.view.candidates)+1)
	all = append(all, s.self())
	for name, m := range s.view.candidates {
		if name != s.config.Master {
			all = append(all, m.Candidate)
		}
	}
	s.known = all
	return all
}

// due returns when this master is to try for a vacant shard: at once if it is the heir, or else is named, and a turn later
// for each master that comes before it. Who is next is worked out when it comes to that.
func (s *state) due(shard string, since, now instant) instant {
	heir, me := s.view.heirs[shard], s.config.Master
	first := heir
	if m, lives := s.view.candidates[heir]; heir != me && (!lives || !m.stands(shard)) {
		first = s.name(shard)
	}
	switch {
	case first == me:
		return since
	case now < since.add(turn):
		return since.add(turn)
	}
	r := rank(shard, me, s.candidates(), heir, s.name(shard))
	return since.add(time.Duration(max(r, 0)) * turn)
}

// askWrite sends what is to be written, one transaction at a time.
func (s *state) askWrite(now instant) {
	if s.lease.deadline == 0 || s.write.busy {
		return
	}
	if now < s.write.due {
		s.at(s.write.due)
		return
	}
	w := write{lease: s.lease.id, revoke: s.stale}
	s.addReleases(&w)
	s.addClaims(&w, now)
	s.addRecords(&w, now)
	if w.empty() {
		return
	}
	s.write.start(now)
	s.do(doWrite{w})
}

// addReleases gives up the leader keys that are ours and should not be. One that is handed over is first marked with
// its heir, so that all masters know whose turn it is when the key goes; the term goes on until that is written.
func (s *state) addReleases(w *write) {
	w.releases, w.marks = map[string]int64{}, map[string]mark{}
	for shard := range s.owed {
		if w.ops() >= mostKeys {
			return
		}
		seat := s.view.seats[shard]
		heir, handed := s.resigned[shard]
		_, again := s.released[shard]
		key := s.view.leaderKey(shard)
		switch {
		case handed && seat.Heir != heir:
			value := seat.leaderValue
			value.Heir = heir
			w.marks[key] = mark{seat.epoch, mustJSON(value)}
		case handed || again || !s.standsFor(shard):
			w.releases[key] = seat.epoch
			s.released[shard] = seat.epoch
		}
	}
}

func (s *state) addClaims(w *write, now instant) {
	if !s.fresh {
		return
	}
	for shard, since := range s.vacant {
		if w.ops() >= mostKeys {
			s.at(now)
			return
		}
		if due := s.due(shard, since, now); now < due {
			s.at(due)
			continue
		}
		w.claims = append(w.claims, s.view.leaderKey(shard))
	}
}

// addRecords adds the announcements that etcd does not have: when something is written anyway, when the lease is new, or when a key
// of theirs was not written for a second. Our own candidate record is always among them: who gives up a key must not look as
// if it stood for it.
func (s *state) addRecords(w *write, now instant) {
	if len(s.unsaved) == 0 {
		return
	}
	if w.ops() == 0 {
		due := now.add(gather)
		for key := range s.unsaved {
			if at := s.savedAt[key]; at == 0 {
				due = now
			} else {
				due = min(due, at.add(gather))
			}
		}
		if now < due {
			s.at(due)
			return
		}
	}
	w.puts = map[string][]byte{}
	if self := candidateKey(s.config.Prefix, s.config.Master); s.unsaved[self] {
		w.puts[self] = s.records[self]
		s.saved(self, now)
	}
	for key := range s.unsaved {
		if w.ops() >= maxOps {
			break
		}
		if value := s.records[key]; value != nil {
			w.puts[key] = value
		} else {
			w.deletes = append(w.deletes, key)
		}
		s.saved(key, now)
	}
}

// saved takes note that a record is being written.
func (s *state) saved(key string, now instant) {
	delete(s.unsaved, key)
	s.savedAt[key] = now
}

// valid reports a broken invariant; tests call it after each step.
func (s *state) valid() error {
	for shard, epoch := range s.terms {
		have, held := s.holds(shard)
		switch {
		case s.lease.deadline == 0:
			return fmt.Errorf("a term for %s without a living lease", shard)
		case !held || have != epoch:
			return fmt.Errorf("a term for %s at %d without its key", shard, epoch)
		case s.released[shard] == epoch:
			return fmt.Errorf("a term for %s at %d, whose key was given up", shard, epoch)
		}
	}
	if s.lease.deadline != 0 && s.lease.id == 0 {
		return errors.New("a deadline without a lease")
	}
	for shard := range s.view.seats {
		epoch, held := s.holds(shard)
		if _, handed := s.resigned[shard]; held && (s.terms[shard] != epoch || handed) != s.owed[shard] {
			return fmt.Errorf("%s: owed: %t", shard, s.owed[shard])
		}
	}
	for shard := range s.stands {
		_, led := s.view.seats[shard]
		if _, vacant := s.vacant[shard]; vacant != (!led && s.fresh && s.standsFor(shard)) {
			return fmt.Errorf("%s: vacant: %t", shard, vacant)
		}
	}
	for shard := range maps.Keys(s.declined) {
		if s.standsFor(shard) {
			return fmt.Errorf("stands for %s and has withdrawn from it", shard)
		}
	}
	return nil
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("election: marshal: %v", err)) // our own plain types always marshal
	}
	return b
}
