package relay

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// simMaster is a master of a simulation.
type simMaster struct {
	dead   bool // refuses
	silent bool // takes everything and says nothing
	mute   bool // serves, but answers no HELLO
	closes bool // answers HELLO, and closes every other connection
	status Status
	order  *Answer       // whose Targets and Revision it tells; nil: the simulation's
	delay  time.Duration // of an answer to HELLO
}

func (m *simMaster) serves() bool { return !m.dead && !m.silent && !m.closes }

// sim runs a course in time of its own, with a reader that always waits for a reply.
type sim struct {
	t       *testing.T
	c       *course
	now     time.Time
	queue   []simEvent
	masters map[netip.AddrPort]*simMaster
	order   []Target
	idle    bool // nobody reads

	target  netip.AddrPort // of the relay
	held    bool
	heard   time.Time
	waiting time.Time
	worst   time.Duration // of waiting
	planned []Change
	forced  []Change
	asked   int // of DNS
}

type simEvent struct {
	at time.Time
	do func() any // returns an event, or nil
}

func simAddr(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 2049)
}

func newSim(t *testing.T, masters int) *sim {
	s := &sim{t: t, c: newCourse(), now: time.Unix(1e9, 0), masters: make(map[netip.AddrPort]*simMaster)}
	for i := range masters {
		s.masters[simAddr(i)] = &simMaster{delay: time.Millisecond}
		s.order = append(s.order, Target{Name: fmt.Sprint("m", i), Addr: simAddr(i)})
	}
	s.step(told{s.order})
	return s
}

func (s *sim) at(d time.Duration, do func() any) {
	s.queue = append(s.queue, simEvent{s.now.Add(d), do})
	slices.SortStableFunc(s.queue, func(a, b simEvent) int { return a.at.Compare(b.at) })
}

// m is the i-th master.
func (s *sim) m(i int) *simMaster { return s.masters[simAddr(i)] }

// flow is what the relay would see now.
func (s *sim) flow() Flow {
	m := s.masters[s.target]
	if s.idle || m == nil {
		s.waiting = time.Time{}
		return Flow{Conns: 1, Heard: s.heard}
	}
	if m.serves() && !s.held {
		if !s.waiting.IsZero() {
			s.worst = max(s.worst, s.now.Sub(s.waiting))
		}
		s.heard, s.waiting = s.now, time.Time{}
	} else if s.waiting.IsZero() {
		s.waiting = s.now
	}
	f := Flow{Conns: 1, Heard: s.heard}
	if !s.held {
		f.Waiting = s.waiting
	}
	return f
}

func (s *sim) step(event any) {
	s.t.Helper()
	flow := s.flow()
	for _, a := range s.c.step(s.now, flow, event) {
		s.perform(a)
	}
	s.flow()
	if !s.c.wake.After(s.now) {
		s.t.Fatalf("%T: wants to be woken in the past", event)
	}
	if len(s.c.asks) > 3*maxOrder {
		s.t.Fatalf("%d greetings are under way", len(s.c.asks))
	}
}

func (s *sim) perform(action any) {
	switch a := action.(type) {
	case greet:
		m := s.masters[a.to.Addr]
		switch {
		case m.dead:
			s.at(200*time.Microsecond, func() any { return failed{a.id, errors.New("refused")} })
		case !m.silent && !m.mute:
			s.at(m.delay, func() any {
				if m.silent || m.dead {
					return nil
				}
				return answered{a.id, s.answer(m)}
			})
		}
	case hold:
		s.held = true
	case resume:
		s.held = false
		s.connect()
	case switchTo:
		s.held = false
		s.forced = append(s.forced, a.Change)
		s.target = a.To.Addr
		s.connect()
	case moveTo:
		to := a.To.Addr
		s.at(3*time.Millisecond, func() any {
			if !s.masters[to].serves() {
				return moved{errors.New("no reply")}
			}
			s.target, s.held = to, false
			return moved{}
		})
	case arrived:
		s.planned = append(s.planned, a.Change)
	case discover:
		s.asked++
		s.at(5*time.Millisecond, func() any { return told{s.order} })
	}
}

// answer is what a master says.
func (s *sim) answer(m *simMaster) Answer {
	out := Answer{Targets: s.order}
	if m.order != nil {
		out = *m.order
	}
	out.Status = m.status
	return out
}

// connect makes a connection to the target, which is lost when it is no good.
func (s *sim) connect() {
	addr := s.target
	if m := s.masters[addr]; m.dead || m.closes {
		s.at(time.Millisecond, func() any {
			if s.target != addr || s.held {
				return nil
			}
			return Loss{Addr: addr, Useless: true}
		})
	}
}

// run lets time pass.
func (s *sim) run(d time.Duration) {
	s.t.Helper()
	for end := s.now.Add(d); ; {
		next := s.c.wake
		if len(s.queue) > 0 && s.queue[0].at.Before(next) {
			next = s.queue[0].at
		}
		if next.After(end) {
			s.now = end
			s.flow()
			return
		}
		s.now = next
		var event any = tick{}
		if len(s.queue) > 0 && !s.queue[0].at.After(next) {
			do := s.queue[0].do
			s.queue = s.queue[1:]
			if event = do(); event == nil {
				continue
			}
		}
		s.step(event)
	}
}

// kill ends a master as SIGKILL does: its connections break.
func (s *sim) kill(i int) {
	s.m(i).dead = true
	if s.target == simAddr(i) {
		s.step(Loss{Addr: s.target, Err: errors.New("reset")})
	}
}

// reads demands that the reader reads from the i-th master.
func (s *sim) reads(i int) {
	s.t.Helper()
	if s.target != simAddr(i) || s.held || !s.m(i).serves() {
		s.t.Fatalf("reads from %s, held %v; want m%d", s.target, s.held, i)
	}
}

// paused demands that no wait was longer, and forgets it.
func (s *sim) paused(most time.Duration) {
	s.t.Helper()
	if s.worst > most {
		s.t.Errorf("a wait of %s, want %s at most", s.worst, most)
	}
	s.worst = 0
}

func TestTheFirstIsHome(t *testing.T) {
	s := newSim(t, 3)
	s.m(0).delay, s.m(1).delay = 50*time.Millisecond, time.Millisecond
	s.run(time.Second)
	s.reads(0)
}

func TestADeadMasterIsLeftAtOnce(t *testing.T) {
	s := newSim(t, 3)
	s.run(time.Minute)
	s.kill(0)
	s.run(100 * time.Millisecond)
	s.reads(1)
	s.paused(20 * time.Millisecond)
	s.run(1200 * time.Millisecond)
	s.kill(1)
	s.run(100 * time.Millisecond)
	s.reads(2)
	s.paused(20 * time.Millisecond)
}

func TestASilentMasterIsLeft(t *testing.T) {
	for after := time.Duration(0); after < time.Second; after += 7 * time.Millisecond {
		s := newSim(t, 3)
		s.run(10*time.Second + after)
		s.m(0).silent = true
		s.run(2 * time.Second)
		s.reads(1)
		s.paused(700 * time.Millisecond)
	}
}

func TestTwoAreLostAtOnce(t *testing.T) {
	s := newSim(t, 4)
	s.run(10 * time.Second)
	s.m(0).silent, s.m(1).silent = true, true
	s.run(2 * time.Second)
	s.reads(2)
	s.paused(700 * time.Millisecond)
}

func TestABusyMasterIsNotLeft(t *testing.T) {
	for i, busy := range []func(*sim){
		func(s *sim) { s.m(0).delay = 2 * time.Second },
		func(s *sim) { s.m(0).mute = true },
		func(s *sim) { s.idle, s.m(0).delay = true, 450*time.Millisecond },
	} {
		s := newSim(t, 3)
		s.run(10 * time.Second)
		busy(s)
		s.run(time.Minute)
		s.reads(0)
		if len(s.forced) != 1 || len(s.planned) != 0 {
			t.Errorf("%d: changes: %v %v", i, s.planned, s.forced)
		}
	}
}

func TestAPausedAgentAccusesNobody(t *testing.T) {
	for _, pause := range []time.Duration{300 * time.Millisecond, time.Second, time.Minute} {
		for into := range 40 {
			s := newSim(t, 3)
			s.idle = into%2 == 0
			s.run(10*time.Second + time.Duration(into)*15*time.Millisecond)
			s.now = s.now.Add(pause) // what came meanwhile is read after the timer went off
			s.step(tick{})
			s.run(time.Second)
			if len(s.forced) != 1 {
				t.Fatalf("after %s: %v", pause, s.forced[1:])
			}
		}
	}
}

// A slave that has little of its processors leaves a silent master all the same, after as long a time as it had.
func TestAStarvedAgentLeavesASilentMaster(t *testing.T) {
	for _, absent := range []time.Duration{200 * time.Millisecond, 600 * time.Millisecond} {
		s := newSim(t, 3)
		s.run(10 * time.Second)
		s.m(0).silent = true
		for turn := 0; s.target == simAddr(0); turn++ {
			if turn == 25 {
				t.Fatalf("after %d times 40 ms between absences of %s it stays", turn, absent)
			}
			s.now = s.now.Add(absent)
			s.step(tick{})
			s.run(40 * time.Millisecond)
		}
	}
}

func TestAMasterThatClosesAConnectionStays(t *testing.T) {
	s := newSim(t, 3)
	s.run(time.Second)
	for range 10 {
		s.step(Loss{Addr: simAddr(0), Err: errors.New("EOF")})
		s.run(30 * time.Millisecond)
		s.reads(0)
	}
	s.paused(20 * time.Millisecond)
}

func TestAMasterThatOnlyGreetsIsLeft(t *testing.T) {
	s := newSim(t, 3)
	s.run(time.Second)
	s.m(0).closes = true
	s.step(Loss{Addr: simAddr(0), Err: errors.New("EOF")})
	s.run(100 * time.Millisecond)
	s.reads(1)
}

func TestAMasterThatWantsTheSlaveGone(t *testing.T) {
	for _, status := range []Status{Leave, Unwell} {
		s := newSim(t, 3)
		s.run(time.Second)
		s.m(0).status = status
		s.run(time.Second)
		s.reads(1)
		s.paused(0)
		s.m(1).status = status
		s.run(time.Second)
		s.reads(2)
		s.m(2).status = status // nobody wants it: it stays
		s.run(time.Minute)
		s.reads(2)
		s.paused(0)
		if len(s.planned) != 2 || !s.planned[0].Planned || len(s.forced) != 1 {
			t.Errorf("changes: %v %v", s.planned, s.forced)
		}
		s.kill(2) // then one that does not want it is better than none
		s.run(2 * time.Second)
		if !s.masters[s.target].serves() || s.held {
			t.Errorf("reads from %s, held %v", s.target, s.held)
		}
	}
}

// A planned move is in no hurry: it goes to the first in order, though another answers sooner.
func TestADepartureGoesHome(t *testing.T) {
	s := newSim(t, 3)
	s.run(time.Second)
	s.m(1).delay = 100 * time.Millisecond
	s.m(0).status = Leave
	s.run(2 * time.Second)
	s.reads(1)
	s.paused(0)
	s.m(2).delay, s.m(0).delay = time.Second, 5*time.Millisecond // too slow: the next is good enough
	s.m(0).status, s.m(1).status = OK, Leave
	s.run(2 * time.Second)
	s.reads(0)
	s.paused(0)
}

func TestNobodyIsLeft(t *testing.T) {
	s := newSim(t, 3)
	s.run(time.Second)
	for _, m := range s.masters {
		m.silent = true
	}
	s.run(time.Minute)
	if s.asked < 10 {
		t.Errorf("DNS was asked %d times in a minute", s.asked)
	}
	s.worst = 0
	for i, back := range []int{0, 2} {
		s.m(back).silent = false
		began := s.now
		s.run(2500 * time.Millisecond)
		s.reads(back)
		if took := s.forced[len(s.forced)-1].At.Sub(began); took > 2100*time.Millisecond {
			t.Errorf("%d: found after %s", i, took)
		}
		s.m(back).silent = true
		s.run(time.Minute)
	}
}

func TestHomeAgain(t *testing.T) {
	s := newSim(t, 3)
	s.run(time.Second)
	s.kill(0)
	s.run(time.Minute)
	s.reads(1)
	s.m(0).dead = false
	s.run(29 * time.Second)
	s.reads(1)
	s.run(3 * time.Second)
	s.reads(0)
	if len(s.planned) != 1 {
		t.Errorf("planned: %v", s.planned)
	}
	// A home that is lost again and again is gone back to less and less often.
	moves := 0
	for begin := s.now; s.now.Sub(begin) < time.Hour; {
		s.kill(0)
		s.run(100 * time.Millisecond)
		s.m(0).dead = false
		n := len(s.planned)
		for len(s.planned) == n {
			s.run(time.Second)
		}
		moves++
	}
	if moves > 12 {
		t.Errorf("%d times home in an hour", moves)
	}
	s.run(10 * time.Minute)
	s.kill(0)
	s.m(0).dead = false
	s.run(40 * time.Second)
	s.reads(0)
}

// Whatever happens: when masters serve again the slave reads from one within seconds, and in the end from its home.
func TestAnyHistoryEndsAtHome(t *testing.T) {
	trials := 100
	if testing.Short() {
		trials = 10
	}
	for seed := range uint64(trials) {
		rng := rand.New(rand.NewPCG(seed, 4))
		s := newSim(t, 1+rng.IntN(5))
		for range 60 {
			i := rng.IntN(len(s.order))
			m := s.m(i)
			switch rng.IntN(9) {
			case 0, 1:
				s.kill(i)
			case 2:
				m.silent = true
			case 3:
				m.status = Status(rng.IntN(3))
			case 4:
				m.delay = time.Duration(rng.IntN(1500)) * time.Millisecond
			case 5:
				m.closes = !m.closes
			case 6:
				s.idle = !s.idle
			case 7:
				s.step(Loss{Addr: simAddr(rng.IntN(len(s.order))), Useless: rng.IntN(2) == 0})
			case 8:
				s.now = s.now.Add(time.Duration(rng.IntN(3000)) * time.Millisecond)
			}
			s.run(time.Duration(rng.IntN(2000)) * time.Millisecond)
			if rng.IntN(3) == 0 {
				*m = simMaster{delay: time.Millisecond}
			}
		}
		for _, m := range s.masters {
			*m = simMaster{delay: time.Millisecond}
		}
		s.idle = false
		s.run(5 * time.Second)
		if s.held || !s.masters[s.target].serves() || s.now.Sub(s.heard) > 0 {
			t.Fatalf("seed %d: reads from %s, held %v", seed, s.target, s.held)
		}
		s.run(homeAfterMax + time.Minute)
		s.reads(0)
		if len(s.c.asks) > 2 {
			t.Errorf("seed %d: %d greetings are under way at rest", seed, len(s.c.asks))
		}
	}
}
