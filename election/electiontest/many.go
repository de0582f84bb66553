package electiontest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nfs-fleet/nfs-fleet/election"
)

func preferred(b *bench) {
	first := b.start("m1", "www")
	t := first.term()
	others := []*node{b.start("m2", "www"), b.start("m3", "www*"), b.start("m4", "www")}
	for _, n := range others {
		n.follows("www", "m1")
		b.poll("candidate", func() bool { _, rev := b.Get(b.T, b.Prefix()+"leader-candidates/"+n.name); return rev != 0 })
	}
	first.end()
	if next := others[1].term(); next.Epoch() <= t.Epoch() {
		b.Errorf("epoch %d after %d", next.Epoch(), t.Epoch())
	}
}

func spread(b *bench) {
	const shards = 12
	first := b.start("m0")
	var names []string
	for i := range shards {
		names = append(names, fmt.Sprintf("s%d", i))
		first.Stand(names[i], false)
	}
	for range shards {
		first.term()
	}
	others := map[string]*node{}
	for _, name := range []string{"m1", "m2", "m3"} {
		n := b.start(name, names...)
		others[name] = n
		n.until("all led by m0", func() bool { return leads(n, names)["m0"] == shards })
	}
	for name := range others {
		b.poll("candidate", func() bool { _, rev := b.Get(b.T, b.Prefix()+"leader-candidates/"+name); return rev != 0 })
	}
	first.end()
	for _, n := range others {
		n.until("all led by the others", func() bool {
			count := leads(n, names)
			return count["m0"] == 0 && count[""] == 0
		})
	}
	for name, n := range leads(others["m1"], names) {
		if n < 3 || n > 5 {
			b.Errorf("%s leads %d of %d shards, of three masters", name, n, shards)
		}
	}
}

// leads counts the shards that each master leads, as n knows; "" counts those without a leader.
func leads(n *node, shards []string) map[string]int {
	count := map[string]int{}
	for _, shard := range shards {
		l, _ := n.Leader(shard)
		count[l.Master]++
	}
	return count
}

func announcements(b *bench) {
	m := b.start("m1", "www")
	t := m.term()
	key := func(kind string) string { return b.Prefix() + kind + "/m1" }
	is := func(kind, want string) func() bool {
		return func() bool {
			value, created := b.Get(b.T, key(kind))
			return created != 0 == (want != "") && string(value) == want
		}
	}
	value := []byte("1")
	m.Announce(key("masters"), value)
	m.Announce(key("replicas"), []byte("a"))
	value[0] = 'x' // it is the caller's again
	b.poll("announced", is("masters", "1"))
	b.poll("announced", is("replicas", "a"))
	m.Announce(key("masters"), []byte("2"))
	m.Announce(key("replicas"), nil)
	b.poll("changed", is("masters", "2"))
	b.poll("deleted", is("replicas", ""))

	b.Revoke(b.T, m.Lease().ID)
	b.ended(t)
	m.term()
	b.poll("put again under the new lease", is("masters", "2"))
	if err := m.end(); err != nil {
		b.Error(err)
	}
	if _, created := b.Get(b.T, key("masters")); created != 0 {
		b.Error("it outlived the lease")
	}
}

func replace(b *bench) {
	old := b.start("m1", "www")
	t := old.term()
	b.Cut(b.T, "m1", true) // as good as killed
	if err := old.end(); err == nil {
		b.Error("the old process gave its lease back; it cannot have")
	}
	b.Cut(b.T, "m1", false)
	next := b.startWith(election.Config{Master: "m1", Replace: true}, "www").term()
	if next.Epoch() <= t.Epoch() {
		b.Errorf("epoch %d after %d", next.Epoch(), t.Epoch())
	}
}

// held is a time for which a term told its user, on one master, that it goes on.
type held struct {
	master     string
	epoch      int64
	begin, end time.Time
}

// contest has three masters fight for one shard while they are cut off, withdraw and resign, and then looks at who
// believed to lead when.
func contest(b *bench) {
	type began struct {
		*node
		term *election.Term
	}
	terms := make(chan began, 100)
	var h history
	var nodes []*node
	for _, name := range []string{"m1", "m2", "m3"} {
		n := b.start(name, "www", "docs")
		nodes = append(nodes, n)
		h.readers.Go(func() {
			for t := range n.Terms() {
				h.readers.Go(func() { h.believe(name, t) })
				if t.Shard() == "www" {
					terms <- began{n, t}
				}
			}
		})
	}
	cutOff := func(l began) { b.Cut(b.T, l.name, true); b.ended(l.term); b.Cut(b.T, l.name, false) }
	withdrawn := func(l began) { l.Withdraw("www"); l.Stand("www", false) }
	resigned := func(l began) { l.Resign("www", "m2"); l.Resign("www", "m3") }
	for _, fault := range []func(began){withdrawn, cutOff, resigned, cutOff, withdrawn, resigned} {
		l := <-terms
		for l.term.Check() != nil {
			l = <-terms
		}
		fault(l)
	}
	for _, n := range nodes {
		n.end()
	}
	h.readers.Wait()
	for _, shard := range slices.Sorted(maps.Keys(h.held)) {
		if err := disjoint(h.held[shard]); err != nil {
			b.Errorf("%s: %v; %+v", shard, err, h.held[shard])
		}
	}
}

// history collects the times of leading.
type history struct {
	readers sync.WaitGroup
	mu      sync.Mutex // guards held
	held    map[string][]held
}

// believe asks a term whether it goes on until it does not, and notes the first and the last time that it said so.
func (h *history) believe(master string, t *election.Term) {
	now := time.Now()
	led := held{master, t.Epoch(), now, now}
	ever := false
	for ; t.Check() == nil; now = time.Now() {
		led.end, ever = now, true
		select {
		case <-t.Context().Done():
		case <-time.After(time.Millisecond):
		}
	}
	if !ever {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held == nil {
		h.held = map[string][]held{}
	}
	h.held[t.Shard()] = append(h.held[t.Shard()], led)
}

// disjoint reports an overlap of two masters' terms, or epochs that do not grow.
func disjoint(terms []held) error {
	slices.SortFunc(terms, func(x, y held) int { return x.begin.Compare(y.begin) })
	if len(terms) == 0 {
		return errors.New("nobody ever led")
	}
	for i, next := range terms[1:] {
		last := terms[i]
		if next.epoch < last.epoch || next.epoch == last.epoch && next.master != last.master {
			return fmt.Errorf("%s had epoch %d after %s had %d", next.master, next.epoch, last.master, last.epoch)
		}
		if next.begin.Before(last.end) {
			return fmt.Errorf("%s led from %s on, %s until %s", next.master, next.begin, last.master, last.end)
		}
	}
	return nil
}
