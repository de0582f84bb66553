package peer

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// streamsAPeer is how many requests one fetch has under way at one master, maxStreams all fetches at all of them; but
	// each fetch has at least one.
	streamsAPeer = 3
	maxStreams   = 12

	shunTime    = time.Minute      // in which a master that sent wrong bytes is the last to be asked
	slowTime    = 10 * time.Second // in which one that stalled or failed is asked only when no other has an object
	busyTime    = 250 * time.Millisecond
	firstRetry  = 100 * time.Millisecond
	lastRetry   = 5 * time.Second
	maxFailures = 4 // in a row, after which a master counts as out of reach

	firstBatch   = 1 << 20 // bytes asked of a master of which nothing is known
	smallBatch   = 256 << 10
	largestBatch = 16 << 20
	batchTime    = 500 * time.Millisecond // that a batch should take
	guessedRate  = 8 << 20                // bytes a second of a master of which nothing is known
)

// How gladly a source is asked. One that is not fine is asked only for what no better one has.
const (
	fine    = iota
	hollow  // lacked most of what it was asked for: it is being filled itself, perhaps
	slow    // stalled, failed, or was much slower than another
	shunned // sent what it should not have
)

// source is a master as one fetch sees it. It belongs to the goroutine of run.
type source struct {
	name      string
	number    int // in a set
	alive     bool
	streams   int
	failures  int // in a row
	err       error
	notBefore time.Time // of the next request
	// Until when it has these ranks.
	hollowUntil, slowUntil, shunUntil time.Time
	wrong                             int     // objects of which it sent wrong bytes
	lacked                            int     // batches in a row of which it lacked the most
	rate                              float64 // bytes a second, 0: unknown
}

func (s *source) rank(now time.Time) int {
	switch {
	case now.Before(s.shunUntil):
		return shunned
	case now.Before(s.slowUntil) || s.failures > 0:
		return slow
	case now.Before(s.hollowUntil):
		return hollow
	}
	return fine
}

func (s *source) free(now time.Time) bool {
	return s.alive && s.streams < streamsAPeer && !now.Before(s.notBefore)
}

// speed is the source's rate, or a guess.
func (s *source) speed() float64 {
	if s.rate == 0 {
		return guessedRate
	}
	return s.rate
}

// batchBytes is how much to ask of it at once.
func (s *source) batchBytes() int64 {
	if s.rate == 0 {
		return firstBatch
	}
	return min(max(int64(s.rate*batchTime.Seconds()), smallBatch), largestBatch)
}

// timed notes how fast an answer came.
func (s *source) timed(bytes int64, took time.Duration) {
	const least = 64 << 10 // bytes that say something about it
	if bytes < least || took <= 0 {
		return
	}
	rate := float64(bytes) / took.Seconds()
	if s.rate != 0 {
		rate = (s.rate + rate) / 2
	}
	s.rate = rate
}

// answered notes that a request went well, of whose objects the source lacked some.
func (s *source) answered(now time.Time, asked, lacked int) {
	s.failures, s.err = 0, nil
	if 2*lacked <= asked {
		s.lacked = 0
		return
	}
	s.hollowUntil = now.Add(min(firstRetry<<min(s.lacked, 10), lastRetry))
	s.lacked++
}

// failed notes that a request did not go well. progress: some of it did.
func (s *source) failed(now time.Time, err error, progress bool) {
	s.err = err
	switch {
	case errors.Is(err, errBusy):
		s.notBefore = now.Add(busyTime)
		return
	case errors.Is(err, errSlow):
		s.slowUntil = now.Add(slowTime)
		return
	}
	if progress {
		s.failures = 0
	}
	s.failures++
	s.slowUntil = now.Add(slowTime)
	s.notBefore = now.Add(min(firstRetry<<min(s.failures-1, 10), lastRetry))
}

// choose returns whom to ask for something of a group, nil for nobody now.
func choose(sources []*source, lacks set, prefer string, now time.Time) *source {
	best := shunned
	var able []*source
	for _, s := range sources {
		if !s.alive || lacks.has(s.number) || s.failures >= maxFailures {
			continue
		}
		best = min(best, s.rank(now))
		if s.free(now) {
			able = append(able, s)
		}
	}
	able = slices.DeleteFunc(able, func(s *source) bool { return s.rank(now) > best })
	if len(able) == 0 {
		return nil
	}
	return slices.MinFunc(able, func(a, b *source) int {
		return cmp.Or(
			cmp.Compare(a.streams, b.streams),
			cmp.Compare(preferred(a, prefer), preferred(b, prefer)),
			cmp.Compare(b.speed(), a.speed()),
			cmp.Compare(a.name, b.name))
	})
}

func preferred(s *source, name string) int {
	if s.name == name {
		return 0
	}
	return 1
}

// verdict says whether there is still hope for a group: lacking is true when every living source says that it lacks it,
// and lost is an error of the others when none of them can be reached, or none of them sent the right bytes.
func verdict(sources []*source, lacks set) (lacking bool, lost error) {
	living, reachable := 0, false
	for _, s := range sources {
		if !s.alive {
			continue
		}
		living++
		if lacks.has(s.number) {
			if s.wrong > 0 { // perhaps of this: it did not say that it has none
				lost = errors.Join(lost, fmt.Errorf("master %s: %w", s.name, errWrong))
			}
			continue
		}
		if s.failures < maxFailures {
			reachable = true
		}
		lost = errors.Join(lost, s.err)
	}
	switch {
	case living == 0:
		return false, errNobody
	case reachable:
		return false, nil
	case lost == nil:
		return true, nil
	}
	return false, lost
}

var (
	errBusy    = errors.New("it gives away as much as it can already")
	errSlow    = errors.New("another master is faster")
	errStalled = errors.New("it stalled")
	errWrong   = errors.New("it sent wrong bytes")
	errNobody  = errors.New("no other master is alive")
	errStuck   = errors.New("nothing came for too long")
)
