package master

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

const (
	// lookupEvery is the time between two look-ups of a master's host name.
	lookupEvery = 30 * time.Second
	// lookupAgain is the time until one is tried again that has never brought anything.
	lookupAgain = 2 * time.Second
	// lookupLimit bounds one look-up.
	lookupLimit = 5 * time.Second
	// maxLookups is how many run at once.
	maxLookups = 8
)

// addressBook knows the addresses of host names. Looking them up may take seconds, so that it is done by run, and of,
// which is asked, says what is known.
type addressBook struct {
	lookup  func(ctx context.Context, host string) ([]netip.Addr, error)
	changed func() // is called when more is known than before
	log     zerolog.Logger
	wake    chan struct{}

	mu    sync.Mutex // guards what follows
	names map[string]*hostName
}

// hostName is what is known of one name.
type hostName struct {
	addresses []netip.Addr // as they were last found
	next      time.Time    // when it is looked up again
	asked     time.Time    // when somebody last wanted to know
	failed    bool         // the last look-up did
}

func newAddressBook(lookup func(context.Context, string) ([]netip.Addr, error), changed func(), log zerolog.Logger) *addressBook {
	return &addressBook{lookup: lookup, changed: changed, log: log, wake: make(chan struct{}, 1), names: map[string]*hostName{}}
}

// of returns the addresses of a host as far as they are known, at once. They are not to be modified.
func (b *addressBook) of(host string) []netip.Addr {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.names[host]
	if n == nil {
		n = &hostName{}
		b.names[host] = n
		select {
		case b.wake <- struct{}{}:
		default: // it will look
		}
	}
	n.asked = time.Now()
	return n.addresses
}

// run looks names up until ctx ends.
func (b *addressBook) run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		b.lookUp(ctx, b.due(time.Now()))
		select {
		case <-ctx.Done():
			return nil
		case <-b.wake:
		case <-tick.C:
		}
	}
}

// due names what is to be looked up, and forgets what nobody has asked for in a while.
func (b *addressBook) due(now time.Time) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for host, n := range b.names {
		switch {
		case now.Sub(n.asked) > 10*lookupEvery:
			delete(b.names, host)
		case !now.Before(n.next):
			out = append(out, host)
		}
	}
	return out
}

func (b *addressBook) lookUp(ctx context.Context, hosts []string) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxLookups)
	for _, host := range hosts {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			bounded, cancel := context.WithTimeout(ctx, lookupLimit)
			defer cancel()
			found, err := b.lookup(bounded, host)
			if ctx.Err() == nil {
				b.learn(host, found, err)
			}
		})
	}
	wg.Wait()
}

// learn takes the end of a look-up into account. What was known stays when nothing was found: a name server may be away.
func (b *addressBook) learn(host string, found []netip.Addr, err error) {
	found = tellable(found)
	b.mu.Lock()
	n := b.names[host]
	if n == nil {
		b.mu.Unlock()
		return
	}
	first := len(found) == 0 && !n.failed
	n.failed = len(found) == 0
	news := !n.failed && !slices.Equal(n.addresses, found)
	if !n.failed {
		n.addresses = found
	}
	n.next = time.Now().Add(lookupEvery)
	if len(n.addresses) == 0 {
		n.next = time.Now().Add(lookupAgain)
	}
	b.mu.Unlock()
	if first {
		b.log.Warn().Err(err).Str("host", host).Msg("a master's host name has no address that slaves could use; trying again")
	}
	if news {
		b.changed()
	}
}

// tellable are those of a name's addresses that mean the same on other machines, in order. Debian's /etc/hosts has
// 127.0.1.1 for the host's own name.
func tellable(all []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range all {
		if a = a.Unmap(); !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsUnspecified() && !a.IsMulticast() && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// lookUpHost asks the system's resolver.
func lookUpHost(ctx context.Context, host string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}
