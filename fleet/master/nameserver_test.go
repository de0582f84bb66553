package master

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/nfs-fleet/nfs-fleet/election/etcdtest"
	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

// resolve asks a master a question.
func (r *running) resolve(network, name string, qtype uint16) (*dns.Msg, error) {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), qtype)
	m.SetEdns0(1232, false)
	c := dns.Client{Net: network, Timeout: 5 * time.Second}
	reply, _, err := c.Exchange(m, r.cfg.Listen.DNS)
	return reply, err
}

// records asks a master until ok accepts the answer's records, each as "NAME TYPE DATA".
func (r *running) records(what, name string, qtype uint16, ok func([]string) bool) {
	r.Helper()
	var got []string
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		var reply *dns.Msg
		if reply, err = r.resolve("udp", name, qtype); err != nil {
			continue
		}
		got = nil
		for _, rr := range reply.Answer {
			data := strings.Fields(rr.String())
			got = append(got, strings.Join(append([]string{data[0]}, data[3:]...), " "))
		}
		if ok(got) {
			return
		}
	}
	r.Fatalf("%s: %s is answered %q, %v", what, name, got, err)
}

// severalWithDNS is a fleet of masters that answer DNS questions. m1 alone is set to a domain.
func severalWithDNS(t *testing.T, names ...string) (map[string]*running, *etcdtest.Server) {
	t.Helper()
	return severalWith(t, func(c *Config) {
		if c.Listen.DNS = etcdtest.FreeAddress(); c.Name == "m1" {
			c.Domain = "prod.example"
		}
	}, names...)
}

func TestEveryMasterAnswersDNS(t *testing.T) {
	all, server := severalWithDNS(t, "m1", "m2", "m3")
	all["m1"].until("three masters serving", inStep(3, 1))
	const service, slave = "_nfs._tcp.prod.example.", "_nfs._tcp.web17.slaves.prod.example."
	srv := func(owner string, priority, weight int, master string) string {
		return fmt.Sprintf("%s SRV %d %d %d %s.masters.prod.example.", owner, priority, weight, port(t, all[master].cfg.Listen.NFS), master)
	}
	want := []string{srv(service, 10, 33, "m1"), srv(service, 10, 33, "m2"), srv(service, 10, 33, "m3")}
	slices.Sort(want)
	everybody := func(got []string) bool { return slices.Equal(slices.Sorted(slices.Values(got)), want) }
	var order []string // of the slave; all masters must say the same
	for name, m := range all {
		m.records("all masters on "+name, service, dns.TypeSRV, everybody)
		m.records("the order on "+name, slave, dns.TypeSRV, func(got []string) bool {
			if order == nil && len(got) == 3 {
				order = got
			}
			return len(got) == 3 && slices.Equal(got, order)
		})
		m.records("an address on "+name, "m2.masters.prod.example.", dns.TypeA, func(got []string) bool {
			return slices.Equal(got, []string{"m2.masters.prod.example. A 127.0.0.1"})
		})
	}
	m1 := all["m1"]
	for _, tc := range []struct {
		name  string
		qtype uint16
		rcode int
	}{
		{"m2.masters.prod.example", dns.TypeAAAA, dns.RcodeSuccess}, // NODATA
		{"m9.masters.prod.example", dns.TypeA, dns.RcodeNameError},
		{"www.example", dns.TypeA, dns.RcodeRefused},
		{"prod.example", dns.TypeSOA, dns.RcodeSuccess},
	} {
		reply, err := m1.resolve("tcp", tc.name, tc.qtype)
		if err != nil || reply.Rcode != tc.rcode {
			t.Errorf("%s %s: %v, %v", tc.name, dns.TypeToString[tc.qtype], reply, err)
		}
	}
	st := m1.until("a status", func(console.Status) bool { return true })
	if st.DNS.Domain != "prod.example" || st.DNS.Address != m1.cfg.Listen.DNS || st.DNS.Error != "" {
		t.Errorf("status: %+v", st.DNS)
	}

	// A drained master is not told of, and one that is undrained is again.
	if err := m1.client.Drain(t.Context(), "m2", console.DrainRequest{}); err != nil {
		t.Fatal(err)
	}
	m1.records("m2 drained", service, dns.TypeSRV, func(got []string) bool {
		return len(got) == 2 && !strings.Contains(strings.Join(got, " "), "m2.masters")
	})
	etcd := server.Dial(t)
	said := func(state fleet.MasterState) {
		key := fleet.KeysOf(m1.cfg.Fleet).Master("m2")
		m1.until("m2 "+string(state), func(console.Status) bool {
			resp, err := etcd.Get(t.Context(), key)
			return err == nil && len(resp.Kvs) == 1 && strings.Contains(string(resp.Kvs[0].Value), `"state":"`+string(state)+`"`)
		})
	}
	said(fleet.Draining)
	if err := m1.client.Undrain(t.Context(), "m2"); err != nil {
		t.Fatal(err)
	}
	said(fleet.Serving)
	for name, m := range all {
		m.records("m2 undrained, "+name, service, dns.TypeSRV, everybody)
	}

	// All of etcd goes; what was known goes on being told.
	server.Stop()
	m1.until("etcd gone", func(s console.Status) bool { return !s.Etcd.Healthy })
	for name, m := range all {
		m.records("without etcd, "+name, service, dns.TypeSRV, everybody)
	}
}

func port(t *testing.T, address string) int {
	t.Helper()
	a, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return a.Port
}

// Masters that are set to different domains answer for their own, and say so.
func TestMastersOfDifferentDomains(t *testing.T) {
	all, server := severalWithDNS(t, "m1")
	c := testConfig(t)
	c.Name, c.Fleet, c.Etcd, c.Listen.DNS, c.Sources = "m2", all["m1"].cfg.Fleet, Default().Etcd, etcdtest.FreeAddress(), map[string]SourceConfig{}
	c.Etcd.Endpoints, c.Domain = []string{server.URL()}, "test.example"
	m2 := start(t, c)
	m2.records("its own", "_nfs._tcp.test.example", dns.TypeSRV, func(got []string) bool { return len(got) == 2 })
	all["m1"].until("a warning", func(s console.Status) bool {
		return strings.Contains(strings.Join(s.Warnings, "\n"), "test.example") && s.DNS.Domain == "prod.example"
	})
}

// Before etcd has ever answered nothing is known: clients are to try another server.
func TestDNSBeforeEtcd(t *testing.T) {
	c := testConfig(t)
	c.Listen.DNS, c.Etcd.Endpoints = etcdtest.FreeAddress(), []string{"http://" + etcdtest.FreeAddress()}
	m := start(t, c)
	var reply *dns.Msg
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if reply, err = m.resolve("udp", "_nfs._tcp.nfs-fleet.internal", dns.TypeSRV); err == nil {
			break
		}
	}
	if err != nil || reply.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v, %v", reply, err)
	}
}

func TestADNSPortThatIsTaken(t *testing.T) {
	taken, err := net.ListenPacket("udp", defaultDNS)
	if err != nil && !errors.Is(err, net.ErrClosed) {
		t.Logf("another program has port 5353 already: %v", err)
	} else {
		defer taken.Close()
	}
	s, later, err := listenDNS(defaultDNS)
	if s != nil || later == nil || err != nil || !strings.Contains(later.Error(), "--listen-dns") {
		t.Errorf("the default: %v, %v, %v", s, later, err)
	}
	mine, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	if s, later, err := listenDNS(mine.LocalAddr().String()); s != nil || later != nil || err == nil || !strings.Contains(err.Error(), "the port is taken") {
		t.Errorf("one that was chosen: %v, %v, %v", s, later, err)
	}
}
