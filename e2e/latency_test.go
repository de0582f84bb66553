package e2e

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// What a client that means well asks for, one call at a time: a row of package load's operations.
var latencyCalls = []struct{ name, args string }{
	{"GETATTR", "getattr 1 1 SECONDS " + stampFile},
	{"READ 4 KiB", "randread 1 1 SECONDS " + bigFile + ":4096"},
}

// latencyBound is how much longer than in quiet the slowest hundredth of such a client's calls may take beside a hostile one. The
// short form, which runs on machines that are busy with other tests, only finds what is out of all proportion.
func latencyBound() (ratio float64, slack time.Duration) {
	if *soakTime > 0 {
		return 2, 0
	}
	return 10, 20 * time.Millisecond
}

// A client that means well hardly notices a hostile one: the slowest of a hundred calls takes at most twice as long as in quiet.
// What a hostile client takes from the machine is not the server's doing: beside each it is also measured what the same client
// costs while it is after another server, which does nothing but let it in.
func TestHostileClientsCostLittle(t *testing.T) {
	windows, seconds := 3, "0.15"
	if *soakTime > 0 {
		windows, seconds = 7, "0.3"
	}
	hostile, load := buildTool(t, "./hostile/nfshostile"), buildTool(t, "./load/nfsload")
	s := startSoaked(t)
	bystander := listenIdly(t)
	measure := func(into map[string][]time.Duration) {
		for _, c := range latencyCalls {
			argv := append([]string{load, "-each", s.url("www")}, strings.Fields(strings.ReplaceAll(c.args, "SECONDS", seconds))...)
			r, err := run(nil, time.Minute, nil, argv...)
			if err != nil || r.Code != 0 {
				t.Fatalf("%s: %v %v", c.name, r, err)
			}
			into[c.name] = append(into[c.name], time.Duration(keyed(r.Stdout, "p99_us"))*time.Microsecond)
		}
	}
	attacked := func(into map[string][]time.Duration, kind string, flags ...string) (perCall float64) {
		a := attackers{t: t}
		a.attack(s, hostile, kind, flags...)
		time.Sleep(300 * time.Millisecond) // it has begun; when, it does not say
		measure(into)
		before, err := s.burden()
		time.Sleep(300 * time.Millisecond) // of the server's time, all is spent on the hostile client
		after, err2 := s.burden()
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		a.retire()
		return (after.processor - before.processor) / 0.3
	}
	for _, kind := range []string{"never-reads", "dribble", "open"} {
		quiet, beside, elsewhere := map[string][]time.Duration{}, map[string][]time.Duration{}, map[string][]time.Duration{}
		var spent []float64
		for range windows {
			measure(quiet)
			spent = append(spent, attacked(beside, kind))
			attacked(elsewhere, kind, "-at", bystander)
		}
		for _, c := range latencyCalls {
			q, b, e := middle(quiet[c.name]), middle(beside[c.name]), middle(elsewhere[c.name])
			t.Logf("| %-11s | %-10s | p99 %8v quiet | %8v beside it: %.2f | %8v while it is after another server: %.2f | %.0f%% of a processor is what the server spends on it |",
				kind, c.name, q, b, float64(b)/float64(q), e, float64(e)/float64(q), 100*middle(spent))
			if ratio, slack := latencyBound(); float64(b) > ratio*float64(max(q, e))+float64(slack) {
				t.Errorf("beside a client of kind %s the slowest of a hundred %s takes %v, %v in quiet", kind, c.name, b, q)
			}
		}
	}
	s.judgeLog(t)
}

func middle[T int64 | float64 | time.Duration](all []T) T {
	slices.Sort(all)
	return all[len(all)/2]
}

// listenIdly returns the address of a server that lets everybody in and takes what it is sent.
func listenIdly(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with its client
				defer c.Close()
				_, _ = io.Copy(io.Discard, c) // whatever ends it
			}()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return fmt.Sprint(l.Addr())
}
