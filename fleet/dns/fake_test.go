package dns

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// threeMasters is the fleet of most tests: m1 with both families, m2, and m3, which is behind. web17 reads from m2, then from m1.
func threeMasters() *Zone {
	return &Zone{
		Domain: "prod.example", Serial: 4711,
		Masters: []Target{
			{Name: "m3", Addresses: addrs("10.77.0.3"), Port: 2049},
			{Name: "m2", Addresses: addrs("10.77.0.2", "::ffff:10.77.1.2"), Port: 2050, InStep: true},
			{Name: "m1", Addresses: addrs("10.77.0.1", "fd00::1"), Port: 2049, InStep: true},
		},
		SlaveOrder: func(slave string) []string {
			if strings.HasPrefix(slave, "web17") {
				return []string{"m2", "m1"}
			}
			return []string{"m1", "gone", "m2", "m1", "m3"}
		},
		Slaves: []string{"web17", "web18.rack2"},
	}
}

// manyMasters is a fleet of n masters in step with long names.
func manyMasters(n int) *Zone {
	z := &Zone{Domain: "prod.example"}
	for i := range n {
		z.Masters = append(z.Masters, Target{
			Name: "master-with-a-long-name-" + string([]byte{'0' + byte(i/100%10), '0' + byte(i/10%10), '0' + byte(i%10)}) + "-" + strings.Repeat("x", i/1000),
			Port: 2049, InStep: true, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 77, byte(i >> 8), byte(i)})},
		})
		z.Masters[i].Name = strings.TrimSuffix(z.Masters[i].Name, "-")
	}
	return z
}

func question(name string, qtype uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), qtype)
	m.Id = 0
	return m
}

// ask answers a question as it goes over the wire.
func ask(t testing.TB, z *Zone, m *dns.Msg, via Transport) *dns.Msg {
	t.Helper()
	wire, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	sent := slices.Clone(wire)
	out := Answer(z, wire, via)
	if !slices.Equal(sent, wire) {
		t.Error("the question was changed")
	}
	if out == nil {
		t.Fatalf("no answer to %v", m)
	}
	reply := new(dns.Msg)
	if err := reply.Unpack(out); err != nil {
		t.Fatalf("answer %x: %v", out, err)
	}
	if reply.Id != m.Id || !reply.Response || reply.RecursionAvailable || reply.RecursionDesired != m.RecursionDesired {
		t.Errorf("answer's header: %v", reply.MsgHdr)
	}
	return reply
}

// srvs returns "priority weight port target" of each SRV record.
func srvs(list []dns.RR) []string {
	var out []string
	for _, rr := range list {
		if s, is := rr.(*dns.SRV); is {
			out = append(out, strings.Join(strings.Fields(s.String())[4:], " "))
		}
	}
	return out
}

func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}
