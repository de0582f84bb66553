package election

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// What the hand-over of a thousand shards by one master to two others writes. The least is releases, each of as many keys as
// one write holds, and for each of them one write of either heir. What is more comes of what a master sees late: Assign
// counts what every master leads, so two that have not yet seen the same claims of each other's may each name the other for
// a shard, and take it by a write of its own when they have. Such a write takes one key at the least. 1,500 hand-overs
// with delays of up to 400 ms needed 75 writes at the most; the bound allows each heir four for a release.
const (
	handedOver     = 1000
	releases       = (handedOver + mostKeys - 1) / mostKeys
	leastWrites    = releases + 2*releases
	mostWrites     = releases + 4*2*releases
	writesOfDeath  = 1 + 2*((handedOver/2+mostKeys-1)/mostKeys) // the lease and all that is under it go in one
	writesOfAnyone = 1 + 2*releases                             // the next in order took what a slow one had not come to
)

// When all see the same at the same time, nothing is written but what it takes.
func TestAHandOverWritesTheLeast(t *testing.T) {
	for name, c := range map[string]struct {
		leave func(*rig)
		want  int
	}{
		"retired": {func(r *rig) { r.Retire(true) }, leastWrites},
		"stopped": {func(r *rig) { r.end() }, writesOfDeath},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				even := func() time.Duration { return 10 * time.Millisecond }
				if n := writesOf(t, even, func() time.Duration { return 0 }, c.leave); n != c.want {
					t.Errorf("%d writes, of %d that it takes", n, c.want)
				}
			})
		})
	}
}

// However late masters see what the others do, the shards of one that retires are not taken one by one.
func TestAHandOverIsSeenLate(t *testing.T) {
	for i := range uint64(10) {
		s := *seed + i
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(s, s))
			var mu sync.Mutex // guards r
			upTo := func(most time.Duration) func() time.Duration {
				return func() time.Duration {
					mu.Lock()
					defer mu.Unlock()
					return time.Duration(r.Int64N(int64(most)))
				}
			}
			slow, lag := time.Duration(1+r.IntN(400))*time.Millisecond, time.Duration(1+r.IntN(200))*time.Millisecond
			n := writesOf(t, upTo(slow), upTo(lag), func(r *rig) { r.Retire(true) })
			if n > mostWrites {
				t.Errorf("%d writes, of %d at the most; -seed=%d", n, mostWrites, s)
			}
		})
	}
}

// writesOf has the first of three masters, which leads a thousand shards, leave, and returns how many revisions etcd has
// made when the others lead them all. Every write takes as long as slow says, and what a watch has seen is told lag later.
func writesOf(t *testing.T, slow, lag func() time.Duration, leave func(*rig)) int {
	t.Helper()
	m := NewMemory()
	shards := names("s", handedOver)
	var rigs []*rig
	for i, name := range names("m", 3) {
		rig := prepare(m, name, shards...)
		rig.f.backend = lagging{rig.f.backend, lag}
		rig.f.on("write", func(_ context.Context, call func() error) error {
			took := slow()
			time.Sleep(took / 2)
			defer time.Sleep(took / 2)
			return call()
		})
		rig.start(t)
		go func() { // ends with Run
			for range rig.Terms() {
			}
		}()
		rigs = append(rigs, rig)
		for i == 0 && countLed(m, shards, name) < handedOver {
			time.Sleep(time.Second)
		}
	}
	time.Sleep(DefaultTTL) // all know of each other
	m.mu.Lock()
	before := len(m.log)
	m.mu.Unlock()
	leave(rigs[0])
	for deadline := time.Now().Add(time.Minute); countLed(m, shards, "m1")+countLed(m, shards, "m2") < handedOver; time.Sleep(time.Second) {
		if time.Now().After(deadline) {
			t.Fatal("shards without a leader after a minute")
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	revisions := map[int64]bool{}
	for _, change := range m.log[before:] {
		revisions[change.mod] = true
	}
	return len(revisions)
}

// countLed returns how many of the shards a master has the leader key of.
func countLed(m *Memory, shards []string, master string) (n int) {
	for _, shard := range shards {
		value, _ := m.Get(leaderKey(fleetPrefix, shard))
		var led leaderValue
		if json.Unmarshal(value, &led) == nil && led.Master == master {
			n++
		}
	}
	return n
}

// lagging tells late what its watch has seen.
type lagging struct {
	backend
	lag func() time.Duration
}

func (l lagging) watch(ctx context.Context, rev int64, each func(changes)) error {
	return l.backend.watch(ctx, rev, func(seen changes) {
		time.Sleep(l.lag())
		each(seen)
	})
}
