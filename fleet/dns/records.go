package dns

import (
	"math"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// Fields of the SOA record. Nobody transfers the zone; the times only have to be sensible.
const (
	soaRefresh = 60
	soaRetry   = 10
	soaExpire  = 7 * 24 * 3600
)

// The least bytes that a record can have in a message.
const (
	minSRV = 2 + 10 + 6 + 1 // and its target's name
	minA   = 2 + 10 + 4
)

// node is what there is at a name.
type node struct {
	exists  bool
	host    *host  // a master's name: it has addresses
	service bool   // the name has SRV records
	slave   string // whose they are; "": the whole fleet's
}

// find returns what there is at the name with these labels below the domain.
func (x *index) find(below []string) node {
	n := len(below)
	switch {
	case n == 0, n == 1 && (below[0] == protocol || below[0] == mastersAt || below[0] == slavesAt):
		return node{exists: true}
	case n == 2 && below[0] == service && below[1] == protocol:
		return node{exists: true, service: true}
	case below[n-1] == mastersAt:
		name := strings.Join(below[:n-1], ".")
		h := x.byName[name]
		return node{exists: h != nil || x.parts[name], host: h}
	case below[n-1] != slavesAt:
		return node{}
	}
	slave, isService := below[:n-1], false
	if n > 2 && slave[0] == service && slave[1] == protocol {
		slave, isService = slave[2:], true
	} else if slave[0] == protocol {
		slave = slave[1:]
	}
	if !hostName(slave) {
		return node{}
	}
	return node{exists: true, service: isService, slave: strings.Join(slave, ".")}
}

// target is one SRV record.
type target struct {
	*host
	priority uint16
}

// targets returns the SRV records of the whole fleet, or of one slave.
func (z *Zone) targets(slave string) []target {
	var out []target
	if slave != "" {
		for i, h := range z.order(slave) {
			out = append(out, target{h, uint16(10 * (i + 1))})
		}
	}
	if len(out) == 0 {
		for _, h := range z.look().listed {
			out = append(out, target{h, 10})
		}
	}
	return out
}

// services answers a question for SRV records; begin sets which of equals comes first. Of a large fleet no more records are
// made than size bytes have room for, and one that has none.
func (z *Zone) services(n node, owner string, begin, size int, reply *dns.Msg) {
	if !n.service {
		return
	}
	list := z.targets(n.slave)
	equals := map[uint16]int{}
	for _, t := range list {
		equals[t.priority]++
	}
	if len(list) > 1 && equals[list[0].priority] == len(list) {
		begin %= len(list)
		list = slices.Concat(list[begin:], list[:begin])
	}
	for _, t := range list {
		if size < 0 {
			return
		}
		reply.Answer = append(reply.Answer, &dns.SRV{
			Hdr: header(owner, dns.TypeSRV), Priority: t.priority, Weight: share(equals[t.priority]), Port: t.port, Target: t.fqdn,
		})
		size -= minSRV + len(t.fqdn)
	}
	for _, t := range list {
		if size < 0 {
			return
		}
		reply.Extra = append(reply.Extra, t.addresses(t.fqdn)...)
		size -= minA * (len(t.v4) + len(t.v6))
	}
}

// share is the weight of one record beside others of its priority. A stock CoreDNS tells the same, reckoned as here, of
// records that are stored with one weight: its clients and ours choose alike.
func share(equals int) uint16 {
	return max(1, uint16(math.Floor(100/float64(equals*weight)*weight)))
}

func (x *index) nameServers(owner string, reply *dns.Msg) {
	for _, name := range x.ns {
		reply.Answer = append(reply.Answer, &dns.NS{Hdr: header(owner, dns.TypeNS), Ns: name})
		if below, inside := x.below(name); inside {
			if h := x.find(below).host; h != nil {
				reply.Extra = append(reply.Extra, h.addresses(name)...)
			}
		}
	}
}

func (x *index) soa(owner string, serial uint32) dns.RR {
	primary := mastersAt + "." + x.domain
	if len(x.ns) > 0 {
		primary = x.ns[0]
	}
	return &dns.SOA{
		Hdr: header(owner, dns.TypeSOA), Ns: primary, Mbox: "hostmaster." + x.domain, Serial: serial,
		Refresh: soaRefresh, Retry: soaRetry, Expire: soaExpire, Minttl: ttl,
	}
}

func (h *host) addresses(owner string) []dns.RR {
	return append(addresses(owner, h.v4), addresses(owner, h.v6)...)
}

// addresses returns the A records of IPv4 addresses or the AAAA records of IPv6 addresses.
func addresses(owner string, list []netip.Addr) []dns.RR {
	out := make([]dns.RR, 0, len(list))
	for _, a := range list {
		if a.Is4() {
			out = append(out, &dns.A{Hdr: header(owner, dns.TypeA), A: a.AsSlice()})
		} else {
			out = append(out, &dns.AAAA{Hdr: header(owner, dns.TypeAAAA), AAAA: a.AsSlice()})
		}
	}
	return out
}

func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

// fit makes a reply no longer than size. What is only helpful goes first and leaves no trace; when records that were asked
// for have to go, the reply says that it is cut short.
func fit(reply *dns.Msg, size int) {
	reply.Compress = true
	asked, extra := len(reply.Answer)+len(reply.Ns), slices.Clone(reply.Extra)
	reply.Truncate(size)
	reply.Compress = true
	reply.Truncated = len(reply.Answer)+len(reply.Ns) < asked
	opt := reply.IsEdns0()
	extra = slices.DeleteFunc(extra, isOPT)
	kept := len(slices.DeleteFunc(reply.Extra, isOPT))
	if kept < len(extra) { // a set of records is whole or absent
		for cut := extra[kept]; kept > 0 && sameSet(extra[kept-1], cut); {
			kept--
		}
	}
	if reply.Extra = extra[:kept]; opt != nil {
		reply.Extra = append(reply.Extra, opt)
	}
}

func isOPT(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT }

func sameSet(a, b dns.RR) bool {
	return a.Header().Rrtype == b.Header().Rrtype && a.Header().Name == b.Header().Name
}
