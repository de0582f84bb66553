package resolve

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/relay"
)

func srv(priority, weight uint16, target string) *dns.SRV {
	return &dns.SRV{Priority: priority, Weight: weight, Target: target, Port: 2049}
}

func targetsOf(records []*dns.SRV) (out []string) {
	for _, r := range records {
		out = append(out, strings.TrimSuffix(r.Target, "."))
	}
	return out
}

func TestPrioritiesAreAnOrder(t *testing.T) {
	records := []*dns.SRV{srv(30, 0, "c."), srv(10, 5, "a."), srv(20, 100, "b."), srv(0, 0, ".")}
	for range 20 {
		if got := targetsOf(order(records, rand.IntN)); !slices.Equal(got, []string{"a", "b", "c"}) {
			t.Fatalf("order %v", got)
		}
	}
	if got := order([]*dns.SRV{srv(0, 0, ".")}, rand.IntN); len(got) != 0 {
		t.Errorf("a service that is not there is at %v", targetsOf(got))
	}
}

// Within a priority the chance to be first is in proportion to the weight; without weights it is equal.
func TestWeightsAreChances(t *testing.T) {
	const trials = 30000
	for _, c := range []struct {
		weights []uint16
		want    []float64 // in a hundred
	}{
		{[]uint16{0, 0, 0}, []float64{33, 33, 33}},
		{[]uint16{10, 30, 60}, []float64{10, 30, 60}},
		{[]uint16{0, 50, 50}, []float64{1, 49.5, 49.5}},
	} {
		rng := rand.New(rand.NewPCG(1, 2))
		firsts := make([]int, len(c.weights))
		var records []*dns.SRV
		for i, w := range c.weights {
			records = append(records, srv(10, w, string(rune('a'+i))+"."))
		}
		for range trials {
			got := order(records, rng.IntN)
			if len(got) != len(records) {
				t.Fatalf("%v: %d records", c.weights, len(got))
			}
			firsts[got[0].Target[0]-'a']++
		}
		for i, n := range firsts {
			if p := 100 * float64(n) / trials; p < c.want[i]-1.5 || p > c.want[i]+1.5 {
				t.Errorf("%v: %d is first %.1f times in a hundred, want %.1f", c.weights, i, p, c.want[i])
			}
		}
	}
}

func TestServers(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.1": "10.0.0.1:53", "10.0.0.1:5353": "10.0.0.1:5353", "fd00::1": "[fd00::1]:53", "[fd00::1]:5353": "[fd00::1]:5353",
		"m1.example": "m1.example:53", "m1.example:5353": "m1.example:5353", "[fd00::1]": "[fd00::1]:53",
		"": "", "a:b": "", "a:0": "", ":53": "", "a:99999": "", "http://a": "", "a b": "", "10.0.0.1:53:54": "",
	} {
		got, err := server(text)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
	}
}

func TestMasterName(t *testing.T) {
	for host, want := range map[string]string{
		"m1.masters.prod.example.": "m1", "a.b.masters.prod.example": "a.b", "filer.example.": "filer.example",
	} {
		if got := masterName(host); got != want {
			t.Errorf("%q: %q, want %q", host, got, want)
		}
	}
}

// nameServer answers on a loopback port, over UDP and TCP.
type nameServer struct{ addr string }

func startNameServer(t *testing.T, answer func(q dns.Question, tcp bool) *dns.Msg) *nameServer {
	t.Helper()
	n := &nameServer{}
	var pc net.PacketConn
	var ln net.Listener
	for ln == nil { // until both have the same port
		var err error
		if pc, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		n.addr = pc.LocalAddr().String()
		if ln, err = net.Listen("tcp", n.addr); err != nil {
			pc.Close()
		}
	}
	handle := func(w dns.ResponseWriter, q *dns.Msg) {
		if m := answer(q.Question[0], w.RemoteAddr().Network() == "tcp"); m != nil {
			m.SetRcode(q, m.Rcode)
			w.WriteMsg(m)
		}
	}
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: dns.HandlerFunc(handle)}, {Listener: ln, Handler: dns.HandlerFunc(handle)}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		done := make(chan error, 1)
		go func() { done <- s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			s.Shutdown()
			<-done
		})
	}
	return n
}

func rr(t *testing.T, text string) dns.RR {
	t.Helper()
	r, err := dns.NewRR(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const web17 = "_nfs._tcp.web17.slaves.prod.example"

// zone answers web17's order; masters' addresses come with it when glue is set.
func zone(t *testing.T, glue bool) func(dns.Question, bool) *dns.Msg {
	addrs := map[string][]dns.RR{
		"m1.masters.prod.example.": {rr(t, "m1.masters.prod.example. 5 A 10.0.0.1")},
		"m2.masters.prod.example.": {rr(t, "m2.masters.prod.example. 5 A 10.0.0.2"), rr(t, "m2.masters.prod.example. 5 AAAA fd00::2")},
	}
	return func(q dns.Question, tcp bool) *dns.Msg {
		m := new(dns.Msg)
		switch {
		case strings.EqualFold(q.Name, web17+"."):
			if !tcp && !glue { // it does not fit, for the test's sake
				m.Truncated = true
				return m
			}
			for i, p := range []int{2, 1} {
				m.Answer = append(m.Answer, rr(t, fmt.Sprintf("%s 5 SRV %d0 0 2049 m%d.masters.prod.example.", q.Name, i+1, p)))
			}
			if glue {
				m.Extra = slices.Concat(addrs["m2.masters.prod.example."], addrs["m1.masters.prod.example."])
			}
		case len(addrs[q.Name]) > 0:
			for _, a := range addrs[q.Name] {
				if a.Header().Rrtype == q.Qtype {
					m.Answer = append(m.Answer, a)
				}
			}
		default:
			m.Rcode = dns.RcodeNameError
		}
		return m
	}
}

var web17Targets = []relay.Target{
	{Name: "m2", Addr: netip.MustParseAddrPort("10.0.0.2:2049")}, {Name: "m2", Addr: netip.MustParseAddrPort("[fd00::2]:2049")},
	{Name: "m1", Addr: netip.MustParseAddrPort("10.0.0.1:2049")},
}

func TestMasters(t *testing.T) {
	for _, glue := range []bool{true, false} {
		n := startNameServer(t, zone(t, glue))
		got, err := Resolver{Servers: []string{n.addr}}.Masters(t.Context(), web17)
		if err != nil || !slices.Equal(got, web17Targets) {
			t.Errorf("glue %v: %v, %v", glue, got, err)
		}
		if _, err = (Resolver{Servers: []string{n.addr}}).Masters(t.Context(), "_nfs._tcp.nobody.example"); !errors.Is(err, ErrNoName) {
			t.Errorf("a name that is not there: %v", err)
		}
	}
	empty := startNameServer(t, func(dns.Question, bool) *dns.Msg { return new(dns.Msg) })
	if _, err := (Resolver{Servers: []string{empty.addr}}).Masters(t.Context(), web17); !errors.Is(err, ErrNoName) {
		t.Errorf("a name without masters: %v", err)
	}
}

// Of hundreds of masters the best are heeded, wherever they stand in the answer.
func TestTheBestOfManyMasters(t *testing.T) {
	n := startNameServer(t, func(q dns.Question, tcp bool) *dns.Msg {
		m := new(dns.Msg)
		if m.Truncated = !tcp; tcp {
			for i := range 200 {
				m.Answer = append(m.Answer, rr(t, fmt.Sprintf("%s 5 SRV %d 0 2049 m%d.masters.prod.example.", q.Name, 1000-i, i)))
				m.Extra = append(m.Extra, rr(t, fmt.Sprintf("m%d.masters.prod.example. 5 A 10.0.0.%d", i, i+1)))
			}
		}
		return m
	})
	got, err := Resolver{Servers: []string{n.addr}}.Masters(t.Context(), web17)
	if err != nil || len(got) != maxRecords || got[0].Name != "m199" || got[maxRecords-1].Name != "m168" {
		t.Errorf("%v, %v", got, err)
	}
}

// A name server that is silent, broken or gone costs a little time.
func TestADeadNameServerIsPassedOver(t *testing.T) {
	gone, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	silent := startNameServer(t, func(dns.Question, bool) *dns.Msg { return nil })
	broken := startNameServer(t, func(dns.Question, bool) *dns.Msg {
		return &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: dns.RcodeServerFailure}}
	})
	well := startNameServer(t, zone(t, true))
	gone.Close()
	began := time.Now()
	got, err := Resolver{Servers: []string{gone.LocalAddr().String(), broken.addr, silent.addr, well.addr}}.Masters(t.Context(), web17)
	if err != nil || !slices.Equal(got, web17Targets) {
		t.Errorf("%v, %v", got, err)
	}
	if took := time.Since(began); took > tryTime {
		t.Errorf("it took %s", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), stagger*3)
	defer cancel()
	_, err = Resolver{Servers: []string{silent.addr, broken.addr}}.Masters(ctx, web17)
	if err == nil || errors.Is(err, ErrNoName) || !strings.Contains(err.Error(), "SERVFAIL") {
		t.Errorf("nobody answers: %v", err)
	}
}

// Each name server is asked twice, and what is wrong with it is said once, without the ports of this host.
func TestAFailureIsSaidOnce(t *testing.T) {
	gone, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	refuses := startNameServer(t, func(dns.Question, bool) *dns.Msg { return &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: dns.RcodeRefused}} })
	_, err = Resolver{Servers: []string{gone.LocalAddr().String(), refuses.addr}}.Masters(t.Context(), web17)
	want := fmt.Sprintf("name server %s: read: connection refused\nname server %s answers REFUSED for %s", gone.LocalAddr(), refuses.addr, web17)
	if err == nil || err.Error() != want {
		t.Errorf("%v\nwant %s", err, want)
	}
}

// A domain that no name server answers for is told from one whose name servers are in trouble.
func TestARefusalByAll(t *testing.T) {
	saying := func(rcode int) string {
		return startNameServer(t, func(dns.Question, bool) *dns.Msg { return &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: rcode}} }).addr
	}
	refuses, also, broken := saying(dns.RcodeRefused), saying(dns.RcodeRefused), saying(dns.RcodeServerFailure)
	for _, c := range []struct {
		servers []string
		want    bool
	}{{[]string{refuses, also}, true}, {[]string{refuses, broken}, false}, {[]string{broken}, false}} {
		_, err := Resolver{Servers: c.servers}.Masters(t.Context(), web17)
		if err == nil || errors.Is(err, ErrRefused) != c.want || errors.Is(err, ErrNoName) {
			t.Errorf("%v: %v", c.servers, err)
		}
	}
}

// A resolver of the system that has no servers yet, as the machine starts, refuses everything: that is not said for good.
func TestARefusalByTheSystem(t *testing.T) {
	refused := verdict([]error{refusal{errors.New("name server 127.0.0.53:53 answers REFUSED")}})
	if err := (Resolver{Servers: []string{"10.0.0.1"}}).heed(refused); !errors.Is(err, ErrRefused) {
		t.Errorf("by name servers that were named: %v", err)
	}
	if err := (Resolver{}).heed(refused); err == nil || errors.Is(err, ErrRefused) || err.Error() != refused.Error() {
		t.Errorf("by the system's: %v", err)
	}
	if err := (Resolver{}).heed(ErrNoName); !errors.Is(err, ErrNoName) {
		t.Errorf("that a name is not there is said for good: %v", err)
	}
}

// A datagram that is lost is sent again.
func TestALostDatagram(t *testing.T) {
	answer := zone(t, true)
	var asked atomic.Int32
	n := startNameServer(t, func(q dns.Question, tcp bool) *dns.Msg {
		if asked.Add(1) == 1 {
			return nil
		}
		return answer(q, tcp)
	})
	if got, err := (Resolver{Servers: []string{n.addr}}).Masters(t.Context(), web17); err != nil || len(got) != 3 {
		t.Errorf("%v, %v", got, err)
	}
}

func TestTheSystemsNameServers(t *testing.T) {
	n := startNameServer(t, zone(t, true))
	host, _, err := net.SplitHostPort(n.addr)
	if err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("search example\nnameserver "+host+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Resolver{Config: conf}.servers()
	if err != nil || !slices.Equal(got, []string{host + ":53"}) {
		t.Errorf("%v, %v", got, err)
	}
	if err := os.WriteFile(conf, []byte("# none\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (Resolver{Config: conf}).servers(); err == nil || !strings.Contains(err.Error(), "dns=") {
		t.Errorf("no name server: %v", err)
	}
}

func TestHost(t *testing.T) {
	n := startNameServer(t, zone(t, true))
	r := Resolver{Servers: []string{n.addr}}
	for host, want := range map[string]string{"10.0.0.9": "[10.0.0.9]", "fd00::9": "[fd00::9]", "m2.masters.prod.example": "[10.0.0.2 fd00::2]"} {
		got, err := r.Host(t.Context(), host)
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("%s: %v, %v", host, got, err)
		}
	}
}
