package dns

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

// verdict is what happens to a question.
type verdict int

const (
	grant  verdict = iota
	divert         // it is told to come back over TCP
	refuse
)

const buckets = 1 << 13

// limiter bounds the questions a second of each network of clients. Its memory is fixed: networks that share a bucket, which
// nobody outside can arrange, share its rate. It is safe for concurrent use.
type limiter struct {
	rate  float64 // a second
	burst float64
	local bool // loopback is bounded too
	seed  maphash.Seed
	all   []bucket
}

type bucket struct {
	mu     sync.Mutex
	used   float64 // questions that the rate has not made good yet
	at     time.Time
	excess uint64
}

func newLimiter(rate int, local bool) *limiter {
	return &limiter{rate: float64(rate), burst: 2 * float64(rate), local: local, seed: maphash.MakeSeed(), all: make([]bucket, buckets)}
}

// take asks for one question. now must not run backwards by much; when it does nothing is made good.
func (l *limiter) take(from netip.Addr, now time.Time) verdict {
	if !l.local && from.Unmap().IsLoopback() {
		return grant
	}
	b := &l.all[maphash.Comparable(l.seed, networkOf(from))%buckets]
	b.mu.Lock()
	defer b.mu.Unlock()
	if passed := now.Sub(b.at); passed > 0 {
		b.used, b.at = max(0, b.used-passed.Seconds()*l.rate), now
	}
	if b.used+1 <= l.burst {
		b.used++
		return grant
	}
	b.excess++
	if b.excess%2 == 0 {
		return divert
	}
	return refuse
}
