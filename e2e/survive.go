package e2e

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nfs-fleet/nfs-fleet/e2e/wire"
)

// survival is a fleet under constant publishing whose kernel slaves must not notice much of what is done to it. What they
// noticed is collected by event.
type survival struct {
	*Fleet
	tree   *knownTree
	slaves []*survivor
	waits  map[string]*waits
	leads  map[bool]int // how often it happened to etcd's leader, and to others

	stop    context.CancelFunc
	traffic errgroup.Group
}

// survivor is a slave with its readers.
type survivor struct {
	*Mounted
	watches []*Watch
}

// waits are the worst pauses of one kind of slave at each repetition of one event.
type waits struct {
	all    []time.Duration
	bound  time.Duration
	stalls []time.Duration // of the slave's machine as a whole, in the same repetitions
}

// publishPace leaves two processors that run everything else some time for it.
const publishPace = 300 * time.Millisecond

// newSurvival starts three masters, with an etcd beside or inside them, and a slave for each way of mounting.
func newSurvival(t testing.TB, etcd EtcdKind, ttl time.Duration, via ...string) *survival {
	t.Helper()
	s := &survival{waits: map[string]*waits{}, leads: map[bool]int{}}
	s.Fleet = StartFleet(t, FleetConfig{Masters: 3, Etcd: etcd, TTL: ttl, Flags: dnsFlags})
	s.tree = newKnownTree(t, s.Fleet, "www")
	for i, v := range via {
		s.slaves = append(s.slaves, &survivor{Mounted: s.MountSlave(t, fmt.Sprintf("web%d", i+1), v, "www")})
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	t.Cleanup(func() { cancel(); s.traffic.Wait() })
	s.traffic.Go(func() error { return s.tree.publish(ctx, publishPace) })
	for _, v := range s.slaves {
		v.watches = v.watchBoth()
	}
	return s
}

// takePrecedence has the masters, etcd, and the slaves run before what else runs on this machine, all alike.
func (s *survival) takePrecedence() {
	s.t.Helper()
	leaders := []int{os.Getpid()}
	for _, v := range s.slaves {
		leaders = append(leaders, v.proc.cmd.Process.Pid)
	}
	takePrecedence(s.t, leaders...)
}

// event is something that happens to the master that a slave reads from, or to the slave's place.
type event struct {
	name string
	// bound is the worst pause that a slave may see, by the way that it mounts.
	bound map[string]time.Duration
	// hold is how long it lasts at least; reading is awaited before it ends in any case.
	hold  time.Duration
	begin func(s *survival, v *survivor, victim *Master)
	end   func(s *survival, victim *Master)
}

func bounds(relay, direct time.Duration) map[string]time.Duration {
	return map[string]time.Duration{viaRelay: relay, viaDirect: direct}
}

// etcdIsGone is the event that takes an etcd of its own.
const etcdIsGone = "etcd away"

// events are the rows of the table in docs/slaves.md. With etcd inside the masters, what befalls one befalls a member, too.
func events(etcdAway time.Duration) []event {
	nothing := func(*survival, *Master) {}
	planned := bounds(50*time.Millisecond, 50*time.Millisecond)
	silent := bounds(time.Second, 2*time.Second)
	restart := func(s *survival, m *Master) { m.Start(); m.WaitReady() }
	return []event{
		{"nothing", planned, time.Second, func(*survival, *survivor, *Master) {}, nothing},
		{"killed", bounds(50*time.Millisecond, 3500*time.Millisecond), 500 * time.Millisecond,
			func(_ *survival, _ *survivor, m *Master) { m.Kill() }, restart},
		{"vanished", silent, time.Second,
			func(s *survival, _ *survivor, m *Master) { m.Host.Cut(s.t) }, func(s *survival, m *Master) { m.Host.Mend(s.t) }},
		{"hung", silent, time.Second,
			func(s *survival, _ *survivor, m *Master) { m.proc.signal(s.t, syscall.SIGSTOP) },
			func(s *survival, m *Master) { m.proc.signal(s.t, syscall.SIGCONT) }},
		{"drained", planned, 500 * time.Millisecond,
			func(s *survival, _ *survivor, m *Master) { s.other(m).MustCLI("master", "drain", m.Name) },
			func(s *survival, m *Master) { s.other(m).MustCLI("master", "undrain", m.Name) }},
		{"stopped", planned, 500 * time.Millisecond, func(_ *survival, _ *survivor, m *Master) { m.Stop() }, restart},
		{"moved", planned, 500 * time.Millisecond,
			func(s *survival, v *survivor, m *Master) { m.MustCLI("slave", "move", v.Name, s.other(m).Name) }, nothing},
		{"rebalanced", planned, 500 * time.Millisecond, func(_ *survival, _ *survivor, m *Master) { m.MustCLI("rebalance") }, nothing},
		{etcdIsGone, planned, etcdAway,
			func(s *survival, _ *survivor, _ *Master) { s.eachMember((*EtcdMember).Kill) },
			func(s *survival, _ *Master) { s.eachMember((*EtcdMember).Start) }},
	}
}

func (s *survival) eachMember(do func(*EtcdMember)) {
	for _, e := range s.Etcd.Members {
		do(e)
	}
}

// other returns a master that serves, other than m.
func (s *survival) other(m *Master) *Master {
	for _, o := range s.Masters {
		if o != m && !o.Down() {
			return o
		}
	}
	s.t.Fatalf("no master but %s", m.Name)
	return nil
}

// repeat has an event happen once, to the i-th slave in turn.
func (s *survival) repeat(e event, i int) {
	s.t.Helper()
	v := s.slaves[i%len(s.slaves)]
	victim := v.ReadsFrom()
	hit := map[*survivor]bool{}
	for _, o := range s.slaves {
		hit[o] = o == v || o.ReadsFrom() == victim
	}
	s.windows("", e, nil)
	if s.Etcd == nil {
		s.leads[victim == s.etcdLeader()]++
	}
	began := time.Now()
	e.begin(s, v, victim)
	time.Sleep(time.Until(began.Add(e.hold)))
	s.windows(e.name, e, hit)
	e.end(s, victim)
	s.WaitInStep()
	s.windows(e.name+", and back", e, hit)
}

// etcdLeader is the master that leads etcd, as one of them says; nil: none says so.
func (s *survival) etcdLeader() *Master {
	for _, m := range s.Masters {
		st, err := m.Status()
		for _, o := range st.Masters {
			if err == nil && o.Etcd == "leader" {
				return s.Master(o.Name)
			}
		}
	}
	return nil
}

// windows ends the window of every reader, judges what it saw, and notes the worst pauses of those slaves under that name.
func (s *survival) windows(name string, e event, hit map[*survivor]bool) {
	s.t.Helper()
	for _, v := range s.slaves {
		var worst wire.Pause
		var stall time.Duration
		for _, w := range v.watches {
			r := w.Window()
			s.tree.judge(s.t, fmt.Sprintf("%s, %s via %s", cmp.Or(name, "before "+e.name), v.Name, v.Via), r)
			if stall = max(stall, r.Stall); r.Longest.Took > worst.Took {
				worst = r.Longest
			}
		}
		bound := e.bound[v.Via]
		if worst.Took > bound {
			s.t.Logf("%s: %s via %s waited %v for %s at %v, stall %v", cmp.Or(name, "before "+e.name), v.Name, v.Via,
				worst.Took.Round(time.Millisecond), worst.What, worst.At.Format("15:04:05.000"), stall.Round(time.Millisecond))
			s.t.Logf("its agent:\n%s", v.agentSince(worst.At.Add(-100*time.Millisecond)))
		}
		if name == "" {
			continue
		}
		row := name
		if !hit[v] { // nothing has happened to its master
			row, bound = "beside", 0
		}
		s.note(row+" via "+v.Via, bound, worst.Took, stall)
	}
}

func (s *survival) note(row string, bound, took, stall time.Duration) {
	p := s.waits[row]
	if p == nil {
		p = &waits{bound: bound}
		s.waits[row] = p
	}
	p.all, p.stalls = append(p.all, took), append(p.stalls, stall)
}

// WaitInStep waits until every master is ready, knows etcd and serves what was published by now.
func (s *survival) WaitInStep() {
	s.t.Helper()
	for _, m := range s.Masters {
		m.WaitReady()
	}
	var g uint64
	eventually(s.t, restLimit, "a master that knows etcd", func() bool {
		for _, m := range s.Masters {
			if st, err := m.Status(); err == nil && st.Etcd.Healthy {
				g = max(g, st.shard(s.tree.shard).Generation)
			}
		}
		return g > 0
	})
	s.WaitServed(s.tree.shard, g, restLimit)
}

// quantile returns the smallest of the sorted durations that at least that part of them does not exceed.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, max(0, int(q*float64(len(sorted))+0.999999)-1))]
}

// over counts the pauses beyond the bound, and those of them that stalls of the machine do not explain: a read needs a turn of
// the slave, of the master, and of the slave again.
func (p *waits) over() (all, ours int) {
	for i, took := range p.all {
		if took > p.bound {
			all++
			if took > p.bound+3*p.stalls[i] {
				ours++
			}
		}
	}
	return all, ours
}

// table is the distribution of every row, for people.
func (s *survival) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-34s %5s %8s %8s %8s %8s %8s %6s %9s\n", "worst pause of a slave, ms", "n", "p50", "p90", "p99", "max", "bound", "over", "stall p90")
	rows := make([]string, 0, len(s.waits))
	for row := range s.waits {
		rows = append(rows, row)
	}
	slices.Sort(rows)
	ms := func(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d)/float64(time.Millisecond)) }
	for _, row := range rows {
		p := s.waits[row]
		sorted, stalls := slices.Sorted(slices.Values(p.all)), slices.Sorted(slices.Values(p.stalls))
		over, _ := p.over()
		fmt.Fprintf(&b, "%-34s %5d %8s %8s %8s %8s %8s %6d %9s\n", row, len(sorted), ms(quantile(sorted, 0.5)), ms(quantile(sorted, 0.9)),
			ms(quantile(sorted, 0.99)), ms(sorted[len(sorted)-1]), ms(p.bound), over, ms(quantile(stalls, 0.9)))
	}
	return b.String()
}

// finish ends the traffic, prints the table and holds it against the bounds: one pause in a hundred may be longer, of a row that
// has so many, and else of all such rows together.
func (s *survival) finish() {
	s.t.Helper()
	s.stop()
	if err := s.traffic.Wait(); err != nil {
		s.t.Error(err)
	}
	s.t.Logf("%d generations published, %d refused\n%s", s.tree.published.Load(), s.tree.refused.Load(), s.table())
	if s.Etcd == nil {
		s.t.Logf("%d times it happened to etcd's leader, %d times to another", s.leads[true], s.leads[false])
	}
	few, fewOver := 0, 0 // of rows in which one in a hundred would be less than one
	for row, p := range s.waits {
		over, ours := p.over()
		switch {
		case p.bound == 0:
			continue
		case len(p.all) < 100:
			few, fewOver = few+len(p.all), fewOver+ours
		case ours > len(p.all)/100:
			s.t.Errorf("%s: %d of %d pauses are longer than %v, %d of them more than this machine's stalls explain", row, over, len(p.all), p.bound, ours)
		}
	}
	if fewOver > (few+99)/100 {
		s.t.Errorf("%d of %d pauses, in rows of less than a hundred each, are longer than their bounds and than this machine's stalls explain", fewOver, few)
	}
}
