package slave

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/control"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/mounts"
)

// The state is kept twice: an agent whose file was removed or broken knows what its mounts were told, by the copy in its run
// directory; and one that goes missing while an agent runs is written again.
func TestALostStateIsKeptTwice(t *testing.T) {
	m, h, a, _ := withOneMount(t)
	for _, lost := range []string{"state", "."} {
		a.stop()
		h.lose()
		if err := os.WriteFile(filepath.Join(h.dir, lost, stateFile), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		a = h.start()
		await(t, "the master is read from", func() bool { ms := mountsOf(t, a); return len(ms) == 1 && ms[0].At == m.addr.String() })
	}
	if err := os.RemoveAll(filepath.Join(h.dir, "state", stateFile)); err != nil {
		t.Fatal(err)
	}
	a.save()
	if s, err := loadState(filepath.Join(h.dir, "state")); err != nil || len(s.Routes) != 1 || s.Routes[0].Called != "web17" {
		t.Errorf("what was removed is not written again: %+v, %v", s, err)
	}
}

// Of two copies the later one of this start of the machine counts, whichever directory has it.
func TestTheLaterStateCounts(t *testing.T) {
	copyOf := func(boot string, saved uint64) state { return state{Format: stateFormat, Boot: boot, Saved: saved} }
	for _, c := range []struct{ first, second, want state }{
		{copyOf("now", 3), copyOf("now", 7), copyOf("now", 7)}, // the first could not be written any more
		{copyOf("now", 7), copyOf("now", 3), copyOf("now", 7)},
		{copyOf("before", 9), copyOf("now", 1), copyOf("now", 1)},
		{copyOf("now", 1), copyOf("before", 9), copyOf("now", 1)},
		{copyOf("before", 3), copyOf("before", 4), copyOf("before", 4)},
	} {
		dirs := []string{t.TempDir(), t.TempDir()}
		if err := errors.Join(c.first.save(dirs[0]), c.second.save(dirs[1])); err != nil {
			t.Fatal(err)
		}
		if got, err := latest("now", dirs); err != nil || got.Boot != c.want.Boot || got.Saved != c.want.Saved {
			t.Errorf("%+v and %+v: %+v, %v", c.first, c.second, got, err)
		}
	}
}

// A directory that cannot be written to leaves the other's copy as the later one, and does not have it written again and again.
func TestOneDirectoryFails(t *testing.T) {
	good, bad := t.TempDir(), filepath.Join(t.TempDir(), "gone")
	a := New(Config{Logger: zerolog.Nop()})
	a.dirs = []string{bad, good}
	saved := func(dir string) uint64 {
		s, err := loadState(dir)
		if err != nil {
			t.Fatal(err)
		}
		return s.Saved
	}
	a.save()
	first := saved(good)
	a.save()
	if n := saved(good); n != first || n == 0 {
		t.Errorf("what had not changed was saved as %d and again as %d", first, n)
	}
	if err := os.Mkdir(bad, 0o700); err != nil {
		t.Fatal(err)
	}
	a.save()
	if n := saved(bad); n <= first || saved(good) != first {
		t.Errorf("as soon as it can be it is written: %d and %d", n, saved(good))
	}
}

// A mount via direct whose agent has lost its state begins with the address that the kernel has.
func TestDirectBeginsWithTheKernelsAddress(t *testing.T) {
	m := startMaster(t, "m1")
	r := newRoute(New(Config{DNS: []string{"127.0.0.1:1"}, Logger: zerolog.Nop()}), key{web17, control.Direct}, routeRecord{})
	if targets, err := r.discover(t.Context()); err == nil {
		t.Fatalf("without DNS and a mount: %v", targets)
	}
	r.mounts = []mounts.Mount{{Name: web17, Path: "/www", Dir: "/srv/www", Addr: m.addr}}
	if targets, err := r.discover(t.Context()); err != nil || len(targets) != 1 || targets[0].Addr != m.addr {
		t.Errorf("%v, %v", targets, err)
	}
}

// An agent that is given another name says that it takes its mounts along.
func TestAnotherNameIsSaid(t *testing.T) {
	var log bytes.Buffer
	a := New(Config{Name: "web18", Logger: zerolog.New(&log)})
	k := key{"_nfs._tcp.prod.example", control.Relay}
	newRoute(a, k, routeRecord{Called: "web18"})
	if log.Len() > 0 {
		t.Errorf("the same name: %s", &log)
	}
	newRoute(a, k, routeRecord{Called: "web17"})
	if s := log.String(); !strings.Contains(s, "web17") || !strings.Contains(s, "web18") {
		t.Errorf("another name: %q", s)
	}
}

// A domain that all name servers refuse is an error after a moment, not when all time is up.
func TestADomainThatNobodyAnswersFor(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeRefused)) //nolint:errcheck // whoever asked asks again
	})}
	ended := make(chan error, 1)
	go func() { ended <- server.ActivateAndServe() }()
	t.Cleanup(func() { pc.Close(); <-ended })
	a := newHost(t).start()
	began := time.Now()
	_, err = a.client.Route(t.Context(), control.Want{Name: web17, DNS: []string{pc.LocalAddr().String()}, Wait: 30 * time.Second})
	if !errors.Is(err, control.ErrNoName) || !strings.Contains(err.Error(), "answers REFUSED for "+web17) {
		t.Errorf("%v", err)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("it took %v to say so", took)
	}
}
