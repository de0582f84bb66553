package etcd

import (
	"cmp"
	"slices"
	"time"
)

// Seat is a place in the etcd cluster, as Members finds it.
type Seat struct {
	ID      uint64
	Name    string // of its master; "" until the member has started for the first time
	PeerURL string
	Learner bool // has no vote
	Leader  bool
	Healthy bool // answers, and follows the leader that a quorum follows
	InSync  bool // has nearly all that the leader has
}

// Candidate is a master that the fleet knows, as far as its etcd is concerned.
type Candidate struct {
	Name    string
	PeerURL string // by which its etcd is or would be reached; "": it has none inside
	Member  uint64 // the member that it runs or has on disk (Status.MemberID); 0: none
	Alive   bool   // holds its lease
	Drained bool
	Removed bool // from the fleet, by the operator
}

// Kind is what an Action does.
type Kind string

// The kinds of actions.
const (
	AddLearner Kind = "add learner" // for the master Name, at PeerURL
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

// How long a reason must last before a step is taken for it. Taking a member out and adding it again costs more than
// waiting for a restart.
const (
	settleOrphan = 30 * time.Second
	settleShrink = time.Minute
	settleSwap   = time.Minute
	settleIdle   = 10 * time.Minute
)

// Plan returns the steps that may be taken now, the most urgent one first. Each is safe by itself: it leaves a quorum of
// members that are healthy now. After one of them, and a new look at the members, Plan is asked again.
//
// A fleet of n masters ends up with 1, 3 or 5 voters, the most that n allows, and with a learner as spare when n is 2 or
// 4. New voters come in pairs, when both are in sync, so that no fleet rests on an even number. A lost master keeps its
// seat, because it may come back with what it has promised; the operator's word (Removed) takes it, and so does a master
// that lives without the member that its seat belongs to. A drained voter gives its seat to a spare master when there is
// one. A seat of a master that is not among masters is left alone, unless its member has never begun.
func Plan(members []Seat, masters []Candidate) []Action {
	p := newPlanning(members, masters)
	if !p.quorate() {
		return nil
	}
	var actions []Action
	actions = append(actions, p.removeBroken()...)
	actions = append(actions, p.promote()...)
	actions = append(actions, p.removeLeaving()...)
	actions = append(actions, p.add()...)
	return append(actions, p.removeIdle()...)
}

// CanRemove reports whether the operator may remove a master from the fleet: whether etcd keeps a healthy quorum without
// that master's member.
func CanRemove(members []Seat, master string) bool {
	p := newPlanning(members, nil)
	for _, s := range members {
		if s.Name == master && !s.Learner {
			return p.quorate() && p.safeWithout(s)
		}
	}
	return true
}

// planning is one call of Plan.
type planning struct {
	seats   []Seat
	masters []Candidate // in order of name
	of      map[uint64]*Candidate
	voters  []Seat
	healthy int // of voters

	target  map[string]bool // who shall vote, by seatName
	joining []Candidate     // who shall vote and does not yet, then who shall be a spare
	missing int             // how many of joining shall vote
}

func newPlanning(members []Seat, masters []Candidate) *planning {
	p := &planning{seats: slices.Clone(members), masters: slices.Clone(masters), of: map[uint64]*Candidate{}, target: map[string]bool{}}
	slices.SortFunc(p.masters, func(a, b Candidate) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(p.seats, func(a, b Seat) int {
		return cmp.Or(first(a.Leader, b.Leader), first(a.Healthy, b.Healthy), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	for _, s := range p.seats {
		for i, c := range p.masters {
			match := s.Name == c.Name || s.Name == "" && s.PeerURL == c.PeerURL
			if match && (p.of[s.ID] == nil || p.of[s.ID].Removed) { // a living master may have the address of one that was removed
				p.of[s.ID] = &p.masters[i]
			}
		}
		if !s.Learner {
			p.voters = append(p.voters, s)
			if s.Healthy {
				p.healthy++
			}
		}
	}
	p.choose()
	return p
}

// first orders what is true before what is not.
func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	default:
		return 1
	}
}

func quorum(voters int) int { return voters/2 + 1 }

// quorate reports whether there is a leader with a healthy quorum, without which nothing is safe.
func (p *planning) quorate() bool {
	led := slices.ContainsFunc(p.voters, func(s Seat) bool { return s.Leader && s.Healthy })
	return led && p.healthy >= quorum(len(p.voters))
}

// safeWithout reports whether a quorum is healthy when a voter has gone.
func (p *planning) safeWithout(s Seat) bool {
	left := p.healthy
	if s.Healthy {
		left--
	}
	return len(p.voters) > 1 && left >= quorum(len(p.voters)-1)
}

func (p *planning) removed(s Seat) bool { return p.of[s.ID] != nil && p.of[s.ID].Removed }
func (p *planning) drained(s Seat) bool { return p.of[s.ID] != nil && p.of[s.ID].Drained }

// orphaned reports whether a seat's master lives and has nothing of the member: no such member ever comes back.
func (p *planning) orphaned(s Seat) bool {
	c := p.of[s.ID]
	return c != nil && c.Alive && !s.Healthy && s.Name != "" && c.Member != s.ID
}

// choose decides who shall vote and who shall be a spare.
func (p *planning) choose() {
	type place struct {
		voter Seat
		other Candidate
	}
	var order, last []place
	for _, s := range p.voters {
		switch {
		case p.removed(s) || p.orphaned(s):
		case p.drained(s):
			last = append(last, place{voter: s})
		default:
			order = append(order, place{voter: s})
		}
	}
	for _, c := range p.eligible() {
		order = append(order, place{other: c})
	}
	order = append(order, last...)
	seats := min(len(order), MaxVoters)
	votes := seats
	if votes%2 == 0 {
		votes--
	}
	for i, o := range order {
		switch {
		case i < votes && o.voter.ID != 0:
			p.target[seatName(o.voter)] = true
		case i < votes:
			p.target[o.other.Name] = true
			p.joining = append(p.joining, o.other)
			p.missing++
		case i < seats && o.voter.ID == 0:
			p.joining = append(p.joining, o.other)
		}
	}
}

// seatName tells a voter from others also when it has not started.
func seatName(s Seat) string { return cmp.Or(s.Name, s.PeerURL) }

// eligible returns the masters that may become voters: the learners among them first, and those in sync before the rest.
func (p *planning) eligible() []Candidate {
	type rated struct {
		Candidate
		seat Seat
	}
	var all []rated
	for i, c := range p.masters {
		if !c.Alive || c.Drained || c.Removed || c.PeerURL == "" {
			continue
		}
		seat := p.seatOf(&p.masters[i])
		taken := slices.ContainsFunc(p.seats, func(s Seat) bool { return s.PeerURL == c.PeerURL && s.ID != seat.ID })
		taken = taken || slices.ContainsFunc(all, func(r rated) bool { return r.PeerURL == c.PeerURL })
		if seat.ID != 0 && !seat.Learner && !p.orphaned(seat) || taken && seat.ID == 0 {
			continue // it votes already, or somebody else has its address
		}
		all = append(all, rated{c, seat})
	}
	slices.SortStableFunc(all, func(a, b rated) int {
		return cmp.Or(first(a.seat.InSync, b.seat.InSync), first(a.seat.Healthy, b.seat.Healthy), first(a.seat.ID != 0, b.seat.ID != 0))
	})
	list := make([]Candidate, len(all))
	for i, r := range all {
		list[i] = r.Candidate
	}
	return list
}

// seatOf returns a master's seat; the zero Seat when it has none.
func (p *planning) seatOf(c *Candidate) Seat {
	for _, s := range p.seats {
		if p.of[s.ID] != nil && p.of[s.ID].Name == c.Name {
			return s
		}
	}
	return Seat{}
}

// removeBroken takes out what can never be of use again: voters first, of which it costs nothing that they do not answer.
func (p *planning) removeBroken() (actions []Action) {
	for _, s := range slices.Concat(p.voters, p.learners()) {
		a := Action{Kind: Remove, ID: s.ID, Name: s.Name, PeerURL: s.PeerURL}
		switch {
		case p.removed(s) && (s.Learner || !s.Healthy):
			a.Why = "its master was removed from the fleet"
		case p.orphaned(s):
			a.Why, a.Settle = "its master has lost the member's data", settleOrphan
		default:
			continue
		}
		if s.Learner || p.safeWithout(s) {
			actions = append(actions, a)
		}
	}
	return actions
}

func (p *planning) learners() []Seat {
	return slices.DeleteFunc(slices.Clone(p.seats), func(s Seat) bool { return !s.Learner })
}

// leaving returns the voters that shall not vote, those removed from the fleet first.
func (p *planning) leaving() []Seat {
	list := slices.DeleteFunc(slices.Clone(p.voters), func(s Seat) bool { return p.target[seatName(s)] && !p.orphaned(s) })
	slices.SortStableFunc(list, func(a, b Seat) int {
		return cmp.Or(first(p.removed(a), p.removed(b)), first(p.drained(a), p.drained(b)), first(!a.Healthy, !b.Healthy), first(!a.Leader, !b.Leader))
	})
	return list
}

// promote makes voters of learners: two at a time where that keeps the number odd, so that a fleet is not left in between
// for longer than the two steps take.
func (p *planning) promote() []Action {
	batch := 2
	if len(p.voters)%2 == 0 || len(p.leaving()) > 0 {
		batch = 1
	}
	var ready []Seat
	for i := range p.joining[:p.missing] {
		if s := p.seatOf(&p.joining[i]); s.Learner && s.InSync && s.Healthy {
			ready = append(ready, s)
		}
	}
	if len(ready) < batch || len(p.voters) > MaxVoters { // with a quorum before there is one after
		return nil
	}
	return []Action{{Kind: Promote, ID: ready[0].ID, Name: ready[0].Name, PeerURL: ready[0].PeerURL, Why: "it is in sync"}}
}

// removeLeaving takes out a voter that others have taken the place of, or that makes the number even.
func (p *planning) removeLeaving() []Action {
	if len(p.voters) <= len(p.target) {
		return nil
	}
	for _, s := range p.leaving() {
		a := Action{Kind: Remove, ID: s.ID, Name: s.Name, PeerURL: s.PeerURL, Why: "an odd number of voters is safer", Settle: settleShrink}
		switch {
		case p.orphaned(s) || p.removed(s) && !s.Healthy || !p.safeWithout(s):
			continue // removeBroken's, or not now
		case p.removed(s):
			a.Why, a.Settle = "its master was removed from the fleet", 0
		case p.drained(s):
			a.Why, a.Settle = "its master is drained and another has taken its place", 0
		}
		if !s.Leader {
			return []Action{a}
		}
		for _, heir := range p.voters {
			if heir.Healthy && !heir.Leader && p.target[seatName(heir)] {
				return []Action{{Kind: Transfer, ID: heir.ID, Name: heir.Name, PeerURL: heir.PeerURL, Settle: a.Settle, Why: "the leader leaves: " + a.Why}}
			}
		}
	}
	return nil
}

// add makes the next master a learner.
func (p *planning) add() []Action {
	learners := len(p.learners())
	if learners >= maxLearners || len(p.voters) > 1 && p.healthy < quorum(len(p.voters)+1) {
		return nil // etcd would refuse
	}
	for i := range p.joining {
		c := p.joining[i]
		if p.seatOf(&c).ID != 0 || slices.ContainsFunc(p.seats, func(s Seat) bool { return s.PeerURL == c.PeerURL }) {
			continue
		}
		a := Action{Kind: AddLearner, Name: c.Name, PeerURL: c.PeerURL, Why: "the fleet has room for another voter"}
		if i >= p.missing {
			a.Why = "a spare for the voters"
		} else if len(p.voters) >= len(p.target) {
			a.Why, a.Settle = "it will take the place of a voter that leaves", settleSwap
		}
		return []Action{a}
	}
	return nil
}

// removeIdle takes out learners that nothing is planned with.
func (p *planning) removeIdle() []Action {
	for _, s := range p.learners() {
		c := p.of[s.ID]
		if c == nil && s.Name == "" && len(p.masters) > 0 {
			return []Action{{Kind: Remove, ID: s.ID, PeerURL: s.PeerURL, Settle: settleShrink, Why: "it has never begun, and no master is at its address"}}
		}
		if c == nil || c.Removed || p.orphaned(s) || slices.ContainsFunc(p.joining, func(j Candidate) bool { return j.Name == c.Name }) {
			continue
		}
		settle := settleIdle
		if c.Alive && !c.Drained || s.Name == "" {
			settle = settleShrink // there are voters enough, or it has never begun
		}
		return []Action{{Kind: Remove, ID: s.ID, Name: s.Name, PeerURL: s.PeerURL, Settle: settle, Why: "no vote is planned for this learner"}}
	}
	return nil
}
