package direct

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/relay"
)

// Detour leads a transport elsewhere, below its feet: what it sends from its local port to From arrives at To, and the answers seem
// to come from From.
type Detour struct {
	Local    uint16         // the transport's port: nothing else of this host's that goes to From is led astray
	From, To netip.AddrPort // with the same port
}

// Detourer lays detours. One that is left behind by a crash ends by itself, or by Sweep.
type Detourer interface {
	// Name says in a word how.
	Name() string
	// Lay begins a detour, and remove ends it; remove is never nil. A connection that still goes that way may break then.
	// ErrUnsupported: this system never will.
	Lay(d Detour) (remove func() error, err error)
	// Sweep removes what a process left behind that could not.
	Sweep() error
}

// detours are those that are laid, by transport. They outlast a change, as the writes do that they are for. Only Run uses them.
type detours struct {
	kernel *Kernel
	laid   map[string]laid
	failed time.Time // when the last one could not be laid
}

type laid struct {
	Detour
	remove func() error
}

// list returns what is laid.
func (d *detours) list() map[string]Detour {
	out := make(map[string]Detour)
	for id, l := range d.laid {
		out[id] = l.Detour
	}
	return out
}

// keep lays the detours that are wanted and not there, and removes those that are not wanted. What cannot be laid is tried again
// after settleTime.
func (d *detours) keep(wanted map[string]Detour) error {
	var all []error
	for id, l := range d.laid {
		if wanted[id] != l.Detour {
			delete(d.laid, id)
			if err := l.remove(); err != nil {
				all = append(all, fmt.Errorf("remove a detour: %w", err))
			}
		}
	}
	for id, w := range wanted {
		if _, ok := d.laid[id]; ok || time.Since(d.failed) < settleTime {
			continue
		}
		remove, err := d.kernel.lay(w)
		if err != nil {
			d.failed = time.Now()
			all = append(all, err)
			continue
		}
		if d.laid == nil {
			d.laid = make(map[string]laid)
		}
		d.laid[id] = laid{w, remove}
	}
	return errors.Join(all...)
}

// lay lays a detour in the first way that works here. Nothing is tried before the first one is needed: the packet filter of a host
// that never needs one is left as it is.
func (k *Kernel) lay(d Detour) (remove func() error, err error) {
	k.mu.Lock()
	chosen := k.detourer
	k.mu.Unlock()
	if chosen != nil {
		return chosen.Lay(d)
	}
	var all []error
	for _, way := range k.sys.Detourers() {
		remove, err := way.Lay(d)
		if err != nil {
			all = append(all, fmt.Errorf("%s: %w", way.Name(), err))
			continue
		}
		k.mu.Lock()
		k.detourer = way
		k.mu.Unlock()
		return remove, nil
	}
	return nil, fmt.Errorf("direct: cannot lead the kernel from %s to %s: %w", d.From.Addr(), d.To.Addr(), errors.Join(all...))
}

// withOwnPort lays a detour that has a local port of its own on the wire, below 1024 as the transport's: from that one, the kernel
// connects to the target itself as soon as it has taken its address.
func withOwnPort(d Detour, lay func(port uint16) (remove func() error, err error)) (remove func() error, err error) {
	nothing := func() error { return nil }
	port, giveBack, err := ownPort(d.From.Addr().Is6())
	if err != nil {
		return nothing, err
	}
	if remove, err = lay(port); err != nil {
		return nothing, errors.Join(err, giveBack())
	}
	end := remove
	return func() error { return errors.Join(end(), giveBack()) }, nil
}

// ownPort takes a local port that nobody has, below 1024 as the transport's.
func ownPort(v6 bool) (port uint16, giveBack func() error, err error) {
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, nil, fmt.Errorf("take a port: %w", err)
	}
	for port := range relay.LowPorts() {
		var local unix.Sockaddr = &unix.SockaddrInet4{Port: port}
		if v6 {
			local = &unix.SockaddrInet6{Port: port}
		}
		if err = unix.Bind(fd, local); err == nil {
			return uint16(port), func() error { return unix.Close(fd) }, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	return 0, nil, errors.Join(fmt.Errorf("take a port: %w", err), unix.Close(fd))
}
