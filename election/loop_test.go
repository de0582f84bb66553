package election

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// rig is an election on a Memory whose operations can be made to fail. It lives in a synctest bubble.
type rig struct {
	*node
	m    *Memory
	f    *faulty
	loop *loop
	// slept is how far the machine's clock is ahead of Go's: the time for which it was suspended.
	slept atomic.Int64
}

const fleetPrefix = "/nfs-fleet/f/"

func newRig(t *testing.T, m *Memory, master string, stands ...string) *rig {
	r := prepare(m, master, stands...)
	r.start(t)
	return r
}

func prepare(m *Memory, master string, stands ...string) *rig {
	r := &rig{m: m, f: newFaulty(&memoryBackend{m, fleetPrefix, master})}
	c := Config{Prefix: fleetPrefix, Master: master, TTL: DefaultTTL}
	r.loop = newLoop(c, r.f, func() instant { return monotonicClock().add(time.Duration(r.slept.Load())) })
	for _, shard := range stands {
		r.loop.Stand(shard, false)
	}
	return r
}

func (r *rig) start(t *testing.T) { r.node = run(t, r.loop, nil) }

// lease returns the lease as Memory has it.
func (r *rig) memoryLease() *memoryLease {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	return r.m.leases[r.Lease().ID]
}

func (r *rig) valid() {
	r.t.Helper()
	r.loop.mu.Lock()
	defer r.loop.mu.Unlock()
	if err := r.loop.state.valid(); err != nil {
		r.t.Fatal(err)
	}
}

func TestTheDeadlineCountsFromBeforeTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := prepare(NewMemory(), "m1", "www")
		const delay = DefaultTTL / 5
		r.f.on("grant", late(delay))
		r.f.on("renew", late(delay))
		start := time.Now()
		r.start(t)
		term := r.term()
		want := start.Add(DefaultTTL - DefaultTTL/50)
		if got := term.Deadline(); got.After(want) {
			t.Errorf("deadline %s after the lease was asked for, %s at most", got.Sub(start), want.Sub(start))
		}
		time.Sleep(DefaultTTL) // an hour would be as good: time is synctest's
		for range 20 {
			time.Sleep(DefaultTTL / 10)
			synctest.Wait()
			if left := time.Until(term.Deadline()); left > DefaultTTL-DefaultTTL/50 || left < DefaultTTL/2 {
				t.Errorf("the deadline is %s away", left)
			}
			if r.Lease().Age < delay && r.Lease().Age != 0 {
				t.Errorf("the last renewal that was confirmed is said to be %s old; answers take %s", r.Lease().Age, delay)
			}
		}
	})
}

func TestTermsEndAtTheDeadlineWhateverHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, NewMemory(), "m1", "www", "docs")
		terms := []*Term{r.term(), r.term()}
		for _, op := range []string{"renew", "read", "write", "grant"} {
			r.f.on(op, silence)
		}
		deadline := terms[0].Deadline()
		for _, term := range terms {
			if err := cause(t, term); !errors.Is(err, ErrLeaseLost) {
				t.Error(err)
			}
			if err := term.Context().Err(); err == nil {
				t.Error("the context has no error")
			}
		}
		if late := time.Since(deadline); late < 0 || late > time.Millisecond {
			t.Errorf("the terms ended %s after the deadline", late)
		}
		r.valid()
	})
}

func TestTheTimerNeedsNoLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		life := newLifeline(monotonicClock, monotonicClock().add(3*time.Second))
		term := newTerm("www", "k", 7, life)
		time.Sleep(2 * time.Second)
		if !life.extend(monotonicClock().add(3 * time.Second)) {
			t.Fatal("a living lifeline could not be extended")
		}
		if !life.extend(monotonicClock().add(time.Second)) || time.Until(term.Deadline()) != 3*time.Second {
			t.Errorf("an earlier deadline took the place of a later one: %s left", time.Until(term.Deadline()))
		}
		time.Sleep(2 * time.Second)
		if err := term.Check(); err != nil {
			t.Fatalf("extended, and yet: %v", err)
		}
		start := time.Now()
		<-term.ctx.Done()
		if took := time.Since(start); took != time.Second {
			t.Errorf("ended after another %s", took)
		}
		if life.extend(monotonicClock().add(time.Hour)) || term.Check() == nil {
			t.Error("what has ended was extended")
		}
	})
}

// After a suspend Go's timers are late by the time slept, and the first to run may be the user of a term.
func TestAfterASuspendNoTermLooksAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, NewMemory(), "m1", "www", "docs")
		one, two := r.term(), r.term()
		derived, cancel := context.WithCancel(two.Context())
		defer cancel()
		r.slept.Store(int64(time.Hour))
		if err := two.Context().Err(); err == nil {
			t.Error("the context says that the term goes on")
		}
		if err := one.Check(); !errors.Is(err, ErrLeaseLost) {
			t.Errorf("Check: %v", err)
		}
		if derived.Err() == nil || !errors.Is(context.Cause(derived), ErrLeaseLost) {
			t.Errorf("a derived context outlived the check: %v", context.Cause(derived))
		}
		if time.Until(one.Deadline()) > 0 {
			t.Error("the deadline is ahead")
		}
		// Memory's lease ran on Go's clock and is still there: the same key carries new terms.
		for range 2 {
			if next := r.term(); next.Epoch() != one.Epoch() || next.Check() != nil {
				t.Errorf("epoch %d after %d, %v", next.Epoch(), one.Epoch(), next.Check())
			}
		}
		if one.Check() == nil || two.Check() == nil {
			t.Error("an ended term came back to life")
		}
		r.valid()
	})
}

// An answer that was under way when the machine was suspended must not revive a term.
func TestALateAnswerRevivesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, NewMemory(), "m1", "www")
		term := r.term()
		r.f.on("renew", func(_ context.Context, call func() error) error {
			err := call()
			r.slept.Add(int64(time.Minute)) // between the answer and its arrival
			return err
		})
		if err := cause(t, term); !errors.Is(err, ErrLeaseLost) {
			t.Error(err)
		}
		r.f.on("renew", nil)
		if next := r.term(); next.Check() != nil {
			t.Error(next.Check())
		}
	})
}

// etcd keeps and extends its leases across its own outages: so must we keep to ours.
func TestALeaseIsKeptThroughAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, NewMemory(), "m1", "www")
		term, id := r.term(), r.Lease().ID
		r.memoryLease().expire.Stop()
		for _, op := range []string{"grant", "renew", "read", "write"} {
			r.f.on(op, silence)
		}
		if err := cause(t, term); !errors.Is(err, ErrLeaseLost) {
			t.Error(err)
		}
		time.Sleep(time.Hour)
		if l := r.Lease(); l.ID != id || l.Alive || l.Err == nil || l.Age < time.Hour {
			t.Errorf("after an hour without etcd: %+v", l)
		}
		for _, op := range []string{"grant", "renew", "read", "write"} {
			r.f.on(op, nil)
		}
		start := time.Now()
		next := r.term()
		if r.Lease().ID != id || next.Epoch() != term.Epoch() {
			t.Errorf("lease %d after %d, epoch %d after %d", r.Lease().ID, id, next.Epoch(), term.Epoch())
		}
		if took := time.Since(start); took > DefaultTTL/2 {
			t.Errorf("leading again took %s", took)
		}
		if n := r.f.count("grant"); n != 1 {
			t.Errorf("%d leases were asked for", n)
		}
	})
}

// The key may have been lost in the outage; the view of it must not count.
func TestNoTermFromAnOldView(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := prepare(NewMemory(), "m1", "www")
		r.f.on("watch", silence)
		r.start(t)
		term := r.term()
		r.memoryLease().expire.Stop()
		for _, op := range []string{"renew", "read", "write"} {
			r.f.on(op, silence)
		}
		cause(t, term)
		r.m.Delete(term.Key())
		r.f.on("renew", nil) // the lease returns before anything can be read
		r.until("alive", func() bool { return r.Lease().Alive })
		synctest.Wait()
		select {
		case next := <-r.Terms():
			t.Fatalf("a term of epoch %d without a key", next.Epoch())
		default:
		}
		r.f.on("read", nil)
		r.f.on("write", nil)
		if next := r.term(); next.Epoch() <= term.Epoch() {
			t.Errorf("epoch %d after %d", next.Epoch(), term.Epoch())
		}
	})
}

func TestTheRereadNoticesWhatAHangingWatchDoesNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := prepare(NewMemory(), "m1", "www")
		r.f.on("watch", silence)
		r.start(t)
		term := r.term()
		start := time.Now()
		r.m.Delete(term.Key())
		if err := cause(t, term); !errors.Is(err, ErrDeposed) {
			t.Error(err)
		}
		if took := time.Since(start); took > DefaultTTL/2 {
			t.Errorf("noticed after %s", took)
		}
		if next := r.term(); next.Epoch() <= term.Epoch() {
			t.Errorf("epoch %d after %d", next.Epoch(), term.Epoch())
		}
		if r.f.count("watch") < 2 {
			t.Error("the hanging watch was not replaced")
		}
	})
}

func TestALostAnswerToAClaimMakesATerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := prepare(NewMemory(), "m1", "www")
		r.f.on("watch", silence)
		r.f.on("write", lost)
		start := time.Now()
		r.start(t)
		term := r.term()
		if _, created := r.m.Get(term.Key()); created != term.Epoch() {
			t.Errorf("term at %d, key at %d", term.Epoch(), created)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("took %s", took)
		}
	})
}

func TestTheNextInOrderTriesAfterASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory()
		// A master that is alive, has every source, and does nothing.
		ghost := Candidate{Master: "ghost", Preferred: []string{"docs", "www"}}
		m.Put(candidateKey(fleetPrefix, "ghost"), mustJSON(ghost))
		start := time.Now()
		r := newRig(t, m, "m1", "www")
		if term := r.term(); term.Shard() != "www" || time.Since(start) < turn || time.Since(start) > turn+100*time.Millisecond {
			t.Errorf("%s after %s, want www after a second", term.Shard(), time.Since(start))
		}
	})
}

// A master that starts announces one thing after another, and one that is drained no more says so: others are not to take it for
// lost or drained meanwhile.
func TestARareChangeIsWrittenAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, NewMemory(), "m1", "www")
		r.term()
		for _, key := range []string{"masters/m1", "replicas/m1"} {
			r.Announce(fleetPrefix+key, []byte("x"))
			time.Sleep(gather / 10)
			if value, _ := r.m.Get(fleetPrefix + key); string(value) != "x" {
				t.Errorf("%s is %q after %s", key, value, gather/10)
			}
		}
		var chatter sync.WaitGroup
		chatter.Go(func() {
			for i := range 300 {
				r.Announce(fleetPrefix+"replicas/m1", fmt.Appendf(nil, "%d", i))
				time.Sleep(gather / 100)
			}
		})
		time.Sleep(3 * gather / 2)
		r.Announce(fleetPrefix+"masters/m1", []byte("y"))
		time.Sleep(gather / 10)
		if value, _ := r.m.Get(fleetPrefix + "masters/m1"); string(value) != "y" {
			t.Errorf("beside a key that keeps changing it is %q after %s", value, gather/10)
		}
		chatter.Wait()
	})
}

func TestSteadyStateWritesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, NewMemory(), "m1", "www")
		r.term()
		r.Announce(fleetPrefix+"masters/m1", []byte("x"))
		time.Sleep(2 * gather)
		r.f.count("write")
		r.f.count("renew")
		time.Sleep(10 * time.Minute)
		if n := r.f.count("write"); n != 0 {
			t.Errorf("%d writes in ten idle minutes", n)
		}
		if n, want := r.f.count("renew"), int(10*time.Minute/(DefaultTTL/4)); n < want-2 || n > want+2 {
			t.Errorf("%d renewals, want %d", n, want)
		}
		for i := range 1000 { // ten seconds of chatter
			r.Announce(fleetPrefix+"replicas/m1", fmt.Appendf(nil, "%d", i))
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(gather)
		if n := r.f.count("write"); n > 12 {
			t.Errorf("%d writes in eleven seconds", n)
		}
		if value, _ := r.m.Get(fleetPrefix + "replicas/m1"); string(value) != "999" {
			t.Errorf("the last value is %s", value)
		}
	})
}

// Attempts that fail at once must not become a storm.
func TestFailuresArePaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := prepare(NewMemory(), "m1", "www")
		for _, op := range []string{"grant", "read"} {
			r.f.on(op, func(context.Context, func() error) error { return errInjected })
		}
		r.start(t)
		time.Sleep(time.Minute)
		for _, op := range []string{"grant", "read"} {
			if n, most := r.f.count(op), int(time.Minute/(DefaultTTL/20))+1; n > most || n < most/2 {
				t.Errorf("%s was tried %d times in a minute, at most %d", op, n, most)
			}
		}
		if l := r.Lease(); l.Alive || !errors.Is(l.Err, errInjected) {
			t.Errorf("%+v", l)
		}
		r.f.on("grant", nil)
		r.f.on("read", nil)
		r.term()
	})
}

func TestACompactedWatchIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := prepare(NewMemory(), "m1", "www")
		var compacted atomic.Bool
		r.f.on("watch", func(_ context.Context, call func() error) error {
			if !compacted.Swap(true) {
				return errWatchRefused
			}
			return call()
		})
		r.start(t)
		term := r.term()
		start := time.Now()
		r.m.Delete(term.Key())
		if err := cause(t, term); !errors.Is(err, ErrDeposed) || time.Since(start) > DefaultTTL/10 {
			t.Errorf("%v after %s", err, time.Since(start))
		}
	})
}
