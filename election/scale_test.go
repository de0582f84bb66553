package election

import (
	"testing"
	"testing/synctest"
	"time"
)

// A tenth of the masters vanish at once: every shard has a leader again as soon as the leases have run out, and the
// leaders are spread as evenly as before. (With 200 masters and 500 shards it comes to the same, and takes 12 s.)
func TestATenthOfTheMastersVanish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const vanish = 4
		m, shards, masters := NewMemory(), names("s", 100), names("m", 10*vanish)
		rigs := make([]*rig, len(masters))
		for i, name := range masters {
			rigs[i] = newRig(t, m, name)
			go func() { // ends with Run
				for range rigs[i].Terms() {
				}
			}()
		}
		time.Sleep(DefaultTTL) // all know each other
		for _, shard := range shards {
			for _, r := range rigs {
				r.Stand(shard, false)
			}
		}
		last := rigs[len(rigs)-1]
		led := func(by []string) map[string]int {
			count := leadersOf(last, shards)
			if spread := pick(count, by); len(count) == len(spread) && even(spread) {
				return spread
			}
			return nil
		}
		last.until("all shards are led", func() bool { return led(masters) != nil })
		start := time.Now()
		for _, name := range masters[:vanish] {
			m.Cut(name, true)
		}
		last.until("the others lead", func() bool { return led(masters[vanish:]) != nil })
		if took := time.Since(start); took > DefaultTTL+time.Second {
			t.Errorf("it took %s", took)
		}
		for _, name := range masters[:vanish] {
			m.Cut(name, false)
		}
	})
}

// leadersOf counts the shards that each master leads; those without a leader count for "".
func leadersOf(r *rig, shards []string) map[string]int {
	count := map[string]int{}
	for _, shard := range shards {
		l, _ := r.Leader(shard)
		count[l.Master]++
	}
	return count
}

// pick returns the counts of the masters named, 0 for those that lead nothing.
func pick(count map[string]int, masters []string) map[string]int {
	out := map[string]int{}
	for _, m := range masters {
		out[m] = count[m]
	}
	return out
}
