// Package history judges what happened to a fleet under faults. A test records every attempt to publish, every read, every
// fault, and in the end etcd's own history of the fleet's keys; Check says what of that must not have happened.
//
// What is true is what etcd says: the sequence of values that the key of a shard's head had. An attempt that was never
// acknowledged may have become a generation or not; an acknowledged one must be there, with its content. Every read must
// have given what one of the generations holds, and never an older one than was seen there before.
//
// Times are those of one process, the test's, so that intervals can be compared. A Recorder is safe for concurrent use;
// everything else here is plain data and pure functions.
package history

import (
	"slices"
	"sync"
	"time"
)

// Span is a stretch of time; both ends belong to it.
type Span struct{ Began, Ended time.Time }

func (s Span) overlaps(o Span) bool { return !s.Ended.Before(o.Began) && !o.Ended.Before(s.Began) }

// Manifest says what a state of a shard's tree holds: for each path that is read, the digest of what a read of it gives.
type Manifest map[string]string

// Attempt is one try to publish a state, or to roll back to it.
type Attempt struct {
	Span
	ID       string // the note that it gave the generation; unique
	Shard    string
	Manifest Manifest

	// What was acknowledged; nothing of it counts unless Acked.
	Acked      bool
	Changed    bool // false: there was nothing to publish, Generation had this content already
	Generation uint64
	Root       string
	ServedBy   []string // masters that were said to serve it by then
}

// Read is one read of a whole file or directory.
type Read struct {
	Span
	Reader string    // who read
	Roams  bool      // it may go to any master; the others read from one for ever
	Master string    // who answered, or should have
	Conn   time.Time // when the connection that answered was begun
	Shard  string
	Path   string

	Digest string // of what was read; "" when there was no answer
	Held   string // not "": read through a handle that gave this before, so it must give this for ever
	Status string // not "": the refusal that came instead, an NFS status
	Lost   string // not "": how the connection failed instead of answering
}

// Fault is a stretch of time in which something was done to the fleet, and a while for its consequences to pass.
type Fault struct {
	Span
	What   string
	Master string // whom it hit; "": nobody's connections may be lost over it
	// Mute: that master may have closed connections or not answered. Otherwise its readers must not notice.
	Mute bool
	// Blind: that master could not reach etcd, or may not have: it may answer a new connection from what it knew last.
	Blind bool
	// Lame: that master may not have been able to take a copy.
	Lame bool
}

// Event is one change of a key of the fleet, as etcd's history has it. Those of one transaction have the same Revision.
type Event struct {
	Revision int64
	Key      string // without the fleet's prefix
	Deleted  bool
	Value    string
	Created  int64 // CreateRevision
}

// History is all that was recorded of one fleet.
type History struct {
	Masters   []string
	MinCopies int // of every shard
	Attempts  []Attempt
	Reads     []Read
	Faults    []Fault
	Events    []Event
	// PauseBound is how long a roaming reader may wait while some master was not hit by any fault. 0: not checked.
	PauseBound time.Duration
}

// Recorder collects a History while it happens.
type Recorder struct {
	mu sync.Mutex // guards h
	h  History
}

// NewRecorder begins the history of a fleet of these masters.
func NewRecorder(masters []string, minCopies int, pauseBound time.Duration) *Recorder {
	return &Recorder{h: History{Masters: masters, MinCopies: minCopies, PauseBound: pauseBound}}
}

// Begin records an attempt that begins, and returns what End wants.
func (r *Recorder) Begin(a Attempt) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Attempts = append(r.h.Attempts, a)
	return len(r.h.Attempts) - 1
}

// End records what came of an attempt.
func (r *Recorder) End(at int, a Attempt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Attempts[at] = a
}

// Read records a read that has ended.
func (r *Recorder) Read(rd Read) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Reads = append(r.h.Reads, rd)
}

// Fault records a fault that has passed.
func (r *Recorder) Fault(f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Faults = append(r.h.Faults, f)
}

// History returns what was known at a time, with events that were fetched after it: all that had been acknowledged and read
// by then must be explained by them. What was tried later stays there, without what came of it: it may be among the events.
func (r *Recorder) History(until time.Time, events []Event) History {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.h
	h.Events = events
	h.Attempts = slices.Clone(h.Attempts)
	for i, a := range h.Attempts {
		if a.Ended.After(until) {
			h.Attempts[i].Acked = false
		}
	}
	h.Reads = slices.DeleteFunc(slices.Clone(h.Reads), func(rd Read) bool { return rd.Ended.After(until) })
	h.Faults = slices.Clone(h.Faults)
	return h
}
