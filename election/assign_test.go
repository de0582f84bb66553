package election

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

func names(kind string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s%d", kind, i)
	}
	return out
}

func candidatesNamed(masters []string) []Candidate {
	out := make([]Candidate, len(masters))
	for i, m := range masters {
		out[i].Master = m
	}
	return out
}

// loads counts the shards of each candidate after the assignment.
func loads(candidates []Candidate, leaders ...map[string]string) map[string]int {
	count := map[string]int{}
	for _, c := range candidates {
		count[c.Master] = 0
	}
	for _, l := range leaders {
		for _, m := range l {
			count[m]++
		}
	}
	return count
}

// even reports whether every load is within one of the average.
func even(count map[string]int) bool {
	total := 0
	for _, n := range count {
		total += n
	}
	average := float64(total) / float64(len(count))
	for _, n := range count {
		if float64(n) < average-1 || float64(n) > average+1 {
			return false
		}
	}
	return true
}

func TestAssignSpreadsEvenly(t *testing.T) {
	for _, size := range []struct{ shards, masters int }{{1, 3}, {4, 3}, {9, 3}, {10, 4}, {500, 200}, {7, 50}, {100, 7}} {
		masters := candidatesNamed(names("m", size.masters))
		named := Assign(names("s", size.shards), nil, masters)
		if len(named) != size.shards || !even(loads(masters, named)) {
			t.Errorf("%d shards on %d masters: %d named, %v", size.shards, size.masters, len(named), loads(masters, named))
		}
	}
}

func TestAssignAfterATenthOfTheMastersVanished(t *testing.T) {
	masters := names("m", 200)
	leaders := Assign(names("s", 500), nil, candidatesNamed(masters))
	left := candidatesNamed(masters[20:])
	var vacant []string
	kept := map[string]string{}
	for shard, m := range leaders {
		if slices.Contains(masters[:20], m) {
			vacant = append(vacant, shard)
		} else {
			kept[shard] = m
		}
	}
	named := Assign(vacant, kept, left)
	if len(named) != len(vacant) || !even(loads(left, kept, named)) {
		t.Errorf("%d of %d vacant shards named; %v", len(named), len(vacant), loads(left, kept, named))
	}
	for shard := range kept {
		if _, moved := named[shard]; moved {
			t.Errorf("%s has a leader, and was assigned", shard)
		}
	}
}

func TestAssignPrefersTheSourceWithinBounds(t *testing.T) {
	shards := names("s", 9)
	masters := candidatesNamed([]string{"m1", "m2", "m3"})
	masters[1].Preferred = shards[:2]
	for range 2 {
		named := Assign(shards, nil, masters)
		if named["s0"] != "m2" || named["s1"] != "m2" || !even(loads(masters, named)) {
			t.Errorf("%v", named)
		}
		masters[1].Preferred = shards // all of them: m2 gets as many as the balance allows
	}
	if n := loads(masters, Assign(shards, nil, masters))["m2"]; n != 4 {
		t.Errorf("the master with every source gets %d of 9 shards among 3, want 4", n)
	}
}

func TestAssignPassesOverTheWithdrawn(t *testing.T) {
	masters := candidatesNamed([]string{"m1", "m2"})
	masters[0].Withdrawn = []string{"s0", "s1"}
	masters[0].Preferred = []string{"s0"}
	named := Assign([]string{"s0", "s1", "s2"}, nil, masters)
	if want := map[string]string{"s0": "m2", "s1": "m2", "s2": "m1"}; !maps.Equal(named, want) {
		t.Errorf("%v, want %v", named, want)
	}
	masters[1].Withdrawn = []string{"s0"}
	if named := Assign([]string{"s0"}, nil, masters); len(named) != 0 {
		t.Errorf("nobody stands, and %v", named)
	}
	if named := Assign([]string{"s0"}, nil, nil); len(named) != 0 {
		t.Errorf("nobody is there, and %v", named)
	}
}

// Every master works it out for itself, from maps and lists in any order.
func TestAssignDoesNotDependOnOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	shuffle := func(s []string) { r.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] }) }
	for range 200 {
		shards, leaders, masters := randomFleet(r)
		want := Assign(shards, leaders, masters)
		shuffle(shards)
		shards = append(shards, shards[0]) // named twice is named once
		r.Shuffle(len(masters), func(i, j int) { masters[i], masters[j] = masters[j], masters[i] })
		if got := Assign(shards, maps.Clone(leaders), masters); !maps.Equal(got, want) {
			t.Fatalf("%v, and in another order %v", want, got)
		}
	}
}

func randomFleet(r *rand.Rand) (vacant []string, leaders map[string]string, masters []Candidate) {
	all := names("s", 2+r.IntN(40))
	masters = candidatesNamed(names("m", 1+r.IntN(9)))
	for i := range masters {
		for _, s := range all {
			if r.IntN(5) == 0 {
				masters[i].Preferred = append(masters[i].Preferred, s)
			}
		}
		slices.Sort(masters[i].Preferred)
	}
	vacant = all[:1+r.IntN(len(all)-1)]
	led := all[len(vacant):]
	return slices.Clone(vacant), Assign(led, nil, masters), masters
}

func TestAssignStaysEvenWithPreferences(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 500 {
		vacant, _, masters := randomFleet(r)
		if named := Assign(vacant, nil, masters); len(named) != len(vacant) || !even(loads(masters, named)) {
			t.Fatalf("%d of %d: %v", len(named), len(vacant), loads(masters, named))
		}
	}
}

// A shard whose first choice does not act must come to each of the others in turn: ranks are 0, 1, 2, …
func TestRanksAreATotalOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		vacant, leaders, masters := randomFleet(r)
		shard := vacant[0]
		gone := masters[r.IntN(len(masters))]
		gone.Withdrawn = []string{shard}
		masters = append(slices.DeleteFunc(masters, func(c Candidate) bool { return c.Master == gone.Master }), gone)
		named := Assign(vacant, leaders, masters)[shard]
		heir := []string{"", "nobody", gone.Master, masters[0].Master}[r.IntN(4)]
		var ranks []int
		for _, m := range masters {
			n := rank(shard, m.Master, masters, heir, named)
			if m.Master == gone.Master {
				if n != -1 {
					t.Errorf("a withdrawn master has rank %d", n)
				}
				continue
			}
			if heir == m.Master && n != 0 || heir != masters[0].Master && m.Master == named && n != 0 {
				t.Errorf("%s has rank %d; heir %q, named %q", m.Master, n, heir, named)
			}
			ranks = append(ranks, n)
		}
		slices.Sort(ranks)
		for i, n := range ranks {
			if i != n {
				t.Fatalf("ranks %v", ranks)
			}
		}
	}
}

func BenchmarkAssign(b *testing.B) {
	masters := candidatesNamed(names("m", 200))
	shards := names("s", 500)
	leaders := Assign(shards, nil, masters)
	vacant := shards[:50]
	for _, s := range vacant {
		delete(leaders, s)
	}
	for b.Loop() {
		Assign(vacant, leaders, masters)
	}
}

func TestAssignPassesOverWhoIsRetired(t *testing.T) {
	masters := candidatesNamed(names("m", 4))
	masters[2].Retired, masters[2].Preferred = true, []string{"s1"}
	named := Assign(names("s", 9), nil, masters)
	if count := loads(masters, named); count["m2"] != 0 || len(named) != 9 || count["m0"] != 3 || count["m1"] != 3 || count["m3"] != 3 {
		t.Errorf("%v", count)
	}
	if rank("s1", "m2", masters) != -1 {
		t.Error("it takes its turn")
	}
	if named := Assign([]string{"s1"}, nil, masters[2:3]); len(named) != 0 {
		t.Errorf("%v", named)
	}
}

// The coordinator has its share of the shards.
func TestAssignCountsShardsOnly(t *testing.T) {
	masters := candidatesNamed(names("m", 2))
	for _, leaders := range []map[string]string{{"_fleet": "m0"}, {"_fleet": "m1"}, nil} {
		vacant := append(names("s", 4), "_fleet")
		named := Assign(vacant, leaders, masters)
		if named["_fleet"] == "" {
			t.Error("nobody coordinates")
		}
		delete(named, "_fleet")
		if count := loads(masters, named); count["m0"] != 2 || count["m1"] != 2 {
			t.Errorf("%v beside %v", count, leaders)
		}
	}
}
