package master

import (
	"errors"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/election/etcdtest"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

// several is a fleet of masters in this process, with an etcd beside them. The first one has a source for www.
func several(t *testing.T, names ...string) (map[string]*running, *etcdtest.Server) {
	t.Helper()
	return severalWith(t, func(*Config) {}, names...)
}

// severalWith is several with other settings.
func severalWith(t *testing.T, change func(*Config), names ...string) (map[string]*running, *etcdtest.Server) {
	t.Helper()
	server := etcdtest.New(t)
	fleetName := etcdtest.FleetName()
	all := map[string]*running{}
	for i, name := range names {
		c := testConfig(t)
		c.Name, c.Fleet, c.Etcd = name, fleetName, Default().Etcd
		c.Etcd.Endpoints = []string{server.URL()}
		if i > 0 {
			c.Sources = map[string]SourceConfig{}
		}
		change(&c)
		all[name] = start(t, c)
	}
	return all, server
}

// inStep accepts a status in which this many masters serve a generation of www.
func inStep(masters int, generation uint64) func(console.Status) bool {
	return func(s console.Status) bool {
		n := 0
		for _, m := range s.Masters {
			if m.Serves["www"] == generation {
				n++
			}
		}
		return n == masters && len(s.Shards) == 1 && s.Shards[0].Generation == generation
	}
}

func TestAPublishReachesAllMasters(t *testing.T) {
	all, _ := several(t, "m1", "m2", "m3")
	m1 := all["m1"]
	m1.until("three masters serving the first generation", inStep(3, 1))
	write(t, m1.cfg.Sources["www"].Dir, "hello", "two")
	m1.until("three masters serving the second generation", inStep(3, 2))
	st := all["m3"].until("the second generation on m3", inStep(3, 2))
	if st.Shards[0].Copies < 2 {
		t.Errorf("%d copies, want 2 or more", st.Shards[0].Copies)
	}
}

func TestLeadershipGoesOnWhenTheLeaderStops(t *testing.T) {
	all, _ := several(t, "m1", "m2", "m3")
	m1, m2 := all["m1"], all["m2"]
	m1.until("three masters serving the first generation", inStep(3, 1))
	st := m2.until("m1 leading", func(s console.Status) bool { return len(s.Shards) == 1 && s.Shards[0].Leader == "m1" })
	m1.stop()
	began := time.Now()
	st = m2.until("another leader", func(s console.Status) bool { return s.Shards[0].Leader != "m1" && s.Shards[0].Leader != "" })
	if took := time.Since(began); took >= m1.cfg.LeaseTTL {
		t.Errorf("after a hand-over another leads only after %s", took)
	}
	leader := all[st.Shards[0].Leader]
	var done console.Published
	leader.until("a rollback", func(console.Status) bool {
		var err error
		done, err = leader.client.Rollback(t.Context(), "www", console.RollbackRequest{Generation: 1}, nil)
		if err != nil && !errors.Is(err, console.ErrNoLeader) {
			t.Fatal(err)
		}
		return err == nil
	})
	if done.Number != 2 || done.Copies != 2 {
		t.Errorf("rolled back to %+v", done)
	}
	back := start(t, m1.cfg)
	back.until("the second generation on m1", inStep(3, 2))
}

func TestALostQuorumIsNotRescuedByMistake(t *testing.T) {
	r := start(t, testConfig(t))
	r.until("the first generation", serves(1))
	if _, err := r.client.Recover(t.Context(), console.RecoverRequest{LostQuorum: true}); !errors.Is(err, console.ErrConflict) {
		t.Errorf("etcd has its quorum, recover says %v; want ErrConflict", err)
	}
}
