package spread

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// world is a fleet that carries out what Leaders says.
type world struct {
	shards  []Shard
	masters []Master
}

// names returns n names.
func names(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s%d", prefix, i)
	}
	return out
}

func (w *world) master(name string) *Master {
	for i := range w.masters {
		if w.masters[i].Name == name {
			return &w.masters[i]
		}
	}
	return nil
}

func (w *world) shard(name string) *Shard {
	for i := range w.shards {
		if w.shards[i].Name == name {
			return &w.shards[i]
		}
	}
	return nil
}

// loads counts what each living master leads.
func (w *world) loads() map[string]int {
	count := map[string]int{}
	for _, m := range w.masters {
		count[m.Name] = 0
	}
	for _, s := range w.shards {
		if _, lives := count[s.Leader]; lives {
			count[s.Leader]++
		}
	}
	return count
}

// atSource counts the shards that are led where their source is.
func (w *world) atSource() int {
	n := 0
	for _, s := range w.shards {
		if m := w.master(s.Leader); m != nil && slices.Contains(m.Sources, s.Name) {
			n++
		}
	}
	return n
}

// apply carries out some moves, and fails the test if one of them cannot be.
func (w *world) apply(t *testing.T, moves []Move) {
	t.Helper()
	for _, move := range moves {
		s, from, to := w.shard(move.Shard), w.master(move.From), w.master(move.To)
		switch {
		case s == nil || from == nil || to == nil || from == to || s.Leader != from.Name:
			t.Fatalf("%+v cannot be carried out", move)
		case to.Drained:
			t.Fatalf("%+v: to a drained master", move)
		case to.InStep != nil && !to.InStep(s.Name):
			t.Fatalf("%+v: to a master that is not in step", move)
		case s.Pinned && !from.Drained:
			t.Fatalf("%+v: the leader was chosen", move)
		}
		s.Leader = to.Name
	}
}

// settle carries out rounds of moves until there are none, and returns how many it took.
func (w *world) settle(t *testing.T) int {
	t.Helper()
	total, limit := 0, 4*len(w.shards)+4
	for total <= limit {
		moves := Leaders(w.shards, w.masters)
		if len(moves) == 0 {
			return total
		}
		if len(moves) > Batch {
			t.Fatalf("%d moves at once", len(moves))
		}
		w.apply(t, moves)
		total += len(moves)
	}
	t.Fatalf("after %d moves of %d shards there are still more: %+v", total, len(w.shards), Leaders(w.shards, w.masters))
	return 0
}

// bound returns how many shards each master that may lead is to have, and how many of those that may lead there are.
func (w *world) bound() (low, high int) {
	n := 0
	for _, m := range w.masters {
		if !m.Drained {
			n++
		}
	}
	return (len(w.shards)+n-1)/n - 1, len(w.shards)/n + 1
}

// even reports the masters that are outside the bound.
func (w *world) even(t *testing.T) {
	t.Helper()
	low, high := w.bound()
	for name, n := range w.loads() {
		switch {
		case w.master(name).Drained:
			if n != 0 {
				t.Errorf("%s is drained and leads %d", name, n)
			}
		case n < low || n > high:
			t.Errorf("%s leads %d shards, %d to %d are even: %v", name, n, low, high, w.loads())
		}
	}
}

// random returns a fleet in any state. Every master is in step with everything, and no leader was chosen.
func random(r *rand.Rand) *world {
	w := &world{}
	all := names("m", 1+r.IntN(12))
	alive := 1 + r.IntN(len(all))
	for _, name := range all[:alive] {
		w.masters = append(w.masters, Master{Name: name, Drained: r.IntN(6) == 0})
	}
	w.masters[0].Drained = false
	skew := 1 + r.IntN(len(all)) // some lead much more than others
	for _, name := range names("s", r.IntN(40)) {
		w.shards = append(w.shards, Shard{Name: name, Leader: all[r.IntN(skew)]})
		for range r.IntN(3) {
			m := &w.masters[r.IntN(alive)]
			m.Sources = append(m.Sources, name)
		}
	}
	r.Shuffle(len(w.masters), func(i, j int) { w.masters[i], w.masters[j] = w.masters[j], w.masters[i] })
	return w
}

const trials = 3000

func each(t *testing.T, check func(t *testing.T, r *rand.Rand)) {
	t.Helper()
	for seed := range uint64(trials) {
		check(t, rand.New(rand.NewPCG(seed, 1)))
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// What nobody leads, the election fills: the rest ends up even around it.
func (w *world) elect() {
	for i := range w.shards {
		if s := &w.shards[i]; w.master(s.Leader) == nil {
			loads := w.loads()
			maps.DeleteFunc(loads, func(name string, _ int) bool { return w.master(name).Drained })
			s.Leader = slices.MinFunc(slices.Sorted(maps.Keys(loads)), func(x, y string) int { return loads[x] - loads[y] })
		}
	}
}

func TestEveryFleetBecomesEvenAndStaysSo(t *testing.T) {
	each(t, func(t *testing.T, r *rand.Rand) {
		w := random(r)
		w.elect()
		before := w.atSource()
		low, high := w.bound()
		excess, deficit, drained := 0, 0, 0
		for name, n := range w.loads() {
			if w.master(name).Drained {
				drained += n
				continue
			}
			excess, deficit = excess+max(0, n-high), deficit+max(0, low-n)
		}
		sources := 0
		for _, m := range w.masters {
			sources += len(m.Sources)
		}
		took := w.settle(t)
		w.even(t)
		if sources == 0 && took > drained+max(excess, deficit) {
			t.Errorf("%d moves; %d are led by drained masters, %d too many and %d too few by others", took, drained, excess, deficit)
		}
		if excess+deficit+drained == 0 && w.atSource() < before {
			t.Errorf("%d shards are led at their source, %d were before", w.atSource(), before)
		}
		if excess+deficit+drained+sources == 0 && took != 0 {
			t.Errorf("%d moves in a fleet that was even", took)
		}
	})
}

// Within one call nothing moves twice: every move is worth its hand-over.
func TestNothingMovesTwiceAtOnce(t *testing.T) {
	each(t, func(t *testing.T, r *rand.Rand) {
		w := random(r)
		moved := map[string]bool{}
		for _, m := range Leaders(w.shards, w.masters) {
			if moved[m.Shard] {
				t.Errorf("%s is moved twice", m.Shard)
			}
			moved[m.Shard] = true
		}
	})
}

// Whatever becomes of the moves, the fleet comes to rest: some may fail, and masters may fall behind in between.
func TestMovesThatFailDoNoHarm(t *testing.T) {
	each(t, func(t *testing.T, r *rand.Rand) {
		w := random(r)
		w.elect()
		for range 10 {
			moves := Leaders(w.shards, w.masters)
			moves = slices.DeleteFunc(moves, func(Move) bool { return r.IntN(3) == 0 })
			w.apply(t, moves)
		}
		w.settle(t)
		w.even(t)
	})
}

// A master that is not in step with some shards, and leaders that were chosen, stand in the way of what would be even;
// what is left undone is only what they forbid.
func TestWhatCannotMoveStays(t *testing.T) {
	each(t, func(t *testing.T, r *rand.Rand) {
		w := random(r)
		for i := range w.shards {
			w.shards[i].Pinned = r.IntN(8) == 0
		}
		for i := range w.masters {
			behind := map[string]bool{}
			for _, s := range w.shards {
				behind[s.Name] = r.IntN(4) == 0
			}
			w.masters[i].InStep = func(shard string) bool { return !behind[shard] }
		}
		w.settle(t)
		loads := w.loads()
		low, high := w.bound()
		for _, s := range w.shards {
			from := w.master(s.Leader)
			if from == nil || s.Pinned {
				continue
			}
			for i := range w.masters {
				to := &w.masters[i]
				if to.Drained || !to.InStep(s.Name) || to == from {
					continue
				}
				x, y := loads[from.Name], loads[to.Name]
				if from.Drained || x-y >= 2 && (x > high || y < low) {
					t.Errorf("%s could go from %s (%d) to %s (%d)", s.Name, from.Name, x, to.Name, y)
				}
				if slices.Contains(to.Sources, s.Name) && !slices.Contains(from.Sources, s.Name) && x > low && y < high {
					t.Errorf("%s could go to its source at %s", s.Name, to.Name)
				}
			}
		}
	})
}

func TestTheOrderOfTheArgumentsDoesNotMatter(t *testing.T) {
	each(t, func(t *testing.T, r *rand.Rand) {
		w := random(r)
		first := Leaders(w.shards, w.masters)
		r.Shuffle(len(w.masters), func(i, j int) { w.masters[i], w.masters[j] = w.masters[j], w.masters[i] })
		r.Shuffle(len(w.shards), func(i, j int) { w.shards[i], w.shards[j] = w.shards[j], w.shards[i] })
		if again := Leaders(w.shards, w.masters); !slices.Equal(first, again) {
			t.Errorf("%v, and %v in another order", first, again)
		}
	})
}

// With as many sources as it takes, each shard comes to be led at its own.
func TestShardsGoToTheirSources(t *testing.T) {
	each(t, func(t *testing.T, r *rand.Rand) {
		w := random(r)
		for i := range w.masters {
			w.masters[i].Drained, w.masters[i].Sources = false, nil
		}
		for i := range w.shards { // the sources are spread evenly, the leaders are not
			m := &w.masters[i%len(w.masters)]
			m.Sources = append(m.Sources, w.shards[i].Name)
		}
		w.elect()
		w.settle(t)
		w.even(t)
		if n := w.atSource(); n != len(w.shards) {
			t.Errorf("%d of %d shards are led at their source: %v", n, len(w.shards), w.loads())
		}
	})
}

func TestLeaders(t *testing.T) {
	lead := func(leader string, shards ...string) (out []Shard) {
		for _, s := range shards {
			out = append(out, Shard{Name: s, Leader: leader})
		}
		return out
	}
	behind := func(string) bool { return false }
	a, b, c := Master{Name: "a"}, Master{Name: "b"}, Master{Name: "c"}
	src := Master{Name: "b", Sources: []string{"s2"}}
	for name, test := range map[string]struct {
		shards  []Shard
		masters []Master
		want    []Move
	}{
		"nothing":                      {},
		"no masters":                   {shards: lead("a", "s1")},
		"one master":                   {lead("a", "s1", "s2"), []Master{a}, nil},
		"one apart is even":            {lead("a", "s1", "s2"), []Master{a, b}, nil},
		"a master joins":               {lead("a", "s1", "s2", "s3", "s4"), []Master{b, a}, []Move{{"s1", "a", "b"}}},
		"a source gets its shard":      {lead("a", "s1", "s2"), []Master{a, src}, []Move{{"s2", "a", "b"}}},
		"the joiner has a source":      {lead("a", "s1", "s2", "s3", "s4"), []Master{a, src}, []Move{{"s2", "a", "b"}}},
		"drained":                      {lead("a", "s1", "s2"), []Master{{Name: "a", Drained: true}, b, c}, []Move{{"s1", "a", "b"}, {"s2", "a", "c"}}},
		"drained, nobody else":         {lead("a", "s1", "s2"), []Master{{Name: "a", Drained: true}}, nil},
		"drained, nobody in step":      {lead("a", "s1"), []Master{{Name: "a", Drained: true}, {Name: "b", InStep: behind}}, nil},
		"joined and not yet in step":   {lead("a", "s1", "s2", "s3", "s4"), []Master{a, {Name: "b", InStep: behind}}, nil},
		"the leader is gone":           {lead("x", "s1", "s2", "s3"), []Master{a, b}, nil},
		"a chosen leader stays":        {[]Shard{{"s2", "a", true}, {"s1", "a", false}}, []Master{a, src}, nil},
		"a chosen leader is drained":   {[]Shard{{"s2", "a", true}}, []Master{{Name: "a", Drained: true}, b}, []Move{{"s2", "a", "b"}}},
		"one for another, to a source": {append(lead("a", "s1", "s2"), lead("b", "s3", "s4", "s5")...), []Master{a, src}, []Move{{"s2", "a", "b"}, {"s3", "b", "a"}}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Leaders(test.shards, test.masters); !slices.Equal(got, test.want) {
				t.Errorf("%v, want %v", got, test.want)
			}
		})
	}
}

// A tenth of a large fleet joins: the moves come in batches, and there are no more than the joiners are short of.
func TestALargeFleetMovesInBatches(t *testing.T) {
	w := &world{}
	for i, name := range names("m", 200) {
		w.masters = append(w.masters, Master{Name: name, Sources: names("x", i%3)})
	}
	for i, name := range names("s", 500) {
		w.shards = append(w.shards, Shard{Name: name, Leader: fmt.Sprintf("m%d", i%180)})
	}
	if took := w.settle(t); took > 20*2+20 {
		t.Errorf("%d moves", took)
	}
	w.even(t)
}

func BenchmarkLeaders(b *testing.B) {
	w := &world{}
	for i, name := range names("m", 200) {
		w.masters = append(w.masters, Master{Name: name, Sources: names("s", i%5), InStep: func(string) bool { return true }})
	}
	for i, name := range names("s", 500) {
		w.shards = append(w.shards, Shard{Name: name, Leader: fmt.Sprintf("m%d", i%100)})
	}
	for b.Loop() {
		Leaders(w.shards, w.masters)
	}
}
