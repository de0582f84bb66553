package master

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nfs-fleet/nfs-fleet/exporter/hello"
	"github.com/nfs-fleet/nfs-fleet/fleet"
)

// greeted is a greeting as an agent says it.
func greeted(name string, at time.Time) slaveSighting {
	return slaveSighting{
		Greeting: hello.Greeting{Slave: name, Mode: "relay", Instance: "i1", Version: "v1", Mounts: []hello.Mount{{Shard: "www"}}}, From: netip.MustParseAddrPort("10.77.0.100:700"), At: at,
	}
}

// recordOf is the record that the coordinator makes of a sighting.
func recordOf(t *testing.T, s slaveSighting) fleet.Slave {
	t.Helper()
	r, ok := s.report("m1")
	if !ok {
		t.Fatalf("%+v is of no slave", s)
	}
	return r.over(fleet.Slave{})
}

func TestWhoIsASlave(t *testing.T) {
	now := time.Now()
	for name, want := range map[string]string{
		"web17": "web17", "Web17.Prod": "web17.prod", "localhost": "", "localhost.localdomain": "", "": "", "(none)": "", "a/b": "",
	} {
		r, ok := greeted(name, now).report("m1")
		if ok != (want != "") || ok && r.Name != want {
			t.Errorf("%q: %q, %t, want %q", name, r.Name, ok, want)
		}
	}
	fuse := greeted("web17", now)
	if fuse.Mode = "fuse"; true {
		if _, ok := fuse.report("m1"); ok {
			t.Error("a mode that nobody knows was accepted")
		}
	}
	mapped := greeted("web17", now)
	mapped.From = netip.MustParseAddrPort("[::ffff:10.77.0.100]:700")
	if r, _ := mapped.report("m1"); r.Address != netip.MustParseAddr("10.77.0.100") {
		t.Errorf("address %s", r.Address)
	}
}

func TestWhatIsNews(t *testing.T) {
	now := time.Now()
	known := recordOf(t, greeted("web17", now))
	for what, tc := range map[string]struct {
		change func(*slaveSighting)
		news   bool
	}{
		"nothing":         {func(*slaveSighting) {}, false},
		"an hour":         {func(s *slaveSighting) { s.At = now.Add(time.Hour) }, false},
		"a day":           {func(s *slaveSighting) { s.At = now.Add(24 * time.Hour) }, true},
		"another address": {func(s *slaveSighting) { s.From = netip.MustParseAddrPort("10.77.0.101:700") }, true},
		"another port":    {func(s *slaveSighting) { s.From = netip.MustParseAddrPort("10.77.0.100:701") }, false},
		"another mode":    {func(s *slaveSighting) { s.Mode = "direct" }, true},
		"another start":   {func(s *slaveSighting) { s.Instance = "i2" }, true},
		"another version": {func(s *slaveSighting) { s.Version = "v2" }, true},
		"its own mount":   {func(s *slaveSighting) { *s = mountSighting("web17", "www", "/www", s.From.Addr(), now) }, false},
		"a mount, long after": {func(s *slaveSighting) {
			*s = mountSighting("web17", "www", "/www", s.From.Addr(), now.Add(48*time.Hour))
		}, true},
	} {
		s := greeted("web17", now)
		tc.change(&s)
		if r, ok := s.report("m1"); !ok || r.news(known) != tc.news {
			t.Errorf("%s: news %t, want %t", what, r.news(known), tc.news)
		}
	}
}

// ledgerOfSlaves is the fleet's records, in the hands of a test.
type ledgerOfSlaves struct {
	mu    sync.Mutex // guards what follows
	known map[string]fleet.Slave
	told  int // reports
}

func (l *ledgerOfSlaves) of(name string) (fleet.Slave, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.known[name]
	return s, ok
}

func (l *ledgerOfSlaves) enrol(reports []slaveReport, away *atomic.Bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told += len(reports)
	if away.Load() {
		return errors.New("nobody coordinates")
	}
	for _, r := range reports {
		l.known[r.Name] = r.over(l.known[r.Name])
	}
	return nil
}

// since returns how many reports there were since the last call.
func (l *ledgerOfSlaves) since() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer func() { l.told = 0 }()
	return l.told
}

func TestASlaveIsReportedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		records := &ledgerOfSlaves{known: map[string]fleet.Slave{}}
		b := newSlaveBook("m1", "10.77.0.1", 2049, records.of)
		ctx, cancel := context.WithCancel(t.Context())
		var away atomic.Bool
		ended := make(chan error, 1)
		go func() {
			ended <- b.run(ctx, func(_ context.Context, reports []slaveReport) error {
				return records.enrol(reports, &away)
			})
		}()
		greet := func(name, instance string, times int) {
			for range times {
				s := greeted(name, time.Now())
				s.Instance = instance
				b.seen(s)
				time.Sleep(500 * time.Millisecond)
			}
			synctest.Wait()
		}
		greet("web17", "i1", 240)
		if n := records.since(); n != 1 {
			t.Errorf("a slave that greets for two minutes was reported %d times", n)
		}
		for range 240 { // two hosts of one name
			greet("web17", "i2", 1)
			greet("web17", "i1", 1)
		}
		if n := records.since(); n == 0 || n > 5 {
			t.Errorf("two hosts of one name were reported %d times in four minutes", n)
		}
		away.Store(true)
		greet("web18", "i1", 240)
		if n := records.since(); n < 100 {
			t.Errorf("%d attempts in two minutes", n)
		}
		away.Store(false)
		time.Sleep(2 * reportRetry)
		synctest.Wait()
		if _, ok := records.of("web18"); !ok {
			t.Error("what could not be told was forgotten")
		}
		cancel()
		<-ended
	})
}

func TestSlavesInMindAreBounded(t *testing.T) {
	b := newSlaveBook("m1", "10.77.0.1", 2049, func(string) (fleet.Slave, bool) { return fleet.Slave{}, false })
	now := time.Now()
	at := func(name string, origin int, at time.Time) slaveSighting {
		s := greeted(name, at)
		s.From = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 77, 1, byte(origin)}), 700)
		return s
	}
	for i := range 2 * maxAtOrigin { // one machine, under ever new names
		b.seen(at(fmt.Sprint("x", i), 200, now))
	}
	if n := len(b.all(now)); n != maxAtOrigin {
		t.Errorf("%d of one address in mind, want %d", n, maxAtOrigin)
	}
	b.seen(at("x0", 201, now)) // has another address, and makes room
	b.seen(at("y", 200, now))
	b.seen(at("z", 200, now))
	if n := len(b.all(now)); n != maxAtOrigin+1 {
		t.Errorf("%d in mind after one has gone to another address", n)
	}
	for i := range maxHeard + 100 {
		b.seen(at(fmt.Sprint("s", i), i%100, now))
	}
	if len(b.all(now)) != maxHeard || len(b.news) != maxHeard {
		t.Errorf("%d in mind, %d to be told", len(b.all(now)), len(b.news))
	}
	b.seen(at("late", 200, now.Add(heardFor+time.Second)))
	if all := b.all(now.Add(heardFor + time.Second)); len(all) != 1 || all[0].Slave != "late" {
		t.Errorf("%d in mind after the others fell silent", len(all))
	}
	if len(b.origins) != 1 {
		t.Errorf("origins %v of one slave", b.origins)
	}
}

func TestReadsHere(t *testing.T) {
	b := newSlaveBook("m1", "10.77.0.1", 2049, nil)
	for to, want := range map[string]bool{"": true, "m1": true, "m1.masters.prod.example": true, "10.77.0.1:2049": true, "m2": false, "10.77.0.2:2049": false} {
		s := greeted("web17", time.Now())
		if s.Last.To = to; b.readsHere(s) != want {
			t.Errorf("last went to %q: reads here %t", to, !want)
		}
	}
}

// Who has left says so to its next master only: a slave counts as a reader while it is heard, not while it is kept in mind.
func TestReadersAreHeardNow(t *testing.T) {
	b := newSlaveBook("m1", "10.77.0.1", 2049, func(string) (fleet.Slave, bool) { return fleet.Slave{}, false })
	now := time.Now()
	b.seen(greeted("left", now.Add(-readingFor-time.Second)))
	b.seen(greeted("stays", now))
	elsewhere := greeted("elsewhere", now)
	elsewhere.Last.To = "m2"
	b.seen(elsewhere)
	if got := b.readers(now); len(got) != 1 || got[0].Slave != "stays" {
		t.Errorf("readers: %+v", got)
	}
	if all := b.all(now); len(all) != 3 {
		t.Errorf("%d in mind", len(all))
	}
}

func BenchmarkSeen(b *testing.B) {
	records := map[string]fleet.Slave{}
	book := newSlaveBook("m1", "10.77.0.1", 2049, func(name string) (fleet.Slave, bool) { s, ok := records[name]; return s, ok })
	s := greeted("web17", time.Now())
	r, _ := s.report("m1")
	records["web17"] = r.over(fleet.Slave{})
	b.ReportAllocs()
	for b.Loop() {
		book.seen(s)
	}
}

// An agent whose first mount is on its way, or was refused, greets already: it makes no slave of its host, and neither does
// the mount that it makes under the machine's name.
func TestNobodyIsEnrolledWithoutAMount(t *testing.T) {
	now := time.Now()
	records := map[string]fleet.Slave{}
	b := newSlaveBook("m1", "10.77.0.1", 2049, func(name string) (fleet.Slave, bool) { s, ok := records[name]; return s, ok })
	failed := greeted("web19", now)
	failed.Mounts = nil
	b.seen(failed)
	b.seen(mountSighting("host19", "www", "/www", failed.From.Addr(), now))
	if got := b.take(10, now); len(got) != 0 {
		t.Errorf("reported without a mount: %+v", got)
	}
	if got := b.readers(now); len(got) != 0 {
		t.Errorf("reads without a mount: %+v", got)
	}
	b.seen(mountSighting("plain", "www", "/www", netip.MustParseAddr("10.77.0.9"), now))
	b.seen(greeted("web19", now.Add(time.Second)))
	if got := b.take(10, now); len(got) != 2 {
		t.Errorf("with a mount: %+v", got)
	}
	// the agent is long gone: the next to mount from there is a slave by its machine's name
	b.seen(mountSighting("host19", "www", "/www", failed.From.Addr(), now.Add(heardFor+2*time.Second)))
	if got := b.take(10, now); len(got) != 1 || got[0].Name != "host19" {
		t.Errorf("after the agent: %+v", got)
	}
}

// When a slave was last heard of is remembered for as long as the fleet knows it, whatever its record says.
func TestWhenASlaveWasLastHeardOf(t *testing.T) {
	now := time.Now()
	records := map[string]fleet.Slave{"web18": {Name: "web18"}, "web17": {Name: "web17"}}
	b := newSlaveBook("m1", "10.77.0.1", 2049, func(name string) (fleet.Slave, bool) { s, ok := records[name]; return s, ok })
	for _, name := range []string{"web17", "web18", "stranger"} {
		b.seen(greeted(name, now))
	}
	if got := b.lastHeard(now); len(got) != 0 {
		t.Errorf("those that read here: %v", got)
	}
	unmounted := greeted("web17", now.Add(time.Second))
	unmounted.Mounts = nil
	b.seen(unmounted)
	if got := b.lastHeard(now.Add(time.Second)); len(got) != 1 || !got["web17"].Equal(now.Add(time.Second)) {
		t.Errorf("one has nothing mounted any more: %v", got)
	}
	for _, after := range []time.Duration{time.Minute, time.Hour, 6 * 24 * time.Hour} {
		if got := b.lastHeard(now.Add(after)); len(got) != 2 || !got["web18"].Equal(now) {
			t.Errorf("%s later: %v", after, got)
		}
	}
	b.seen(greeted("web18", now.Add(6*24*time.Hour)))
	if got := b.lastHeard(now.Add(8 * 24 * time.Hour)); len(got) != 1 || got["web18"].IsZero() {
		t.Errorf("one is back, one long gone: %v", got)
	}
	b.touch("web18", now.Add(8*24*time.Hour))
	if got := b.lastHeard(now.Add(8 * 24 * time.Hour)); !got["web18"].Equal(now.Add(8 * 24 * time.Hour)) {
		t.Errorf("touched: %v", got)
	}
}

// The fleet is told when a slave was last there: once, by its home, and only if it is not back by then.
func TestTheFleetIsToldThatASlaveIsSilent(t *testing.T) {
	now := time.Now()
	records := map[string]fleet.Slave{}
	for name, home := range map[string]string{"here": "m1", "back": "m1", "moved": "m2", "late": "m1"} {
		s := recordOf(t, greeted(name, now))
		s.Master = home
		records[name] = s
	}
	b := newSlaveBook("m1", "10.77.0.1", 2049, func(name string) (fleet.Slave, bool) { s, ok := records[name]; return s, ok })
	last := now.Add(time.Hour)
	for _, name := range []string{"here", "back", "moved", "late", "stranger"} {
		b.seen(greeted(name, last))
	}
	b.take(10, last) // the stranger
	later := last.Add(heardFor + time.Second)
	b.seen(greeted("late", later))
	b.sweep(later)
	b.seen(greeted("back", later))
	told := b.take(10, later.Add(time.Minute))
	if len(told) == 1 {
		b.again(told, later) // the coordinator was away
		told = b.take(10, later.Add(time.Minute))
	}
	if len(told) != 1 || told[0].Name != "here" || told[0].Silent != later.Add(time.Minute).Sub(last) {
		t.Errorf("told: %+v", told)
	}
	if b.sweep(later.Add(time.Hour)); len(b.take(10, later.Add(time.Hour))) != 2 {
		t.Error("those who went later are not told, or others again")
	}
}

// An agent that has one name mounted in both ways greets for each in turn. It is one slave, which does not change with every
// greeting, and both mounts are its.
func TestASlaveOfTwoModes(t *testing.T) {
	now := time.Now()
	records := map[string]fleet.Slave{}
	b := newSlaveBook("m1", "10.77.0.1", 2049, func(name string) (fleet.Slave, bool) { s, ok := records[name]; return s, ok })
	told := map[fleet.SlaveMode]int{}
	for i := range 600 { // five minutes
		s := greeted("web17", now.Add(time.Duration(i)*500*time.Millisecond))
		s.Mounts = []hello.Mount{{Shard: "www", Dir: "/relayed"}}
		if i%2 == 1 {
			s.Mode, s.Mounts = "direct", []hello.Mount{{Shard: "www", Dir: "/direct"}}
		}
		b.seen(s)
		for _, r := range b.take(10, now) {
			told[r.Mode]++
			records[r.Name] = r.over(records[r.Name])
		}
		if got := b.readers(s.At); i > 0 && (len(got) != 1 || got[0].Mode != "relay" || len(got[0].Mounts) != 2 || got[0].Mounts[0].Dir != "/relayed") {
			t.Fatalf("greeting %d: %+v", i, got)
		}
	}
	if told["relay"] != 1 || told["direct"] != 0 {
		t.Errorf("reported %v", told)
	}
	direct := greeted("web17", now.Add(time.Hour))
	direct.Mode = "direct"
	b.seen(direct)
	if got := b.readers(direct.At); len(got) != 1 || got[0].Mode != "direct" || len(got[0].Mounts) != 1 {
		t.Errorf("one mode is left: %+v", got)
	}
}
