package election

import (
	"errors"
	"flag"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/nfs-fleet/nfs-fleet/election/etcdtest"
)

// The times that users feel, on a real etcd. Bounds are what is promised; how much of them is used is logged. A machine
// that is busy with other things may take a little longer, unless -strict says that it is not.
var strict = flag.Bool("strict", false, "allow nothing beyond the promised times")

func within(t *testing.T, what string, took, bound time.Duration) {
	t.Helper()
	t.Logf("%s: %s, of %s at most", what, took.Round(time.Millisecond), bound)
	if !*strict {
		bound += 3 * time.Second
	}
	if took > bound {
		t.Errorf("%s took %s, %s at most", what, took, bound)
	}
}

// trio is three masters that stand for the same shards, and know each other.
type trio struct {
	t      *testing.T
	names  []string
	nodes  map[string]*node
	client map[string]*clientv3.Client
	shards []string
	begun  chan *Term    // of all of them, but the first
	first  []*Term       // of m0
	took   time.Duration // until m0 led everything: how fast this machine is now
}

func newTrio(t *testing.T, ttl time.Duration, shards []string, endpoints ...string) *trio {
	t.Helper()
	f := &trio{t: t, names: names("m", 3), nodes: map[string]*node{}, client: map[string]*clientv3.Client{}, shards: shards, begun: make(chan *Term, 4*len(shards))}
	prefix := newPrefix()
	var readers sync.WaitGroup
	for i, name := range f.names {
		f.client[name] = etcdtest.Dial(t, endpoints...)
		e, err := New(Config{Client: f.client[name], Prefix: prefix, Master: name, TTL: ttl})
		if err != nil {
			t.Fatal(err)
		}
		for _, shard := range shards {
			e.Stand(shard, i == 0)
		}
		start := time.Now()
		n := run(t, e, err)
		f.nodes[name] = n
		readers.Go(func() {
			for term := range n.Terms() {
				f.begun <- term
			}
		})
		if i == 0 { // it leads everything before the others come
			f.first = f.terms(len(shards))
			f.took = time.Since(start)
		}
	}
	t.Cleanup(func() {
		for _, n := range f.nodes {
			n.end()
		}
		readers.Wait()
	})
	for _, n := range f.nodes {
		n.until("knows the others", func() bool { return candidatesOf(n) == len(f.names) || pollAgain() })
	}
	return f
}

func candidatesOf(n *node) int {
	l := n.Election.(*loop)
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.state.view.candidates)
}

// terms waits for n terms.
func (f *trio) terms(n int) []*Term {
	f.t.Helper()
	out := make([]*Term, 0, n)
	for late := time.After(patience); len(out) < n; {
		select {
		case term := <-f.begun:
			out = append(out, term)
		case <-late:
			f.t.Fatalf("%d of %d terms came", len(out), n)
		}
	}
	return out
}

// counts says how many of the shards each master leads, as all of the named masters agree.
func (f *trio) counts(names ...string) map[string]int {
	f.t.Helper()
	count := func(n *node) map[string]int {
		c := map[string]int{}
		for _, shard := range f.shards {
			l, _ := n.Leader(shard)
			c[l.Master]++
		}
		return c
	}
	var c map[string]int
	for _, name := range names {
		f.nodes[name].until("sees the new leaders", func() bool {
			c = count(f.nodes[name])
			return c[""] == 0 && !slices.ContainsFunc(f.names, func(m string) bool { return c[m] > 0 && !slices.Contains(names, m) }) || pollAgain()
		})
	}
	return c
}

// crash takes a master's way to etcd away for good: its lease runs out, as after a SIGKILL.
func (f *trio) crash(name string) {
	f.client[name].SetEndpoints("http://" + etcdtest.FreeAddress())
	f.nodes[name].stop()
}

func TestAHandOverLeavesAlmostNoGap(t *testing.T) {
	t.Parallel()
	f := newTrio(t, DefaultTTL, []string{"www"}, SharedEndpoint())
	term, leader := f.first[0], "m0"
	for i := range 9 {
		heir := f.names[(slices.Index(f.names, leader)+1+i%2)%3]
		var ended time.Time
		gone := make(chan struct{})
		go func(term *Term) {
			defer close(gone)
			<-term.Context().Done()
			ended = time.Now()
		}(term)
		asked := time.Now()
		f.nodes[leader].Resign("www", heir)
		next := f.terms(1)[0]
		began := time.Now()
		<-gone
		if err := term.Check(); !errors.Is(err, ErrResigned) || next.Epoch() <= term.Epoch() {
			t.Errorf("%v; epoch %d after %d", err, next.Epoch(), term.Epoch())
		}
		f.nodes[heir].until("the heir leads", func() bool {
			l, _ := f.nodes[heir].Leader("www")
			return l.Master == heir || pollAgain()
		})
		t.Logf("asked for %s before the term ended", ended.Sub(asked).Round(time.Millisecond))
		within(t, "without a leader", began.Sub(ended), time.Second)
		term, leader = next, heir
	}
}

// A thousand shards of a master that is stopped, or retires, have leaders at once: no turn is waited for. How much is
// written depends on what comes when; see leastWrites.
func TestAThousandShardsAreHandedOver(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		leave  func(*node)
		writes int
	}{
		"stopped": {func(n *node) { n.end() }, writesOfAnyone},
		"retired": {func(n *node) { n.Retire(true) }, mostWrites},
	} {
		t.Run(name, func(t *testing.T) {
			s := etcdtest.New(t)
			f := newTrio(t, DefaultTTL, names("s", handedOver), s.URL())
			before := revision(t, s)
			start := time.Now()
			c.leave(f.nodes["m0"])
			f.terms(len(f.shards))
			took := time.Since(start)
			bound := time.Second
			if !*strict {
				bound += 2 * f.took
			}
			within(t, "without a leader", took, bound)
			if n := revision(t, s) - before; n > int64(c.writes) {
				t.Errorf("%d writes for a thousand shards, of %d at the most", n, c.writes)
			}
			for m, n := range f.counts("m1", "m2") {
				if took < turn && (n < 499 || n > 501) { // after its turn the next in order takes what a slow one has not come to
					t.Errorf("%s leads %d", m, n)
				}
			}
		})
	}
}

func revision(t *testing.T, s *etcdtest.Server) int64 {
	t.Helper()
	resp, err := s.Dial(t).Get(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	return resp.Header.Revision
}

// A master crashes, and then another together with etcd's leader.
func TestACrashIsOverAfterTheLease(t *testing.T) {
	t.Parallel()
	const ttl = MinTTL
	servers := etcdtest.NewCluster(t, 3)
	shards := names("s", 30)
	f := newTrio(t, ttl, shards, etcdtest.URLs(servers)...)
	start := time.Now()
	f.crash("m0")
	f.terms(len(shards))
	within(t, fmt.Sprintf("after a crash, with a lease of %s,", ttl), time.Since(start), ttl+time.Second)
	counts := f.counts("m1", "m2")
	if counts["m1"] != 15 || counts["m2"] != 15 {
		t.Errorf("%v", counts)
	}
	start = time.Now()
	f.crash("m1")
	for _, s := range servers {
		if s.Leads() {
			s.Kill()
			break
		}
	}
	// Of m2's own terms, those that end while etcd has no leader begin again.
	f.nodes["m2"].until("leads everything", func() bool {
		n := 0
		for _, shard := range shards {
			if l, _ := f.nodes["m2"].Leader(shard); l.Master == "m2" {
				n++
			}
		}
		return n == len(shards) && f.nodes["m2"].Lease().Alive || pollAgain()
	})
	within(t, fmt.Sprintf("after a crash of etcd's leader as well, with a lease of %s,", ttl), time.Since(start), ttl+4*time.Second)
}
