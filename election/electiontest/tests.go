package electiontest

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nfs-fleet/nfs-fleet/election"
)

func oneMaster(b *bench) {
	m := b.start("m1", "www", "_fleet")
	terms := map[string]*election.Term{}
	for range 2 {
		t := m.term()
		terms[t.Shard()] = t
	}
	for _, shard := range []string{"www", "_fleet"} {
		t := terms[shard]
		if t == nil {
			b.Fatalf("no term for %s", shard)
		}
		if err := t.Check(); err != nil {
			b.Errorf("a fresh term: %v", err)
		}
		if t.Key() != b.leaderKey(shard) {
			b.Errorf("key %s, want %s", t.Key(), b.leaderKey(shard))
		}
		l, ok := m.Leader(shard)
		if !ok || l.Master != "m1" || l.Epoch != t.Epoch() || time.Since(l.Since) > time.Minute {
			b.Errorf("leader of %s: %+v, %t", shard, l, ok)
		}
		lease := m.Lease()
		if !lease.Alive || lease.ID == 0 || lease.Err != nil || lease.Age > lease.TTL || time.Until(t.Deadline()) > lease.TTL {
			b.Errorf("lease %+v, deadline in %s", lease, time.Until(t.Deadline()))
		}
	}
	m.Stand("later", true)
	if t := m.term(); t.Shard() != "later" {
		b.Errorf("a term for %s, want one for the shard that was added", t.Shard())
	}
	if _, ok := m.Leader("other"); ok {
		b.Error("a shard that nobody stands for has a leader")
	}
}

func keyBehindTerm(b *bench) {
	const shards = 150 // more than one transaction takes
	m := b.start("m1")
	for i := range shards {
		m.Stand(fmt.Sprintf("s%d", i), false)
	}
	for range shards {
		t := m.term()
		value, created := b.Get(b.T, t.Key())
		var v struct{ Master string }
		if err := json.Unmarshal(value, &v); err != nil || created != t.Epoch() || v.Master != "m1" {
			b.Fatalf("term for %s at epoch %d; its key: created at %d, %q", t.Shard(), t.Epoch(), created, value)
		}
	}
}

func onlyOneLeads(b *bench) {
	first := b.start("m1", "www")
	t := first.term()
	second := b.start("m2", "www")
	second.follows("www", "m1")
	first.until("the other's lease", func() bool { return second.Lease().Alive })
	select {
	case t := <-second.Terms():
		b.Fatalf("two terms: %d and %d", t.Epoch(), t.Epoch())
	case <-time.After(1500 * time.Millisecond): // nothing must come, past the turn of the next in order
	}
	if err := t.Check(); err != nil {
		b.Errorf("a master that joined took the leadership: %v", err)
	}
}

func endOfRun(b *bench) {
	first := b.start("m1", "www")
	t := first.term()
	first.Announce(b.Prefix()+"masters/m1", []byte("{}"))
	b.poll("announced", func() bool { _, rev := b.Get(b.T, b.Prefix()+"masters/m1"); return rev != 0 })
	second := b.start("m2", "www")
	second.follows("www", "m1")
	began := time.Now()
	if err := first.end(); err != nil {
		b.Errorf("Run: %v", err)
	}
	if err := t.Check(); !errors.Is(err, election.ErrResigned) {
		b.Errorf("after Run the term says %v", err)
	}
	if _, rev := b.Get(b.T, b.Prefix()+"masters/m1"); rev != 0 {
		b.Error("the announcement outlived Run")
	}
	if _, open := <-first.Terms(); open {
		b.Error("a term came after the end of Run")
	}
	next := second.term()
	if next.Epoch() <= t.Epoch() {
		b.Errorf("epoch %d after %d", next.Epoch(), t.Epoch())
	}
	if took := time.Since(began); took > prompt {
		b.Errorf("a planned hand-over took %s", took)
	}
}

func withdraw(b *bench) {
	first := b.start("m1", "www", "docs")
	terms := []*election.Term{first.term(), first.term()}
	second := b.start("m2", "www", "docs")
	second.follows("www", "m1")
	began := time.Now()
	first.Withdraw("www")
	next := second.term()
	if next.Shard() != "www" {
		b.Fatalf("a term for %s", next.Shard())
	}
	if took := time.Since(began); took > prompt {
		b.Errorf("a planned hand-over took %s", took)
	}
	for _, t := range terms {
		err := t.Check()
		if t.Shard() == "www" && (!errors.Is(err, election.ErrResigned) || next.Epoch() <= t.Epoch()) {
			b.Errorf("the old term, of epoch %d, says %v; the new one has epoch %d", t.Epoch(), err, next.Epoch())
		}
		if t.Shard() == "docs" && err != nil {
			b.Errorf("the other shard's term ended: %v", err)
		}
	}
	first.follows("www", "m2")
}

func retire(b *bench) {
	first := b.start("m1", "www", "docs", "_fleet")
	terms := []*election.Term{first.term(), first.term(), first.term()}
	second := b.start("m2", "www", "docs", "_fleet")
	second.follows("www", "m1")
	began := time.Now()
	first.Retire(true)
	for range terms {
		second.term()
	}
	if took := time.Since(began); took > prompt {
		b.Errorf("a planned hand-over took %s", took)
	}
	for _, t := range terms {
		if err := t.Check(); !errors.Is(err, election.ErrResigned) {
			b.Errorf("%s: %v", t.Shard(), err)
		}
	}
	// It is not waited for, whether or not it has heard of a shard.
	began = time.Now()
	first.Stand("new", true)
	second.Stand("new", false)
	if t := second.term(); t.Shard() != "new" {
		b.Fatalf("a term for %s", t.Shard())
	}
	if took := time.Since(began); took > prompt {
		b.Errorf("a new shard had no leader for %s", took)
	}
	first.Retire(false)
	second.Withdraw("docs")
	if t := first.term(); t.Shard() != "docs" {
		b.Errorf("a term for %s", t.Shard())
	}
}

func standAgain(b *bench) {
	m := b.start("m1", "www")
	t := m.term()
	m.Withdraw("www")
	if err := b.ended(t); !errors.Is(err, election.ErrResigned) {
		b.Errorf("withdrawn: %v", err)
	}
	b.poll("the key is gone", func() bool { _, rev := b.Get(b.T, t.Key()); return rev == 0 })
	m.Stand("www", false)
	if next := m.term(); next.Epoch() <= t.Epoch() {
		b.Errorf("epoch %d after %d", next.Epoch(), t.Epoch())
	}
}

func resign(b *bench) {
	first := b.start("m1", "www")
	t := first.term()
	nodes := map[string]*node{}
	for _, name := range []string{"m2", "m3", "m4"} {
		nodes[name] = b.start(name, "www")
		nodes[name].follows("www", "m1")
	}
	for _, n := range nodes { // each must know of the others, or it would not know whose turn it is
		b.poll("candidates", func() bool { _, rev := b.Get(b.T, b.Prefix()+"leader-candidates/"+n.name); return rev != 0 })
	}
	for _, step := range []struct {
		heir  string
		leave func(*node) // what the leader does after it has named its heir
	}{
		{"m3", func(*node) {}}, {"m4", func(*node) {}}, {"m2", func(*node) {}},
		{"m3", func(n *node) { n.Withdraw("www") }}, {"m4", func(n *node) { n.Retire(true) }},
	} {
		began := time.Now()
		first.Resign("www", step.heir)
		step.leave(first)
		heir := nodes[step.heir]
		heir.until("there is another leader", func() bool {
			l, ok := heir.Leader("www")
			return ok && l.Epoch > t.Epoch()
		})
		took := time.Since(began)
		if l, _ := heir.Leader("www"); l.Master != step.heir && took > time.Second {
			b.Skipf("etcd answers so slowly that the heir's time was over: %s", took)
		}
		next := heir.term()
		if err := b.ended(t); !errors.Is(err, election.ErrResigned) {
			b.Errorf("resigned: %v", err)
		}
		if next.Epoch() <= t.Epoch() {
			b.Errorf("epoch %d after %d", next.Epoch(), t.Epoch())
		}
		if took > prompt {
			b.Errorf("a planned hand-over took %s", took)
		}
		first, t = heir, next
	}
}

func lostLease(b *bench) {
	first := b.start("m1", "www", "docs")
	terms := []*election.Term{first.term(), first.term()}
	second := b.start("m2", "www", "docs")
	second.follows("www", "m1")
	deadline := terms[0].Deadline()
	b.Cut(b.T, "m1", true)
	for _, t := range terms {
		if err := b.ended(t); !errors.Is(err, election.ErrLeaseLost) {
			b.Errorf("cut off: %v", err)
		}
	}
	ttl := first.Lease().TTL
	if late := time.Since(deadline); late < 0 || late > ttl/2+time.Second {
		b.Errorf("the terms ended %s after the deadline that they had", late)
	}
	epochs := map[string]int64{}
	for range terms {
		t := second.term()
		epochs[t.Shard()] = t.Epoch()
	}
	for _, t := range terms {
		if epochs[t.Shard()] <= t.Epoch() {
			b.Errorf("%s: epoch %d after %d", t.Shard(), epochs[t.Shard()], t.Epoch())
		}
	}
	if first.Lease().Alive {
		b.Error("a lease is alive without etcd")
	}
	if l, ok := first.Leader("www"); !ok || l.Master != "m1" {
		b.Errorf("cut off, it forgot the last known leader: %+v, %t", l, ok)
	}
	b.Cut(b.T, "m1", false)
	first.follows("www", "m2")
	first.until("alive again", func() bool { return first.Lease().Alive })
}

func revokedLease(b *bench) {
	m := b.start("m1", "www")
	t := m.term()
	old := m.Lease().ID
	b.Revoke(b.T, old)
	if err := b.ended(t); !errors.Is(err, election.ErrLeaseLost) && !errors.Is(err, election.ErrDeposed) {
		b.Errorf("revoked: %v", err)
	}
	next := m.term()
	if next.Epoch() <= t.Epoch() || m.Lease().ID == old {
		b.Errorf("epoch %d after %d, lease %x after %x", next.Epoch(), t.Epoch(), m.Lease().ID, old)
	}
	if _, created := b.Get(b.T, next.Key()); created != next.Epoch() {
		b.Errorf("a term at %d, its key was created at %d", next.Epoch(), created)
	}
}

func deletedKey(b *bench) {
	m := b.start("m1", "www", "docs")
	terms := map[string]*election.Term{}
	for range 2 {
		t := m.term()
		terms[t.Shard()] = t
	}
	b.Delete(b.T, b.leaderKey("www"))
	if err := b.ended(terms["www"]); !errors.Is(err, election.ErrDeposed) {
		b.Errorf("deleted: %v", err)
	}
	if next := m.term(); next.Shard() != "www" || next.Epoch() <= terms["www"].Epoch() {
		b.Errorf("%s, epoch %d after %d", next.Shard(), next.Epoch(), terms["www"].Epoch())
	}
	if err := terms["docs"].Check(); err != nil {
		b.Errorf("the other shard's term ended: %v", err)
	}
}

func replacedKey(b *bench) {
	m := b.start("m1", "www")
	t := m.term()
	b.Put(b.T, b.leaderKey("www"), []byte(`{"master":"m9"}`))
	if err := b.ended(t); !errors.Is(err, election.ErrDeposed) {
		b.Errorf("replaced: %v", err)
	}
	m.follows("www", "m9")
	b.Delete(b.T, b.leaderKey("www"))
	if next := m.term(); next.Epoch() <= t.Epoch() {
		b.Errorf("epoch %d after %d", next.Epoch(), t.Epoch())
	}
}

func hangingEnd(b *bench) {
	m := b.start("m1", "www")
	t := m.term()
	b.Cut(b.T, "m1", true)
	ttl, began := m.Lease().TTL, time.Now()
	m.stop()
	if err := b.ended(t); !errors.Is(err, election.ErrResigned) {
		b.Errorf("stopped: %v", err)
	}
	if took := time.Since(began); took > ttl/4 {
		b.Errorf("the term ended %s after the end was asked for: it waited for etcd", took)
	}
	err := m.end()
	if err == nil {
		b.Error("Run says that the lease was given back; it cannot have been")
	}
	if took := time.Since(began); took > min(2*time.Second, ttl/2)+prompt {
		b.Errorf("Run ended after %s: %v", took, err)
	}
}

func runTwice(b *bench) {
	m := b.start("m1", "www")
	m.term()
	if err := m.Run(b.Context()); err == nil {
		b.Error("a second Run went through")
	}
}
