package dns

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/miekg/dns"
)

func withEDNS(m *dns.Msg, size uint16, do bool) *dns.Msg {
	m.SetEdns0(size, do)
	return m
}

func size(t *testing.T, z *Zone, m *dns.Msg, via Transport) int {
	t.Helper()
	wire, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return len(Answer(z, wire, via))
}

func TestSizes(t *testing.T) {
	srv := func() *dns.Msg { return question("_nfs._tcp.prod.example", dns.TypeSRV) }
	for _, c := range []struct {
		masters int
		q       *dns.Msg
		via     Transport
		limit   int
		tc      bool
	}{
		{3, srv(), UDP, 512, false},
		{20, srv(), UDP, 512, true},
		{3, withEDNS(srv(), 0, false), UDP, 512, false},
		{20, withEDNS(srv(), 100, false), UDP, 512, true},
		{20, withEDNS(srv(), 1232, false), UDP, 1232, true},
		{20, withEDNS(srv(), 65535, true), UDP, 1232, true},
		{14, withEDNS(srv(), 4096, false), UDP, 1232, false},
		{200, withEDNS(srv(), 1232, false), UDP, 1232, true},
		{200, srv(), TCP, 65535, false},
		{1000, srv(), TCP, 65535, false},
		{5000, srv(), TCP, 65535, false},
	} {
		name := fmt.Sprintf("%d masters over %d, at most %d", c.masters, c.via, c.limit)
		z := manyMasters(c.masters)
		r := ask(t, z, c.q, c.via)
		n := size(t, z, c.q, c.via)
		if n > c.limit || r.Truncated != c.tc {
			t.Errorf("%s: %d bytes, cut short %v", name, n, r.Truncated)
		}
		if !r.Truncated && c.via == UDP && len(r.Answer) != c.masters {
			t.Errorf("%s: %d records", name, len(r.Answer))
		}
		if len(r.Answer) == 0 || (r.IsEdns0() != nil) != (c.q.IsEdns0() != nil) {
			t.Errorf("%s: %v", name, r)
		}
		if c.tc && len(r.Extra) > 1 {
			t.Errorf("%s: help instead of what was asked for: %v", name, r.Extra)
		}
	}
}

// Additional records are left out without a mark, as whole sets.
func TestHelpIsWholeOrAbsent(t *testing.T) {
	z := &Zone{Domain: "prod.example"}
	for i := range 4 {
		m := Target{Name: string([]byte{'a' + byte(i)}), Port: 2049, InStep: true}
		for j := range 10 {
			m.Addresses = append(m.Addresses, netip.AddrFrom4([4]byte{10, 77, byte(i), byte(j)}))
		}
		z.Masters = append(z.Masters, m)
	}
	r := ask(t, z, question("_nfs._tcp.prod.example", dns.TypeSRV), UDP)
	if r.Truncated || len(r.Answer) != 4 || len(r.Extra) != 10 {
		t.Errorf("cut short %v, %d records, %d additional", r.Truncated, len(r.Answer), len(r.Extra))
	}
	r = ask(t, z, question("_nfs._tcp.prod.example", dns.TypeSRV), TCP)
	if len(r.Extra) != 40 {
		t.Errorf("%d additional", len(r.Extra))
	}
}

func TestEDNS(t *testing.T) {
	z := threeMasters()
	r := ask(t, z, withEDNS(question("prod.example", dns.TypeSOA), 4096, true), UDP)
	if o := r.IsEdns0(); o == nil || o.UDPSize() != 1232 || !o.Do() || o.Version() != 0 || len(o.Option) != 0 {
		t.Errorf("%v", r)
	}
	if r = ask(t, z, question("prod.example", dns.TypeSOA), UDP); r.IsEdns0() != nil {
		t.Error("EDNS without being asked")
	}
	q := withEDNS(question("prod.example", dns.TypeSOA), 1232, false)
	q.IsEdns0().SetVersion(1)
	r = ask(t, z, q, UDP)
	if o := r.IsEdns0(); r.Rcode != dns.RcodeBadVers || o == nil || o.Version() != 0 || len(r.Answer) != 0 {
		t.Errorf("version 1: %v", r)
	}
	q = withEDNS(question("prod.example", dns.TypeSOA), 1232, false)
	q.Extra = append(q.Extra, q.Extra[0])
	if r = ask(t, z, q, UDP); r.Rcode != dns.RcodeFormatError || len(r.Answer) != 0 {
		t.Errorf("twice: %v", r)
	}
	// Options that nobody knows, and those of clients that want more than this server does, are passed over.
	q = withEDNS(question("prod.example", dns.TypeSOA), 1232, false)
	q.IsEdns0().Option = []dns.EDNS0{
		&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"}, &dns.EDNS0_LOCAL{Code: 65001, Data: []byte("x")},
	}
	if r = ask(t, z, q, UDP); r.Rcode != dns.RcodeSuccess || len(r.Answer) != 1 || len(r.IsEdns0().Option) != 0 {
		t.Errorf("options: %v", r)
	}
}

func TestWhoAnswers(t *testing.T) {
	z := threeMasters()
	z.Self = "m2"
	q := withEDNS(question("prod.example", dns.TypeSOA), 1232, false)
	if o := ask(t, z, q, UDP).IsEdns0(); len(o.Option) != 0 {
		t.Errorf("told without being asked: %v", o)
	}
	nsid := &dns.EDNS0_NSID{Code: dns.EDNS0NSID}
	q.IsEdns0().Option = []dns.EDNS0{nsid, nsid}
	o := ask(t, z, q, UDP).IsEdns0()
	if len(o.Option) != 1 {
		t.Fatalf("%v", o)
	}
	if got, err := hex.DecodeString(o.Option[0].(*dns.EDNS0_NSID).Nsid); err != nil || string(got) != "m2" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestComeBack(t *testing.T) {
	for _, m := range []*dns.Msg{
		question("_nfs._tcp.WEB17.slaves.prod.example", dns.TypeSRV), question(".", dns.TypeNS),
		withEDNS(question("prod.example", dns.TypeANY), 4096, true),
	} {
		wire, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		sent := slices.Clone(wire)
		out := comeBack(wire)
		var r dns.Msg
		if err := r.Unpack(out); err != nil {
			t.Fatal(err)
		}
		if !r.Truncated || !r.Response || !r.RecursionDesired || r.Rcode != 0 || !slices.Equal(r.Question, m.Question) ||
			len(out) > len(wire) || len(r.Answer)+len(r.Ns)+len(r.Extra) != 0 {
			t.Errorf("%v", r)
		}
		if !slices.Equal(sent, wire) {
			t.Error("the question was changed")
		}
		for n := range len(m.Question[0].Name) + 12 {
			if n < len(wire)-11 || len(m.Extra) == 0 {
				_ = comeBack(wire[:min(n, len(wire))])
			}
		}
	}
	for _, b := range [][]byte{nil, make([]byte, 12), {0, 0, 0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1}, {0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xC0, 12, 0, 1, 0, 1}} {
		if out := comeBack(b); out != nil {
			t.Errorf("%x: %x", b, out)
		}
	}
}
