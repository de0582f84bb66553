package spread_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/nfs-fleet/nfs-fleet/election"
	"github.com/nfs-fleet/nfs-fleet/election/etcdtest"
	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/spread"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

var (
	long     = flag.Bool("long", false, "simulate 200 masters and 500 shards, and allow nothing beyond the promised times")
	ttl      = flag.Duration("ttl", election.DefaultTTL, "the masters' lease, for machines that are too slow for so many masters")
	endpoint = flag.String("etcd", "", "simulate on this etcd (URLs, comma-separated) instead of one inside the test")
)

// patience is far more than any step takes.
const patience = 3 * time.Minute

// TestSimulation is a fleet of masters without data on a real etcd, with the real election and the real registry. A tenth
// of the masters is there first and leads everything; the others join and get their share; then all stand still, publish,
// and lose a tenth of their number at once.
func TestSimulation(t *testing.T) {
	t.Parallel()
	s := &simulation{T: t, ttl: *ttl, fleet: etcdtest.FleetName(), byName: map[string]*fake{}}
	masters, shards := 20, 50
	if *long {
		masters, shards = 200, 500
	}
	s.open()
	s.make(masters, shards)
	s.follow()
	s.boot()
	s.standStill()
	s.publishing()
	s.vanish()
}

type simulation struct {
	*testing.T
	ttl       time.Duration
	fleet     string
	endpoints []string
	admin     *clientv3.Client
	registry  *fleet.Registry
	masters   []*fake // living
	byName    map[string]*fake
	shards    []string

	mu   sync.Mutex // guards seen
	seen fleet.View
}

func (s *simulation) view() fleet.View {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

// follow keeps the masters' view of the fleet.
func (s *simulation) follow() {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.registry.Follow(ctx, 10*time.Second, func(v fleet.View) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.seen = v
		}, func(err error) { s.Log(err) })
	}()
	s.Cleanup(func() { stop(); <-done })
	s.until("the shards are known", func() bool { return len(s.view().Shards) == len(s.shards) })
}

func (s *simulation) open() {
	if *endpoint != "" {
		s.endpoints = strings.Split(*endpoint, ",")
		s.fleet += fmt.Sprint("-", time.Now().UnixNano())
	} else {
		s.endpoints = []string{etcdtest.New(s).URL()}
	}
	s.admin = etcdtest.Dial(s, s.endpoints...)
	s.registry = fleet.NewRegistry(s.admin, s.fleet)
}

// make makes the masters and the shards; the sources of two thirds of the shards are spread over the masters.
func (s *simulation) make(masters, shards int) {
	for i := range masters {
		f := &fake{name: fmt.Sprintf("m%03d", i), world: &world{s.view, s.handOver}}
		s.masters, s.byName[f.name] = append(s.masters, f), f
	}
	for i := range shards {
		name := fmt.Sprintf("s%03d", i)
		s.shards = append(s.shards, name)
		if f := s.masters[i%masters]; i%3 != 0 {
			f.sources = append(f.sources, name)
		}
		if _, err := s.registry.CreateShard(s.Context(), fleet.NewShard(name, time.Now())); err != nil {
			s.Fatal(err)
		}
	}
	s.Cleanup(func() {
		var ends sync.WaitGroup
		for _, f := range s.byName {
			if f.stop != nil {
				ends.Go(f.end)
			}
		}
		ends.Wait()
	})
}

// handOver asks a leader to resign.
func (s *simulation) handOver(m spread.Move) {
	if f := s.byName[m.From]; f.term(m.Shard) != nil {
		f.election.Resign(m.Shard, m.To)
	}
}

func (s *simulation) start(masters []*fake) {
	s.Helper()
	for _, f := range masters {
		if err := f.start(s.fleet, s.ttl, etcdtest.Dial(s, s.endpoints...)); err != nil {
			s.Fatal(err)
		}
	}
}

// leaders reads who leads each shard.
func (s *simulation) leaders() map[string]string {
	s.Helper()
	prefix := s.registry.Keys().Leader("")
	resp, err := s.admin.Get(s.Context(), prefix, clientv3.WithPrefix())
	if err != nil {
		s.Fatal(err)
	}
	out := map[string]string{}
	for _, kv := range resp.Kvs {
		var v struct{ Master string }
		if err := json.Unmarshal(kv.Value, &v); err != nil {
			s.Fatal(err)
		}
		out[strings.TrimPrefix(string(kv.Key), prefix)] = v.Master
	}
	return out
}

// led reports whether every shard, and the fleet, is led by one of the masters, and how many each of them leads.
func (s *simulation) led(by []*fake) (loads map[string]int, all bool) {
	s.Helper()
	leaders := s.leaders()
	loads, all = map[string]int{}, true
	for _, f := range by {
		loads[f.name] = 0
	}
	_, coordinated := loads[leaders[fleet.CoordinatorSubject]]
	for _, shard := range s.shards {
		_, living := loads[leaders[shard]]
		all = all && living
		loads[leaders[shard]]++
	}
	return loads, all && coordinated
}

// even reports whether all masters lead as many shards as the average, give or take one.
func (s *simulation) even(by []*fake) (outside string, ok bool) {
	s.Helper()
	loads, all := s.led(by)
	if !all {
		return "not all shards are led", false
	}
	average := float64(len(s.shards)) / float64(len(by))
	for name, n := range loads {
		if float64(n) < average-1 || float64(n) > average+1 {
			return fmt.Sprintf("%s leads %d shards, the average is %.1f", name, n, average), false
		}
	}
	return "", true
}

// until waits for something in etcd and returns how long it took.
func (s *simulation) until(what string, is func() bool) time.Duration {
	s.Helper()
	start := time.Now()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		if time.Since(start) > patience {
			s.Fatalf("%s: it never came to that", what)
		}
		<-tick.C
	}
	return time.Since(start)
}

func (s *simulation) revision() int64 {
	s.Helper()
	resp, err := s.admin.Get(s.Context(), "x")
	if err != nil {
		s.Fatal(err)
	}
	return resp.Header.Revision
}

// quiet waits until nothing was written for two seconds.
func (s *simulation) quiet() {
	last, since := s.revision(), time.Now()
	s.until("nothing is written", func() bool {
		if now := s.revision(); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > 2*time.Second
	})
}

func (s *simulation) boot() {
	first, rest := s.masters[:len(s.masters)/10], s.masters[len(s.masters)/10:]
	s.start(first)
	took := s.until("a tenth of the masters lead everything", func() bool { _, all := s.led(first); return all })
	s.Logf("%d masters lead %d shards after %s", len(first), len(s.shards), took.Round(time.Millisecond))
	before := s.revision()
	s.start(rest)
	took = s.until("all masters lead their share", func() bool { _, ok := s.even(s.masters); return ok })
	s.quiet()
	s.Logf("%d more: even after %s; %d transactions until it is quiet", len(rest), took.Round(time.Millisecond), s.revision()-before)
	if outside, ok := s.even(s.masters); !ok {
		s.Error(outside)
	}
	leaders, home, sources := s.leaders(), 0, 0
	for _, f := range s.masters {
		for _, shard := range f.sources {
			sources++
			if leaders[shard] == f.name {
				home++
			}
		}
	}
	s.Logf("%d of %d shards are led where their source is", home, sources)
	if home != sources {
		s.Error("there is room for each of them")
	}
}

// standStill counts what an idle fleet writes.
func (s *simulation) standStill() {
	before := s.revision()
	<-time.After(4 * time.Second) // the time that is measured
	n := s.revision() - before
	s.Logf("%d transactions in four idle seconds", n)
	if n > int64(len(s.masters))/10 {
		s.Errorf("an idle fleet wrote %d times", n)
	}
}

// publishing moves a head twice a second, which every master then announces.
func (s *simulation) publishing() {
	const rounds = 12
	before, start := s.revision(), time.Now()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for i := range rounds {
		s.publish(s.shards[i%len(s.shards)])
		<-tick.C
	}
	seconds := time.Since(start).Seconds()
	n := s.revision() - before - rounds
	rate := float64(n) / seconds / float64(len(s.masters))
	s.Logf("two publishes a second: %.2f transactions a second from each master, beside the publishes", rate)
	if rate > 1.05 {
		s.Errorf("each master writes %.2f times a second", rate)
	}
}

// publish moves a shard's head as its leader, whoever that is by now.
func (s *simulation) publish(shard string) {
	s.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-tick.C {
		f := s.byName[s.leaders()[shard]]
		if f == nil {
			continue
		}
		t := f.term(shard)
		if t == nil {
			continue
		}
		err := s.move(f, t)
		if err == nil {
			return
		}
		if t.Check() == nil && !errors.Is(err, fleet.ErrFenced) && !errors.Is(err, fleet.ErrUnavailable) {
			s.Fatal(err)
		}
	}
	s.Fatalf("%s: nobody can publish", shard)
}

func (s *simulation) move(f *fake, t *election.Term) error {
	ctx, cancel := context.WithTimeout(t.Context(), s.ttl)
	defer cancel()
	head, revision, err := f.registry.Head(ctx, t.Shard())
	if err != nil {
		return err
	}
	next := tree.Generation{Number: head.Number + 1, Epoch: t.Epoch(), PublishedAt: time.Now().UTC()}
	return f.registry.MoveHead(ctx, t.Shard(), fleet.Fence{LeaderKey: t.Key(), Epoch: t.Epoch()}, revision, next, 1)
}

// vanish lets a tenth of the masters vanish at once: the coordinator and its neighbours.
func (s *simulation) vanish() {
	coordinator := s.byName[s.leaders()[fleet.CoordinatorSubject]]
	from := min(slices.Index(s.masters, coordinator), len(s.masters)-len(s.masters)/10)
	gone := slices.Clone(s.masters[from : from+len(s.masters)/10])
	living := slices.Delete(slices.Clone(s.masters), from, from+len(gone))
	epochs := map[string]string{}
	for shard, master := range s.leaders() {
		if slices.ContainsFunc(gone, func(f *fake) bool { return f.name == master }) {
			epochs[shard] = master
		}
	}
	nowhere := "http://" + etcdtest.FreeAddress()
	start := time.Now()
	for _, f := range gone {
		f.crash(nowhere)
	}
	s.until("the living lead everything", func() bool { _, all := s.led(living); return all })
	took, bound := time.Since(start), s.ttl+4*time.Second
	s.Logf("%d masters vanished, with %d leaderships: all are led %s later, %s at most with a lease of %s", len(gone), len(epochs), took.Round(time.Millisecond), bound, s.ttl)
	if !*long {
		bound += 10 * time.Second // the machine may be busy with other tests
	}
	if took > bound {
		s.Errorf("it took %s", took)
	}
	if outside, ok := s.even(living); !ok {
		s.Error(outside)
	}
	for shard := range epochs {
		if shard != fleet.CoordinatorSubject {
			s.publish(shard)
		}
	}
	s.masters = living
}
