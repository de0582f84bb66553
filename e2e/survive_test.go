package e2e

import (
	"flag"
	"regexp"
	"slices"
	"testing"
	"time"
)

var (
	failoverReps   = flag.Int("reps", 0, "repetitions of each event; 0: the short form")
	failoverEvents = flag.String("events", "", "regular expression of the events")
	failoverVia    = flag.String("via", "", "how slaves mount: relay or direct; empty: one each")
	failoverEtcd   = flag.String("etcd", "module", "where etcd is: module (beside the masters) or embedded")
	failoverAway   = flag.Duration("etcd-away", 0, "how long all of etcd is gone; 0: a minute, 5 s in the short form")
)

// TestSlavesSurvive measures what a reader on a slave sees when something happens to the master that it reads from: under
// constant publishing, on two kernel slaves, and prints the distribution of the worst pauses. No read may fail, be wrong or
// go back in time.
func TestSlavesSurvive(t *testing.T) {
	reps, etcdAway, via := 2, 5*time.Second, []string{viaRelay, viaDirect}
	if *failoverReps > 0 {
		reps, etcdAway = *failoverReps, time.Minute
	}
	if *failoverVia != "" {
		via = []string{*failoverVia}
	}
	if *failoverAway > 0 {
		etcdAway = *failoverAway
	}
	etcd, known := map[string]EtcdKind{"module": EtcdModule, "debian": EtcdDebian, "embedded": Embedded}[*failoverEtcd]
	if !known {
		t.Fatalf("-etcd %s: want module, debian or embedded", *failoverEtcd)
	}
	s := newSurvival(t, etcd, 2*time.Second, via...)
	defer s.finish()
	if *failoverReps > 0 {
		s.takePrecedence()
	}
	only := regexp.MustCompile(*failoverEvents)
	chosen := slices.DeleteFunc(events(etcdAway), func(e event) bool {
		return !only.MatchString(e.name) || e.name == etcdIsGone && etcd == Embedded // it goes with the masters only
	})
	for _, e := range chosen {
		n := reps
		if e.name == etcdIsGone && len(chosen) > 1 {
			n = max(1, reps/20) // a minute each
		}
		t.Logf("%s, %d times", e.name, n)
		for i := range n {
			s.repeat(e, i)
		}
	}
}
