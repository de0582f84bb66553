package e2e

import (
	"flag"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/e2e/nfs"
)

var soakTime = flag.Duration("soak", 0, "how long hostile clients and others are let loose on a master; 0: a few seconds")

// What a master may have gained, at most, when all hostile clients have gone: retained generations and their files, and what the
// runtime keeps for a while.
const (
	soakGoroutines = 10
	soakFiles      = 8
	soakSockets    = 4
	soakMiB        = 48
	soakPeakMiB    = 900
)

// notInALog is what says that something went wrong that a client has no power over.
var notInALog = regexp.MustCompile(`panic|"bug:|fatal error|goroutine \d+|concurrent map`)

// Clients that mean well are served, without an error or a wrong byte, while all kinds of hostile ones do their worst and new
// versions are published. When those have gone the master is what it was: it has lost no memory, goroutine or file to them.
func TestSoak(t *testing.T) {
	period, pace, clients := *soakTime, 2*time.Second, 6
	if period == 0 {
		period, pace = 10*time.Second, time.Second
	}
	tool := buildTool(t, "./hostile/nfshostile")
	s := startSoaked(t)
	s.mix(clients, min(period/5, 10*time.Second), pace)
	before := s.rested(t, burden{goroutines: 1 << 20, fds: 1 << 20, sockets: 1 << 20, rss: 1 << 20})
	t.Logf("before: %v", before)

	hostile := attackers{t: t}
	for _, kind := range []string{"never-reads", "dribble", "open", "hold", "half-sent", "records", "calls"} {
		hostile.attack(s, tool, kind)
	}
	hostile.attack(s, tool, "datagrams", "-at", s.portmap)
	hostile.attack(s, tool, "records", "-at", s.portmap)
	hostile.attack(s, tool, "http", "-at", s.HTTP)
	peak := s.mix(clients, period, pace)
	during, err := s.burden()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("at the end of it: %v; the peak was %.1f MiB", during, peak)
	for _, line := range hostile.retire() {
		t.Log(line)
	}
	allowed := before
	allowed.goroutines += soakGoroutines
	allowed.fds += soakFiles
	allowed.sockets += soakSockets
	allowed.rss += soakMiB
	after := s.rested(t, allowed)
	t.Logf("after: %v", after)
	t.Logf("those that mean well: %d visits of %d calls; the slowest call took %v, the slowest connection %v; %d versions published",
		s.visits, s.calls, s.worst, s.slowest, s.version.Load())
	if peak > soakPeakMiB {
		t.Errorf("%.1f MiB resident at the peak, want %d at the most", peak, soakPeakMiB)
	}
	if perSecond := float64(after.logged-before.logged) / period.Seconds(); perSecond > 20 {
		t.Errorf("%.0f lines of log a second", perSecond)
	}
	s.judge(t)
}

// rested waits until the master is what it is allowed to be, and returns what it is.
func (s *soaked) rested(t *testing.T, allowed burden) (b burden) {
	t.Helper()
	within := func() bool {
		return b.goroutines <= allowed.goroutines && b.fds <= allowed.fds && b.sockets <= allowed.sockets && b.rss <= allowed.rss && b.conns == 0
	}
	for end := time.Now().Add(90 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if s.proc.ended() {
			t.Fatalf("the master has ended:\n%s", s.log.tail(60))
		}
		var err error
		if b, err = s.burden(); err == nil && within() {
			return b
		}
	}
	t.Errorf("it is left with %v; allowed was %v", b, allowed)
	return b
}

// judge demands that nobody who means well saw anything wrong.
func (s *soaked) judge(t *testing.T) {
	t.Helper()
	for i, w := range s.wrong {
		if i < 20 {
			t.Errorf("a client that means well: %s", w)
		}
	}
	if s.visits == 0 {
		t.Error("nobody was served")
	}
	s.judgeLog(t)
}

// judgeLog demands that the master has said nothing of what must not happen.
func (s *soaked) judgeLog(t *testing.T) {
	t.Helper()
	for line := range strings.Lines(s.log.String()) {
		if notInALog.MatchString(line) {
			t.Errorf("in the log: %s", clip(line))
			break
		}
	}
}

// A thousand connections that have made a call and are at rest are no burden.
func TestIdleConnectionsCostLittle(t *testing.T) {
	const conns, most = 1000, 20 // KiB each
	s := startSoaked(t)
	s.mix(2, 2*time.Second, time.Second)
	before := s.rested(t, burden{goroutines: 1 << 20, fds: 1 << 20, sockets: 1 << 20, rss: 1 << 20})
	for range conns {
		c, err := nfs.Dial(t.Context(), (&net.Dialer{}).DialContext, s.NFS, soakLimit)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Null(); err != nil {
			t.Fatal(err)
		}
	}
	after, err := s.burden()
	if err != nil {
		t.Fatal(err)
	}
	each := (after.rss - before.rss) * 1024 / conns
	t.Logf("%d connections at rest: %.1f KiB each (%.1f MiB resident before, %.1f after)", after.conns, each, before.rss, after.rss)
	if after.conns < conns || each > most {
		t.Errorf("%d connections at %.1f KiB each, want %d at %d KiB at the most", after.conns, each, conns, most)
	}
}
