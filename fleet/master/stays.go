package master

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
)

const (
	// stayGap is how long a slave may be silent until its next greeting begins another stay. Slaves greet every 5 s at least.
	stayGap = 15 * time.Second
	// moveAsk is how long a slave is asked to go to the home that it was given: one that has not gone by then cannot, and
	// will when it can.
	moveAsk = 30 * time.Second
	// twinGap is how soon after each other two machines must greet under one name to be told from one that was restarted.
	twinGap = time.Minute
)

// stays remembers since when each slave reads from this master: one that is here since before it was given another home is
// sent there, one that came afterwards has its reasons.
type stays struct {
	mu      sync.Mutex // guards what follows
	all     map[string]stay
	origins map[netip.Addr]int // of all: how many each origin has
	swept   time.Time
}

// stay is one slave's.
type stay struct {
	reads  bool       // it reads here, and does not only look whether it may come
	since  int64      // the revision of the slaves' records when it began
	came   time.Time  // when it came from another master, by its own clock; zero: it has told of none
	last   time.Time  // the last greeting
	place  netip.Addr // where it came from
	asked  int64      // the revision of the placement that the slave is told to follow
	from   time.Time  // since when it is told
	twin   time.Time  // when another machine of this name was last heard of
	now    string     // the instance that greeted last
	before string     // the one that greeted before
	turned time.Time  // when that last did
}

// note takes a greeting into account, at a revision of the slaves' records. reads is whether the slave reads here. It reports
// that two machines share the name, once.
func (s *stays) note(said slaveSighting, revision int64, reads bool) (twins bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, known := s.all[said.Slave]
	place := said.From.Addr().Unmap()
	if !known && !s.roomLocked(origin(place), said.At) {
		return false
	}
	// Before its first move a slave is taken for a reader wherever it looks: the stay that counts begins when it comes.
	comes := reads && said.Last.From != "" && !said.Last.At.Equal(st.came)
	if comes || !reads || !st.reads || said.At.Sub(st.last) > stayGap {
		st.reads, st.since, st.asked = reads, revision, 0
	}
	if comes {
		st.came = said.Last.At
	}
	if said.Instance != st.now {
		if said.Instance == st.before && said.At.Sub(st.turned) < twinGap {
			st.twin, twins = said.At, st.twin.IsZero()
		}
		st.before, st.turned = st.now, st.last
		st.now = said.Instance
	}
	if known {
		s.leaveLocked(st)
	}
	st.last, st.place = said.At, place
	s.all[said.Slave] = st
	s.origins[origin(place)]++
	return twins
}

// roomLocked makes room for one more of an origin, and reports whether there is some.
func (s *stays) roomLocked(from netip.Addr, now time.Time) bool {
	if s.all == nil {
		s.all, s.origins = map[string]stay{}, map[netip.Addr]int{}
	}
	full := func() bool { return len(s.all) >= maxHeard || s.origins[from] >= maxAtOrigin }
	if full() && now.Sub(s.swept) >= time.Second {
		s.swept = now
		maps.DeleteFunc(s.all, func(_ string, st stay) bool {
			silent := now.Sub(st.last) > twinGap
			if silent {
				s.leaveLocked(st)
			}
			return silent
		})
	}
	return !full()
}

// leaveLocked counts a slave out at its origin.
func (s *stays) leaveLocked(st stay) {
	from := origin(st.place)
	if s.origins[from]--; s.origins[from] <= 0 {
		delete(s.origins, from)
	}
}

// moved names the home that a slave was given, elsewhere, while it was reading here, as long as it is to be told.
func (s *stays) moved(said slaveSighting, home fleet.Slave) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, known := s.all[said.Slave]
	if !known || !st.reads || home.Placed <= st.since {
		return ""
	}
	if st.asked != home.Placed {
		st.asked, st.from = home.Placed, said.At
		s.all[said.Slave] = st
	}
	if said.At.Sub(st.from) > moveAsk {
		return ""
	}
	return home.Master
}

// lately are the slaves that have greeted within a time, by where they are, with whether they are known to read here.
func (s *stays) lately(now time.Time, within time.Duration) map[netip.Addr]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[netip.Addr]bool{}
	for _, st := range s.all {
		if now.Sub(st.last) <= within {
			out[st.place] = out[st.place] || st.reads
		}
	}
	return out
}

// twins names the slaves of which there are two.
func (s *stays) twins(now time.Time) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for name, st := range s.all {
		if !st.twin.IsZero() && now.Sub(st.twin) < 2*twinGap {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}
