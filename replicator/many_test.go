package replicator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// group is several masters with one shard and one etcd between them.
type group struct {
	*testing.T
	heads   *fakeHeads
	mu      sync.Mutex // guards the rest
	by      map[string]*bench
	lost    map[string]bool                          // not alive
	fault   map[string]func(g tree.Generation) error // of Hold, by master
	calls   map[string]int                           // of Fetch, by master
	refuse  func(root tree.Digest) error             // of Fetch; nil: nothing is refused
	offered func()                                   // called by Offer; nil: nobody asks
}

func newGroup(t *testing.T, names ...string) *group {
	g := &group{
		T: t, heads: &fakeHeads{epoch: 1, fail: map[string]error{}}, by: map[string]*bench{}, lost: map[string]bool{},
		fault: map[string]func(tree.Generation) error{}, calls: map[string]int{},
	}
	for _, name := range names {
		g.add(name)
	}
	return g
}

// newPair is two masters that both serve generation 1, published by the first, in which file a is "one".
func newPair(t *testing.T) (g *group, m1, m2 *bench) {
	t.Helper()
	g = newGroup(t, "m1", "m2")
	m1, m2 = g.bench("m1"), g.bench("m2")
	m1.write("a", "one")
	m1.lead()
	m1.publish()
	g.tell("m2")
	g.await("m2", "serving 1", serves(1))
	return g, m1, m2
}

func (g *group) add(name string) *bench {
	b := &bench{T: g.T, dir: g.TempDir(), data: g.TempDir(), heads: g.heads, term: newTerm(1)}
	b.start(func(c *Config) { c.Master, c.Peers = name, groupPeers{g, name} })
	g.mu.Lock()
	g.by[name] = b
	g.mu.Unlock()
	return b
}

func (g *group) bench(name string) *bench {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.by[name]
}

func (g *group) lose(name string, lost bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lost[name] = lost
}

func (g *group) fail(name string, fault func(tree.Generation) error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fault[name] = fault
}

// tell says the head to a master, as its watch would.
func (g *group) tell(name string) {
	head, rev, _ := g.heads.Head(g.Context())
	g.bench(name).replica.SetHead(head, rev)
}

// await waits until a master's status is as wanted.
func (g *group) await(name, what string, ok func(Status) bool) Status {
	g.Helper()
	r := g.bench(name).replica
	for deadline := time.Now().Add(20 * time.Second); ; {
		st := r.Status()
		if ok(st) {
			return st
		}
		if time.Now().After(deadline) {
			g.Fatalf("master %s: not %s: %+v", name, what, st)
		}
		time.Sleep(time.Millisecond)
	}
}

func serves(n uint64) func(Status) bool {
	return func(s Status) bool { return s.Head.Number == n && s.InStep() }
}

// groupPeers is Peers within the process: what one store has is put into the other.
type groupPeers struct {
	*group
	me string
}

func (p groupPeers) Others() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, name := range slices.Sorted(maps.Keys(p.by)) {
		if name != p.me && !p.lost[name] {
			out = append(out, name)
		}
	}
	return out
}

func (p groupPeers) Fetch(ctx context.Context, root, _ tree.Digest, _ string, progress func(Fetched)) error {
	p.mu.Lock()
	p.calls[p.me]++
	refuse := p.refuse
	p.mu.Unlock()
	if refuse != nil {
		if err := refuse(root); err != nil {
			return err
		}
	}
	into := p.bench(p.me).store
	var got Fetched
	objects := sources{p, into, &got}
	err := tree.Reach(ctx, objects, root, nil, func(d tree.Digest, f tree.Form, _ uint64) error {
		_, err := objects.Get(ctx, d)
		return err
	})
	progress(got)
	return err
}

// sources reads an object from this master's store, or from another's into this one's.
type sources struct {
	groupPeers
	into tree.Objects
	got  *Fetched
}

func (s sources) Put(ctx context.Context, b []byte) (tree.Digest, error) { return s.into.Put(ctx, b) }

func (s sources) Get(ctx context.Context, d tree.Digest) ([]byte, error) {
	b, err := s.into.Get(ctx, d)
	for _, name := range s.Others() {
		if !errors.Is(err, tree.ErrMissing) {
			break
		}
		if b, err = s.bench(name).store.Get(ctx, d); err == nil {
			s.got.Objects++
			_, err = s.into.Put(ctx, b)
		}
	}
	return b, err
}

func (p groupPeers) Hold(ctx context.Context, master, _ string, g tree.Generation, beat func()) error {
	p.mu.Lock()
	fault := p.fault[master]
	p.mu.Unlock()
	if fault != nil {
		if err := fault(g); err != nil {
			return err
		}
	}
	beat()
	return p.bench(master).replica.Hold(ctx, g, p.me, func(Fetched) {})
}

func (p groupPeers) Announce(ctx context.Context, master, _ string, era int, epoch int64, feed <-chan []tree.Part) error {
	p.mu.Lock()
	lost := p.lost[master] || p.lost[p.me]
	p.mu.Unlock()
	if lost {
		return errLost
	}
	return p.bench(master).replica.Ahead(ctx, p.me, era, epoch, func(ctx context.Context) ([]tree.Part, error) {
		select {
		case parts, more := <-feed:
			if !more {
				return nil, io.EOF
			}
			return parts, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	})
}

func (p groupPeers) FetchAhead(ctx context.Context, master string, feed <-chan []tree.Part, progress func(Fetched)) error {
	from, into := p.bench(master).store, p.bench(p.me).store
	var got Fetched
	for parts := range feed {
		for _, part := range parts {
			b, err := from.Get(ctx, part.Digest)
			if err == nil {
				_, err = into.Put(ctx, b)
			}
			if err != nil {
				return err
			}
			got.Objects++
			progress(got)
		}
	}
	return into.Sync(ctx)
}

func (p groupPeers) Offer(ctx context.Context, _ string, o Offer) (Result, error) {
	p.mu.Lock()
	offered := p.offered
	p.mu.Unlock()
	if offered != nil {
		offered()
	}
	for _, name := range p.Others() {
		if r := p.bench(name).replica; r.Status().Epoch != 0 {
			return r.Accept(ctx, o)
		}
	}
	return Result{}, ErrNoTerm
}

func TestAPublishHasItsCopiesBeforeTheHeadMoves(t *testing.T) {
	g := newGroup(t, "m1", "m2", "m3")
	m1 := g.bench("m1")
	m1.write("a", "one")
	m1.lead()
	res := m1.publish()
	if res.Generation.Copies < 2 {
		t.Errorf("published with %d copies, want 2 or more", res.Generation.Copies)
	}
	if len(g.heads.staged) != 1 || g.heads.staged[0].Number != 1 {
		t.Errorf("staged %+v, want generation 1", g.heads.staged)
	}
	for _, name := range []string{"m2", "m3"} {
		g.tell(name)
		st := g.await(name, "serving 1", serves(1))
		if got := g.bench(name).content(st.Head.Root, "a"); got != "one" {
			t.Errorf("on %s a is %q", name, got)
		}
	}
}

func TestTooFewCopies(t *testing.T) {
	full := func(tree.Generation) error { return fmt.Errorf("no space left: %w", ErrDeclined) }
	for _, tc := range []struct {
		name   string
		lost   []string
		full   []string
		strict bool
		copies int // 0: refused
		warns  bool
	}{
		{name: "nobody else alive", lost: []string{"m2", "m3"}, copies: 1},
		{name: "nobody else alive, strict", lost: []string{"m2", "m3"}, strict: true},
		{name: "one disk is full", full: []string{"m2"}, copies: 2},
		{name: "all other disks are full", full: []string{"m2", "m3"}, copies: 1, warns: true},
		{name: "all other disks are full, strict", full: []string{"m2", "m3"}, strict: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newGroup(t, "m1", "m2", "m3")
			for _, name := range tc.lost {
				g.lose(name, true)
			}
			for _, name := range tc.full {
				g.fail(name, full)
			}
			m1 := g.bench("m1")
			m1.replica.SetSettings(Settings{MinCopies: 2, Strict: tc.strict, Expired: func([]tree.Generation, time.Time) int { return 0 }})
			m1.write("a", "one")
			m1.lead()
			res, err := m1.replica.Publish(t.Context(), Publication{})
			switch {
			case tc.copies == 0 && !errors.Is(err, ErrTooFewCopies):
				t.Errorf("published: %+v, %v; want ErrTooFewCopies", res, err)
			case tc.copies > 0 && (err != nil || res.Generation.Copies != tc.copies):
				t.Errorf("%d copies, %v; want %d", res.Generation.Copies, err, tc.copies)
			case tc.warns && len(res.Warnings) == 0: // a refusal that comes late is not waited for when there are copies enough
				t.Errorf("warnings %q", res.Warnings)
			}
			if tc.copies == 0 && g.heads.head.Number != 0 {
				t.Error("the head has moved")
			}
		})
	}
}

func TestAMasterLostWhileItIsAskedIsNotWaitedFor(t *testing.T) {
	g := newGroup(t, "m1", "m2")
	g.fail("m2", func(tree.Generation) error {
		g.lose("m2", true)
		g.fail("m2", func(tree.Generation) error { return errors.New("connection refused") })
		return errors.New("connection reset")
	})
	m1 := g.bench("m1")
	m1.write("a", "one")
	m1.lead()
	if res := m1.publish(); res.Generation.Copies != 1 {
		t.Errorf("%d copies, want 1", res.Generation.Copies)
	}
}

func TestAReturningMasterFlipsThroughWhatItHasMissed(t *testing.T) {
	g, m1, m2 := newPair(t)
	g.lose("m2", true)
	for _, text := range []string{"two", "three", "four"} {
		m1.write("a", text)
		m1.publish()
	}
	g.lose("m2", false)
	g.tell("m2")
	g.await("m2", "serving 4", serves(4))
	m2.volume.mu.Lock()
	defer m2.volume.mu.Unlock()
	if !slices.Equal(m2.volume.served, []uint64{1, 2, 3, 4}) {
		t.Errorf("served %v, want each generation in turn", m2.volume.served)
	}
}

func TestCatchingUpIsTriedAgain(t *testing.T) {
	g := newGroup(t, "m1", "m2")
	m1 := g.bench("m1")
	g.lose("m2", true)
	m1.write("a", "one")
	m1.lead()
	m1.publish()
	g.lose("m1", true) // the only one that has it
	g.tell("m2")
	st := g.await("m2", "in trouble", func(s Status) bool { return s.Problem != nil })
	if st.InStep() || !errors.Is(st.Problem, tree.ErrMissing) {
		t.Errorf("in step %v, problem %v", st.InStep(), st.Problem)
	}
	g.lose("m1", false)
	g.await("m2", "serving 1", serves(1))
}

func TestALaterLeaderIsHeldTo(t *testing.T) {
	g := newGroup(t, "m1", "m2")
	m1, m2 := g.bench("m1"), g.bench("m2")
	m1.write("a", "one")
	m1.lead()
	m1.publish()
	m2.replica.SetLeader(0, 7, true)
	m1.write("a", "two")
	_, err := m1.replica.Publish(t.Context(), Publication{})
	if !errors.Is(err, ErrNoTerm) || !strings.Contains(err.Error(), "m2") {
		t.Errorf("published: %v; want ErrNoTerm and who says so", err)
	}
	if g.heads.head.Number != 1 {
		t.Errorf("the head is %d", g.heads.head.Number)
	}
	if err := m2.replica.Hold(t.Context(), tree.Generation{Number: 9, Era: 1, Epoch: 1, Root: g.heads.head.Root}, "m1", func(Fetched) {}); err != nil {
		t.Errorf("a later era is refused: %v", err)
	}
}

func TestASourceWithoutTheLeadershipOffers(t *testing.T) {
	g, m1, m2 := newPair(t)
	m2.replica.SetLeader(0, 1, true)
	m2.write("b", "from m2")
	res, err := m2.replica.Publish(t.Context(), Publication{Note: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	if got := res.Generation; got.Number != 2 || got.Source != "m2:"+m2.dir || got.By != "m1" || got.Note != "hello" {
		t.Errorf("published %+v", got)
	}
	g.tell("m2")
	st := g.await("m2", "serving 2", serves(2))
	if got := m2.content(st.Head.Root, "b"); got != "from m2" {
		t.Errorf("b is %q", got)
	}
	m2.write("b", "again")
	if res, err = m2.replica.Publish(t.Context(), Publication{}); err != nil || res.Generation.Number != 3 || res.Modified == 0 {
		t.Errorf("again: %+v, %v", res, err)
	}
	if _, err := m1.replica.Accept(t.Context(), Offer{Master: "m2", Root: res.Generation.Root, Source: "m3:/x", Automatic: true}); !errors.Is(err, ErrHolding) {
		t.Errorf("an offer of a source that the head is not from: %v", err)
	}
}

func TestAcceptLoss(t *testing.T) {
	g, m1, m2 := newPair(t)
	g.lose("m2", true)
	m1.write("a", "two")
	m1.publish()
	g.lose("m1", true)
	g.lose("m2", false)
	g.heads.mu.Lock()
	g.heads.epoch = 5
	g.heads.mu.Unlock()
	m2.term = newTerm(5)
	m2.lead()
	g.await("m2", "in trouble", func(s Status) bool { return s.Problem != nil })
	if _, err := m2.replica.Rollback(t.Context(), 1, Publication{}); err == nil {
		t.Error("rolled back although the head is not here")
	}
	if _, after, err := m2.replica.Recover(t.Context(), Recovery{}); err != nil || after.Number != 2 {
		t.Errorf("recovered to %d, %v, without loss being accepted", after.Number, err)
	}
	_, after, err := m2.replica.Recover(t.Context(), Recovery{AcceptLoss: true})
	if err != nil || after.Number != 3 || after.NextIno < g.heads.history[1].NextIno {
		t.Fatalf("recovered to %+v, %v", after, err)
	}
	st := g.await("m2", "serving 3", serves(3))
	if got := m2.content(st.Head.Root, "a"); got != "one" {
		t.Errorf("a is %q", got)
	}
	g.lose("m1", false)
	g.tell("m1")
	g.await("m1", "serving 3", serves(3))
}

func TestALostDiskIsBroughtBackFromTheOthers(t *testing.T) {
	g := newGroup(t, "m1", "m2")
	m1, m2 := g.bench("m1"), g.bench("m2")
	m1.write("a", "one")
	m1.lead()
	m1.publish()
	m1.write("a", "two")
	m1.publish()
	g.tell("m2")
	g.await("m2", "serving 2", serves(2))
	m2.stop()
	if err := os.RemoveAll(filepath.Join(m2.data, "store")); err != nil {
		t.Fatal(err)
	}
	m2.start(func(c *Config) {
		c.Master, c.Peers = "m2", groupPeers{g, "m2"}
		m2.volume.set(errLost)
	})
	if st := m2.replica.Status(); st.InStep() || st.Serves() != 0 {
		t.Errorf("with an empty disk: in step %v, serves %d", st.InStep(), st.Serves())
	}
	m2.volume.set(nil)
	g.tell("m2")
	st := g.await("m2", "serving 2", serves(2))
	if got := m2.content(st.Head.Root, "a"); got != "two" || st.Serves() != 2 {
		t.Errorf("a is %q, serves %d", got, st.Serves())
	}
	if got := m2.content(st.Generations[0].Root, "a"); got != "one" {
		t.Errorf("a in the first generation is %q", got)
	}
}
