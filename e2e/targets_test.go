package e2e

import (
	"flag"
	"fmt"
	"testing"
	"time"
)

var targets = flag.Bool("targets", false, "measure at full size, and hold the product to its targets")

// flips returns when each master began to serve a generation, by its log: all of them run on this machine's clock.
func (f *Fleet) flips(shard string, generation uint64) map[string]time.Time {
	at := map[string]time.Time{}
	for _, m := range f.Masters {
		for _, l := range m.logged("flipped") {
			if l.Shard == shard && l.Generation == generation {
				at[m.Name] = l.Time
			}
		}
	}
	return at
}

// waitFlips waits until every master has begun to serve a generation, and returns when the first and the last did.
func (f *Fleet) waitFlips(shard string, generation uint64) (first, last time.Time) {
	f.t.Helper()
	eventually(f.t, restLimit, fmt.Sprintf("generation %d of %s everywhere", generation, shard), func() bool {
		return len(f.flips(shard, generation)) == len(f.Masters)
	})
	for _, at := range f.flips(shard, generation) {
		if first.IsZero() || at.Before(first) {
			first = at
		}
		if at.After(last) {
			last = at
		}
	}
	return first, last
}

// target reports a measurement, and with -targets fails when it is beyond its limit.
func target(t *testing.T, what string, got, limit time.Duration) {
	t.Helper()
	verdict := "reached"
	if got > limit {
		verdict = "missed"
	}
	t.Logf("%s: %v, target %v: %s", what, got.Round(time.Millisecond), limit.Round(time.Millisecond), verdict)
	if *targets && got > limit {
		t.Errorf("%s: target missed", what)
	}
}

// threeWithSource starts a fleet of three whose first master alone has these flags.
func threeWithSource(t *testing.T, flags ...string) *Fleet {
	t.Helper()
	f := StartFleet(t, FleetConfig{Masters: 1, Etcd: EtcdModule, Flags: flags})
	f.Flags = nil
	f.Add()
	f.Add()
	for _, m := range f.Masters {
		m.WaitReady()
	}
	return f
}

// One changed file of 100,000, from a watched source: how long it takes from the end of the quiet period until every master
// serves it, and how far apart they are.
func TestSmallChangeSpeed(t *testing.T) {
	source, files := t.TempDir(), 2000
	if *targets {
		files = 100_000
	}
	for i := range files {
		writeFile(t, fmt.Sprintf("%s/d%03d/f%d", source, i%100, i), fmt.Sprint("content ", i))
	}
	const quiet = 500 * time.Millisecond
	f := threeWithSource(t, "--source", "www="+source, "--scan-quiet", quiet.String())
	g := f.Masters[0].WaitGeneration("www", 1).Generation
	f.waitFlips("www", g)
	var worst, skew time.Duration
	for i := range 8 {
		g++
		changed := time.Now()
		writeFile(t, fmt.Sprintf("%s/d000/f0", source), fmt.Sprint("changed ", i))
		first, last := f.waitFlips("www", g)
		t.Logf("change %d: %v after the quiet period, %v apart", i, last.Sub(changed)-quiet, last.Sub(first))
		worst, skew = max(worst, last.Sub(changed)-quiet), max(skew, last.Sub(first))
	}
	target(t, fmt.Sprintf("one changed file of %d → served by three masters, after the quiet period", files), worst, 300*time.Millisecond)
	target(t, "between the first and the last master", skew, 50*time.Millisecond)
}
