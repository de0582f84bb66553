package election

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"
)

// leaderValue is the JSON of a leader key.
type leaderValue struct {
	Master string    `json:"master"`
	Since  time.Time `json:"since"`
	// Heir is set on a key that is about to be deleted, by a leader that hands over to this master.
	Heir string `json:"heir,omitempty"`
}

// seat is a leader key as last seen.
type seat struct {
	leaderValue
	epoch, mod int64
	lease      int64
}

// view is what a master knows of the leader keys and candidates in etcd.
type view struct {
	prefix     string
	rev        int64 // every change up to here is in it; single keys may be newer
	seats      map[string]seat
	heirs      map[string]string // of shards that a leader handed over, until somebody leads them
	candidates map[string]member
}

type member struct {
	Candidate
	mod, lease int64
}

func newView(prefix string) view {
	return view{prefix: prefix, seats: map[string]seat{}, heirs: map[string]string{}, candidates: map[string]member{}}
}

// Both kinds of keys begin with prefix + "leader", so that one read and one watch cover them at one revision.
func keysPrefix(prefix string) string           { return prefix + "leader" }
func leaderKey(prefix, shard string) string     { return prefix + "leaders/" + shard }
func candidateKey(prefix, master string) string { return prefix + "leader-candidates/" + master }
func (v *view) leaderKey(shard string) string   { return leaderKey(v.prefix, shard) }
func (v *view) shardOf(key string) (string, bool) {
	return strings.CutPrefix(key, leaderKey(v.prefix, ""))
}

// apply takes in one key. What is older than the view, or than what it knows of this key, changes nothing.
func (v *view) apply(e kv) (changed bool) {
	if e.mod <= v.rev {
		return false
	}
	if shard, ok := v.shardOf(e.key); ok {
		old, had := v.seats[shard]
		switch {
		case had && e.mod <= old.mod:
			return false
		case e.create == 0:
			delete(v.seats, shard)
			if had && old.Heir != "" {
				v.heirs[shard] = old.Heir
			}
			return had
		}
		v.seats[shard] = decodeSeat(e)
		delete(v.heirs, shard)
		return true
	}
	name, ok := strings.CutPrefix(e.key, candidateKey(v.prefix, ""))
	if !ok {
		return false
	}
	old, had := v.candidates[name]
	switch {
	case had && e.mod <= old.mod:
		return false
	case e.create == 0:
		delete(v.candidates, name)
		return had
	}
	v.candidates[name] = decodeMember(name, e)
	return true
}

// decodeSeat passes over a value that is no JSON: the key counts, whatever somebody put into it.
func decodeSeat(e kv) seat {
	s := seat{epoch: e.create, mod: e.mod, lease: e.lease}
	if json.Unmarshal(e.value, &s.leaderValue) != nil {
		s.leaderValue = leaderValue{}
	}
	return s
}

// decodeMember takes the name from the key. What cannot be read is a master without preferences.
func decodeMember(name string, e kv) member {
	m := member{mod: e.mod, lease: e.lease}
	if json.Unmarshal(e.value, &m.Candidate) != nil {
		m.Candidate = Candidate{}
	}
	m.Master = name
	slices.Sort(m.Preferred)
	slices.Sort(m.Withdrawn)
	return m
}

// replace makes the view what s says. seen is the view's revision when s was asked for: a linearizable read cannot be
// older than that unless etcd itself was put back to an older state, and then the view goes back with it.
func (v *view) replace(s snapshot, seen int64) (changed bool) {
	if s.rev < v.rev && s.rev >= seen {
		return false // the watch overtook the read
	}
	if s.partial {
		for _, e := range s.kvs {
			changed = v.apply(e) || changed
		}
		v.rev = s.rev
		return changed
	}
	next := newView(v.prefix)
	for _, e := range s.kvs {
		if !next.keep(v, e) {
			next.apply(e)
		}
	}
	next.rev = s.rev
	for shard, heir := range v.heirs {
		if _, led := next.seats[shard]; !led {
			next.heirs[shard] = heir
		}
	}
	if s.rev >= seen {
		v.keepNewer(&next)
	}
	changed = !maps.EqualFunc(v.seats, next.seats, func(a, b seat) bool { return a.mod == b.mod && a.epoch == b.epoch && a.lease == b.lease }) ||
		!maps.EqualFunc(v.candidates, next.candidates, func(a, b member) bool { return a.mod == b.mod && a.lease == b.lease })
	*v = next
	return changed
}

// keep takes over from old what it knows of a key that has not changed since: most of them, each time.
func (v *view) keep(old *view, e kv) bool {
	if shard, ok := v.shardOf(e.key); ok {
		s, had := old.seats[shard]
		if had = had && s.mod == e.mod && s.epoch == e.create && s.lease == e.lease; had {
			v.seats[shard] = s
		}
		return had
	}
	name, ok := strings.CutPrefix(e.key, candidateKey(v.prefix, ""))
	m, had := old.candidates[name]
	if had = had && ok && m.mod == e.mod && m.lease == e.lease; had {
		v.candidates[name] = m
	}
	return had
}

// keepNewer carries over the leader keys that are known to be newer than the snapshot: a claim's answer may overtake a
// read.
func (v *view) keepNewer(next *view) {
	for shard, s := range v.seats {
		if s.mod > next.rev {
			next.seats[shard] = s
		}
	}
}
