package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nfs-fleet/nfs-fleet/e2e/history"
)

// chaos is a fleet under constant publishing and reading, to which things are done in rounds. Everything is recorded; after
// each round the fleet must come to rest, and the history must have no violation.
type chaos struct {
	*Fleet
	record     *history.Recorder
	publishers []*publisher
	events     []history.Event
	revision   int64          // up to which events were fetched
	stepDowns  map[string]int // of each master, that were looked at

	stop    context.CancelFunc
	traffic *errgroup.Group
}

// What chaos is made of.
const (
	chaosTTL = 2 * time.Second
	// restLimit is how long a fleet may take, on a machine that does much else, until everything works again.
	restLimit = 60 * time.Second
	// roamBound is how long a reader that roams may wait while one master is well: three masters, each of which may keep a
	// new connection for two seconds until it knows the present, and a machine that is slow.
	roamBound = 15 * time.Second
)

var chaosShards = []string{"www", "docs"}

// startChaos starts a fleet with its traffic. The disk of the last master is a small file system of its own.
func startChaos(t testing.TB, c FleetConfig, seed int64) *chaos {
	t.Helper()
	c.TTL = chaosTTL
	small := fmt.Sprintf("m%d", c.Masters)
	c.DataDir = func(name string) string {
		if name != small {
			return filepath.Join(t.TempDir(), "data")
		}
		return filepath.Join(smallDisk(t, "512m"), "data")
	}
	h := &chaos{Fleet: StartFleet(t, c), stepDowns: map[string]int{}}
	h.record = history.NewRecorder(h.Names(), 2, roamBound)
	ctx, cancel := context.WithCancel(context.Background())
	h.stop = cancel
	h.traffic = &errgroup.Group{}
	t.Cleanup(func() { cancel(); h.traffic.Wait() })
	for i, shard := range chaosShards {
		eventually(t, restLimit, "the shard "+shard, func() bool { return h.Masters[0].CLI("shard", "create", shard, "--insecure").Code == 0 })
		p, err := newPublisher(h.Fleet, h.record, shard, t.TempDir(), seed+int64(i))
		if err != nil {
			t.Fatal(err)
		}
		h.publishers = append(h.publishers, p)
		h.traffic.Go(func() error { return p.run(ctx) })
	}
	h.rest(time.Now())
	for i, m := range h.Masters {
		r := newReader(h.Fleet, h.record, chaosShards, m, seed+100+int64(i))
		h.traffic.Go(func() error { return r.run(ctx) })
	}
	for i := range 2 {
		r := newReader(h.Fleet, h.record, chaosShards, nil, seed+200+int64(i))
		h.traffic.Go(func() error { return r.run(ctx) })
	}
	return h
}

// smallDisk mounts a file system of that size.
func smallDisk(t testing.TB, size string) string {
	t.Helper()
	dir := t.TempDir()
	if r := runOn(t, nil, time.Minute, nil, "mount", "-t", "tmpfs", "-o", "size="+size, "nfs-fleet-e2e", dir); r.Code != 0 {
		t.Fatalf("mount a small disk: %v", r)
	}
	t.Cleanup(func() { run(nil, time.Minute, nil, "umount", "-l", dir) })
	return dir
}

// rest waits until everything works again: all masters run and are ready, each shard was published after since, and every
// master serves that.
func (h *chaos) rest(since time.Time) {
	h.t.Helper()
	for _, m := range h.Masters {
		if m.Down() {
			h.t.Fatalf("%s has ended by itself:\n%s", m.Name, m.log.tail(40))
		}
		m.WaitReady()
	}
	for _, p := range h.publishers {
		defer func() {
			if h.t.Failed() {
				h.t.Logf("the publisher of %s was told: %v", p.shard, p.refused())
			}
		}()
		eventually(h.t, restLimit, p.shard+" is published again", func() bool {
			n := p.newest()
			return n != nil && n.at.After(since)
		})
		h.WaitServed(p.shard, p.newest().generation, restLimit)
	}
}

// round does some things to the fleet at once and waits until it is at rest.
func (h *chaos) round(name string, faults ...fault) {
	h.t.Helper()
	var what []string
	for _, f := range faults {
		what = append(what, f.what)
	}
	began := time.Now()
	h.t.Logf("%s: %s", name, strings.Join(what, "; "))
	h.perform(faults)
	mended := time.Now()
	h.rest(mended)
	rested := time.Now()
	for _, f := range faults {
		for _, hit := range f.hits {
			hit.What, hit.Span = f.what, history.Span{Began: began, Ended: rested.Add(chaosTTL)}
			h.record.Fault(hit)
		}
	}
	// What follows from these faults may come as late as a lease ends; the next round begins with a clean sheet.
	time.Sleep(chaosTTL)
	h.judge(name)
	h.t.Logf("%s: at rest %v after the last was undone", name, rested.Sub(mended).Round(10*time.Millisecond))
}

// perform begins every fault and ends each one in its time.
func (h *chaos) perform(faults []fault) {
	type step struct {
		at time.Time
		do func()
	}
	var ends []step
	for _, f := range faults {
		f.begin()
		ends = append(ends, step{time.Now().Add(f.hold), f.end})
	}
	slices.SortStableFunc(ends, func(a, b step) int { return a.at.Compare(b.at) })
	for _, s := range ends {
		time.Sleep(time.Until(s.at))
		s.do()
	}
	for _, f := range faults {
		if f.after != nil {
			f.after()
		}
	}
}

// judge fails the test when the history so far has a violation.
func (h *chaos) judge(name string) {
	h.t.Helper()
	h.starvation()
	until := time.Now()
	h.fetch()
	for _, v := range history.Check(h.record.History(until, h.events)) {
		h.t.Errorf("%s: %v", name, v)
	}
	for _, p := range h.publishers {
		for _, problem := range p.told() {
			h.t.Errorf("%s: the publisher of %s was told %s", name, p.shard, problem)
		}
	}
	if h.t.Failed() {
		h.t.FailNow()
	}
}

// fetch gets what is new in etcd's history, before it is compacted away.
func (h *chaos) fetch() {
	h.t.Helper()
	host, addr := h.etcdAt()
	events, last, err := etcdHistory(host, addr, h.Masters[0].Fleet, h.revision)
	if err != nil {
		h.t.Fatalf("fetch etcd's history: %v", err)
	}
	h.events, h.revision = append(h.events, events...), last
}

// finish reads acknowledged generations back, stops the traffic, and has every master verify what it holds.
func (h *chaos) finish() {
	h.t.Helper()
	h.stop()
	if err := h.traffic.Wait(); err != nil {
		h.t.Fatal(err)
	}
	for _, p := range h.publishers {
		for range 3 {
			h.readBack(p, p.pick())
		}
		h.t.Logf("%s: %d acknowledged; refused: %v", p.shard, len(p.acked), p.refused())
	}
	for _, m := range h.Masters {
		var report struct{ Bad, Missing []any }
		m.JSON(&report, "verify", "--repair")
		if len(report.Missing) > 0 {
			h.t.Errorf("%s misses %v", m.Name, report.Missing)
		}
	}
	h.judge("in the end")
	all := h.record.History(time.Now(), nil)
	h.t.Logf("%d attempts, %d reads, %d events", len(all.Attempts), len(all.Reads), len(h.events))
}

// readBack rolls back to what was acknowledged once, and reads all of it from every master.
func (h *chaos) readBack(p *publisher, to ackedAttempt) {
	h.t.Helper()
	a, err := p.attempt(h.Masters[0], to.manifest, "rollback", p.shard, fmt.Sprint(to.generation), "--wait")
	if err != nil || !a.Acked {
		h.t.Fatalf("roll %s back to %d: %v, told %v", p.shard, to.generation, err, p.refused())
	}
	h.WaitServed(p.shard, a.Generation, restLimit)
	for _, m := range h.Masters {
		r := newReader(h.Fleet, h.record, []string{p.shard}, m, 1)
		for _, path := range append([]string{listing}, statePaths...) {
			if _, sum, err := r.read(p.shard, path, nil); err != nil || sum != to.manifest[path] {
				h.t.Errorf("generation %d of %s, rolled back to: %s from %s is %.12s, want %.12s: %v",
					to.generation, p.shard, path, m.Name, sum, to.manifest[path], err)
			}
		}
		r.hangUp()
	}
}
