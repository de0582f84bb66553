package dns

import (
	"encoding/binary"
	"encoding/hex"
	"slices"

	"github.com/miekg/dns"
)

// Transport is how a question came; it decides how long the answer may be.
type Transport int

// A question comes in a datagram, answered with what fits into one, or over a stream.
const (
	UDP Transport = iota
	TCP
)

const (
	headerSize = 12
	maxName    = 255
	udpSize    = 1232 // of the largest datagram sent: fragments are lost too often
	plainSize  = 512  // for clients without EDNS
	maxExtra   = 2    // records beside the question: EDNS and a signature
	maxOpcode  = 0xF
)

// Bits of a message's third and fourth byte.
const (
	bitResponse  = 0x80
	bitTruncated = 0x02
	bitRecursion = 0x01 // desired
)

// Answer returns the answer to a question, nil when there must be none: to what is an answer itself or no DNS message at
// all. With z nil, because nothing is known yet, the answer is SERVFAIL, which makes clients try another server. It is a
// pure function; the answer belongs to the caller.
func Answer(z *Zone, query []byte, via Transport) []byte {
	if len(query) < headerSize || query[2]&bitResponse != 0 {
		return nil
	}
	if opcode := query[2] >> 3 & maxOpcode; opcode != dns.OpcodeQuery {
		return bare(query, dns.RcodeNotImplemented)
	}
	count := func(at int) uint16 { return binary.BigEndian.Uint16(query[at:]) }
	// A transfer's question has a record in the third section.
	if count(4) != 1 || count(6) != 0 || count(8) > 1 || count(10) > maxExtra {
		return bare(query, dns.RcodeFormatError)
	}
	var q dns.Msg
	if q.Unpack(query) != nil || len(q.Question) != 1 || len(q.Extra) != int(count(10)) {
		return bare(query, dns.RcodeFormatError)
	}
	reply := new(dns.Msg).SetReply(&q)
	size, ok := extend(z, &q, reply)
	if via == TCP {
		size = dns.MaxMsgSize
	}
	if ok {
		z.answer(q.Question[0], int(q.Id), size, reply)
	}
	fit(reply, size)
	if via == TCP {
		reply.Truncated = false // there is no other way to ask for more
	}
	out, err := reply.Pack()
	if err != nil {
		return bare(query, dns.RcodeServerFailure)
	}
	return out
}

// bare is an answer of a header alone.
func bare(query []byte, rcode byte) []byte {
	out := make([]byte, headerSize)
	copy(out, query[:2])
	out[2] = bitResponse | query[2]&(maxOpcode<<3|bitRecursion)
	out[3] = rcode
	return out
}

// comeBack is the answer that sends a client to TCP: the question alone, marked as cut short, never longer than the query.
// nil when the query has no question that could be repeated.
func comeBack(query []byte) []byte {
	if len(query) < headerSize || query[2]>>3 != dns.OpcodeQuery || binary.BigEndian.Uint16(query[4:]) != 1 {
		return nil
	}
	end := headerSize
	for end < len(query) && query[end] != 0 && query[end] < 64 {
		end += 1 + int(query[end])
	}
	if end >= len(query) || query[end] != 0 || end+5 > len(query) || end+1-headerSize > maxName {
		return nil
	}
	out := slices.Clone(query[:end+5])
	out[2] = bitResponse | bitTruncated | query[2]&bitRecursion
	out[3] = 0
	copy(out[4:], []byte{0, 1, 0, 0, 0, 0, 0, 0})
	return out
}

// extend handles EDNS: it returns how long a datagram the client takes, and false when the answer is already decided.
func extend(z *Zone, q, reply *dns.Msg) (size int, ok bool) {
	var opt *dns.OPT
	for _, rr := range q.Extra {
		if o, is := rr.(*dns.OPT); is && opt == nil && o.Hdr.Name == "." {
			opt = o
		} else if is {
			reply.Rcode = dns.RcodeFormatError
			return plainSize, false
		}
	}
	if opt == nil {
		return plainSize, true
	}
	reply.SetEdns0(udpSize, opt.Do())
	if opt.Version() != 0 {
		reply.Rcode = dns.RcodeBadVers
		return plainSize, false
	}
	for _, option := range opt.Option {
		if _, is := option.(*dns.EDNS0_NSID); is && z != nil && z.Self != "" {
			out := reply.IsEdns0()
			out.Option = append(out.Option, &dns.EDNS0_NSID{Code: dns.EDNS0NSID, Nsid: hex.EncodeToString([]byte(z.Self))})
			break
		}
	}
	return min(max(int(opt.UDPSize()), plainSize), udpSize), true
}

// answer fills in the reply to one question, of which size bytes will be sent. begin sets where a list of equals begins, so
// that clients that take the first, or get only those that fit, are spread.
func (z *Zone) answer(q dns.Question, begin, size int, reply *dns.Msg) {
	if z == nil {
		reply.Rcode = dns.RcodeServerFailure
		return
	}
	x := z.look()
	below, inside := x.below(q.Name)
	if !inside || q.Qclass != dns.ClassINET || q.Qtype == dns.TypeAXFR || q.Qtype == dns.TypeIXFR {
		reply.Rcode = dns.RcodeRefused
		return
	}
	reply.Authoritative = true
	n := x.find(below)
	switch {
	case !n.exists:
		reply.Rcode = dns.RcodeNameError
	case q.Qtype == dns.TypeANY:
		// RFC 8482: neither everything, which is what amplifies, nor nothing, which would deny what is there.
		reply.Answer = []dns.RR{&dns.HINFO{Hdr: header(q.Name, dns.TypeHINFO), Cpu: "RFC8482"}}
	case q.Qtype == dns.TypeSRV:
		z.services(n, q.Name, begin, size, reply)
	case q.Qtype == dns.TypeA && n.host != nil:
		reply.Answer = addresses(q.Name, n.host.v4)
	case q.Qtype == dns.TypeAAAA && n.host != nil:
		reply.Answer = addresses(q.Name, n.host.v6)
	case q.Qtype == dns.TypeNS && len(below) == 0:
		x.nameServers(q.Name, reply)
	case q.Qtype == dns.TypeSOA && len(below) == 0:
		reply.Answer = []dns.RR{x.soa(q.Name, z.Serial)}
	}
	if len(reply.Answer) == 0 {
		reply.Ns = []dns.RR{x.soa(apexOf(q.Name, len(below)), z.Serial)}
	}
}

// below returns the labels of a name in front of the domain's, in lower case; false when it is outside of the domain.
func (x *index) below(name string) (labels []string, inside bool) {
	labels = dns.SplitDomainName(dns.CanonicalName(name))
	n := len(labels) - len(x.labels)
	if n < 0 || !slices.Equal(labels[n:], x.labels) {
		return nil, false
	}
	return labels[:n], true
}

// apexOf cuts labels off the front of a name as it was asked, so that its case is kept.
func apexOf(name string, labels int) string {
	at := 0
	for range labels {
		at, _ = dns.NextLabel(name, at)
	}
	return name[at:]
}
