package e2e

import (
	"fmt"
	"testing"
	"time"
)

// Ten masters and a hundred slaves: one master is killed, and then another one's link is cut. Every slave reads again within a
// second, and no master ends above thirteen. The leases are longer than in other tests: ten masters share two processors here.
func TestManySlaves(t *testing.T) {
	const masters, slaves, most = 10, 100, 13
	f := StartFleet(t, FleetConfig{Masters: masters, Etcd: EtcdModule, TTL: 4 * time.Second, Flags: dnsFlags})
	tree := newKnownTree(t, f, "www")
	l := newLightSlaves(t, f, slaves, tree.shard)
	// spread waits until every slave has a home at one of so many masters, and reads; no master may have too many of either.
	spread := func(by *Master, living int) {
		t.Helper()
		var home, reads map[string]int
		defer func() { t.Logf("at home: %v, reading: %v", home, reads) }()
		eventually(t, restLimit, fmt.Sprintf("every slave has a home at one of %d masters, and reads", living), func() bool {
			wait(t.Context(), 500*time.Millisecond) // to ask is dear: every master is asked whom it hears
			home, reads = l.loads(by)
			total := 0
			for master, n := range home {
				if total += n; n > most || reads[master] > most {
					return false
				}
			}
			return total == slaves && len(home) == living && reads[""] == 0 && len(reads) == living
		})
	}
	last := f.Masters[masters-1]
	spread(last, masters)
	t.Logf("undisturbed, the longest read took %v", l.window(restLimit))
	for i, c := range []struct {
		name string
		do   func(m *Master)
	}{
		{"killed", func(m *Master) { m.Kill() }},
		{"cut off", func(m *Master) { m.Host.Cut(t) }},
	} {
		c.do(f.Masters[i+1])
		soon(t, fmt.Sprintf("%s is %s", f.Masters[i+1].Name, c.name), l.window)
		spread(last, masters-1-i)
		soon(t, "new homes", l.window)
	}
}

// soon demands that no slave waited for more than a second, unless this machine has too much else to do.
func soon(t *testing.T, what string, window func(time.Duration) time.Duration) {
	t.Helper()
	worst := window(restLimit)
	load, starved := machineLoad(t)
	t.Logf("%s: the longest read took %v; the load of this machine is %.0f", what, worst, load)
	if worst > time.Second && !starved {
		t.Errorf("%s: a slave waited for %v", what, worst)
	}
}
