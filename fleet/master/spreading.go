package master

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nfs-fleet/nfs-fleet/election"
	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/spread"
	"github.com/nfs-fleet/nfs-fleet/replicator"
)

const (
	// spreadEvery is the time between two looks at the slaves when nothing happens, spreadRest the least time between two.
	spreadEvery, spreadRest = time.Second, 20 * time.Millisecond
	// settleTime is how long etcd must have answered, and this master must have been the coordinator, before a slave that nobody
	// has heard of counts as absent, and then as gone. By then all that live were reported, and their records tell by this
	// master's own clock when they were last seen: one that is days ahead of the one before makes nobody's silence longer.
	settleTime = seenEvery + 10*time.Minute
	// sweepEvery is how often those are looked for.
	sweepEvery = time.Minute
	// maxReports is how many slaves may be waiting to be enrolled.
	maxReports = 2 * maxHeard
)

// spreader keeps the spread of the slaves over the masters, under one term of the coordinator: it alone writes their
// records. What it does is said by decide.
type spreader struct {
	*Master
	term   *election.Term
	began  time.Time // the term, as far as this is concerned
	wake   chan struct{}
	orders chan *givenOrder

	// run's own.
	written int64     // the revision of the last write
	last    look      // at which there was nothing to do
	swept   time.Time // when slaves were last forgotten that nobody hears of

	mu      sync.Mutex // guards reports
	reports map[string]slaveReport
}

// look is what a decision depends on, reports and time apart.
type look struct {
	slaves int64 // View.SlavesRevision
	hosts  []spread.Host
	steady bool
}

func (l look) equal(o look) bool {
	return l.slaves == o.slaves && l.steady == o.steady && slices.Equal(l.hosts, o.hosts)
}

// givenOrder is an order that somebody waits for.
type givenOrder struct {
	slaveOrder
	ctx  context.Context
	done chan orderResult // has room for it
}

// orderResult is what came of an order.
type orderResult struct {
	Moves []spread.SlaveMove `json:"moves"`
	err   error
}

// keepSpread does a spreader's work until the term ends.
func (m *Master) keepSpread(term *election.Term) {
	s := &spreader{
		Master: m, term: term, began: time.Now(), wake: make(chan struct{}, 1), orders: make(chan *givenOrder), reports: map[string]slaveReport{},
	}
	m.spreader.Store(s)
	defer m.spreader.CompareAndSwap(s, nil)
	s.run(term.Context())
}

// spreadSoon has the coordinator, if that is this master, look at the slaves.
func (m *Master) spreadSoon() {
	if s := m.spreader.Load(); s != nil {
		signal(s.wake)
	}
}

func (s *spreader) run(ctx context.Context) {
	tick, rest := time.NewTicker(spreadEvery), time.NewTimer(0)
	defer tick.Stop()
	defer rest.Stop()
	var order *givenOrder // that waits for the view to show what was written before
	for {
		select {
		case <-ctx.Done():
			return
		case <-rest.C:
		}
		orders := s.orders
		if order != nil {
			orders = nil
		}
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-tick.C:
		case order = <-orders:
		}
		if s.turn(ctx, order) || order != nil && order.ctx.Err() != nil {
			order = nil
		}
		rest.Reset(spreadRest)
	}
}

// turn looks at the slaves once and does what is to be done. It reports false when it is too early to look: the view does
// not show yet what was written last.
func (s *spreader) turn(ctx context.Context, order *givenOrder) bool {
	answer := func(r orderResult) bool {
		if order != nil {
			order.done <- r
		}
		return true
	}
	if err := s.etcdProblem(); err != nil {
		return answer(orderResult{err: fmt.Errorf("%w: %w", fleet.ErrUnavailable, err)})
	}
	v, g := s.lastView(), s.guide.Load()
	if g == nil || v.Revision < s.written {
		return false
	}
	now := s.situation(v, g)
	if order != nil {
		now.order = order.slaveOrder
		if err := now.possible(); err != nil {
			return answer(orderResult{err: err})
		}
	}
	here := look{v.SlavesRevision, g.hosts, now.steady}
	if len(now.reports) == 0 && order == nil && s.last.equal(here) && !now.complete {
		return true
	}
	d := decide(now)
	err := s.perform(ctx, d)
	if s.last = (look{}); err == nil {
		s.heard(now.reports)
		if len(d.put)+len(d.gone) == 0 {
			s.last = here
		}
	}
	return answer(orderResult{d.moves, err})
}

// situation is what there is to be decided about.
func (s *spreader) situation(v fleet.View, g *guide) situation {
	out := situation{now: time.Now(), slaves: v.Slaves, hosts: g.hosts}
	up := out.now.Sub(s.etcdBack())
	out.steady = up >= s.election.Lease().TTL
	out.settled = min(up, out.now.Sub(s.began)) >= settleTime
	out.complete = out.settled && s.sweeps(out.now)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(s.reports)) {
		out.reports = append(out.reports, s.reports[name])
	}
	return out
}

// sweeps says whether it is time to look for slaves that nobody hears of.
func (s *spreader) sweeps(now time.Time) bool {
	if now.Sub(s.swept) < sweepEvery {
		return false
	}
	s.swept = now
	return true
}

// perform writes what was decided.
func (s *spreader) perform(ctx context.Context, d decision) error {
	if d.refused > 0 && s.warnOnce("too many slaves") {
		s.log.Warn().Int("refused", d.refused).Int("max", maxSlaves).Int("max_of_one_address", maxAtOrigin).
			Msg("there are as many slaves as there may be, in all or of one address: no more are enrolled")
	}
	if len(d.put)+len(d.gone) == 0 {
		return nil
	}
	began := time.Now()
	bounded, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	fence := fleet.Fence{LeaderKey: s.registry.Keys().Leader(fleet.CoordinatorSubject), Epoch: s.term.Epoch()}
	revision, err := s.registry.WriteSlaves(bounded, fence, d.put, d.gone)
	if err != nil {
		level := s.log.Warn()
		if ctx.Err() != nil || errors.Is(err, fleet.ErrConflict) {
			level = s.log.Debug() // the term is over; or the view was not the last one, and a newer one is on its way
		}
		level.Err(err).Int("records", len(d.put)+len(d.gone)).Msg("slaves' records are not written yet; trying again")
		return err
	}
	s.written = revision
	s.metrics.moved.Add(float64(len(d.moves)))
	for _, m := range d.moves {
		s.log.Debug().Str("slave", m.Slave).Str("from", m.From).Str("to", m.To).Msg("slave has another home")
	}
	s.log.Info().Int("written", len(d.put)).Int("moved", len(d.moves)).Int("forgotten", len(d.gone)).Int64("took_ms", time.Since(began).Milliseconds()).Msg("slaves placed")
	return nil
}

// report takes note of slaves that masters have heard of. By whose clock they were heard of does not matter.
func (s *spreader) report(reports []slaveReport) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range reports {
		if r.valid() != nil {
			continue // a later release may know more than this one
		}
		before, waits := s.reports[r.Name]
		switch {
		case !waits && len(s.reports) >= maxReports:
			return fmt.Errorf("%d slaves wait to be enrolled: %w", len(s.reports), errNoAnswer)
		case waits && before.Silent == 0 && r.Silent > 0:
			continue // another master hears it
		}
		r.At = time.Now().UTC().Add(-r.Silent)
		s.reports[r.Name] = r
	}
	signal(s.wake)
	return nil
}

// heard drops the reports that were acted upon.
func (s *spreader) heard(reports []slaveReport) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range reports {
		if s.reports[r.Name] == r {
			delete(s.reports, r.Name)
		}
	}
}

// obey has an order carried out, and returns what came of it.
func (s *spreader) obey(ctx context.Context, o slaveOrder) (orderResult, error) {
	given := &givenOrder{slaveOrder: o, ctx: ctx, done: make(chan orderResult, 1)}
	over := s.term.Context().Done()
	select {
	case s.orders <- given:
	case <-over:
		return orderResult{}, errNotCoordinator
	case <-ctx.Done():
		return orderResult{}, context.Cause(ctx)
	}
	select {
	case r := <-given.done:
		return r, r.err
	case <-over:
		return orderResult{}, fmt.Errorf("it is perhaps done: %w", errNotCoordinator)
	case <-ctx.Done():
		return orderResult{}, context.Cause(ctx)
	}
}

// errNotCoordinator is what a master says that is asked for what only the coordinator does.
var errNotCoordinator = fmt.Errorf("this master does not coordinate the fleet: %w", replicator.ErrNoTerm)

// possible says why an order cannot be carried out.
func (s situation) possible() error {
	o := s.order
	for _, name := range []string{o.Move, o.Forget} {
		if _, known := s.slaves[name]; !known && name != "" {
			return fmt.Errorf("slave %s: %w", name, fleet.ErrNotFound)
		}
	}
	if o.Move != "" {
		if why := s.unfitHome(); why != "" {
			return fmt.Errorf("master %s %s: %w", o.To, why, fleet.ErrConflict)
		}
	}
	if o.Rebalance && !s.steady {
		return fmt.Errorf("etcd is back only just now, and nobody is moved for a while: %w", replicator.ErrBehind)
	}
	return nil
}

// unfitHome says why the master that a slave is to be moved to can be nobody's home; "": it can.
func (s situation) unfitHome() string {
	i := slices.IndexFunc(s.hosts, func(h spread.Host) bool { return h.Name == s.order.To })
	switch {
	case i < 0:
		return "is lost: nobody can read from it"
	case !s.hosts[i].Serving:
		return "is drained"
	case !s.hosts[i].InStep:
		return "does not serve every head"
	}
	return ""
}

// The paths on which masters talk to the coordinator about slaves.
const (
	pathReport = peerPrefix + "slaves/report"
	pathOrder  = peerPrefix + "slaves/order"
)

// coordinator names the master that coordinates, as far as is known.
func (m *Master) coordinator() (string, error) {
	if err := m.etcdProblem(); err != nil {
		return "", fmt.Errorf("%w: %w", fleet.ErrUnavailable, err)
	}
	leader, ok := m.election.Leader(fleet.CoordinatorSubject)
	if !ok {
		return "", fmt.Errorf("nobody coordinates the fleet now: %w", replicator.ErrNoTerm)
	}
	return leader.Master, nil
}

// tellCoordinator reports slaves to the coordinator.
func (m *Master) tellCoordinator(ctx context.Context, reports []slaveReport) error {
	name, err := m.coordinator()
	switch {
	case err != nil:
		return err
	case name == m.cfg.Name:
		return m.takeReports(reports)
	}
	_, err = ask[nothing](ctx, m.links, name, pathReport, reports, nil)
	return err
}

// takeReports takes them when this master is the coordinator.
func (m *Master) takeReports(reports []slaveReport) error {
	if s := m.spreader.Load(); s != nil {
		return s.report(reports)
	}
	return errNotCoordinator
}

// takeOrder carries an order out when this master is the coordinator.
func (m *Master) takeOrder(ctx context.Context, o slaveOrder) (orderResult, error) {
	s := m.spreader.Load()
	if s == nil {
		return orderResult{}, errNotCoordinator
	}
	if o.Rebalance {
		o.present = control{m}.present(ctx)
	}
	return s.obey(ctx, o)
}

// giveOrder has the coordinator carry an order out. While one is being elected it waits.
func (m *Master) giveOrder(ctx context.Context, o slaveOrder) (r orderResult, err error) {
	poll(ctx, 50*time.Millisecond, func() bool {
		var name string
		switch name, err = m.coordinator(); {
		case err != nil:
		case name == m.cfg.Name:
			r, err = m.takeOrder(ctx, o)
		default:
			r, err = ask[orderResult](ctx, m.links, name, pathOrder, o, nil)
		}
		return !errors.Is(err, replicator.ErrNoTerm)
	})
	return r, err
}

// etcdBack is since when etcd has answered.
func (m *Master) etcdBack() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.backAt
}
