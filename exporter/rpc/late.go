package rpc

import (
	"context"
	"errors"
	"sync"
	"time"
)

// job is a call that is answered by a worker: the record, copied, because the reader goes on, and its reply.
type job struct {
	rec  []byte
	call Call
	came time.Time
	cost int
}

var jobs = sync.Pool{New: func() any { return new(job) }}

// postpone gives the call just deferred to a worker. It waits until the connection has fewer calls under way than it may:
// meanwhile nothing is read from it.
func (c *Conn) postpone(ctx context.Context, rec []byte, came time.Time) error {
	cost := c.call.Cost + Headroom
	for !c.reserve(cost) {
		if c.looped {
			c.held = rec
			return errWait
		}
		// what is answered already must not wait for what is not
		if _, err := c.flush(time.Now()); err != nil {
			return err
		}
		<-c.freed
	}
	c.spoken.Store(true) // whatever becomes of it
	j := jobs.Get().(*job)
	j.rec = append(j.rec[:0], rec...)
	j.came, j.cost = came, cost
	j.call.Conn, j.call.Blocking = c, true
	j.call.out = getBuffer(cost)
	go c.work(ctx, j)
	return nil
}

// reserve counts a call in if there is room for it.
func (c *Conn) reserve(cost int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending >= c.srv.cfg.MaxInFlight || c.pending > 0 && c.cost+cost > c.srv.cfg.MaxLate {
		return false
	}
	c.pending++
	c.cost += cost
	c.srv.stats.inFlight.Add(1)
	return true
}

// work answers a postponed call and writes the reply, with those that others finish meanwhile.
func (c *Conn) work(ctx context.Context, j *job) {
	if err := c.srv.respond(ctx, &j.call, j.rec); err != nil {
		j.call.out.b = j.call.out.b[:0]
		if !errors.Is(err, ErrDrop) {
			c.Stop()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.late = append(c.late, j)
	if c.writing {
		return
	}
	c.writing = true
	for len(c.late) > 0 {
		batch := c.late
		c.late = nil
		c.mu.Unlock()
		cost := c.writeLate(batch)
		c.mu.Lock()
		c.pending -= len(batch)
		c.cost -= cost
		c.srv.stats.inFlight.Add(-int64(len(batch)))
		select {
		case c.freed <- struct{}{}:
		default:
		}
	}
	c.writing = false
}

// writeLate writes the replies of a batch and puts its parts back. It returns the bytes that had been reserved.
func (c *Conn) writeLate(batch []*job) (cost int) {
	for _, j := range batch {
		cost += j.cost
		sent := len(j.call.out.b)
		if sent > 0 {
			_ = c.write(j.call.out.b, time.Now()) // when it fails, the connection is closed: the reader finds out
			c.srv.stats.calls.Add(1)
			if o := c.srv.cfg.Observer; o != nil {
				o.Answered(j.call.Prog, j.call.Proc, 1, time.Since(j.came))
			}
			c.srv.stats.moved(c.srv.cfg.Observer, 0, sent)
		}
		putBuffer(j.call.out)
		j.call.out, j.call.Conn = nil, nil
		jobs.Put(j)
	}
	return cost
}

// settle waits until no worker has a call of this connection.
func (c *Conn) settle() {
	for {
		c.mu.Lock()
		n := c.pending
		c.mu.Unlock()
		if n == 0 {
			return
		}
		<-c.freed
	}
}
