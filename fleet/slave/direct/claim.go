package direct

import (
	"net/netip"
	"slices"
	"strings"
)

// interest is what a Direct knows of its own mounts.
type interest struct {
	port   uint16          // of the masters' NFS service
	dirs   []string        // where the mounts are
	fleet  []netip.Addr    // the masters that it was ever sent to
	owned  map[string]bool // transports that it has claimed before
	others map[string]bool // transports that another owns
}

// claim returns those of the kernel's transports that are ours. A kernel since 6.5 says which file systems use a transport.
// An older one does not: there, what is connected to one of our masters is ours, unless it is explained by a mount of
// somebody else's from that very address.
func claim(transports []Transport, mounts []Mount, in interest) []Transport {
	ours := make(map[string]bool)
	var first, foreign []netip.Addr // what our mounts, and others', were mounted from
	for _, m := range mounts {
		switch {
		case slices.Contains(in.dirs, m.Dir):
			ours[m.Device] = true
			first = append(first, m.Addr.Addr())
		case m.Addr.Port() == in.port:
			foreign = append(foreign, m.Addr.Addr())
		}
	}
	var out []Transport
	for _, t := range transports {
		if t.Addr.Port() != in.port && t.Addr.Port() != 0 || in.others[t.ID] || len(ours) == 0 {
			continue
		}
		mine := in.owned[t.ID]
		switch {
		case t.Devices != nil:
			mine = slices.ContainsFunc(t.Devices, func(d string) bool { return ours[d] })
		case mine, slices.Contains(first, t.Addr.Addr()):
			mine = true
		case slices.Contains(in.fleet, t.Addr.Addr()):
			mine = !slices.Contains(foreign, t.Addr.Addr())
		}
		if mine {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b Transport) int { return strings.Compare(a.ID, b.ID) })
	return out
}
