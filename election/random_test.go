package election

import (
	"flag"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var seed = flag.Uint64("seed", 0, "of the random tests; 0: as always")

// TestRandomFaults lets three masters lead four shards while anything that may go wrong does, and asks all the time: are
// the invariants whole, has every term its key, does nobody lead beside another. Time is synctest's; the seed says all.
func TestRandomFaults(t *testing.T) {
	for i := range uint64(8) {
		s := *seed + i
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(s, s))
			f := newFleetUnderTest(t, r)
			for range 300 {
				f.fault()
				time.Sleep(time.Duration(r.Int64N(int64(DefaultTTL / 2))))
				synctest.Wait()
				f.check()
				if t.Failed() {
					t.Fatalf("-seed=%d", s)
				}
			}
			f.settle()
		})
	}
}

type fleetUnderTest struct {
	t      *testing.T
	r      *rand.Rand
	m      *Memory
	rigs   []*rig
	shards []string

	mu    sync.Mutex // guards terms
	terms []*Term
	epoch map[string]int64 // the greatest seen of each shard
}

func newFleetUnderTest(t *testing.T, r *rand.Rand) *fleetUnderTest {
	f := &fleetUnderTest{t: t, r: r, m: NewMemory(), shards: names("s", 4), epoch: map[string]int64{}}
	for _, name := range names("m", 3) {
		rig := newRig(t, f.m, name, f.shards...)
		f.rigs = append(f.rigs, rig)
		go func() { // ends with Run
			for term := range rig.Terms() {
				f.mu.Lock()
				f.terms = append(f.terms, term)
				f.mu.Unlock()
			}
		}()
	}
	return f
}

func (f *fleetUnderTest) fault() {
	rig, other := f.rigs[f.r.IntN(3)], f.rigs[f.r.IntN(3)]
	shard := f.shards[f.r.IntN(4)]
	ops := []string{"grant", "renew", "read", "write", "watch"}
	op := ops[f.r.IntN(5)]
	switch f.r.IntN(13) {
	case 0:
		f.m.Cut(rig.loop.config.Master, true)
	case 1, 2:
		f.m.Cut(rig.loop.config.Master, false)
	case 3:
		rig.Withdraw(shard)
	case 4, 5:
		rig.Stand(shard, f.r.IntN(2) == 0)
	case 6:
		rig.Resign(shard, other.loop.config.Master)
	case 7:
		rig.f.on(op, lost)
	case 8:
		rig.f.on(op, late(time.Duration(f.r.Int64N(int64(DefaultTTL/3)))))
	case 9:
		rig.f.on(op, silence)
	case 10:
		for _, op := range ops {
			rig.f.on(op, nil)
		}
	case 12:
		rig.Retire(f.r.IntN(3) == 0)
	case 11:
		rig.Announce(fleetPrefix+"masters/"+rig.loop.config.Master, []byte(shard))
	}
}

func (f *fleetUnderTest) check() {
	for _, rig := range f.rigs {
		rig.valid()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	leads := map[string]bool{}
	for _, term := range f.terms {
		shard, goesOn := term.Shard(), term.Check() == nil
		if _, created := f.m.Get(term.Key()); goesOn && created != term.Epoch() {
			f.t.Errorf("%s: a term of epoch %d, a key of %d", shard, term.Epoch(), created)
		}
		if goesOn && leads[shard] {
			f.t.Errorf("%s: two terms", shard)
		}
		leads[shard] = leads[shard] || goesOn
		if f.epoch[shard] > term.Epoch() && goesOn {
			f.t.Errorf("%s: epoch %d after %d", shard, term.Epoch(), f.epoch[shard])
		}
		f.epoch[shard] = max(f.epoch[shard], term.Epoch())
	}
	f.terms = slices.DeleteFunc(f.terms, func(term *Term) bool { return term.Check() != nil })
}

// settle mends everything: soon every shard must have its leader, and all must agree on who it is.
func (f *fleetUnderTest) settle() {
	for _, rig := range f.rigs {
		f.m.Cut(rig.loop.config.Master, false)
		for op := range rig.f.hooks {
			rig.f.on(op, nil)
		}
		rig.Retire(false)
		for _, shard := range f.shards {
			rig.Stand(shard, false)
		}
	}
	time.Sleep(3 * DefaultTTL)
	synctest.Wait()
	f.check()
	for _, shard := range f.shards {
		first, _ := f.rigs[0].Leader(shard)
		_, created := f.m.Get(leaderKey(fleetPrefix, shard))
		for _, rig := range f.rigs {
			if l, ok := rig.Leader(shard); !ok || l != first || l.Epoch != created {
				f.t.Errorf("%s: %s says %+v, %t; %s says %+v; the key was created at %d", shard, rig.loop.config.Master, l, ok, f.rigs[0].loop.config.Master, first, created)
			}
		}
	}
}
