package slave

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/control"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/mounts"
)

// paperDNS is a name server that lists masters under web17 and knows no other name.
type paperDNS struct {
	addr   string
	asked  atomic.Int64
	listed atomic.Pointer[[]*paperMaster]
}

func startDNS(t *testing.T, listed ...*paperMaster) *paperDNS {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &paperDNS{addr: pc.LocalAddr().String()}
	d.listed.Store(&listed)
	server := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		d.asked.Add(1)
		w.WriteMsg(d.answer(q)) //nolint:errcheck // whoever asked asks again
	})}
	ended := make(chan error, 1)
	go func() { ended <- server.ActivateAndServe() }()
	t.Cleanup(func() { pc.Close(); <-ended })
	return d
}

func (d *paperDNS) answer(q *dns.Msg) *dns.Msg {
	if q.Question[0].Name != dns.Fqdn(web17) {
		return new(dns.Msg).SetRcode(q, dns.RcodeNameError)
	}
	a := new(dns.Msg).SetReply(q)
	for i, m := range *d.listed.Load() {
		host := dns.Fqdn(m.name + ".masters.prod.example")
		a.Answer = append(a.Answer, &dns.SRV{
			Hdr:      dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeSRV, Class: dns.ClassINET},
			Priority: uint16(i), Port: m.addr.Port(), Target: host,
		})
		a.Extra = append(a.Extra, &dns.A{Hdr: dns.RR_Header{Name: host, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: m.addr.Addr().AsSlice()})
	}
	return a
}

// silentDNS is the address of a name server that says nothing.
func silentDNS(t *testing.T) string {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	return pc.LocalAddr().String()
}

// mounted asks for a route and mounts by it.
func (h *host) mounted(a *running, id int, dir string, w control.Want) mounts.Mount {
	h.t.Helper()
	w.Name, w.Dir, w.Wait = web17, dir, 10*time.Second
	route, err := a.client.Route(h.t.Context(), w)
	if err != nil {
		h.t.Fatal(err)
	}
	m := mountAt(id, route, "/www", dir)
	h.mu.Lock()
	table := append(slices.Clone(h.table), m)
	h.mu.Unlock()
	h.mount(table...)
	await(h.t, "the mount is known", func() bool { return len(mountsOf(h.t, a)) == len(table) })
	return m
}

func reads(t *testing.T, a *running, m *paperMaster) func() bool {
	return func() bool {
		ms := mountsOf(t, a)
		return len(ms) > 0 && ms[0].State == control.Reading && ms[0].At == m.addr.String()
	}
}

// A mount that names a dead name server, whether it fails or not, takes nothing from another by the same name: that one finds its
// masters by its own name server, also where they are new.
func TestAMountDoesNotHarmAnother(t *testing.T) {
	m1, m2 := startMaster(t, "m1"), startMaster(t, "m2")
	good, dead := startDNS(t, m1), silentDNS(t)
	h := newHost(t)
	a := h.start()
	h.mounted(a, 7, "/srv/www", control.Want{DNS: []string{good.addr}})
	h.mounted(a, 8, "/srv/second", control.Want{DNS: []string{dead}})
	if ms := mountsOf(t, a); !slices.Equal(ms[0].DNS, []string{dead, good.addr}) {
		t.Errorf("name servers after a second mount: %v", ms[0].DNS)
	}

	since := mountsOf(t, a)[0].Since
	m1.stop()
	await(t, "the master is lost", func() bool { return mountsOf(t, a)[0].State == control.Searching })
	w := control.Want{Name: web17, Dir: "/srv/n", DNS: []string{silentDNS(t)}, Wait: time.Second}
	if _, err := a.client.Route(t.Context(), w); !errors.Is(err, control.ErrNoMaster) {
		t.Errorf("a mount without masters: %v", err)
	}
	if ms := mountsOf(t, a); !slices.Equal(ms[0].DNS, []string{dead, good.addr}) || !slices.Equal(ms[0].Order, []string{"m1"}) {
		t.Errorf("a mount that failed has left %v, order %v", ms[0].DNS, ms[0].Order)
	}
	if ms := mountsOf(t, a); !strings.Contains(ms[0].Why, m1.name+" ") || ms[0].Since == since {
		t.Errorf("nobody answers since %q, before %q: %q", ms[0].Since, since, ms[0].Why)
	}
	good.listed.Store(&[]*paperMaster{m2})
	await(t, "the new master is found by the first mount's name server", reads(t, a, m2))
}

// What a mount was told goes with it; and while masters were named by others, DNS is asked all the same.
func TestWhatAMountWasToldGoesWithIt(t *testing.T) {
	m1, m2 := startMaster(t, "m1"), startMaster(t, "m2")
	good := startDNS(t, m1)
	h := newHost(t)
	a := h.start()
	first := h.mounted(a, 7, "/srv/www", control.Want{DNS: []string{good.addr}})
	h.mounted(a, 8, "/srv/y", control.Want{Masters: []string{m1.addr.String()}, Slave: "other"})
	a.stop() // the next agent knows it, too
	a = h.start()
	await(t, "the mounts are known", func() bool { return len(mountsOf(t, a)) == 2 })
	good.listed.Store(&[]*paperMaster{m2})
	m1.stop()
	await(t, "DNS is asked besides", reads(t, a, m2))

	h.mount(first)
	await(t, "one is unmounted", func() bool { ms := mountsOf(t, a); return len(ms) == 1 && ms[0].Slave == "web17" })
	a.mu.Lock()
	r := a.routes[key{web17, control.Relay}]
	a.mu.Unlock()
	if rec := r.record(); len(rec.Told) != 1 || rec.Told[0].Dir != "/srv/www" {
		t.Errorf("what was unmounted is still known: %+v", rec.Told)
	}
}

// Mounting again at the same directory tells a mount that hangs where its masters are, even when none answers yet.
func TestMountingAgainTells(t *testing.T) {
	m1, m2 := startMaster(t, "m1"), startMaster(t, "m2")
	m2.stop()
	h := newHost(t)
	a := h.start()
	h.mounted(a, 7, "/srv/www", control.Want{Masters: []string{m1.addr.String()}})
	m1.stop()
	await(t, "the master is lost", func() bool { return mountsOf(t, a)[0].State == control.Searching })
	w := control.Want{Name: web17, Dir: "/srv/www", DNS: []string{startDNS(t, m2).addr}, Wait: 100 * time.Millisecond}
	if _, err := a.client.Route(t.Context(), w); !errors.Is(err, control.ErrNoMaster) {
		t.Errorf("nobody answers: %v", err)
	}
	m2.start()
	await(t, "the master is found that serves", reads(t, a, m2))
}

// Names that do not exist leave nothing: they are not asked for any more, and do not keep others out.
func TestNamesThatFailAreLetGo(t *testing.T) {
	m := startMaster(t, "m1")
	d := startDNS(t, m)
	h := newHost(t)
	for len(h.ports) < MaxRoutes+2 {
		ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(h.ports, portOf(ln)) {
			h.ports = append(h.ports, portOf(ln))
		}
		ln.Close()
	}
	a := h.start()
	for i := range 2 * MaxRoutes {
		w := control.Want{Name: fmt.Sprintf("_nfs._tcp.typo%d.example", i), Dir: "/srv/x", DNS: []string{d.addr}, Wait: 10 * time.Second}
		if _, err := a.client.Route(t.Context(), w); !errors.Is(err, control.ErrNoName) {
			t.Fatalf("name %d: %v", i, err)
		}
	}
	h.mounted(a, 7, "/srv/www", control.Want{DNS: []string{d.addr}})
	await(t, "all others sleep", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		for k, r := range a.routes {
			if k.name != web17 && !r.dormant() {
				return false
			}
		}
		return true
	})
	asked := d.asked.Load()
	time.Sleep(1500 * time.Millisecond) // nothing happens meanwhile: that is what is tested
	if n := d.asked.Load() - asked; n > 0 {
		t.Errorf("%d questions about names that are not mounted", n)
	}
}

// A route that was made ready for a mount that the kernel then refused is let go, unless something else is mounted by it.
func TestARouteIsReleased(t *testing.T) {
	m := startMaster(t, "m1")
	h := newHost(t)
	a := h.start()
	w := control.Want{Name: web17, Dir: "/srv/n", Masters: []string{m.addr.String()}, Wait: 10 * time.Second}
	if _, err := a.client.Route(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	a.mu.Lock()
	r := a.routes[key{web17, control.Relay}]
	a.mu.Unlock()
	if err := a.client.Release(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	await(t, "the route sleeps", r.dormant)
	h.mounted(a, 7, "/srv/www", control.Want{Masters: w.Masters, DNS: []string{"127.0.0.1:1"}})
	if _, err := a.client.Route(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	if err := a.client.Release(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	if rec := r.record(); r.dormant() || len(rec.Told) != 1 || rec.Told[0].Dir != "/srv/www" {
		t.Errorf("it sleeps: %v; told %+v", r.dormant(), rec.Told)
	}
}

// Whom a route asks for its masters: every mount's own name servers, those of the agent, and masters that were named, which
// are never the only ones where there are name servers.
func TestSources(t *testing.T) {
	for name, c := range map[string]struct {
		agent   []string
		told    []*told
		groups  [][]string
		masters []string
	}{
		"nothing":           {nil, nil, [][]string{nil}, nil},
		"the agent's":       {[]string{"x"}, nil, [][]string{{"x"}}, nil},
		"two mounts":        {nil, []*told{{DNS: []string{"b"}}, {DNS: []string{"a"}}}, [][]string{{"b"}, {"a"}}, nil},
		"the same twice":    {nil, []*told{{DNS: []string{"a"}}, {DNS: []string{"a"}}}, [][]string{{"a"}}, nil},
		"only masters":      {nil, []*told{{Masters: []string{"m"}}}, nil, []string{"m"}},
		"masters, besides":  {[]string{"x"}, []*told{{Masters: []string{"m"}}}, [][]string{{"x"}}, []string{"m"}},
		"one of each":       {nil, []*told{{Masters: []string{"m"}}, {}}, [][]string{nil}, []string{"m"}},
		"both of one mount": {nil, []*told{{Masters: []string{"m"}, DNS: []string{"a"}}}, [][]string{{"a"}}, []string{"m"}},
	} {
		r := newRoute(New(Config{DNS: c.agent, Logger: zerolog.Nop()}), key{web17, control.Relay}, routeRecord{})
		r.told = c.told
		groups, masters := r.sources()
		if !slices.EqualFunc(groups, c.groups, slices.Equal[[]string]) || !slices.Equal(masters, c.masters) {
			t.Errorf("%s: %q, %q", name, groups, masters)
		}
	}
}

// What a route is told is bounded, whatever commands do.
func TestWhatIsToldIsBounded(t *testing.T) {
	r := newRoute(New(Config{Logger: zerolog.Nop()}), key{web17, control.Relay}, routeRecord{})
	for i := range 3 * maxTold {
		r.done(r.want(control.Want{Dir: fmt.Sprint("/srv/", i)}), true)
	}
	if len(r.told) != maxTold {
		t.Errorf("%d mounts that were not made", len(r.told))
	}
	r.mounted([]mounts.Mount{{Name: web17, Dir: "/srv/www", Addr: netip.MustParseAddrPort("127.0.0.1:300")}})
	for i := range 10 {
		r.done(r.want(control.Want{Dir: "/srv/www", DNS: []string{fmt.Sprint("10.0.0.", i)}}), i%2 == 0)
	}
	of := slices.DeleteFunc(slices.Clone(r.told), func(t *told) bool { return t.Dir != "/srv/www" })
	if len(of) != maxPerDir || of[0].DNS[0] != "10.0.0.9" {
		t.Errorf("told at one directory: %+v", of)
	}
}
