package election

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/nfs-fleet/nfs-fleet/election/etcdtest"
)

// The traps of etcd and its client that the design names, each on a real etcd.

// endpointsOf returns the endpoints that a node's election uses.
func endpointsOf(n *node) *endpoints { return backendOf(n.Election).endpoints }

func backendOf(e Election) *etcd { return e.(*loop).backend.(*etcd) }

func key(t *testing.T, key string) (created int64) {
	t.Helper()
	resp, err := shared.Dial(t).Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range resp.Kvs {
		created = kv.CreateRevision
	}
	return created
}

// A silent endpoint: gRPC's own probes take far longer than a lease lives.
func TestASilentEndpointCostsNoTerm(t *testing.T) {
	t.Parallel()
	silent := etcdtest.NewProxy(t, shared.Host())
	client := etcdtest.Dial(t, silent.URL(), shared.URL())
	e, err := New(Config{Client: client, Prefix: newPrefix(), Master: "m1", TTL: MinTTL})
	if err != nil {
		t.Fatal(err)
	}
	backendOf(e).endpoints.next = 0
	e.Stand("www", false)
	n := run(t, e, nil)
	term, id := n.term(), n.Lease().ID
	if ep, err := endpointsOf(n).present(); err != nil || ep.address != silent.URL() {
		t.Fatalf("the election does not use the first endpoint: %v", err)
	}
	silent.Cut(true)
	deadline := term.Deadline()
	n.until("renewed at the next endpoint", func() bool {
		ep, err := endpointsOf(n).present()
		return err == nil && ep.address == shared.URL() && time.Until(term.Deadline()) > time.Until(deadline) || pollAgain()
	})
	if err := term.Check(); err != nil || n.Lease().ID != id || !time.Now().Before(deadline) {
		t.Errorf("%v; lease %x after %x; %s left of the first deadline", err, n.Lease().ID, id, time.Until(deadline))
	}
	// All of it goes there, the watch too.
	if _, err := shared.Dial(t).Delete(t.Context(), term.Key()); err != nil {
		t.Fatal(err)
	}
	if err := cause(t, term); !errors.Is(err, ErrDeposed) {
		t.Error(err)
	}
	if next := n.term(); next.Epoch() <= term.Epoch() {
		t.Errorf("epoch %d after %d", next.Epoch(), term.Epoch())
	}
}

// An endpoint that is silent from the start, as one behind a firewall.
func TestAnEndpointThatNeverAnswers(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	e, err := New(Config{Client: etcdtest.Dial(t, "http://"+silent.Addr().String(), shared.URL()), Prefix: newPrefix(), Master: "m1", TTL: MinTTL})
	if err != nil {
		t.Fatal(err)
	}
	backendOf(e).endpoints.next = 0
	e.Stand("www", false)
	run(t, e, nil).term()
}

// The lease outlives an outage of etcd, and its ID with it; terms end meanwhile.
func TestTheLeaseSurvivesAnOutageOfEtcd(t *testing.T) {
	t.Parallel()
	s := etcdtest.New(t)
	n := etcdNode(t, newPrefix(), "m1", s.URL())
	n.Stand("www", false)
	term, id := n.term(), n.Lease().ID
	s.Stop()
	if err := cause(t, term); !errors.Is(err, ErrLeaseLost) {
		t.Error(err)
	}
	if l := n.Lease(); l.Alive || l.ID != id {
		t.Errorf("without etcd: %+v", l)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	next := n.term()
	if n.Lease().ID != id || next.Epoch() != term.Epoch() {
		t.Errorf("lease %x after %x, epoch %d after %d: the outage cost the leadership", n.Lease().ID, id, next.Epoch(), term.Epoch())
	}
	resp, err := s.Dial(t).Get(t.Context(), next.Key())
	if err != nil || len(resp.Kvs) != 1 || resp.Kvs[0].CreateRevision != next.Epoch() || resp.Kvs[0].Lease != id {
		t.Errorf("a term without its key: %v, %v", resp, err)
	}
}

// concurrency.Election can say that one leads whose lease ran out while it waited in the queue. Here the lease is gone
// at the worst moments: while the claim is under way, and directly after.
func TestNoTermWithoutAKey(t *testing.T) {
	t.Parallel()
	prefix, admin := newPrefix(), shared.Dial(t)
	e, err := New(Config{Client: shared.Dial(t), Prefix: prefix, Master: "m1", TTL: MinTTL})
	if err != nil {
		t.Fatal(err)
	}
	l := e.(*loop)
	f := newFaulty(l.backend)
	l.backend = f
	var claims atomic.Int64
	f.on("write", func(ctx context.Context, call func() error) error {
		revoke := func() {
			if _, err := admin.Revoke(ctx, clientv3.LeaseID(e.Lease().ID)); err != nil {
				t.Error(err)
			}
		}
		switch claims.Add(1) {
		case 1:
			revoke()
			return call()
		case 2:
			defer revoke()
			return call()
		}
		return call()
	})
	e.Stand("www", false)
	n := run(t, e, nil)
	for claims.Load() < 3 { // a term of the second claim may show up, and must go
		select {
		case term := <-n.Terms():
			if created := key(t, term.Key()); created != term.Epoch() && term.Check() == nil {
				if err := cause(t, term); err == nil {
					t.Error("a term went on without its key")
				}
			}
		case <-time.After(10 * time.Millisecond):
		}
	}
	n.until("leads", func() bool {
		leader, ok := n.Leader("www")
		return ok && leader.Epoch == key(t, prefix+"leaders/www") && n.Lease().Alive
	})
}

// The lease is gone in etcd although its deadline is ahead.
func TestARevokedLeaseIsNoticed(t *testing.T) {
	t.Parallel()
	e, err := New(Config{Client: shared.Dial(t), Prefix: newPrefix(), Master: "m1", TTL: MinTTL})
	if err != nil {
		t.Fatal(err)
	}
	l := e.(*loop)
	f := newFaulty(l.backend)
	f.on("watch", silence) // only the renewal can tell
	l.backend = f
	e.Stand("www", false)
	n := run(t, e, nil)
	term, id := n.term(), n.Lease().ID
	f.on("read", silence)
	if _, err := shared.Dial(t).Revoke(t.Context(), clientv3.LeaseID(id)); err != nil {
		t.Fatal(err)
	}
	deadline := term.Deadline()
	if err := cause(t, term); !errors.Is(err, ErrLeaseLost) {
		t.Error(err)
	}
	if !time.Now().Before(deadline) {
		t.Error("only the deadline ended the term")
	}
	f.on("read", nil)
	if next := n.term(); n.Lease().ID == id || next.Epoch() <= term.Epoch() {
		t.Errorf("lease %x after %x, epoch %d after %d", n.Lease().ID, id, next.Epoch(), term.Epoch())
	}
}

// A watch from a revision that etcd has compacted away is refused, and costs neither the endpoint nor a change.
func TestAWatchOfACompactedRevision(t *testing.T) {
	t.Parallel()
	s := etcdtest.New(t)
	client := s.Dial(t)
	e, err := New(Config{Client: s.Dial(t), Prefix: newPrefix(), Master: "m1", TTL: MinTTL})
	if err != nil {
		t.Fatal(err)
	}
	l := e.(*loop)
	b := backendOf(e)
	f := newFaulty(l.backend)
	var refused atomic.Value
	f.on("watch", func(ctx context.Context, call func() error) error {
		if refused.Load() != nil {
			return call()
		}
		resp, err := client.Put(ctx, "x", "y")
		if err == nil {
			_, err = client.Compact(ctx, resp.Header.Revision)
		}
		if err != nil {
			t.Error(err)
		}
		err = b.watch(ctx, 1, func(changes) { t.Error("it went through") })
		refused.Store(err)
		return err
	})
	l.backend = f
	e.Stand("www", false)
	n := run(t, e, nil)
	term := n.term()
	before, err := b.endpoints.present()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Delete(t.Context(), term.Key()); err != nil {
		t.Fatal(err)
	}
	if err := cause(t, term); !errors.Is(err, ErrDeposed) {
		t.Error(err)
	}
	n.term()
	if err, _ := refused.Load().(error); !errors.Is(err, errWatchRefused) {
		t.Errorf("the watch said %v", err)
	}
	if after, err := b.endpoints.present(); err != nil || after != before {
		t.Error("the endpoint was given up for it")
	}
}

// With etcd's users on, tokens run out; the client has to fetch new ones, on a long-lived stream as well.
func TestTokensRunOut(t *testing.T) {
	t.Parallel()
	s := etcdtest.New(t)
	admin := s.Dial(t)
	ctx := t.Context()
	for _, err := range []error{
		second(admin.UserAdd(ctx, "root", "secret")), second(admin.RoleAdd(ctx, "root")), second(admin.UserGrantRole(ctx, "root", "root")),
		second(admin.AuthEnable(ctx)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{s.URL()}, Username: "root", Password: "secret", Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	prefix := newPrefix()
	e, err := New(Config{Client: client, Prefix: prefix, Master: "m1", TTL: MinTTL})
	n := run(t, e, err)
	n.Stand("www", false)
	term, id := n.term(), n.Lease().ID
	// The server's tokens live for a second. Any change of its users voids all of them at once, besides.
	for i := range 2 {
		deadline := term.Deadline()
		if _, err := client.UserAdd(ctx, "u"+string(rune('0'+i)), "x"); err != nil {
			t.Fatal(err)
		}
		for !term.Deadline().After(deadline.Add(1200 * time.Millisecond)) {
			if err := term.Check(); err != nil {
				t.Fatal(err)
			}
			pollAgain()
		}
	}
	want := []byte("still allowed to write")
	n.Announce(prefix+"masters/m1", want)
	for {
		resp, err := client.Get(ctx, prefix+"masters/m1")
		if err != nil {
			t.Fatal(err)
		}
		if len(resp.Kvs) == 1 && string(resp.Kvs[0].Value) == string(want) {
			break
		}
		pollAgain()
	}
	if err := term.Check(); err != nil || n.Lease().ID != id {
		t.Errorf("%v; lease %x after %x", err, n.Lease().ID, id)
	}
	if err := n.end(); err != nil {
		t.Error(err)
	}
}

func second[T any](_ T, err error) error { return err }

// pollAgain waits a little for what nothing tells of, and reports false.
func pollAgain() bool {
	<-time.After(2 * time.Millisecond)
	return false
}

// What one write does is all or nothing of each part, whatever the other parts find.
func TestAWriteOnEtcd(t *testing.T) {
	t.Parallel()
	prefix, ctx := newPrefix(), t.Context()
	b := newEtcd(shared.Dial(t), prefix, "m1")
	defer b.close(ctx)
	testWrite(t, b, prefix)
}

func TestAWriteInMemory(t *testing.T) {
	prefix := newPrefix()
	testWrite(t, &memoryBackend{NewMemory(), prefix, "m1"}, prefix)
}

func testWrite(t *testing.T, b backend, prefix string) {
	t.Helper()
	ctx := t.Context()
	mine, ttl, err := b.grant(ctx, MinTTL)
	if err != nil || ttl != MinTTL {
		t.Fatal(ttl, err)
	}
	other, _, err := b.grant(ctx, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	must := func(w write) written {
		t.Helper()
		out, err := b.write(ctx, w)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	key := func(shard string) string { return leaderKey(prefix, shard) }
	must(write{lease: other, claims: []string{key("a")}, claim: []byte("other"), puts: map[string][]byte{candidateKey(prefix, "x"): []byte("x")}})
	out := must(write{lease: mine, claims: []string{key("a"), key("b"), key("c")}, claim: []byte("mine")})
	if len(out.seats) != 3 || out.seats[0].lease != other || out.seats[1].lease != mine || out.seats[1].create != out.rev || string(out.seats[1].value) != "mine" {
		t.Fatalf("%+v", out)
	}
	epoch := out.rev
	out = must(write{
		lease: mine, marks: map[string]mark{key("b"): {epoch, []byte("heir")}}, releases: map[string]int64{key("c"): epoch, key("a"): epoch},
		deletes: []string{candidateKey(prefix, "x")},
	})
	if len(out.seats) != 1 || out.seats[0].create != epoch || out.seats[0].mod != out.rev || string(out.seats[0].value) != "heir" || out.seats[0].lease != mine {
		t.Fatalf("%+v", out)
	}
	snap, err := b.read(ctx, 0, 0)
	if err != nil || len(snap.kvs) != 3 || snap.rev < out.rev { // a, b and x: c was released, what is not ours stayed
		t.Fatalf("%+v, %v", snap, err)
	}
	expectChanges(t, b, epoch, key("b"), key("c"))
	must(write{lease: mine, revoke: []int64{other, 12345}}) // the second is long gone
	if _, err := b.renew(ctx, other); !errors.Is(err, errGone) {
		t.Errorf("a revoked lease: %v", err)
	}
	if err := b.revoke(ctx, mine); err != nil {
		t.Error(err)
	}
	if err := b.revoke(ctx, mine); !errors.Is(err, errGone) {
		t.Errorf("revoked twice: %v", err)
	}
	if _, err := b.write(ctx, write{lease: mine, claims: []string{key("d")}}); err == nil {
		t.Error("a claim under a lease that is gone went through")
	}
	if snap, err := b.read(ctx, 0, 0); err != nil || len(snap.kvs) != 0 {
		t.Errorf("%+v, %v", snap, err)
	}
}

// expectChanges watches from rev on for two changes of each key, and then ends the watch.
func expectChanges(t *testing.T, b backend, rev int64, keys ...string) {
	t.Helper()
	seen := make(chan kv, 10)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- b.watch(ctx, rev, func(ch changes) {
			for _, k := range ch.kvs {
				seen <- k
			}
		})
	}()
	left := map[string]int{}
	for range 2 * len(keys) {
		left[(<-seen).key]++
	}
	for _, key := range keys {
		if left[key] != 2 {
			t.Errorf("%d changes of %s, want 2", left[key], key)
		}
	}
	stop()
	if err := <-done; err == nil {
		t.Error("a watch ended by itself, and well")
	}
}

// What is read again and again is only what has changed, and yet everything that is there afterwards.
func TestAReadOfWhatHasChanged(t *testing.T) {
	t.Parallel()
	prefix, ctx, admin := newPrefix(), t.Context(), shared.Dial(t)
	b := newEtcd(admin, prefix, "m1")
	defer b.close(ctx)
	put := func(shard, value string) int64 {
		t.Helper()
		resp, err := admin.Put(ctx, leaderKey(prefix, shard), value)
		if err != nil {
			t.Fatal(err)
		}
		return resp.Header.Revision
	}
	put("a", "1")
	since := put("b", "1")
	read := func(partial bool, keys int) {
		t.Helper()
		snap, err := b.read(ctx, since, 2)
		if err != nil || snap.partial != partial || len(snap.kvs) != keys || snap.rev < since {
			t.Fatalf("%+v, %v", snap, err)
		}
	}
	read(true, 0)
	put("a", "2")
	read(true, 1)
	put("c", "1")
	read(true, 2)
	if _, err := admin.Delete(ctx, leaderKey(prefix, "b")); err != nil {
		t.Fatal(err)
	}
	read(false, 2) // one more and one less than were known
	put("b", "2")
	read(false, 3) // there again, and nobody knows that it was gone
	since += 1 << 40
	read2, err := b.read(ctx, since, 3)
	if err != nil || read2.partial || len(read2.kvs) != 3 {
		t.Fatalf("put back to an older state: %+v, %v", read2, err)
	}
}

func TestAQuietElectionReadsOnlyWhatHasChanged(t *testing.T) {
	t.Parallel()
	n := etcdNode(t, newPrefix(), "m1")
	n.Stand("www", false)
	n.term()
	l := n.Election.(*loop)
	sure := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.state.sure()
	}
	for late := time.After(patience); sure() != 2; pollAgain() { // its leader key and its candidate record
		select {
		case <-late:
			t.Fatalf("it is sure of %d keys", sure())
		default:
		}
	}
}
