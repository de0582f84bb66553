package slave

import (
	"context"
	"net/netip"
	"sync"
	"time"
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
	hostFresh = time.Minute     // then it is asked for again; the old addresses count while that fails
	hostAgain = 2 * time.Second // the same for one that has never been found
)

// fresh says whether what is known of a host still counts without asking.
func (e hostEntry) fresh(now time.Time) bool {
	if len(e.addrs) == 0 {
		return now.Sub(e.at) < hostAgain
	}
	return now.Sub(e.at) < hostFresh
}

// lookup returns the addresses of a host, old ones if need be. find asks for them.
func (h *hosts) lookup(ctx context.Context, find func(ctx context.Context, host string) ([]netip.Addr, error), host string) []netip.Addr {
	now := time.Now()
	h.mu.Lock()
	e, ok := h.known[host]
	fresh := ok && e.fresh(now)
	if !fresh {
		if h.known == nil || len(h.known) >= maxHosts && !ok {
			h.known = make(map[string]hostEntry)
		}
		h.known[host] = hostEntry{e.addrs, now} // nobody else asks meanwhile
	}
	h.mu.Unlock()
	if fresh {
		return e.addrs
	}
	ctx, cancel := context.WithTimeout(ctx, hostTime)
	defer cancel()
	addrs, err := find(ctx, host)
	if err != nil || len(addrs) == 0 {
		return e.addrs
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.known[host] = hostEntry{addrs, time.Now()}
	return addrs
}
