package master

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/dns"
)

// domainOf is the domain that a master answers DNS questions for: its own setting, or without one that of most other masters
// of the fleet. others are the domains that masters are set to and that are not this one.
func domainOf(own string, masters map[string]fleet.Master) (domain string, others []string) {
	votes := map[string]int{}
	for _, m := range masters {
		if d := plainDomain(m.Domain); d != "" {
			votes[d]++
		}
	}
	set := slices.SortedFunc(maps.Keys(votes), func(a, b string) int { return cmp.Or(votes[b]-votes[a], cmp.Compare(a, b)) })
	domain = plainDomain(own)
	if domain == "" && len(set) > 0 {
		domain = set[0]
	}
	domain = cmp.Or(domain, dns.DefaultDomain)
	return domain, slices.DeleteFunc(set, func(d string) bool { return d == domain })
}

// plainDomain is a domain as it is compared: in lower case, without the final dot.
func plainDomain(d string) string { return strings.ToLower(strings.TrimSuffix(d, ".")) }
