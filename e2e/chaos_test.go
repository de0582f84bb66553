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
	chaosRounds = flag.Int("chaos", 6, "rounds of chaos")
	chaosFirst  = flag.Int("first", 0, "the first round")
	chaosFaults = flag.String("faults", "", "regular expression of the faults to draw from")
	chaosFleets = flag.String("fleets", "", "regular expression of the fleets to do it to")
)

// The fleets that chaos is done to, in turn.
var chaosKinds = []struct {
	name string
	FleetConfig
}{
	{"embedded", FleetConfig{Masters: 3}},
	{"debian-3", FleetConfig{Masters: 3, Etcd: EtcdDebian, EtcdMembers: 3}},
	{"module-3", FleetConfig{Masters: 3, Etcd: EtcdModule, EtcdMembers: 3}},
	{"embedded-5", FleetConfig{Masters: 5}},
	{"debian-1", FleetConfig{Masters: 3, Etcd: EtcdDebian}},
	{"one", FleetConfig{Masters: 1, Etcd: EtcdDebian}},
}

// roundsPerFleet: a fleet that lives too long has more history than etcd keeps.
const roundsPerFleet = 8

// TestChaos does things to fleets under traffic, at random, and checks what everybody saw. The seed and the number of a round
// decide what is done in it and to which kind of fleet.
func TestChaos(t *testing.T) {
	seed := *crashSeed
	if seed == 0 {
		seed = time.Now().UnixNano()
	}
	only, kinds := regexp.MustCompile(*chaosFaults), regexp.MustCompile(*chaosFleets)
	var fleets []FleetConfig
	for _, k := range chaosKinds {
		if kinds.MatchString(k.name) {
			fleets = append(fleets, k.FleetConfig)
		}
	}
	for n := 0; n < *chaosRounds; {
		first := *chaosFirst + n
		rounds := min(roundsPerFleet-first%roundsPerFleet, *chaosRounds-n)
		n += rounds
		t.Run(fmt.Sprintf("rounds %d to %d", first, first+rounds-1), func(t *testing.T) {
			h := startChaos(t, fleets[first/roundsPerFleet%len(fleets)], seed+int64(first))
			for i := first; i < first+rounds; i++ {
				t.Logf("make chaos SEED=%d FIRST=%d ROUNDS=1 FLEETS='%s' FAULTS='%s'", seed, i, *chaosFleets, *chaosFaults)
				random := rand.New(rand.NewSource(seed + 1_000_003*int64(i)))
				h.round(fmt.Sprintf("round %d", i), h.draw(random, only)...)
			}
			h.finish()
		})
		if t.Failed() {
			return
		}
	}
}
