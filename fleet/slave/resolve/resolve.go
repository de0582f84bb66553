// Package resolve finds a slave's masters in DNS: the SRV records of a name in the order of RFC 2782, and the addresses of
// their targets.
//
// It asks the name servers that it is told, or those of /etc/resolv.conf, over UDP and, for what does not fit, TCP. When one
// says nothing for 300 ms the next is asked beside it, and the first that answers counts, so that a dead name server among
// them costs little: masters are name servers, too, and this is asked when they die.
package resolve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/relay"
)

// What DNS says for good.
var (
	// ErrNoName says that DNS has no such name, or no master under it.
	ErrNoName = errors.New("no such name")
	// ErrRefused says that all name servers that were named have answered, and none of them answers for such names: another
	// fleet's, most likely.
	ErrRefused = errors.New("no name server answers for this domain")
)

// Bounds of one look-up.
const (
	maxServers   = 8
	maxRecords   = 32 // SRV records whose addresses are asked for, the best first
	maxAddresses = 4  // of a master
)

const dnsPort = 53

// Resolver looks names up. It is safe for concurrent use.
type Resolver struct {
	// Servers are the name servers, HOST:PORT or an IP address; none: those of Config.
	Servers []string
	// Config is the path of a resolv.conf; "": /etc/resolv.conf.
	Config string
}

// CheckServer reports what is wrong with a name server's address as an administrator writes it.
func CheckServer(s string) error {
	_, err := server(s)
	return err
}

// server returns an address that can be dialled.
func server(s string) (string, error) {
	if addr, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return netip.AddrPortFrom(addr, dnsPort).String(), nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = s, strconv.Itoa(dnsPort)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	_, bad := netip.ParseAddr(host)
	if err != nil || n == 0 || host == "" || bad != nil && strings.ContainsAny(host, ":/ ") {
		return "", fmt.Errorf("%q is no name server: want HOST:PORT or an IP address", s)
	}
	return net.JoinHostPort(host, port), nil
}

// Masters returns the masters that a SRV name lists, in the order in which they are to be tried.
func (r Resolver) Masters(ctx context.Context, name string) ([]relay.Target, error) {
	servers, err := r.servers()
	if err != nil {
		return nil, err
	}
	answer, err := ask(ctx, servers, name, dns.TypeSRV)
	if err != nil {
		return nil, r.heed(err)
	}
	found, err := targets(ctx, servers, name, answer)
	return found, r.heed(err)
}

// heed returns an error for what it is worth. A refusal of the system's resolver is not said for good: while the machine starts it
// refuses what it has no servers for yet.
func (r Resolver) heed(err error) error {
	if len(r.Servers) == 0 && errors.Is(err, ErrRefused) {
		return passing{err}
	}
	return err
}

// passing is an error that says nothing for good, whatever it is made of.
type passing struct{ error }

// targets returns the masters of an answer, whose addresses it asks for when they do not come with it.
func targets(ctx context.Context, servers []string, name string, answer *dns.Msg) ([]relay.Target, error) {
	var found []*dns.SRV
	for _, rr := range answer.Answer {
		if srv, ok := rr.(*dns.SRV); ok {
			found = append(found, srv)
		}
	}
	var targets []relay.Target
	var failed error
	found = order(found, rand.IntN)
	for _, srv := range found[:min(len(found), maxRecords)] {
		addrs, err := addresses(ctx, servers, srv.Target, answer.Extra)
		if err != nil {
			failed = cmp.Or(failed, err)
		}
		for _, addr := range addrs {
			targets = append(targets, relay.Target{Name: masterName(srv.Target), Addr: netip.AddrPortFrom(addr, srv.Port)})
		}
	}
	switch {
	case len(targets) > 0:
		return targets, nil
	case failed != nil:
		return nil, fmt.Errorf("%s: %w", name, failed)
	}
	return nil, fmt.Errorf("%w: DNS has no masters under %s", ErrNoName, name)
}

// Host returns the addresses of a host, IPv4 first. It may be an address itself.
func (r Resolver) Host(ctx context.Context, host string) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{addr}, nil
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host) // /etc/hosts, too
	if err == nil && len(addrs) > 0 {
		return sorted(addrs), nil
	}
	if len(r.Servers) == 0 {
		return nil, err
	}
	servers, err := r.servers()
	if err != nil {
		return nil, err
	}
	return addresses(ctx, servers, dns.Fqdn(host), nil)
}

func (r Resolver) servers() ([]string, error) {
	var out []string
	for _, s := range r.Servers {
		addr, err := server(s)
		if err != nil {
			return nil, err
		}
		out = append(out, addr)
	}
	if len(out) == 0 {
		path := cmp.Or(r.Config, "/etc/resolv.conf")
		conf, err := dns.ClientConfigFromFile(path)
		if err != nil {
			return nil, fmt.Errorf("find a name server: %w", err)
		}
		for _, s := range conf.Servers {
			out = append(out, net.JoinHostPort(s, conf.Port))
		}
	}
	if len(out) == 0 {
		return nil, errors.New("no name server is known: /etc/resolv.conf names none; use dns=HOST:PORT")
	}
	return out[:min(len(out), maxServers)], nil
}

// order sorts SRV records as RFC 2782 wants: by priority, and within one by chance in proportion to their weights. intn is
// rand.IntN. A target of "." means that the service is not there.
func order(records []*dns.SRV, intn func(n int) int) []*dns.SRV {
	rest := slices.DeleteFunc(slices.Clone(records), func(r *dns.SRV) bool { return r.Target == "." })
	slices.SortStableFunc(rest, func(a, b *dns.SRV) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Weight, b.Weight))
	})
	var out []*dns.SRV
	for len(rest) > 0 {
		same, sum := 0, 0
		for same < len(rest) && rest[same].Priority == rest[0].Priority {
			sum += int(rest[same].Weight)
			same++
		}
		if sum == 0 { // nobody is preferred
			i := intn(same)
			out, rest = append(out, rest[i]), slices.Delete(rest, i, i+1)
			continue
		}
		// Those of weight 0 come first in rest, and so have the small chance that the RFC gives them.
		draw, i := intn(sum+1), 0
		for run := int(rest[0].Weight); run < draw; run += int(rest[i].Weight) {
			i++
		}
		out, rest = append(out, rest[i]), slices.Delete(rest, i, i+1)
	}
	return out
}

// masterName returns the name of a master from its host name below masters.<domain>, or the host name.
func masterName(host string) string {
	host = strings.TrimSuffix(host, ".")
	if name, _, ok := strings.Cut(host, ".masters."); ok {
		return name
	}
	return host
}

// addresses returns the addresses of a host, from what came with an answer if it is there.
func addresses(ctx context.Context, servers []string, host string, extra []dns.RR) ([]netip.Addr, error) {
	if found := pick(extra, host); len(found) > 0 {
		return found, nil
	}
	var found []netip.Addr
	var failed error
	for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
		answer, err := ask(ctx, servers, host, kind)
		if err != nil {
			failed = cmp.Or(failed, err)
			continue
		}
		found = append(found, pick(answer.Answer, "")...)
	}
	if len(found) == 0 {
		if failed == nil {
			failed = fmt.Errorf("%w: %s has no address", ErrNoName, strings.TrimSuffix(host, "."))
		}
		return nil, failed
	}
	return sorted(found), nil
}

// pick returns the addresses of a host among records; of any with host "", as behind a CNAME.
func pick(records []dns.RR, host string) []netip.Addr {
	var out []netip.Addr
	for _, rr := range records {
		if host != "" && !strings.EqualFold(rr.Header().Name, host) {
			continue
		}
		var ip net.IP
		switch rr := rr.(type) {
		case *dns.A:
			ip = rr.A
		case *dns.AAAA:
			ip = rr.AAAA
		}
		if addr, ok := netip.AddrFromSlice(ip); ok {
			out = append(out, addr.Unmap())
		}
	}
	return sorted(out)
}

// sorted returns addresses with those of IPv4 first, and not too many.
func sorted(addrs []netip.Addr) []netip.Addr {
	out := make([]netip.Addr, len(addrs))
	for i, a := range addrs {
		out[i] = a.Unmap()
	}
	slices.SortStableFunc(out, func(a, b netip.Addr) int { return cmp.Compare(a.BitLen(), b.BitLen()) })
	return out[:min(len(out), maxAddresses)]
}
