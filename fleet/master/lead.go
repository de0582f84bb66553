package master

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/nfs-fleet/nfs-fleet/election"
	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/etcd"
	"github.com/nfs-fleet/nfs-fleet/fleet/spread"
	"github.com/nfs-fleet/nfs-fleet/replicator"
)

const (
	// behindLimit is how long a master may be behind a shard's head before it leaves leading the shard to others.
	behindLimit = 3 * time.Second
	// balanceEvery is the time between two looks of the coordinator at who leads what.
	balanceEvery = 2 * time.Second
	// handOverLimit bounds the wait for a publish that is under way before a leadership is handed over.
	handOverLimit = 30 * time.Second
	// farewellLimit bounds a stopping master's hand-overs.
	farewellLimit = 2 * time.Second
)

// runStanding stands for the leadership of the shards that this master is in step with, and leaves the others to whoever
// is. It tells each shard who leads it.
func (m *Master) runStanding(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	behind := map[string]time.Time{}
	for {
		m.stand(ctx, behind)
		select {
		case <-ctx.Done():
			return nil
		case <-m.election.Changed():
		case <-m.standing:
		case <-tick.C:
		}
	}
}

// standSoon has runStanding look again.
func (m *Master) standSoon() {
	select {
	case m.standing <- struct{}{}:
	default: // it will
	}
}

func (m *Master) stand(ctx context.Context, behind map[string]time.Time) {
	m.mu.Lock()
	v := m.reconciled
	m.mu.Unlock()
	if v.Revision == 0 {
		return
	}
	if m.foreign.Load() { // what is in etcd is not to be led, nor published to
		if !m.retired {
			m.retired = true
			m.election.Retire(true)
		}
		return
	}
	drained := m.drained(v)
	m.standForFleet(ctx, drained)
	handing, cancel := context.WithTimeout(ctx, farewellLimit)
	defer cancel()
	for _, s := range m.allShards() {
		leader, led := m.election.Leader(s.name)
		own := led && leader.Master == m.cfg.Name && s.replica.Status().Epoch == 0 // its term is told by runTerms, in a moment
		s.replica.SetLeader(v.Identity.Era, leader.Epoch, led && !own)
		settings, known := v.Shards[s.name]
		if !known {
			continue
		}
		fit := s.replica.Status().InStep() || !m.othersServe(v, s.name) || s.force.Load()
		if fit {
			delete(behind, s.name)
		} else if _, since := behind[s.name]; !since {
			behind[s.name] = time.Now()
		}
		switch {
		case drained && !m.retired:
			m.handOn(handing, s, v)
		case drained:
		case fit:
			s.stands = true
			m.election.Stand(s.name, s.source != nil || settings.Lead == m.cfg.Name)
		case time.Since(behind[s.name]) > behindLimit && s.stands:
			s.stands = false
			m.log.Warn().Str("shard", s.name).Msg("not in step: leaving the leadership to others")
			m.election.Withdraw(s.name)
		}
	}
	if m.retired != drained {
		m.retired = drained
		m.election.Retire(drained)
		m.announce()
	}
}

// standForFleet stands for coordinator. A master that is to lead nothing gives etcd's leadership away first.
func (m *Master) standForFleet(ctx context.Context, drained bool) {
	if !drained {
		m.election.Stand(fleet.CoordinatorSubject, false)
	} else if !m.retired {
		m.moveEtcdLeader(ctx)
	}
}

func (m *Master) moveEtcdLeader(ctx context.Context) {
	if m.member == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, farewellLimit)
	defer cancel()
	if err := m.member.MoveLeader(ctx); err != nil {
		m.log.Warn().Err(err).Msg("etcd's leadership was not handed over")
	}
}

// drained reports whether this master is to lead nothing.
func (m *Master) drained(v fleet.View) bool {
	_, drained := v.Drained[m.cfg.Name]
	return drained || m.draining.Load()
}

// othersServe reports whether another living master serves a shard's head.
func (m *Master) othersServe(v fleet.View, shard string) bool {
	return v.Heads[shard].Number > 0 && len(m.inStep(v, shard)) > 0
}

// inStep names the other living masters that serve a shard's head, of those that may lead it.
func (m *Master) inStep(v fleet.View, shard string) []string {
	var out []string
	for name, other := range v.Masters {
		_, drained := v.Drained[name]
		if name != m.cfg.Name && !drained && other.State == fleet.Serving && !gone(v, other) && follows(v, name, shard) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// gone reports whether a master that still has a lease was removed from the fleet.
func gone(v fleet.View, other fleet.Master) bool {
	_, removed := v.Removed[other.Instance]
	return removed
}

// announceLag is how many generations a master that serves the head may have announced less: it writes to etcd once a
// second at most. Whoever hands a shard over asks the heir itself.
const announceLag = 20

// follows reports whether a master serves a shard's head, or did a moment ago. One that serves a later one is as bad as
// one that is behind: etcd is not to be believed then.
func follows(v fleet.View, master, shard string) bool {
	n, head := v.Replicas[master].Serves[shard], v.Heads[shard].Number
	return head == 0 || n > 0 && n <= head && n+announceLag >= head
}

// handOn hands a shard that this master leads to the master in step that leads the fewest.
func (m *Master) handOn(ctx context.Context, s *shard, v fleet.View) {
	if s.replica.Status().Epoch == 0 {
		return
	}
	heir := m.heir(v, s.name)
	if heir == "" {
		return
	}
	if err := m.resign(ctx, s, heir, false); err != nil {
		m.log.Warn().Err(err).Str("shard", s.name).Msg("handing over without waiting for the publish that is under way")
		m.election.Resign(s.name, heir)
	}
}

// heir is the master that is to lead a shard next; "" when nobody else can.
func (m *Master) heir(v fleet.View, shard string) string {
	leads := map[string]int{}
	for name := range v.Shards {
		if leader, ok := m.election.Leader(name); ok {
			leads[leader.Master]++
		}
	}
	best := ""
	for _, name := range m.inStep(v, shard) {
		source := slices.Contains(v.Masters[name].Sources, shard)
		switch {
		case best == "", source && !slices.Contains(v.Masters[best].Sources, shard):
			best = name
		case leads[name] < leads[best] && source == slices.Contains(v.Masters[best].Sources, shard):
			best = name
		}
	}
	return best
}

// heirLimit is how long the heir of a shard may take to serve its head.
const heirLimit = time.Second

// resign gives a shard to another master between two publishes, once that one serves the head.
func (m *Master) resign(ctx context.Context, s *shard, to string, force bool) error {
	var err error
	if betweenErr := s.replica.Between(ctx, func() {
		if !force {
			bounded, cancel := context.WithTimeout(ctx, heirLimit)
			defer cancel()
			_, err = ask[nothing](bounded, m.links, to, shardPath(s.name, "await"), awaitRequest{s.replica.Status().Head.Number}, nil)
		}
		if err == nil {
			m.election.Resign(s.name, to)
		}
	}); betweenErr != nil {
		return betweenErr
	}
	return err
}

// handOver gives a shard that this master leads to another one.
func (m *Master) handOver(ctx context.Context, s *shard, r leadRequest) error {
	st := s.replica.Status()
	if st.Epoch == 0 {
		return fmt.Errorf("shard %s: %w", s.name, replicator.ErrNoTerm)
	}
	v := m.lastView()
	if !r.Force && !slices.Contains(m.inStep(v, s.name), r.To) {
		return fmt.Errorf("shard %s: master %s %s: %w", s.name, r.To, cmp.Or(unfit(v, r.To, s.name), "leads it already"), replicator.ErrBehind)
	}
	limit := handOverLimit
	if !r.Wait {
		limit = balanceEvery / 4
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errors.New("a publish is under way"))
	defer cancel()
	if err := m.resign(ctx, s, r.To, r.Force); err != nil {
		return fmt.Errorf("shard %s: %w", s.name, err)
	}
	m.log.Info().Str("shard", s.name).Str("to", r.To).Int64("epoch", st.Epoch).Msg("leadership handed over")
	return nil
}

// unfit says why a master cannot lead a shard now; "": it can.
func unfit(v fleet.View, name, shard string) string {
	m, alive := v.Masters[name]
	_, drained := v.Drained[name]
	switch {
	case !alive || gone(v, m):
		return "is lost"
	case drained:
		return "is drained"
	case m.State != fleet.Serving:
		return "does not serve: it starts or stops"
	case !follows(v, name, shard):
		return "is behind its head"
	}
	return ""
}

// farewell has runStanding hand everything over that this master leads, etcd's leadership first, and waits until others
// have it. It is called when the master stops.
func (m *Master) farewell() {
	if m.etcdProblem() != nil {
		return // nobody would learn of it
	}
	ctx, cancel := context.WithTimeout(context.Background(), farewellLimit)
	defer cancel()
	m.standSoon()
	m.awaitHeirs(ctx)
}

// awaitHeirs waits until this master leads no shard that another could lead.
func (m *Master) awaitHeirs(ctx context.Context) {
	poll(ctx, 10*time.Millisecond, func() bool {
		v := m.lastView()
		for _, s := range m.allShards() {
			leader, ok := m.election.Leader(s.name)
			if (!ok || leader.Master == m.cfg.Name) && m.heir(v, s.name) != "" {
				return false
			}
		}
		return true
	})
}

// poll asks until the answer is yes, and reports false when ctx ended before.
func poll(ctx context.Context, every time.Duration, yes func() bool) bool {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for !yes() {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}

// coordinate is the coordinator's work, under its term: it keeps the spread of the slaves, the leaderships even, and the
// etcd inside the masters of the right size.
func (m *Master) coordinate(term *election.Term) {
	ctx := term.Context()
	go m.keepSpread(term)  // ends with the term
	go m.keepRecords(term) // ends with the term
	if m.member != nil {
		go etcd.Steer(ctx, etcd.Steering{Client: m.client, Routes: m.routes, Masters: m.etcdCandidates, Logger: m.log}) // ends with the term
	}
	tick, sweep := time.NewTicker(balanceEvery), time.NewTicker(time.Minute)
	defer tick.Stop()
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			m.balance(ctx)
		case <-sweep.C:
			m.sweepTokens(ctx)
		}
	}
}

// balance asks leaders to hand over what others had better lead.
func (m *Master) balance(ctx context.Context) {
	v := m.lastView()
	if m.etcdProblem() != nil {
		return
	}
	var shards []spread.Shard
	for name, settings := range v.Shards {
		leader, _ := m.election.Leader(name)
		shards = append(shards, spread.Shard{Name: name, Leader: leader.Master, Pinned: settings.Lead != "" && settings.Lead == leader.Master})
	}
	var masters []spread.Master
	for name, other := range v.Masters {
		_, drained := v.Drained[name]
		masters = append(masters, spread.Master{
			Name: name, Sources: other.Sources, Drained: drained || other.State != fleet.Serving,
			InStep: func(shard string) bool { return follows(v, name, shard) },
		})
	}
	for _, move := range spread.Leaders(shards, masters) {
		err := m.requestLead(ctx, move.Shard, move.From, move.To, false)
		if err != nil {
			m.log.Debug().Err(err).Str("shard", move.Shard).Str("from", move.From).Str("to", move.To).Msg("not handed over now")
		}
	}
}

// requestLead has a shard's leader hand it over.
func (m *Master) requestLead(ctx context.Context, shard, from, to string, wait bool) error {
	if from == m.cfg.Name {
		s, ok := m.shard(shard)
		if !ok {
			return fmt.Errorf("shard %s: %w", shard, fleet.ErrNotFound)
		}
		return m.handOver(ctx, s, leadRequest{To: to, Wait: wait})
	}
	_, err := ask[nothing](ctx, m.links, from, shardPath(shard, "lead"), leadRequest{To: to, Wait: wait}, nil)
	return err
}

// etcdCandidates are the fleet's masters as far as their embedded etcd is concerned.
func (m *Master) etcdCandidates() []etcd.Candidate {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.view
	if v.Revision == 0 || m.etcdErr != nil {
		return nil
	}
	var out []etcd.Candidate
	for name := range v.Roster {
		other, alive := v.Masters[name]
		_, drained := v.Drained[name]
		out = append(out, etcd.Candidate{Name: name, PeerURL: other.EtcdPeer, Member: memberID(other.EtcdMember), Alive: alive, Drained: drained})
	}
	for _, gone := range v.Removed {
		if _, back := v.Roster[gone.Master]; !back {
			out = append(out, etcd.Candidate{Name: gone.Master, Removed: true})
		}
	}
	return out
}

// memberID reads what a master says of its etcd; 0 when it has none.
func memberID(text string) uint64 {
	id, err := strconv.ParseUint(text, 16, 64)
	if err != nil {
		return 0
	}
	return id
}
