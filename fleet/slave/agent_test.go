package slave

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/exporter"
	"github.com/nfs-fleet/nfs-fleet/exporter/hello"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/control"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/mounts"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/relay"
)

func TestAMountFollowsLivingMasters(t *testing.T) {
	m1, m2 := startMaster(t, "m1"), startMaster(t, "m2")
	order := []hello.Target{{Name: "m1", Host: "127.0.0.1", Port: m1.addr.Port()}, {Name: "m2", Host: "127.0.0.1", Port: m2.addr.Port()}}
	m1.say(hello.Answer{Targets: order, Revision: 1, Every: 100 * time.Millisecond})
	m2.say(hello.Answer{Targets: order, Revision: 1, Every: 100 * time.Millisecond})
	h := newHost(t)
	a := h.start()
	route, err := a.client.Route(t.Context(), want(m1, m2))
	if err != nil || route.Addr.Addr().String() != "127.0.0.1" || !slices.Contains(h.ports, route.Addr.Port()) {
		t.Fatalf("%+v, %v", route, err)
	}
	if err := call(route.Addr); err != nil {
		t.Fatal(err)
	}
	h.mount(mountAt(7, route, "/www", "/srv/www"), mountAt(8, route, "/www/sub", "/srv/sub"))
	await(t, "the master hears of the mounts", func() bool { return len(m1.lastHeard().Mounts) == 2 })
	g := m1.lastHeard()
	if g.Slave != "web17" || g.Mode != "relay" || g.Version != "1" || g.Instance == "" || g.Mounts[1] != (hello.Mount{Name: web17, Shard: "www", Dir: "/srv/sub"}) {
		t.Errorf("the greeting: %+v", g)
	}
	ms := mountsOf(t, a)
	if len(ms) != 2 || ms[1].Dir != "/srv/www" || ms[1].State != control.Reading || ms[1].At != m1.addr.String() || ms[1].Reattach != nil || ms[1].Since == "" {
		t.Errorf("mounts: %+v", ms)
	}

	m1.stop()
	await(t, "the other master is read from", func() bool {
		ms = mountsOf(t, a)
		return ms[0].At == m2.addr.String() && ms[0].State == control.Reading
	})
	if err := call(route.Addr); err != nil {
		t.Error(err)
	}
	if r := ms[0].Reattach; r == nil || r.To != "m2" || r.Planned || ms[0].Home != "m1" {
		t.Errorf("mounts: %+v, reattach %+v", ms, r)
	}
	await(t, "the master hears of the reattach", func() bool { return m2.lastHeard().Last.To == "m2" })

	h.mount(mountAt(8, route, "/www/sub", "/srv/sub"))
	await(t, "one is unmounted", func() bool { return len(mountsOf(t, a)) == 1 && len(m2.lastHeard().Mounts) == 1 })
}

// A slave is known to the fleet when it tells of a mount, so that it does so at once, however seldom it is to greet.
func TestAMountIsToldAtOnce(t *testing.T) {
	const seldom = 5 * time.Second
	m, h := startMaster(t, "m1"), newHost(t)
	m.say(hello.Answer{Every: seldom})
	a := h.start()
	route, err := a.client.Route(t.Context(), want(m))
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the agent knows how often to greet", func() bool { return m.hellos.Load() >= 2 })
	for _, table := range [][]mounts.Mount{{mountAt(7, route, "/www", "/srv/www")}, nil} {
		began := time.Now()
		h.mount(table...)
		await(t, "the master hears of it", func() bool { return len(m.lastHeard().Mounts) == len(table) })
		if took := time.Since(began); took > seldom/2 {
			t.Errorf("it hears of %d mounts after %s", len(table), took)
		}
	}
}

// A restart needs no remount: the port is the same, and never refuses; what the agent said is remembered.
func TestTheNextAgentGoesOn(t *testing.T) {
	m1, m2 := startMaster(t, "m1"), startMaster(t, "m2")
	h := newHost(t)
	a := h.start()
	route, err := a.client.Route(t.Context(), want(m1, m2))
	if err != nil {
		t.Fatal(err)
	}
	h.mount(mountAt(7, route, "/www", "/srv/www"))
	await(t, "the mount is known", func() bool { return len(mountsOf(t, a)) == 1 })
	m1.stop()
	await(t, "the other master is read from", func() bool { return mountsOf(t, a)[0].At == m2.addr.String() })
	reattach := mountsOf(t, a)[0].Reattach
	a.stop()

	waiting := make(chan error, 1)
	go func() { waiting <- call(route.Addr) }() // nobody accepts it yet, and it is not refused
	a = h.start()
	if err := <-waiting; err != nil {
		t.Errorf("a call between two agents: %v", err)
	}
	ms := mountsOf(t, a)
	if len(ms) != 1 || ms[0].Dir != "/srv/www" || ms[0].Addr != route.Addr.String() || ms[0].Slave != "web17" {
		t.Errorf("mounts: %+v", ms)
	}
	if got := ms[0].Reattach; got == nil || reattach == nil || *got != *reattach {
		t.Errorf("the last reattach was %+v and is %+v", reattach, got)
	}
}

// After a reboot a name has its port again, and is asked for anew: masters and mounts of before count for nothing.
func TestAfterAReboot(t *testing.T) {
	m1, m2 := startMaster(t, "m1"), startMaster(t, "m2")
	h := newHost(t)
	a := h.start()
	route, err := a.client.Route(t.Context(), want(m1))
	if err != nil {
		t.Fatal(err)
	}
	a.stop()
	h.lose()
	dir := filepath.Join(h.dir, "state")
	s, err := loadState(dir)
	if err != nil || len(s.Routes) != 1 || len(s.Routes[0].Order) != 1 {
		t.Fatalf("%+v, %v", s, err)
	}
	s.Boot = "the boot before"
	if err := errors.Join(s.save(dir), os.Remove(filepath.Join(h.dir, stateFile))); err != nil { // /run is empty after a boot
		t.Fatal(err)
	}
	m1.stop()
	a = h.start()
	if again, err := a.client.Route(t.Context(), want(m2)); err != nil || again.Addr != route.Addr {
		t.Errorf("%+v, %v; want %+v", again, err, route)
	}
	a.mu.Lock()
	r := a.routes[key{web17, control.Relay}]
	a.mu.Unlock()
	if c := r.record(); len(c.Order) != 1 || c.Order[0].Addr != m2.addr {
		t.Errorf("the order of before the boot counts: %+v", c)
	}
}

// Even without a state file and without its listeners an agent finds its way: by the mounts, and DNS or what it is told.
func TestAnAgentThatHasLostEverything(t *testing.T) {
	m, h, a, route := withOneMount(t)
	a.stop()
	h.lose()
	for _, dir := range []string{"state", "."} {
		if err := os.WriteFile(filepath.Join(h.dir, dir, stateFile), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a = h.start()
	await(t, "the agent says that it knows no masters", func() bool {
		ms := mountsOf(t, a)
		return len(ms) == 1 && ms[0].State == control.Searching && strings.Contains(ms[0].Why, "its masters are not known: ")
	})
	if again, err := a.client.Route(t.Context(), want(m)); err != nil || again.Addr != route.Addr {
		t.Errorf("%+v, %v; want %+v", again, err, route)
	}
	if err := call(route.Addr); err != nil {
		t.Error(err)
	}
}

// A route without a mount stops bothering masters, and wakes when something connects: a mount that the agent cannot see.
func TestARouteRests(t *testing.T) {
	m := startMaster(t, "m1")
	h := newHost(t)
	h.rest = 100 * time.Millisecond
	a := h.start()
	route, err := a.client.Route(t.Context(), want(m))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		await(t, "the route sleeps", func() bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			return a.routes[key{web17, control.Relay}].dormant()
		})
		n := m.hellos.Load()
		time.Sleep(3 * h.rest) // nothing happens meanwhile: that is what is tested
		if got := m.hellos.Load(); got != n {
			t.Errorf("%d greetings of a route that sleeps", got-n)
		}
		if err := call(route.Addr); err != nil {
			t.Error(err)
		}
	}
	conn, err := net.Dial("tcp", route.Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	await(t, "the invisible mount is told of", func() bool { ms := mountsOf(t, a); return len(ms) == 1 && ms[0].Dir == "" })
	await(t, "masters are told of it, too, which enrols the slave", func() bool {
		told := m.lastHeard().Mounts
		return len(told) == 1 && told[0] == (hello.Mount{Name: web17})
	})
}

func TestWhatIsWrongIsSaid(t *testing.T) {
	none, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	none.Close()
	refuses := startMaster(t, "m1")
	refuses.say(hello.Answer{Status: hello.Refused, Why: "another fleet's slave"})
	stranger := exporterWithoutHello(t)
	h := newHost(t)
	h.ports = h.ports[:1]
	a := h.start()
	for name, c := range map[string]struct {
		want control.Want
		kind error
		word string
	}{
		"no SRV name": {control.Want{Name: "filer"}, control.ErrInvalid, "no SRV name"},
		"no way":      {control.Want{Name: web17, Via: "magic"}, control.ErrInvalid, "magic"},
		"bad server":  {control.Want{Name: web17, DNS: []string{"a:b"}}, control.ErrInvalid, "name server"},
		"bad master":  {control.Want{Name: web17, Masters: []string{"a:b"}}, control.ErrInvalid, "master"},
		"nobody":      {control.Want{Name: web17, Masters: []string{none.Addr().String()}, Wait: 500 * time.Millisecond}, control.ErrNoMaster, "refused"},
		"no fleet":    {control.Want{Name: web17, Masters: []string{stranger}, Wait: 500 * time.Millisecond}, control.ErrNoMaster, "no nfs-fleet master"},
		"itself":      {control.Want{Name: web17, Masters: []string{fmt.Sprintf("127.0.0.1:%d", h.ports[0])}, Wait: 500 * time.Millisecond}, control.ErrNoMaster, "own relay"},
		"all of it":   {control.Want{Name: web17, Masters: []string{"0.0.0.0:2049"}, Wait: 500 * time.Millisecond}, control.ErrNoMaster, "no address of a master"},
		"no DNS":      {control.Want{Name: web17, DNS: []string{none.Addr().String()}, Wait: 500 * time.Millisecond}, control.ErrNoMaster, none.Addr().String()},
		"no port":     {control.Want{Name: "_nfs._tcp.other.example", Masters: []string{none.Addr().String()}, Wait: time.Second}, control.ErrNoPort, "in use"},
	} {
		if name == "no port" {
			h.mount(mountAt(7, control.Route{Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), h.ports[0])}, "/www", "/srv/www"))
			await(t, "a mount takes the only port", func() bool { return len(mountsOf(t, a)) == 1 })
		}
		_, err := a.client.Route(t.Context(), c.want)
		if name == "no port" {
			h.mount()
			await(t, "nothing is mounted", func() bool { return len(mountsOf(t, a)) == 0 })
		}
		if !errors.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.word) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// exporterWithoutHello starts an NFS server that is no master.
func exporterWithoutHello(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- exporter.New(exporter.Config{Logger: zerolog.Nop()}).Serve(ctx, ln) }()
	t.Cleanup(func() { cancel(); <-done })
	return ln.Addr().String()
}

func TestUnused(t *testing.T) {
	h := newHost(t)
	h.mount(mounts.Mount{ID: 1, Name: web17, Path: "/www", Dir: "/srv", Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), h.ports[0])})
	a := h.start()
	done := make(chan error, 1)
	go func() { done <- a.Unused(t.Context()) }()
	select {
	case err := <-done:
		t.Errorf("something is mounted: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	h.mount()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A state that was read is the one that was written; of another boot only names and ports count.
func TestState(t *testing.T) {
	dir := t.TempDir()
	target := relay.Target{Name: "m1", Addr: netip.MustParseAddrPort("10.0.0.1:2049")}
	s := state{Format: stateFormat, Boot: "b", Routes: []routeRecord{{
		Name: web17, Via: control.Relay, Port: 300, Told: []told{{Dir: "/d", DNS: []string{"d"}, Masters: []string{"m"}, Slave: "s", Seen: true}}, Order: []relay.Target{target},
		Last: relay.Change{At: time.Unix(5, 0).UTC(), Took: time.Second, From: target, To: target, Why: "w"}, Used: time.Unix(9, 0).UTC(),
	}}}
	if err := s.save(dir); err != nil {
		t.Fatal(err)
	}
	got, err := loadState(dir)
	if err != nil || !got.same(s) {
		t.Errorf("%+v, %v; want %+v", got, err, s)
	}
	got.Routes[0].Order = nil
	if got.same(s) {
		t.Error("other states are the same")
	}
	for _, broken := range []string{"{", `{"format": 99}`} {
		if err := os.WriteFile(filepath.Join(dir, stateFile), []byte(broken), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := loadState(dir); err == nil || len(got.Routes) != 0 {
			t.Errorf("%s: %+v, %v", broken, got, err)
		}
	}
	if got, err := loadState(t.TempDir()); err != nil || len(got.Routes) != 0 {
		t.Errorf("no state: %+v, %v", got, err)
	}
	if dir, err := stateDir("/proc/none", dir); err != nil || dir == "/proc/none" {
		t.Errorf("%s, %v", dir, err)
	}
	if _, err := stateDir("/proc/none"); err == nil {
		t.Error("/proc can be written to")
	}
}

func TestPortsArePickedByName(t *testing.T) {
	free := func(uint16) bool { return false }
	all := candidates(web17, 0, ports, free)
	if len(all) != len(ports) || !slices.Equal(all, candidates(web17, 0, ports, free)) {
		t.Errorf("%d candidates of %d", len(all), len(ports))
	}
	if got := candidates(web17, 342, ports, free); got[0] != 342 || len(got) != len(ports) {
		t.Errorf("the port that it had is not first: %v", got)
	}
	if got := candidates(web17, 0, ports, func(p uint16) bool { return p == all[0] }); got[0] != all[1] {
		t.Errorf("a port of another name is taken: %v", got)
	}
	for _, p := range ports {
		if p >= 665 {
			t.Errorf("port %d is the kernel's", p)
		}
	}
	if len(ports) < MaxRoutes {
		t.Errorf("%d ports for %d names", len(ports), MaxRoutes)
	}
}

func TestSplitMaster(t *testing.T) {
	for text, want := range map[string]string{"m1": "m1:2049", "m1:700": "m1:700", "10.0.0.1": "10.0.0.1:2049", "[fd00::1]:5": "fd00::1:5", "fd00::1": "fd00::1:2049"} {
		host, port, err := splitMaster(text)
		if got := fmt.Sprintf("%s:%d", host, port); err != nil || got != want {
			t.Errorf("%q: %s, %v", text, got, err)
		}
	}
	for _, text := range []string{"", ":1", "a:0", "a:b", "a b", "a:1:2"} {
		if host, port, err := splitMaster(text); err == nil {
			t.Errorf("%q: %s %d", text, host, port)
		}
	}
}
