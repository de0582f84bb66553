package direct

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"sync"

	"github.com/rs/zerolog"
)

// Kernel is what all Directs of a machine share. Its methods may be called from any goroutine.
type Kernel struct {
	sys System
	log zerolog.Logger

	mu       sync.Mutex           // guards what follows
	owners   map[string]*Direct   // of transports, by ID
	seen     map[string]Transport // as they were when last connected
	breaker  Breaker              // chosen when first needed; nil: not yet, or there is none
	detourer Detourer             // the same
}

// NewKernel returns the Kernel of a System. What an earlier process left in the packet filter is removed.
func NewKernel(sys System, log zerolog.Logger) *Kernel {
	k := &Kernel{sys: sys, log: log, owners: make(map[string]*Direct), seen: make(map[string]Transport)}
	if b, err := k.choose(); err == nil {
		if err := b.Sweep(); err != nil {
			log.Warn().Err(err).Str("by", b.Name()).Msg("cannot remove what an earlier process left in the packet filter")
		}
	}
	for _, d := range sys.Detourers() {
		if err := d.Sweep(); err != nil {
			log.Warn().Err(err).Str("by", d.Name()).Msg("cannot remove a detour that an earlier process left in the packet filter")
		}
	}
	return k
}

// Check reports why this kernel cannot be told to talk to another master. What it can do nevertheless is known by Breaker.
func (k *Kernel) Check() error {
	if _, err := k.sys.Transports(); err != nil {
		return fmt.Errorf("direct: %w", err)
	}
	return nil
}

// Breaker names how connections to a silent master are broken, or reports why they cannot be: then the kernel stays with a
// silent master until it gives up by itself, which takes it about 300 seconds.
func (k *Kernel) Breaker() (string, error) {
	b, err := k.choose()
	if err != nil {
		return "", err
	}
	return b.Name(), nil
}

// choose returns the best breaker that works here.
func (k *Kernel) choose() (Breaker, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.breaker != nil {
		return k.breaker, nil
	}
	var all []error
	for _, b := range k.sys.Breakers() {
		err := b.Check()
		if err == nil {
			k.breaker = b
			return b, nil
		}
		all = append(all, fmt.Errorf("%s: %w", b.Name(), err))
	}
	return nil, fmt.Errorf("direct: nothing here can break a connection to a silent master: %w", errors.Join(all...))
}

// transports returns d's transports as they are now, and makes them its own.
func (k *Kernel) transports(d *Direct, in interest) ([]Transport, error) {
	all, err := k.sys.Transports()
	if err != nil {
		return nil, err
	}
	mounts, err := k.sys.Mounts()
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	in.owned, in.others = make(map[string]bool), make(map[string]bool)
	there := make(map[string]bool)
	for i, t := range all {
		there[t.ID] = true
		all[i] = k.complete(t)
	}
	maps.DeleteFunc(k.seen, func(id string, _ Transport) bool { return !there[id] })
	for id, owner := range k.owners {
		switch {
		case !there[id]:
			delete(k.owners, id) // the kernel may give the name to another
		case owner == d:
			in.owned[id] = true
		default:
			in.others[id] = true
		}
	}
	ours := claim(all, mounts, in)
	for i, t := range ours {
		k.owners[t.ID] = d
		ours[i].Addr = netip.AddrPortFrom(t.Addr.Addr(), in.port)
	}
	return ours, nil
}

// transport looks at one transport again.
func (k *Kernel) transport(id string) (Transport, error) {
	t, err := k.sys.Transport(id)
	if err != nil {
		return t, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.complete(t), nil
}

// complete adds what the kernel says of a transport only while it is connected. k.mu is held.
func (k *Kernel) complete(t Transport) Transport {
	if t.Addr.Port() != 0 && t.LocalPort != 0 {
		k.seen[t.ID] = t
		return t
	}
	was := k.seen[t.ID]
	t.LocalPort = was.LocalPort
	if t.Addr.Port() == 0 {
		t.Addr = netip.AddrPortFrom(t.Addr.Addr(), was.Addr.Port())
	}
	return t
}

// disown gives up all that d owns.
func (k *Kernel) disown(d *Direct) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, owner := range k.owners {
		if owner == d {
			delete(k.owners, id)
		}
	}
}
