package rpc

import (
	"sync/atomic"
	"time"
)

// Observer is told what was answered, about once a batch. Its methods are called from many goroutines and must not
// block.
type Observer interface {
	// Answered says that n calls of a procedure were answered. took is the time from when the bytes of the batch they
	// came in were read to when its replies were written: what each of them took at the most.
	Answered(program, procedure uint32, n int, took time.Duration)
	// Moved says how many bytes were read and written.
	Moved(in, out int)
}

// Stats is a moment's view of a Server.
type Stats struct {
	Conns    int    // open connections
	InFlight int    // calls that workers have in hand
	Calls    uint64 // calls answered since the start
	In, Out  uint64 // bytes read and written since the start
	Refused  uint64 // connections closed unserved: too many, or the gate stayed shut
	Spoiled  uint64 // connections closed in the middle of a reply: what was being sent left memory meanwhile, and came back unhashed
	Lent     uint64 // bodies of replies of which some was sent from where it is
}

type stats struct {
	inFlight               atomic.Int64
	calls, in, out, refuse atomic.Uint64
	spoiled, lent          atomic.Uint64
}

func (s *stats) moved(o Observer, in, out int) {
	s.in.Add(uint64(in))
	s.out.Add(uint64(out))
	if o != nil {
		o.Moved(in, out)
	}
}

// tally counts the calls of one batch by procedure; a batch rarely has more than a few.
type tally struct {
	n    int
	kind [8]struct {
		procedure
		calls int
	}
	rest int // calls of procedures that found no place; counted, not told by name
}

func (t *tally) add(prog, proc uint32) {
	p := procedure{prog, proc}
	for i := range t.n {
		if t.kind[i].procedure == p {
			t.kind[i].calls++
			return
		}
	}
	if t.n == len(t.kind) {
		t.rest++
		return
	}
	t.kind[t.n].procedure, t.kind[t.n].calls = p, 1
	t.n++
}

// report tells o, empties the tally and returns the number of calls.
func (t *tally) report(o Observer, took time.Duration) (calls int) {
	for i := range t.n {
		k := &t.kind[i]
		calls += k.calls
		if o != nil {
			o.Answered(k.prog, k.proc, k.calls, took)
		}
	}
	calls += t.rest
	t.n, t.rest = 0, 0
	return calls
}
