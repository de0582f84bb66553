package peer

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

func TestSet(t *testing.T) {
	var s set
	for _, i := range []int{3, 70, 0, 3, 9} {
		s = s.with(i)
	}
	for i := range 100 {
		if want := i == 0 || i == 3 || i == 9 || i == 70; s.has(i) != want {
			t.Errorf("%d: %v", i, s.has(i))
		}
	}
	if set("").with(9).with(70) != set("").with(70).with(9) {
		t.Error("the order counts")
	}
}

func newSources(names ...string) []*source {
	var all []*source
	for i, name := range names {
		all = append(all, &source{name: name, number: i, alive: true})
	}
	return all
}

func TestChoose(t *testing.T) {
	now := time.Now()
	later := now.Add(time.Second)
	a := func(change func(s []*source)) []*source {
		s := newSources("a", "b", "c")
		change(s)
		return s
	}
	for _, c := range []struct {
		name    string
		sources []*source
		lacks   set
		want    string
	}{
		{"the preferred", a(func([]*source) {}), "", "b"},
		{"the least busy", a(func(s []*source) { s[1].streams, s[0].streams = 1, 1 }), "", "c"},
		{"the fastest of the others", a(func(s []*source) { s[1].alive, s[0].rate, s[2].rate = false, 1e6, 2e6 }), "", "c"},
		{"one that does not lack it", a(func([]*source) {}), set("").with(0).with(1), "c"},
		{"nobody when all lack it", a(func([]*source) {}), set("").with(0).with(1).with(2), ""},
		{"not one that waits", a(func(s []*source) { s[1].notBefore = later }), "", "a"},
		{"not one that has failed", a(func(s []*source) { s[1].failures = 1 }), "", "a"},
		{"one that has failed, if need be", a(func(s []*source) { s[1].failures = 1 }), set("").with(0).with(2), "b"},
		{"not one that failed too often", a(func(s []*source) { s[1].failures = maxFailures }), set("").with(0).with(2), ""},
		{"not a shunned one", a(func(s []*source) { s[1].shunUntil, s[0].slowUntil, s[2].slowUntil = later, later, later }), "", "a"},
		{"a shunned one, if need be", a(func(s []*source) { s[1].shunUntil = later }), set("").with(0).with(2), "b"},
		{"a hollow one before a slow one", a(func(s []*source) { s[1].slowUntil, s[0].hollowUntil, s[2].slowUntil = later, later, later }), "", "a"},
		{"nobody rather than a worse one, when the best is busy", a(func(s []*source) {
			s[0].streams, s[1].slowUntil, s[2].slowUntil = streamsAPeer, later, later
		}), "", ""},
		{"nobody when all are busy", a(func(s []*source) {
			for _, one := range s {
				one.streams = streamsAPeer
			}
		}), "", ""},
	} {
		got := ""
		if s := choose(c.sources, c.lacks, "b", now); s != nil {
			got = s.name
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestVerdict(t *testing.T) {
	dead := func(s *source) { s.failures, s.err = maxFailures, io.ErrUnexpectedEOF }
	for _, c := range []struct {
		name    string
		change  func(s []*source)
		lacks   set
		lacking bool
		lost    error
	}{
		{"hope", func([]*source) {}, set("").with(0), false, nil},
		{"all lack it", func([]*source) {}, set("").with(0).with(1), true, nil},
		{"the living lack it", func(s []*source) { s[1].alive = false }, set("").with(0), true, nil},
		{"one cannot be reached", func(s []*source) { dead(s[1]) }, set("").with(0), false, io.ErrUnexpectedEOF},
		{"one cannot be reached, the other can", func(s []*source) { dead(s[1]) }, "", false, nil},
		{"one lacks it and cannot be reached", func(s []*source) { dead(s[1]) }, set("").with(0).with(1), true, nil},
		{"one has failed a little", func(s []*source) { s[1].failures, s[1].err = 1, io.EOF }, set("").with(0), false, nil},
		{"one has sent wrong bytes", func(s []*source) { s[0].wrong = 1 }, set("").with(0).with(1), false, errWrong},
		{"nobody lives", func(s []*source) { s[0].alive, s[1].alive = false, false }, "", false, errNobody},
	} {
		s := newSources("a", "b")
		c.change(s)
		lacking, lost := verdict(s, c.lacks)
		if lacking != c.lacking || !errors.Is(lost, c.lost) || (lost == nil) != (c.lost == nil) {
			t.Errorf("%s: %v, %v", c.name, lacking, lost)
		}
	}
}

func TestFailuresAndRates(t *testing.T) {
	now := time.Now()
	s := &source{}
	if s.batchBytes() != firstBatch {
		t.Error("the first batch")
	}
	s.timed(100, time.Second) // says nothing
	s.timed(100<<20, time.Second)
	if s.batchBytes() != largestBatch {
		t.Errorf("batch %d of a fast one", s.batchBytes())
	}
	for range 10 {
		s.timed(64<<10, time.Second)
	}
	if s.batchBytes() > 2*smallBatch {
		t.Errorf("batch %d of a slow one", s.batchBytes())
	}
	last := time.Duration(0)
	for range maxFailures {
		s.failed(now, io.EOF, false)
		if wait := s.notBefore.Sub(now); wait <= last || wait > lastRetry {
			t.Errorf("waits %s after %s", wait, last)
		} else {
			last = wait
		}
	}
	if s.rank(now) != slow || s.failures != maxFailures {
		t.Errorf("%+v", s)
	}
	s.failed(now, io.EOF, true)
	if s.failures != 1 {
		t.Error("something came, and the failures before count still")
	}
	s.failed(now, errBusy, false)
	if s.failures != 1 {
		t.Error("busy is no failure")
	}
	s.answered(now, 10, 10)
	if s.failures != 0 || s.rank(now.Add(slowTime)) != fine || s.rank(now) == fine {
		t.Errorf("%+v", s)
	}
}

func part(f tree.Form, size uint64, n byte) item {
	return newItem(tree.Part{Digest: tree.Digest{n}, Form: f, Size: size})
}

func TestQueue(t *testing.T) {
	var q queue
	q.add("", part(tree.Blob, 100, 1), part(tree.Dir, 100, 2), part(tree.Blob, 4<<20, 3), part(tree.Chunks, 100, 4))
	q.add(set("").with(1), part(tree.NoContent, 0, 5))
	q.add(set("").with(1))
	if q.len() != 5 || len(q.groups) != 2 {
		t.Fatalf("%d objects in %d groups", q.len(), len(q.groups))
	}
	g := q.groups[0]
	if len(g.large) != 1 || g.large[0].digest[0] != 3 {
		t.Errorf("large: %v", g.large)
	}
	items := g.batch(1 << 20)
	var order []byte
	for _, it := range items {
		order = append(order, it.digest[0])
	}
	if string(order) != "\x04\x02\x01" || g.costs != 0 {
		t.Errorf("order %v, %d left", order, g.costs)
	}
	g.large = nil
	q.drop(g)
	if len(q.groups) != 1 || q.len() != 1 {
		t.Errorf("%d groups", len(q.groups))
	}
	for i := range backlog {
		q.add("", part(tree.Blob, 1000, byte(i)))
	}
	q.add("", part(tree.Dir, 10, 0))
	g = q.groups[1]
	if items := g.batch(10_000); len(items) > 10 || items[0].form != tree.Blob {
		t.Errorf("%d objects, first %v: enough blobs wait already", len(items), items[0].form)
	}
	if items := g.batch(1 << 40); len(items) != maxBatch {
		t.Errorf("%d objects in a batch", len(items))
	}
}
