package dns

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

func TestValidDomain(t *testing.T) {
	for name, ok := range map[string]bool{
		"nfs-fleet.internal": true, "nfs-fleet.internal.": true, "Prod.Example": true, "lan": true, "10.example": true,
		"": false, ".": false, "a..b": false, "-a.b": false, "a.b-": false, "_tcp.example": false, "a b": false, "ä.example": false,
		strings.Repeat("a", 64) + ".example": false, strings.Repeat("a.", 80): false,
	} {
		if err := ValidDomain(name); (err == nil) != ok {
			t.Errorf("ValidDomain(%q) = %v, want ok %v", name, err, ok)
		}
	}
}

// Masters that DNS cannot name are passed over; the others keep their answers.
func TestMastersThatCannotBeNamed(t *testing.T) {
	z := &Zone{Domain: "prod.example.", Masters: []Target{
		{Name: "good", Addresses: addrs("10.77.0.1", "10.77.0.1", "0.0.0.0", "224.0.0.1", "fe80::1%eth0"), Port: 2049, InStep: true},
		{Name: "good", Addresses: addrs("10.77.0.9"), Port: 2049, InStep: true},
		{Name: "a..b", Addresses: addrs("10.77.0.2"), Port: 2049, InStep: true},
		{Name: strings.Repeat("a", 64), Addresses: addrs("10.77.0.2"), Port: 2049, InStep: true},
		{Name: strings.Repeat("a.", 120) + "a", Addresses: addrs("10.77.0.2"), Port: 2049, InStep: true},
		{Name: "", Addresses: addrs("10.77.0.2"), Port: 2049, InStep: true},
		{Name: "no-address", Port: 2049, InStep: true},
		{Name: "no-port", Addresses: addrs("10.77.0.2"), InStep: true},
	}}
	r := ask(t, z, question("_nfs._tcp.prod.example", dns.TypeSRV), UDP)
	same(t, "masters", srvs(r.Answer), []string{"10 100 2049 good.masters.prod.example."})
	if len(r.Extra) != 1 {
		t.Errorf("addresses: %v", r.Extra)
	}
}

// A master's name may have dots; what is in between exists but has nothing.
func TestNamesWithDots(t *testing.T) {
	z := &Zone{Domain: "prod.example", Masters: []Target{{Name: "m1.rack_2.hall", Addresses: addrs("10.77.0.1"), Port: 2049, InStep: true}}}
	for name, want := range map[string]int{
		"m1.rack_2.hall.masters.prod.example": dns.RcodeSuccess, "rack_2.hall.masters.prod.example": dns.RcodeSuccess,
		"hall.masters.prod.example": dns.RcodeSuccess, "rack_2.masters.prod.example": dns.RcodeNameError,
	} {
		r := ask(t, z, question(name, dns.TypeA), UDP)
		if r.Rcode != want || (len(r.Answer) == 1) != strings.HasPrefix(name, "m1") {
			t.Errorf("%s: %v", name, r)
		}
	}
}

func TestNobodyInStep(t *testing.T) {
	z := threeMasters()
	for i := range z.Masters {
		z.Masters[i].InStep = false
	}
	same(t, "masters", srvs(ask(t, z, question("_nfs._tcp.prod.example", dns.TypeSRV), UDP).Answer), []string{
		"10 33 2049 m1.masters.prod.example.", "10 33 2050 m2.masters.prod.example.", "10 33 2049 m3.masters.prod.example.",
	})
}

// A slave that nobody has an order for is told of all masters.
func TestSlavesWithoutAnOrder(t *testing.T) {
	for name, order := range map[string]func(string) []string{
		"none": nil, "empty": func(string) []string { return nil }, "of unknown masters": func(string) []string { return []string{"gone", ""} },
	} {
		z := threeMasters()
		z.SlaveOrder = order
		got := srvs(ask(t, z, question("_nfs._tcp.web17.slaves.prod.example", dns.TypeSRV), UDP).Answer)
		if want := srvs(ask(t, z, question("_nfs._tcp.prod.example", dns.TypeSRV), UDP).Answer); len(want) != 2 || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestTheOrderIsAskedForInLowerCase(t *testing.T) {
	z := threeMasters()
	var asked []string
	z.SlaveOrder = func(slave string) []string {
		asked = append(asked, slave)
		names := make([]string, 0, 100)
		for range 100 {
			names = append(names, "m1", "M2")
		}
		return names
	}
	r := ask(t, z, question("_nfs._tcp.WEB17.Rack2.slaves.prod.example", dns.TypeSRV), UDP)
	same(t, "asked", asked, []string{"web17.rack2"})
	if len(r.Answer) != 2 {
		t.Errorf("%v", r.Answer)
	}
	for _, q := range []*dns.Msg{
		question("_nfs._tcp.web17.slaves.prod.example", dns.TypeA), question("web17.slaves.prod.example", dns.TypeSRV),
		question("_nfs._tcp.web17.slaves.elsewhere.example", dns.TypeSRV),
	} {
		ask(t, z, q, UDP)
	}
	if len(asked) != 1 {
		t.Errorf("asked %q", asked)
	}
}

func TestNameServers(t *testing.T) {
	z := threeMasters()
	z.NS = []string{"ns1.elsewhere.example", "M3.masters.prod.example.", "", "a..b"}
	r := ask(t, z, question("prod.example", dns.TypeNS), UDP)
	if len(r.Answer) != 2 || len(r.Extra) != 1 || r.Answer[0].(*dns.NS).Ns != "ns1.elsewhere.example." || r.Extra[0].(*dns.A).A.String() != "10.77.0.3" {
		t.Errorf("%v", r)
	}
	if r = ask(t, manyMasters(20), question("prod.example", dns.TypeNS), UDP); len(r.Answer) != maxNS || len(r.Extra) != maxNS {
		t.Errorf("%v", r)
	}
}

func TestAZoneIsSharedByGoroutines(t *testing.T) {
	z := threeMasters()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if r := ask(t, z, question("_nfs._tcp.web17.slaves.prod.example", dns.TypeSRV), UDP); len(r.Answer) != 2 {
					t.Errorf("%v", r)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkAnswer(b *testing.B) {
	for _, c := range []struct {
		name string
		z    *Zone
		q    string
		via  Transport
	}{
		{"slave", threeMasters(), "_nfs._tcp.web17.slaves.prod.example", UDP},
		{"fleet of 10", manyMasters(10), "_nfs._tcp.prod.example", UDP},
		{"fleet of 1000", manyMasters(1000), "_nfs._tcp.prod.example", UDP},
		{"fleet of 1000 over TCP", manyMasters(1000), "_nfs._tcp.prod.example", TCP},
		{"nobody", threeMasters(), "nobody.prod.example", UDP},
	} {
		wire, err := withEDNS(question(c.q, dns.TypeSRV), 1232, false).Pack()
		if err != nil {
			b.Fatal(err)
		}
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Answer(c.z, wire, c.via)
			}
		})
	}
}
