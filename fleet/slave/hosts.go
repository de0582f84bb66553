package slave

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/resolve"
)

// hosts remembers the addresses of masters that are known by host names: when masters are lost, DNS may be, too.
type hosts struct {
	mu    sync.Mutex // guards what follows
	known map[string]hostEntry
}

type hostEntry struct {
	addrs []netip.Addr
	at    time.Time // when it was asked for
}

// Bounds of hosts.
const (
	maxHosts  = 256
	hostFresh = time.Minute // then it is asked for again; the old addresses count while that fails
)

// lookup returns the addresses of a host, old ones if need be.
func (h *hosts) lookup(ctx context.Context, r resolve.Resolver, host string) []netip.Addr {
	h.mu.Lock()
	e, ok := h.known[host]
	if h.known == nil || len(h.known) >= maxHosts && !ok {
		h.known = make(map[string]hostEntry)
	}
	fresh := ok && time.Since(e.at) < hostFresh
	e.at = time.Now()
	h.known[host] = e // nobody else asks meanwhile
	h.mu.Unlock()
	if fresh {
		return e.addrs
	}
	ctx, cancel := context.WithTimeout(ctx, hostTime)
	defer cancel()
	addrs, err := r.Host(ctx, host)
	if err != nil || len(addrs) == 0 {
		return e.addrs
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.known[host] = hostEntry{addrs, time.Now()}
	return addrs
}
