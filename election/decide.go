package election

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"
)

// decide compares what is with what should be.
func (s *state) decide(now instant) {
	if s.dirty {
		s.dirty = false
		s.endTerms()
		s.beginTerms()
		s.noteVacancies(now)
	}
	s.askLease(now)
	if s.read.ready(now) {
		s.read.start(now)
		s.do(doRead{s.view.rev})
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

func (s *state) endTerms() {
	for shard, epoch := range s.terms {
		now, held := s.holds(shard)
		heir, handed := s.resigned[shard]
		switch {
		case !held || now != epoch:
			s.endTerm(shard, ErrDeposed)
		case handed && s.view.seats[shard].Heir != heir: // it goes on until etcd has the heir's name
		case handed || !s.standsFor(shard):
			s.endTerm(shard, ErrResigned)
		}
	}
	for shard, epoch := range s.released {
		if seat, led := s.view.seats[shard]; !led || seat.epoch != epoch {
			delete(s.released, shard)
		}
	}
	for shard := range s.resigned {
		if _, held := s.holds(shard); !held {
			delete(s.resigned, shard)
		}
	}
}

func (s *state) endTerm(shard string, cause error) {
	delete(s.terms, shard)
	s.do(doEnd{shard, cause})
}

func (s *state) beginTerms() {
	if s.lease.deadline == 0 || !s.fresh || s.retired {
		return
	}
	for shard := range s.stands {
		epoch, held := s.holds(shard)
		_, leads := s.terms[shard]
		_, resigned := s.resigned[shard]
		if !held || leads || resigned || s.released[shard] == epoch {
			continue
		}
		s.terms[shard] = epoch
		s.do(doBegin{shard, epoch})
	}
}

// noteVacancies keeps, for each shard stood for, since when it has had no leader, and whom Assign names to lead it.
func (s *state) noteVacancies(now instant) {
	if !s.fresh {
		clear(s.vacant)
		return
	}
	for shard := range s.vacant {
		if _, led := s.view.seats[shard]; led || !s.standsFor(shard) {
			delete(s.vacant, shard)
		}
	}
	for shard := range s.stands {
		if s.retired {
			break
		}
		_, led := s.view.seats[shard]
		if _, known := s.vacant[shard]; !led && !known {
			s.vacant[shard] = now
		}
	}
	s.named = nil
	if len(s.vacant) == 0 || s.lease.deadline == 0 {
		return
	}
	leaders := make(map[string]string, len(s.view.seats))
	for shard, seat := range s.view.seats {
		leaders[shard] = seat.Master
	}
	vacant := make([]string, 0, len(s.vacant))
	for shard := range s.vacant {
		vacant = append(vacant, shard)
	}
	s.named = Assign(vacant, leaders, s.candidates())
}

func (s *state) standsFor(shard string) bool {
	_, ok := s.stands[shard]
	return ok && !s.retired
}

// candidates is the living masters, this one as it is now rather than as etcd knows it. It is good until the next event.
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

// due returns when this master is to try for a vacant shard: at once if it is named, or a turn later for each master
// that comes before it.
func (s *state) due(shard string, since, now instant) instant {
	heir := s.view.heirs[shard]
	if heir == "" && s.named[shard] == s.config.Master {
		return since
	}
	if heir == "" && now < since.add(turn) {
		return since.add(turn) // at the earliest; who is next is worked out when it comes to that
	}
	r := rank(shard, s.config.Master, s.candidates(), heir, s.named[shard])
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
	for shard, seat := range s.view.seats {
		if w.ops() >= mostKeys {
			return
		}
		heir, handed := s.resigned[shard]
		if epoch, held := s.holds(shard); !held || s.terms[shard] == epoch && !handed {
			continue
		}
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

// addRecords adds the announcements that etcd does not have: when something is written anyway, when the lease is new,
// or when the last ones are a second old. Our own candidate record is always among them: who gives up a key must not
// look as if it stood for it.
func (s *state) addRecords(w *write, now instant) {
	if len(s.unsaved) == 0 {
		return
	}
	if due := s.savedAt.add(gather); s.savedAt != 0 && w.ops() == 0 && now < due {
		s.at(due)
		return
	}
	w.puts = map[string][]byte{}
	if self := candidateKey(s.config.Prefix, s.config.Master); s.unsaved[self] {
		w.puts[self] = s.records[self]
		delete(s.unsaved, self)
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
		delete(s.unsaved, key)
	}
	s.savedAt = now
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
