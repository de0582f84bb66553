package spread_test

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/rs/zerolog"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/nfs-fleet/nfs-fleet/election"
	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/spread"
)

// fake is a master as etcd sees it: the real election and the real registry, and no data. It serves every head as soon as
// it hears of it.
type fake struct {
	name     string
	sources  []string
	client   *clientv3.Client // its own way to etcd
	election election.Election
	registry *fleet.Registry
	world    *world
	stop     context.CancelFunc
	work     sync.WaitGroup

	mu    sync.Mutex // guards the rest
	stood map[string]bool
	terms map[string]*election.Term // the latest of each shard
}

// world is what masters know of each other, apart from the election.
type world struct {
	// view is the fleet as etcd has it. It is followed once for all masters: in a fleet each has a machine to do so.
	view     func() fleet.View
	handOver func(spread.Move) // the way to a leader, which in a fleet is a request to a peer
}

// coordinateEvery is shorter than in the fleet: a test does not want to wait.
const coordinateEvery = 250 * time.Millisecond

func (f *fake) start(name string, ttl time.Duration, c *clientv3.Client) error {
	f.registry = fleet.NewRegistry(c, name)
	f.client, f.stood, f.terms = c, map[string]bool{}, map[string]*election.Term{}
	e, err := election.New(election.Config{
		Client: c, Prefix: f.registry.Keys().Prefix(), Master: f.name, TTL: ttl, Logger: zerolog.Nop(),
	})
	if err != nil {
		return err
	}
	f.election = e
	ctx, cancel := context.WithCancel(context.Background())
	f.stop = cancel
	e.Stand(fleet.CoordinatorSubject, false)
	f.work.Go(func() { _ = e.Run(ctx) }) // a master that crashes cannot give its lease back
	f.work.Go(f.lead)
	f.work.Go(func() { f.announce(ctx) })
	f.work.Go(func() { f.coordinate(ctx) })
	return nil
}

func (f *fake) end() {
	f.stop()
	f.work.Wait()
}

// crash ends the master without giving anything back: its lease runs out.
func (f *fake) crash(nowhere string) {
	f.client.SetEndpoints(nowhere)
	f.stop()
}

func (f *fake) lead() {
	for t := range f.election.Terms() {
		f.mu.Lock()
		f.terms[t.Shard()] = t
		f.mu.Unlock()
	}
}

// term returns the term under which the master leads a shard now, nil if there is none.
func (f *fake) term(shard string) *election.Term {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t := f.terms[shard]; t != nil && t.Check() == nil {
		return t
	}
	return nil
}

// stand stands for all shards there are.
func (f *fake) stand(v fleet.View) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.stood) == len(v.Shards) {
		return
	}
	source := map[string]bool{}
	for _, shard := range f.sources {
		source[shard] = true
	}
	for shard := range v.Shards {
		if !f.stood[shard] {
			f.stood[shard] = true
			f.election.Stand(shard, source[shard])
		}
	}
}

// announce stands for the shards, and says what the master is and serves.
func (f *fake) announce(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	f.put(f.registry.Keys().Master(f.name), fleet.Master{Name: f.name, State: fleet.Serving, Sources: f.sources})
	for seen := int64(-1); ; {
		if v := f.world.view(); v.Revision != seen {
			seen = v.Revision
			f.stand(v)
			serves := map[string]uint64{}
			for shard, head := range v.Heads {
				serves[shard] = head.Number
			}
			f.put(f.registry.Keys().Replica(f.name), fleet.Replica{Master: f.name, Serves: serves})
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (f *fake) put(key string, value any) {
	b, err := json.Marshal(value)
	if err != nil {
		panic(err) // plain types always marshal
	}
	f.election.Announce(key, b)
}

// coordinate keeps the leaderships even while this master is the coordinator.
func (f *fake) coordinate(ctx context.Context) {
	tick := time.NewTicker(coordinateEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if f.term(fleet.CoordinatorSubject) == nil {
			continue
		}
		for _, move := range spread.Leaders(f.leaderships()) {
			f.world.handOver(move)
		}
	}
}

func (f *fake) leaderships() ([]spread.Shard, []spread.Master) {
	v := f.world.view()
	var shards []spread.Shard
	for name := range v.Shards {
		leader, _ := f.election.Leader(name)
		shards = append(shards, spread.Shard{Name: name, Leader: leader.Master})
	}
	var masters []spread.Master
	for name, m := range v.Masters {
		masters = append(masters, spread.Master{
			Name: name, Sources: m.Sources,
			InStep: func(shard string) bool { return v.Replicas[name].Serves[shard] >= v.Heads[shard].Number },
		})
	}
	return shards, masters
}
