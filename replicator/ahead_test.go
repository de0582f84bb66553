package replicator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// writeMany makes a source of so many files that a publish of it is announced.
func (b *bench) writeMany(generation string) {
	b.Helper()
	for i := range announceObjects + 200 {
		b.write(fmt.Sprint("f", i), fmt.Sprint("file ", i, " of ", generation))
	}
}

// objectsOf counts the objects of a tree, which the store from has, that the store of b has.
func (b *bench) objectsOf(from *store.Store, root tree.Digest) (all, have int) {
	b.Helper()
	err := tree.Reach(b.Context(), from, root, nil, func(d tree.Digest, _ tree.Form, _ uint64) error {
		all++
		if b.store.Has(d) {
			have++
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	return all, have
}

// When the other masters are asked to hold a generation, they have fetched it already.
func TestOthersFetchWhileTheSourceIsRead(t *testing.T) {
	g := newGroup(t, "m1", "m2", "m3")
	m1 := g.bench("m1")
	m1.writeMany("1")
	g.refuse = func(root tree.Digest) error { // called when the Fetch for a Hold begins
		for _, name := range []string{"m2", "m3"} {
			if all, have := g.bench(name).objectsOf(m1.store, root); have == 0 || all < announceObjects {
				t.Errorf("%s has %d of %d objects when the tree is fetched", name, have, all)
			}
		}
		return nil
	}
	m1.lead()
	root := m1.publish().Generation.Root
	for _, name := range []string{"m2", "m3"} {
		g.tell(name)
		g.await(name, "serving 1", serves(1))
		if all, have := g.bench(name).objectsOf(m1.store, root); have != all {
			t.Errorf("%s has %d of %d objects", name, have, all)
		}
	}
}

// What little changes is not worth an announcement.
func TestSmallPublishIsNotAnnounced(t *testing.T) {
	_, m1, m2 := newPair(t)
	m1.write("a", "two")
	a := new(announcer)
	a.begin = func() []chan<- []tree.Part { t.Error("announced"); return nil }
	for i := range announceObjects - 1 {
		a.stored(tree.Sum(fmt.Append(nil, i)), 100)
	}
	a.end()
	m1.publish()
	if m2.replica.aheadNow() != nil {
		t.Error("m2 fetches ahead")
	}
}

// A master that does not listen is not waited for, and not told of what it cannot remember.
func TestAnnouncerNeverBlocks(t *testing.T) {
	slow, quick := make(chan []tree.Part, 1), make(chan []tree.Part, 1000)
	a := &announcer{begin: func() []chan<- []tree.Part { return []chan<- []tree.Part{slow, quick} }}
	const objects = announceObjects + 10*announceBatch
	for i := range objects {
		a.stored(tree.Sum(fmt.Append(nil, i)), 100)
	}
	a.end()
	a.end()
	a.stored(tree.Sum(nil), 0)
	heard := 0
	for parts := range quick {
		heard += len(parts)
	}
	if heard != objects {
		t.Errorf("%d of %d objects were announced", heard, objects)
	}
	if n := len(slow); n != 1 {
		t.Errorf("%d batches for who does not listen", n)
	}
}

// hearing is the side of a leader that announces.
type hearing chan []tree.Part

func (h hearing) next(ctx context.Context) ([]tree.Part, error) {
	select {
	case parts, more := <-h:
		if !more {
			return nil, io.EOF
		}
		return parts, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (r *Replica) aheadNow() *ahead {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ahead
}

// aheadOf has m2 fetch ahead from m1, and returns what it came to.
func (g *group) aheadOf(epoch int64, h hearing) <-chan error {
	done := make(chan error, 1)
	r := g.bench("m2").replica
	go func() { done <- r.Ahead(g.Context(), "m1", 0, epoch, h.next) }()
	return done
}

// until waits for what other goroutines do.
func (g *group) until(what string, ok func() bool) {
	g.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			g.Fatal("not within 20 s: " + what)
		}
	}
}

// Whoever led before the latest leader that was seen is refused, also in the middle; a later one takes its place.
func TestAheadIsFenced(t *testing.T) {
	g, m1, m2 := newPair(t)
	first := make(hearing, 10)
	done := g.aheadOf(1, first)
	put := func(text string) []tree.Part {
		d, err := m1.store.Put(t.Context(), []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return []tree.Part{{Digest: d, Form: tree.Blob, Size: uint64(len(text))}}
	}
	first <- put("x")
	m2.replica.SetLeader(0, 2, true)
	first <- put("y")
	if err := <-done; !errors.Is(err, ErrOlderEpoch) {
		t.Errorf("a leader that was replaced in the middle: %v, want ErrOlderEpoch", err)
	}
	if err := <-g.aheadOf(1, first); !errors.Is(err, ErrOlderEpoch) {
		t.Errorf("a leader that was replaced: %v, want ErrOlderEpoch", err)
	}
	if m2.store.Has(tree.Sum([]byte("y"))) {
		t.Error("it was served nevertheless")
	}
	second, third := make(hearing, 10), make(hearing, 10)
	second1 := g.aheadOf(2, second)
	second <- put("z")
	third1 := g.aheadOf(3, third)
	third <- put("w")
	if err := <-second1; err == nil {
		t.Error("two leaders are listened to")
	}
	close(third)
	if err := <-third1; err != nil || !m2.store.Has(tree.Sum([]byte("w"))) {
		t.Errorf("the later leader: %v", err)
	}
}

// A publish that is given up leaves no trace but objects that the next collection takes.
func TestAbandonedPublishLeavesGarbageOnly(t *testing.T) {
	g, m1, m2 := newPair(t)
	m1.writeMany("2")
	g.heads.set("stage", errLost)
	if _, err := m1.replica.Publish(t.Context(), Publication{}); !errors.Is(err, errLost) {
		t.Fatalf("%v, want that the staging failed", err)
	}
	g.until("m2 fetches no more of what was given up", func() bool { return m2.replica.aheadNow() == nil })
	if st := m2.replica.Status(); st.Head.Number != 1 || st.Problem != nil {
		t.Errorf("m2 serves %d, problem %v", st.Head.Number, st.Problem)
	}
	before := m2.store.Stats().Objects
	_, err := m2.store.Collect(t.Context(), func(ctx context.Context, live func(tree.Digest) bool) error {
		return tree.Reach(ctx, m2.store, m2.replica.Status().Head.Root, func(d tree.Digest) bool { return !live(d) }, func(tree.Digest, tree.Form, uint64) error { return nil })
	})
	if after := m2.store.Stats().Objects; err != nil || before < announceObjects/2 || after > 10 {
		t.Errorf("%d objects before a collection, %d after, %v", before, after, err)
	}
	g.heads.set("stage", nil)
	m1.publish() // and nothing is in the way of the next attempt
	g.tell("m2")
	g.await("m2", "serving 2", serves(2))
}

// Hold waits for what is announced, and tells the progress of that; not for what another leader has announced.
func TestHoldAndAhead(t *testing.T) {
	g, m1, m2 := newPair(t)
	m1.write("a", "two")
	g.fail("m2", func(tree.Generation) error { return ErrDeclined })
	m1.publish()
	head, _, _ := g.heads.Head(t.Context())
	for _, same := range []bool{true, false} {
		h := make(hearing, 10)
		fetching := g.aheadOf(head.Epoch, h)
		g.until("m2 fetches ahead", func() bool { return m2.replica.aheadNow() != nil })
		beats, holding := make(chan Fetched, 10), make(chan error, 1)
		next := head
		if !same {
			next.Epoch++
		}
		go func() { holding <- m2.replica.Hold(t.Context(), next, "m1", func(f Fetched) { beats <- f }) }()
		if same {
			g.until("Hold waits", func() bool {
				m2.replica.mu.Lock()
				defer m2.replica.mu.Unlock()
				return m2.replica.ahead.progress != nil
			})
			select {
			case err := <-holding:
				t.Fatalf("Hold did not wait: %v", err)
			default:
			}
			d := tree.Sum([]byte("two"))
			h <- []tree.Part{{Digest: d, Form: tree.Blob, Size: 3}}
			<-beats
			close(h)
		}
		if err := <-holding; err != nil {
			t.Errorf("hold: %v", err)
		}
		if err := <-fetching; (err == nil) != same {
			t.Errorf("same leader %v: fetching ahead ended with %v", same, err)
		}
	}
}
