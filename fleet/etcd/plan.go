package etcd

import "time"

// Seat is a place in the etcd cluster, as Members finds it.
type Seat struct {
	ID      uint64
	Name    string // of its master; "" until the member has started for the first time
	PeerURL string
	Learner bool // has no vote
	Leader  bool
	Healthy bool // answers, and follows the leader that the others follow
	InSync  bool // has what the leader has
	Orphan  bool // its master lives, but has nothing of it on disk: it will never come back
}

// Candidate is a master that the fleet knows, as far as its etcd is concerned.
type Candidate struct {
	Name    string
	PeerURL string // that its etcd would be reached by; "": it has none inside
	Member  uint64 // the member that it runs or has on disk; 0: none
	Alive   bool   // holds its lease
	Drained bool
	Removed bool // from the fleet, by the operator
}

// Kind is what an Action does.
type Kind string

// The kinds of actions.
const (
	AddLearner Kind = "add learner" // PeerURL, Name
	Promote    Kind = "promote"     // the learner ID becomes a voter
	Remove     Kind = "remove"      // the member ID
	Transfer   Kind = "transfer"    // etcd's leadership goes to the voter ID
)

// Action is one step from what a cluster's members are towards what they should be.
type Action struct {
	Kind    Kind
	ID      uint64
	Name    string // of the master that it is about
	PeerURL string
	Settle  time.Duration // for so long the step must have been due before it is taken
	Why     string
}

// Plan returns the steps that may be taken now, the most urgent one first; each is safe by itself, and after one of them
// Plan is asked again. Candidates whose record is not known must be left out, not given as removed: a seat of an unknown
// master stays.
func Plan(members []Seat, masters []Candidate) []Action { return nil }
