package dns

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the transcripts in testdata")

// transcript asks questions and writes down the answers.
func transcript(t *testing.T, z *Zone, questions []string) string {
	var b strings.Builder
	for _, line := range questions {
		name, qtype, _ := strings.Cut(line, " ")
		m := question(name, dns.StringToType[qtype])
		if dns.StringToType[qtype] == 0 {
			t.Fatalf("no type %q", qtype)
		}
		r := ask(t, z, m, UDP)
		fmt.Fprintf(&b, "? %s\n%s", line, dns.RcodeToString[r.Rcode])
		if r.Authoritative {
			b.WriteString(" aa")
		}
		if r.Truncated {
			b.WriteString(" tc")
		}
		b.WriteByte('\n')
		for _, s := range []struct {
			mark string
			list []dns.RR
		}{{"=", r.Answer}, {"-", r.Ns}, {"+", r.Extra}} {
			for _, rr := range s.list {
				fmt.Fprintf(&b, "%s %s\n", s.mark, strings.ReplaceAll(rr.String(), "\t", " "))
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func TestTranscript(t *testing.T) {
	got := transcript(t, threeMasters(), []string{
		"_nfs._tcp.prod.example SRV",
		"_nfs._tcp.web17.slaves.prod.example SRV",
		"_nfs._tcp.web18.slaves.prod.example SRV",
		"_nfs._tcp.web17.rack2.slaves.prod.example SRV",
		"_NFS._tcp.WEB17.slaves.Prod.Example SRV",
		"m1.masters.prod.example A",
		"m1.masters.prod.example AAAA",
		"m2.masters.prod.example A",
		"m2.masters.prod.example AAAA",
		"M3.Masters.prod.example A",
		"m1.masters.prod.example SRV",
		"m1.masters.prod.example ANY",
		"gone.masters.prod.example A",
		"x.m1.masters.prod.example A",
		"prod.example SOA",
		"Prod.example NS",
		"prod.example A",
		"prod.example AXFR",
		"prod.example IXFR",
		"_tcp.prod.example SRV",
		"masters.prod.example A",
		"slaves.prod.example A",
		"web17.slaves.prod.example A",
		"_tcp.web17.slaves.prod.example SRV",
		"_nfs._tcp.web17.slaves.prod.example TXT",
		"_nfs._tcp.web17.slaves.prod.example ANY",
		"_nfs._udp.prod.example SRV",
		"_nfs._tcp.slaves.prod.example SRV",
		"_nfs._tcp._x.slaves.prod.example SRV",
		`_nfs._tcp.a\.b.slaves.prod.example SRV`,
		"x._nfs._tcp.prod.example SRV",
		"elsewhere.prod.example A",
		`a\.prod.example A`,
		"notprod.example A",
		"example A",
		". NS",
	})
	path := filepath.Join("testdata", "answers.txt")
	if *rewrite {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("answers differ from %s (rewrite it with -rewrite):\n%s", path, got)
	}
}

func TestEveryRecordLivesFiveSeconds(t *testing.T) {
	z := threeMasters()
	for _, q := range []*dns.Msg{
		question("_nfs._tcp.prod.example", dns.TypeSRV), question("prod.example", dns.TypeNS), question("prod.example", dns.TypeANY),
		question("nobody.prod.example", dns.TypeA), question("prod.example", dns.TypeA),
	} {
		r := ask(t, z, q, UDP)
		for _, rr := range slices.Concat(r.Answer, r.Ns, r.Extra) {
			if rr.Header().Ttl != 5 {
				t.Errorf("%v", rr)
			}
			if soa, is := rr.(*dns.SOA); is && (soa.Minttl != 5 || soa.Serial != 4711) {
				t.Errorf("%v", soa)
			}
		}
	}
}

func TestCaseIsKept(t *testing.T) {
	const name = "_nFs._TcP.wEb17.SlAvEs.pRoD.eXaMpLe."
	r := ask(t, threeMasters(), question(name, dns.TypeSRV), UDP)
	if r.Question[0].Name != name || len(r.Answer) != 2 || r.Answer[0].Header().Name != name {
		t.Errorf("%v", r)
	}
	r = ask(t, threeMasters(), question("NoBody.pRoD.eXaMpLe", dns.TypeSRV), UDP)
	if r.Rcode != dns.RcodeNameError || len(r.Ns) != 1 || r.Ns[0].Header().Name != "pRoD.eXaMpLe." {
		t.Errorf("%v", r)
	}
}

func TestClasses(t *testing.T) {
	for _, class := range []uint16{dns.ClassCHAOS, dns.ClassHESIOD, dns.ClassANY, dns.ClassNONE, 0} {
		q := question("_nfs._tcp.prod.example", dns.TypeSRV)
		q.Question[0].Qclass = class
		if r := ask(t, threeMasters(), q, UDP); r.Rcode != dns.RcodeRefused || r.Authoritative || len(r.Answer) != 0 {
			t.Errorf("class %d: %v", class, r)
		}
	}
}

func TestUnknownTypesHaveNoData(t *testing.T) {
	z := threeMasters()
	for _, qtype := range []uint16{0, dns.TypeCNAME, dns.TypePTR, dns.TypeMX, dns.TypeOPT, dns.TypeDS, dns.TypeRRSIG, dns.TypeDNSKEY, dns.TypeHTTPS, 253, 254, 999, 65535} {
		for _, name := range []string{"prod.example", "_nfs._tcp.prod.example", "m1.masters.prod.example", "_nfs._tcp.web17.slaves.prod.example"} {
			r := ask(t, z, question(name, qtype), UDP)
			if r.Rcode != dns.RcodeSuccess || len(r.Answer) != 0 || len(r.Ns) != 1 || r.Ns[0].Header().Rrtype != dns.TypeSOA {
				t.Errorf("%s type %d: %v", name, qtype, r)
			}
		}
	}
}

func TestNothingKnownYet(t *testing.T) {
	if r := ask(t, nil, question("_nfs._tcp.prod.example", dns.TypeSRV), UDP); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v", r)
	}
	r := ask(t, &Zone{}, question("_nfs._tcp."+DefaultDomain, dns.TypeSRV), UDP)
	if r.Rcode != dns.RcodeSuccess || len(r.Answer) != 0 || len(r.Ns) != 1 {
		t.Errorf("%v", r)
	}
}

// Whoever takes the first record, or gets only some of them, is spread over the masters.
func TestEqualsAreRotated(t *testing.T) {
	z, first := manyMasters(10), map[string]int{}
	for id := range 1000 {
		q := question("_nfs._tcp.prod.example", dns.TypeSRV)
		q.Id = uint16(id)
		r := ask(t, z, q, UDP)
		first[r.Answer[0].(*dns.SRV).Target]++
	}
	for target, n := range first {
		if n != 100 {
			t.Errorf("%s came first %d times of 1000", target, n)
		}
	}
	q := question("_nfs._tcp.web17.slaves.prod.example", dns.TypeSRV)
	q.Id = 1
	same(t, "the order of a slave", srvs(ask(t, threeMasters(), q, UDP).Answer), []string{
		"10 100 2050 m2.masters.prod.example.", "20 100 2049 m1.masters.prod.example.",
	})
}

func TestWhatIsNoQuestion(t *testing.T) {
	z := threeMasters()
	good, err := question("_nfs._tcp.prod.example", dns.TypeSRV).Pack()
	if err != nil {
		t.Fatal(err)
	}
	edit := func(f func(b []byte) []byte) []byte { return f(slices.Clone(good)) }
	set := func(at int, v byte) []byte {
		return edit(func(b []byte) []byte { b[at] = v; return b })
	}
	for _, c := range []struct {
		name  string
		query []byte
		rcode int // -1: no answer
	}{
		{"nothing", nil, -1},
		{"half a header", good[:11], -1},
		{"an answer", set(2, 0x80), -1},
		{"a header alone", good[:12], dns.RcodeFormatError},
		{"a notify", set(2, dns.OpcodeNotify<<3), dns.RcodeNotImplemented},
		{"an update", set(2, dns.OpcodeUpdate<<3), dns.RcodeNotImplemented},
		{"an unknown opcode", set(2, 15<<3), dns.RcodeNotImplemented},
		{"no question", set(5, 0), dns.RcodeFormatError},
		{"two questions", set(5, 2), dns.RcodeFormatError},
		{"65,281 questions", set(4, 255), dns.RcodeFormatError},
		{"with an answer", set(7, 1), dns.RcodeFormatError},
		{"two authorities", set(9, 2), dns.RcodeFormatError},
		{"three additional records", set(11, 3), dns.RcodeFormatError},
		{"an additional record that is not there", set(11, 1), dns.RcodeFormatError},
		{"cut short", good[:len(good)-1], dns.RcodeFormatError},
		{"a name that points at itself", edit(func(b []byte) []byte { return append(b[:12], 0xC0, 12, 0, 1, 0, 1) }), dns.RcodeFormatError},
		{"a label of 64 bytes", set(12, 64), dns.RcodeFormatError},
	} {
		out := Answer(z, c.query, UDP)
		if c.rcode < 0 {
			if out != nil {
				t.Errorf("%s: answer %x", c.name, out)
			}
			continue
		}
		var r dns.Msg
		if err := r.Unpack(out); err != nil || r.Rcode != c.rcode || !r.Response || len(r.Answer) != 0 || len(out) > max(len(c.query), headerSize) {
			t.Errorf("%s: %v, %v", c.name, err, r.MsgHdr)
		}
	}
}
