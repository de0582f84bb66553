package e2e

import (
	"flag"
	"fmt"
	"math/rand"
	"regexp"
	"testing"
	"time"
)

var (
	chaosRounds = flag.Int("chaos", 0, "rounds of chaos; 0: a few that are always the same")
	chaosFirst  = flag.Int("first", 0, "the first round")
	chaosFaults = flag.String("faults", "", "regular expression of the faults to draw from")
	chaosFleets = flag.String("fleets", "", "regular expression of the fleets to do it to")
)

// chaosKind is a kind of fleet that chaos is done to.
type chaosKind struct {
	name string
	FleetConfig
	// short are the faults of each round of the short form.
	short [][]string
}

var chaosKinds = []chaosKind{
	{"embedded", FleetConfig{Masters: 3}, [][]string{{"kill-publishing", "rot"}, {"pause-publishing"}}},
	{"debian-3", FleetConfig{Masters: 3, Etcd: EtcdDebian, EtcdMembers: 3}, [][]string{{"etcd-kill-all", "full"}, {"cut", "kill-restart"}}},
	{"module-3", FleetConfig{Masters: 3, Etcd: EtcdModule, EtcdMembers: 3}, [][]string{{"mute", "rot"}, {"rolling"}}},
	{"embedded-5", FleetConfig{Masters: 5}, nil},
	{"debian-1", FleetConfig{Masters: 3, Etcd: EtcdDebian}, nil},
}

// roundsPerFleet: a fleet that lives too long has more history than etcd keeps.
const roundsPerFleet = 8

// TestChaos does things to fleets under traffic, and checks what everybody saw. In the long form they are drawn at random:
// the seed and the number of a round decide what is done in it and to which kind of fleet. A fleet in which a round fails
// has no more of them; the next one begins anew.
func TestChaos(t *testing.T) {
	kinds := regexp.MustCompile(*chaosFleets)
	var fleets []chaosKind
	for _, k := range chaosKinds {
		if kinds.MatchString(k.name) {
			fleets = append(fleets, k)
		}
	}
	if *chaosRounds == 0 {
		for i, k := range fleets {
			if len(k.short) > 0 {
				t.Run(k.name, func(t *testing.T) { shortChaos(t, k, int64(i)) })
			}
		}
		return
	}
	longChaos(t, fleets)
}

func shortChaos(t *testing.T, k chaosKind, seed int64) {
	h := startChaos(t, k.FleetConfig, seed)
	random := rand.New(rand.NewSource(seed))
	for i, names := range k.short {
		var faults []fault
		for _, name := range names {
			faults = h.also(random, faults, h.choicesNamed(regexp.MustCompile("^"+name+"$")))
		}
		h.round(fmt.Sprintf("round %d", i), faults...)
	}
	h.finish()
}

func longChaos(t *testing.T, fleets []chaosKind) {
	seed := *crashSeed
	if seed == 0 {
		seed = time.Now().UnixNano()
	}
	only := regexp.MustCompile(*chaosFaults)
	for n := 0; n < *chaosRounds; {
		first := *chaosFirst + n
		rounds := min(roundsPerFleet-first%roundsPerFleet, *chaosRounds-n)
		n += rounds
		kind := fleets[first/roundsPerFleet%len(fleets)]
		t.Run(fmt.Sprintf("rounds %d to %d on %s", first, first+rounds-1, kind.name), func(t *testing.T) {
			h := startChaos(t, kind.FleetConfig, seed+int64(first))
			for i := first; i < first+rounds; i++ {
				t.Logf("make chaos ROUNDS=1 SEED=%d FIRST=%d FLEETS='%s' FAULTS='%s'", seed, i, *chaosFleets, *chaosFaults)
				random := rand.New(rand.NewSource(seed + 1_000_003*int64(i)))
				h.round(fmt.Sprintf("round %d", i), h.draw(random, only)...)
			}
			h.finish()
		})
	}
}
