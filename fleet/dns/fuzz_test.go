package dns

import (
	"slices"
	"testing"

	"github.com/miekg/dns"
)

// Whatever comes in, an answer is a well-formed message to that question, no longer than its transport carries, and the
// question is left as it is.
func FuzzAnswer(f *testing.F) {
	z := threeMasters()
	z.Self = "m1"
	large := manyMasters(300)
	seeds := []*dns.Msg{
		question("_nfs._tcp.prod.example", dns.TypeSRV), question("_NFS._tcp.web17.Slaves.prod.example", dns.TypeSRV),
		question("m1.masters.prod.example", dns.TypeAAAA), question("prod.example", dns.TypeANY), question(".", dns.TypeNS),
		withEDNS(question("prod.example", dns.TypeNS), 4096, true), question("prod.example", dns.TypeIXFR), question(`a\.b.prod.example`, 0),
	}
	for _, m := range seeds {
		wire, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire, false)
		f.Add(append(wire, 0), true)
	}
	f.Fuzz(func(t *testing.T, query []byte, tcp bool) {
		via, limit := UDP, udpSize
		if tcp {
			via, limit = TCP, dns.MaxMsgSize
		}
		sent := slices.Clone(query)
		for _, z := range []*Zone{z, large, nil} {
			out := Answer(z, query, via)
			if !slices.Equal(query, sent) {
				t.Fatal("the question was changed")
			}
			if len(query) < headerSize || query[2]&bitResponse != 0 {
				if out != nil {
					t.Fatalf("answer %x", out)
				}
				continue
			}
			wellFormed(t, query, out, limit)
		}
		if out := comeBack(query); out != nil && (len(out) > len(query) || query[2]&bitResponse != 0) {
			t.Fatalf("%x", out)
		} else if out != nil {
			wellFormed(t, query, out, limit)
		}
	})
}

func wellFormed(t *testing.T, query, out []byte, limit int) {
	t.Helper()
	var r dns.Msg
	if err := r.Unpack(out); err != nil {
		t.Fatalf("%x: %v", out, err)
	}
	if len(out) > limit || !slices.Equal(out[:2], query[:2]) || !r.Response || r.Opcode != int(query[2]>>3&maxOpcode) {
		t.Fatalf("%d bytes: %v", len(out), r.MsgHdr)
	}
	if len(r.Answer) > 0 && (r.Rcode != dns.RcodeSuccess || !r.Authoritative) {
		t.Fatalf("%v", &r)
	}
}
