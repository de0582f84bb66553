package exporter

import (
	"context"
	"sync"
	"time"

	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
)

// OldestRead returns how long the oldest READ has been under way that a worker has in hand, or that could be lent no more: one
// that waits for the disk, for lost content to be brought back, or for a generation. It is 0 when there is none. A master on which it grows past
// seconds does not get at its disk, whatever else of it answers. A client that is slow to take its replies does not count.
func (s *Server) OldestRead() time.Duration { return s.reads.oldest(time.Now()) }

// procRead is READ's number (RFC 1813, section 3.3.6).
const procRead = 6

// reads is the NFS program, with account being kept of the READs that may wait.
type reads struct {
	rpc.Program

	mu          sync.Mutex // guards what follows
	first, last *read      // the list of those under way, the oldest first
	spare       *read      // a list, by next, of what is no longer used: as many as there ever were at once
}

// read is a READ under way.
type read struct {
	began      time.Time
	prev, next *read
}

// Append implements rpc.Program.
func (r *reads) Append(ctx context.Context, c *rpc.Call, dst []byte) ([]byte, error) {
	if !c.Blocking || c.Proc != procRead {
		return r.Program.Append(ctx, c, dst)
	}
	one := r.begin()
	defer r.end(one)
	return r.Program.Append(ctx, c, dst)
}

// wait accounts for a READ that no worker has in hand.
func (r *reads) wait() (ended func()) {
	one := r.begin()
	return func() { r.end(one) }
}

func (r *reads) begin() *read {
	r.mu.Lock()
	defer r.mu.Unlock()
	one := r.spare
	if one == nil {
		one = new(read)
	} else {
		r.spare = one.next
	}
	*one = read{began: time.Now(), prev: r.last}
	if r.last == nil {
		r.first = one
	} else {
		r.last.next = one
	}
	r.last = one
	return one
}

func (r *reads) end(one *read) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if one.prev == nil {
		r.first = one.next
	} else {
		one.prev.next = one.next
	}
	if one.next == nil {
		r.last = one.prev
	} else {
		one.next.prev = one.prev
	}
	one.next = r.spare
	r.spare = one
}

func (r *reads) oldest(now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.first == nil {
		return 0
	}
	return max(now.Sub(r.first.began), 0)
}
