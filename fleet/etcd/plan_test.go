package etcd

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/quick"
)

// model is an etcd cluster and a fleet, as far as Plan can tell: who votes, who lives, who leads.
type model struct {
	seats   []Seat
	masters []Candidate
	nextID  uint64
}

func newModel(masters int) *model {
	w := &model{nextID: 1}
	for i := range masters {
		name := fmt.Sprintf("m%d", i+1)
		w.masters = append(w.masters, Candidate{Name: name, PeerURL: "https://" + name, Alive: true})
	}
	w.seats = []Seat{{ID: 1, Name: "m1", PeerURL: "https://m1", Leader: true, Healthy: true, InSync: true}}
	w.masters[0].Member = 1
	return w
}

func (w *model) master(name string) *Candidate {
	for i := range w.masters {
		if w.masters[i].Name == name {
			return &w.masters[i]
		}
	}
	return nil
}

func (w *model) byURL(url string) *Candidate { return w.master(strings.TrimPrefix(url, "https://")) }

// settle brings the seats to what follows from the masters: learners start and catch up, a leader is there if it can be.
func (w *model) settle() {
	for i := range w.seats {
		s := &w.seats[i]
		c := w.byURL(s.PeerURL)
		if c.Alive && !c.Removed && s.Name == "" {
			s.Name, c.Member = c.Name, s.ID
		}
		s.Healthy = c.Alive && !c.Removed && c.Member == s.ID
		s.InSync = s.Healthy
	}
	w.elect()
}

func (w *model) counts() (voters, healthy, learners int) {
	for _, s := range w.seats {
		switch {
		case s.Learner:
			learners++
		case s.Healthy:
			voters, healthy = voters+1, healthy+1
		default:
			voters++
		}
	}
	return voters, healthy, learners
}

func (w *model) quorate() bool {
	voters, healthy, _ := w.counts()
	return healthy >= voters/2+1
}

// elect keeps the leader while it is well, and finds another one when there is a quorum for it.
func (w *model) elect() {
	led := false
	for i := range w.seats {
		s := &w.seats[i]
		s.Leader = s.Leader && s.Healthy && !s.Learner && w.quorate()
		led = led || s.Leader
	}
	for i := range w.seats {
		if s := &w.seats[i]; !led && w.quorate() && s.Healthy && !s.Learner {
			s.Leader, led = true, true
		}
	}
}

// perform does what etcd would do, and checks that it would.
func (w *model) perform(t testing.TB, a Action) {
	t.Helper()
	at := slices.IndexFunc(w.seats, func(s Seat) bool { return s.ID == a.ID })
	if a.Kind != AddLearner && at < 0 {
		t.Fatalf("%v: no such member\n%v", a, w)
	}
	switch a.Kind {
	case AddLearner:
		if _, _, learners := w.counts(); learners >= maxLearners {
			t.Fatalf("%v: too many learners\n%v", a, w)
		}
		if slices.ContainsFunc(w.seats, func(s Seat) bool { return s.PeerURL == a.PeerURL }) {
			t.Fatalf("%v: the address is taken\n%v", a, w)
		}
		w.nextID++
		w.seats = append(w.seats, Seat{ID: w.nextID, PeerURL: a.PeerURL, Learner: true})
	case Promote:
		if s := w.seats[at]; !s.Learner || !s.InSync || !s.Healthy {
			t.Fatalf("%v: it is not ready\n%v", a, w)
		}
		w.seats[at].Learner = false
	case Remove:
		if w.seats[at].Leader {
			t.Fatalf("%v: it leads\n%v", a, w)
		}
		w.seats = slices.Delete(w.seats, at, at+1)
	case Transfer:
		if s := w.seats[at]; s.Learner || !s.Healthy {
			t.Fatalf("%v: it cannot lead\n%v", a, w)
		}
		for i := range w.seats {
			w.seats[i].Leader = i == at
		}
	}
	if !w.quorate() {
		t.Fatalf("%v has cost the quorum\n%v", a, w)
	}
	w.elect()
}

// String writes a model as a test's failure shows it.
func (w *model) String() string {
	var b strings.Builder
	for _, s := range w.seats {
		fmt.Fprintf(&b, "  seat   %+v\n", s)
	}
	for _, c := range w.masters {
		fmt.Fprintf(&b, "  master %+v\n", c)
	}
	return b.String()
}

// rest takes steps, each the first or any of those offered, until there is none.
func (w *model) rest(t testing.TB, r *rand.Rand) {
	t.Helper()
	for range 100 {
		actions := Plan(w.seats, w.masters)
		if len(actions) == 0 {
			return
		}
		for _, a := range actions { // each of them is safe by itself
			other := &model{slices.Clone(w.seats), slices.Clone(w.masters), w.nextID}
			other.perform(t, a)
		}
		w.perform(t, actions[r.IntN(len(actions))])
		w.settle()
	}
	t.Fatalf("it comes to no rest: %v\n%v", Plan(w.seats, w.masters), w)
}

func (w *model) shape() string {
	voters, _, learners := w.counts()
	return fmt.Sprintf("%d+%d", voters, learners)
}

func TestPlanGrows(t *testing.T) {
	want := []string{"1+0", "1+1", "3+0", "3+1", "5+0", "5+0", "5+0"}
	for n := 1; n <= len(want); n++ {
		for seed := range uint64(20) {
			w := newModel(n)
			w.rest(t, rand.New(rand.NewPCG(seed, 0)))
			if got := w.shape(); got != want[n-1] {
				t.Errorf("%d masters end up with %s, not %s\n%v", n, got, want[n-1], w)
			}
		}
	}
}

// Masters that join one after the other end up as those that are there at once.
func TestPlanGrowsOneByOne(t *testing.T) {
	want := []string{"1+0", "1+1", "3+0", "3+1", "5+0", "5+0"}
	w := newModel(len(want))
	for i := range w.masters[1:] {
		w.masters[i+1].Alive = false
	}
	for i := range want {
		w.masters[i].Alive = true
		w.settle()
		w.rest(t, rand.New(rand.NewPCG(1, 1)))
		if got := w.shape(); got != want[i] {
			t.Errorf("%d masters end up with %s, not %s", i+1, got, want[i])
		}
	}
}

func grown(t testing.TB, n int) *model {
	w := newModel(n)
	w.rest(t, rand.New(rand.NewPCG(7, 7)))
	return w
}

func TestPlanRemoves(t *testing.T) {
	for _, c := range []struct {
		name    string
		masters int
		removed []string
		alive   bool // what is removed still answers
		want    string
	}{
		{"one of three, gone", 3, []string{"m3"}, false, "1+1"},
		{"the leader of three", 3, []string{"m1"}, false, "1+1"},
		{"one of three, that goes on", 3, []string{"m3"}, true, "1+1"},
		{"the leader of three, that goes on", 3, []string{"m1"}, true, "1+1"},
		{"one of two", 2, []string{"m2"}, false, "1+0"},
		{"one of four", 4, []string{"m2"}, false, "3+0"},
		{"one of five", 5, []string{"m2"}, false, "3+1"},
		{"two of five", 5, []string{"m2", "m3"}, false, "3+0"},
		{"one of six", 6, []string{"m2"}, false, "5+0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := grown(t, c.masters)
			for _, name := range c.removed {
				w.master(name).Removed = true
			}
			if c.alive {
				for i := range 20 { // no settling: it answers as before
					actions := Plan(w.seats, w.masters)
					if len(actions) == 0 || i > 10 {
						break
					}
					w.perform(t, actions[0])
				}
			}
			w.settle()
			w.rest(t, rand.New(rand.NewPCG(2, 2)))
			if got := w.shape(); got != c.want {
				t.Errorf("it ends up with %s, not %s\n%v", got, c.want, w)
			}
			for _, s := range w.seats {
				if slices.Contains(c.removed, s.Name) {
					t.Errorf("%s still has a seat", s.Name)
				}
			}
		})
	}
}

func TestPlanKeepsTheLost(t *testing.T) {
	w := grown(t, 3)
	w.master("m2").Alive = false
	w.settle()
	if a := Plan(w.seats, w.masters); len(a) > 0 {
		t.Errorf("a lost voter leads to %v", a)
	}
	w.master("m3").Alive = false
	w.settle()
	w.master("m3").Removed = true
	if a := Plan(w.seats, w.masters); len(a) > 0 {
		t.Errorf("without a quorum: %v", a)
	}
}

// A master whose disk was replaced lives, and holds nothing of the member that it was.
func TestPlanReplacesWhatLostItsData(t *testing.T) {
	w := grown(t, 3)
	w.master("m2").Member = 0
	w.settle()
	a := Plan(w.seats, w.masters)
	if len(a) != 1 || a[0].Kind != Remove || a[0].Name != "m2" || a[0].Settle < settleOrphan {
		t.Fatalf("first comes %v", a)
	}
	w.rest(t, rand.New(rand.NewPCG(3, 3)))
	if w.shape() != "3+0" || w.master("m2").Member == 0 {
		t.Errorf("it ends up as %s\n%v", w.shape(), w)
	}
}

// Voters are made in pairs: while only one of two is in sync, the fleet goes on with the voter that it has.
func TestPlanWaitsForBoth(t *testing.T) {
	w := newModel(3)
	for _, a := range []string{"m2", "m3"} {
		w.perform(t, Action{Kind: AddLearner, PeerURL: "https://" + a})
	}
	w.settle()
	w.seats[2].InSync = false
	if a := Plan(w.seats, w.masters); len(a) > 0 {
		t.Errorf("one of two is in sync: %v", a)
	}
	w.seats[2].InSync = true
	if a := Plan(w.seats, w.masters); len(a) == 0 || a[0].Kind != Promote {
		t.Errorf("both are in sync: %v", a)
	}
}

// The one that takes a drained voter's seat has it before that voter goes.
func TestPlanSwapsInOrder(t *testing.T) {
	w := grown(t, 6)
	w.master("m2").Drained = true
	for range 20 {
		actions := Plan(w.seats, w.masters)
		if len(actions) == 0 {
			break
		}
		w.perform(t, actions[0])
		w.settle()
		if voters, _, _ := w.counts(); voters < 5 {
			t.Fatalf("%v left %d voters", actions[0], voters)
		}
	}
}

func TestPlanSwapsTheDrained(t *testing.T) {
	w := grown(t, 4)
	var drained string
	for _, s := range w.seats {
		if s.Leader {
			drained = s.Name
		}
	}
	w.master(drained).Drained = true
	w.rest(t, rand.New(rand.NewPCG(4, 4)))
	if w.shape() != "3+0" || slices.ContainsFunc(w.seats, func(s Seat) bool { return s.Name == drained }) {
		t.Errorf("it ends up as %s\n%v", w.shape(), w)
	}
	w = grown(t, 3)
	w.master("m2").Drained = true
	if a := Plan(w.seats, w.masters); len(a) > 0 {
		t.Errorf("there is nobody to take the seat: %v", a)
	}
}

func TestPlanLeavesStrangersAlone(t *testing.T) {
	w := grown(t, 5)
	if a := Plan(w.seats, w.masters[:1]); len(a) > 0 {
		t.Errorf("masters that are not known: %v", a)
	}
	if a := Plan(w.seats, nil); len(a) > 0 {
		t.Errorf("no masters known: %v", a)
	}
	if a := Plan(nil, w.masters); len(a) > 0 {
		t.Errorf("no members known: %v", a)
	}
}

// Two masters that claim one address cannot both have a seat, and do not keep the others from theirs.
func TestPlanWithAnAddressTakenTwice(t *testing.T) {
	w := newModel(4)
	w.masters[3].PeerURL = w.masters[2].PeerURL
	w.rest(t, rand.New(rand.NewPCG(5, 5)))
	if w.shape() != "3+0" {
		t.Errorf("it ends up as %s\n%v", w.shape(), w)
	}
}

func TestCanRemove(t *testing.T) {
	w := grown(t, 3)
	if !CanRemove(w.seats, "m3") || !CanRemove(w.seats, "unknown") {
		t.Error("one of three healthy voters can be spared")
	}
	w.master("m2").Alive = false
	w.settle()
	if CanRemove(w.seats, "m3") || !CanRemove(w.seats, "m2") {
		t.Error("with one of three gone only that one can be spared")
	}
	if one := newModel(1); CanRemove(one.seats, "m1") {
		t.Error("the last voter cannot be spared")
	}
}

// Whatever happens to a fleet, no step costs the quorum, and when everybody is well again it comes to rest with an odd
// number of voters, all of them of masters of the fleet.
func TestPlanProperties(t *testing.T) {
	property := func(seed uint64) bool {
		r := rand.New(rand.NewPCG(seed, 9))
		n := 1 + r.IntN(8)
		w := newModel(n)
		for range 60 {
			w.disturb(r)
			w.settle()
			if actions := Plan(w.seats, w.masters); len(actions) > 0 {
				if !w.quorate() {
					t.Fatalf("seed %d: %v without a quorum\n%v", seed, actions, w)
				}
				w.perform(t, actions[r.IntN(len(actions))])
			}
		}
		for i := range w.masters {
			c := &w.masters[i]
			c.Alive, c.Drained = !c.Removed, false
		}
		w.settle()
		if !w.quorate() {
			return true // lost for good, by removals that CanRemove would have refused
		}
		w.rest(t, r)
		living := 0
		for _, c := range w.masters {
			if c.Alive {
				living++
			}
		}
		want := map[int]string{0: "1+0", 1: "1+0", 2: "1+1", 3: "3+0", 4: "3+1"}[living]
		if living > 4 {
			want = "5+0"
		}
		if w.shape() != want {
			t.Errorf("seed %d: %d masters end up with %s, not %s\n%v", seed, living, w.shape(), want, w)
		}
		return !t.Failed()
	}
	if err := quick.Check(property, &quick.Config{MaxCount: 1000}); err != nil {
		t.Error(err)
	}
}

// disturb lets one thing happen.
func (w *model) disturb(r *rand.Rand) {
	c := &w.masters[r.IntN(len(w.masters))]
	switch r.IntN(10) {
	case 0, 1:
		c.Alive = false
	case 2, 3, 4, 5:
		c.Alive = !c.Removed
	case 6:
		c.Drained = !c.Drained
	case 7:
		var seats []Seat
		for _, s := range w.seats {
			if s.Name != c.Name {
				seats = append(seats, s)
			}
		}
		left := slices.ContainsFunc(w.masters, func(o Candidate) bool { return o.Name != c.Name && !o.Removed })
		if left && CanRemove(w.seats, c.Name) && len(seats) > 0 {
			c.Removed, c.Alive = true, false
		}
	case 8:
		if voters, healthy, _ := w.counts(); healthy > voters/2+1 && r.IntN(3) == 0 {
			c.Member = 0 // a new disk
		}
	}
}
