package dns

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// DefaultDomain is the domain of a fleet that was not given one.
const DefaultDomain = "nfs-fleet.internal"

const (
	ttl       = 5   // seconds, of every record
	maxNS     = 5   // name servers in the NS set when the zone names none
	maxOrder  = 32  // records in a slave's order
	weight    = 100 // of every SRV record beside its equals, before it is shared out
	service   = "_nfs"
	protocol  = "_tcp"
	mastersAt = "masters"
	slavesAt  = "slaves"
)

// Zone is a picture of the fleet at one moment, from which questions are answered. It must not be changed once it was
// given to anybody, nor copied; then it may be used by many goroutines at once.
type Zone struct {
	// Domain is the fleet's domain, with or without the final dot. "": DefaultDomain.
	Domain string
	// Serial is the serial number of the SOA record; the low bits of the etcd revision the picture was made from.
	Serial uint32
	// Masters are the masters whose names have addresses. Those that cannot be named in DNS are passed over.
	Masters []Target
	// SlaveOrder returns the names of the masters that a slave shall try, best first, for any slave name, enrolled or not.
	// It is pure, does not block and may be called by many goroutines at once. When it is nil or names no known master,
	// the slave is told of all masters.
	SlaveOrder func(slave string) []string
	// Slaves are the enrolled slaves. SkyDNS alone needs them: over DNS every slave name has an answer.
	Slaves []string
	// Fleet is whose the records of SkyDNS are: other fleets may keep theirs in the same etcd. Only SkyDNS needs it.
	Fleet string
	// NS are the full host names of the domain's name servers. None: the names of the first five masters in step.
	NS []string
	// Self names who answers, for clients that ask for it (NSID). "": they are not told.
	Self string

	once  sync.Once
	index index
}

// Target is a master as it is named in DNS.
type Target struct {
	Name      string // of the master, below masters.<domain>
	Addresses []netip.Addr
	Port      uint16 // of its NFS service
	InStep    bool   // it serves every shard's head: what _nfs._tcp.<domain> lists
}

// ValidDomain reports what is wrong with s as the domain of a fleet: a host name of at most 150 bytes, with or without
// the final dot, so that there is room for the names below it.
func ValidDomain(s string) error {
	s = strings.TrimSuffix(s, ".")
	if s == "" || len(s) > 150 || !hostName(strings.Split(strings.ToLower(s), ".")) {
		return fmt.Errorf("domain %q: use a host name of at most 150 letters, digits, dashes and dots, as in prod.example.com", s)
	}
	return nil
}

// index is what answers are looked up in, made from a Zone on its first use.
type index struct {
	domain string   // canonical: lower case, with the final dot
	labels []string // of domain
	byName map[string]*host
	parts  map[string]bool // names below masters.<domain> that have nothing but names below them
	listed []*host         // what _nfs._tcp.<domain> lists, by name
	ns     []string
}

// host is a master that can be named, with addresses that can be told.
type host struct {
	name string // of the master
	fqdn string
	port uint16
	v4   []netip.Addr
	v6   []netip.Addr
}

func (z *Zone) look() *index {
	z.once.Do(func() { z.index = newIndex(z) })
	return &z.index
}

func newIndex(z *Zone) index {
	x := index{domain: dns.CanonicalName(cmp.Or(strings.TrimSuffix(z.Domain, "."), DefaultDomain)), byName: map[string]*host{}, parts: map[string]bool{}}
	x.labels = dns.SplitDomainName(x.domain)
	var inStep []*host
	for _, t := range z.Masters {
		h := newHost(t, x.domain)
		if h == nil || x.byName[h.name] != nil {
			continue
		}
		x.byName[h.name] = h
		for rest := h.name; ; {
			_, after, found := strings.Cut(rest, ".")
			if !found {
				break
			}
			x.parts[after], rest = true, after
		}
		x.listed = append(x.listed, h)
		if t.InStep {
			inStep = append(inStep, h)
		}
	}
	// With nobody in step, which is a moment of a publish or a fleet in trouble, any master is better than none.
	if len(inStep) > 0 {
		x.listed = inStep
	}
	slices.SortFunc(x.listed, func(a, b *host) int { return cmp.Compare(a.name, b.name) })
	for _, name := range z.NS {
		if name = dns.CanonicalName(name); name != "." && fits(name) {
			x.ns = append(x.ns, name)
		}
	}
	if len(z.NS) == 0 {
		for _, h := range x.listed[:min(len(x.listed), maxNS)] {
			x.ns = append(x.ns, h.fqdn)
		}
	}
	return x
}

// newHost returns nil when the master cannot be named, or has no address or port that can be told.
func newHost(t Target, domain string) *host {
	h := &host{name: strings.ToLower(t.Name), port: t.Port}
	h.fqdn = h.name + "." + mastersAt + "." + domain
	for _, a := range t.Addresses {
		switch a = a.Unmap(); {
		case !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "":
		case a.Is4() && !slices.Contains(h.v4, a):
			h.v4 = append(h.v4, a)
		case a.Is6() && !slices.Contains(h.v6, a):
			h.v6 = append(h.v6, a)
		}
	}
	if !hostName(strings.Split(h.name, ".")) || !fits(h.fqdn) || h.port == 0 || len(h.v4)+len(h.v6) == 0 {
		return nil
	}
	return h
}

// fits says whether a name is one that DNS can carry.
func fits(fqdn string) bool {
	_, ok := dns.IsDomainName(fqdn)
	return ok
}

// hostName says whether the labels are those of a host: lower-case letters, digits, dashes and underscores, with a letter or
// digit at both ends of each.
func hostName(labels []string) bool {
	for _, l := range labels {
		if len(l) == 0 || len(l) > 63 || !alnum(l[0]) || !alnum(l[len(l)-1]) {
			return false
		}
		for i := range len(l) {
			if !alnum(l[i]) && l[i] != '-' && l[i] != '_' {
				return false
			}
		}
	}
	return len(labels) > 0
}

func alnum(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }

// order returns the masters that a slave shall try, best first; empty when the slave is to be told of all of them.
func (z *Zone) order(slave string) []*host {
	if z.SlaveOrder == nil {
		return nil
	}
	x := z.look()
	var out []*host
	for _, name := range z.SlaveOrder(slave) {
		if h := x.byName[strings.ToLower(name)]; h != nil && !slices.Contains(out, h) && len(out) < maxOrder {
			out = append(out, h)
		}
	}
	return out
}
