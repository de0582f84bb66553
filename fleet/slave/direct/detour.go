package direct

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
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
	// Lay begins a detour, and remove ends it; remove is never nil, and may be called again when it has failed. A connection that
	// still goes that way may break then.
	// ErrUnsupported: this system never will.
	Lay(d Detour) (remove func() error, err error)
	// Sweep removes what a process left behind that could not.
	Sweep() error
}

// detours are those that are laid, by transport. They outlast a change, as the writes do that they are for. Only Run uses them.
type detours struct {
	kernel *Kernel
	laid   map[string]laid
	stuck  []stuck   // could not be removed
	failed time.Time // when the last one could not be laid
}

type laid struct {
	Detour
	remove func() error
}

// stuck is a detour that is not wanted, and could not be removed.
type stuck struct {
	remove func() error
	tries  int
	next   time.Time // when it is tried again
}

// Bounds of what is stuck.
const (
	removeTries = 8 // a second after the first, and twice as long after each other: two minutes, and the end
	maxStuck    = 16
)

// list returns what is laid.
func (d *detours) list() map[string]Detour {
	out := make(map[string]Detour)
	for id, l := range d.laid {
		out[id] = l.Detour
	}
	return out
}

// keep lays the detours that are wanted and not there, and removes those that are not wanted. What cannot be laid is tried again
// after settleTime; what cannot be removed, later and later. Nothing more is laid when too much of that is there.
func (d *detours) keep(wanted map[string]Detour) error {
	var all []error
	for id, l := range d.laid {
		if wanted[id] != l.Detour {
			delete(d.laid, id)
			all = append(all, d.remove(stuck{remove: l.remove}))
		}
	}
	all = append(all, d.removeStuck())
	for id, w := range wanted {
		if _, ok := d.laid[id]; ok || time.Since(d.failed) < settleTime || len(d.stuck) >= maxStuck {
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

// removeStuck tries one removal again, if it is time for one: each may take a while, and there may be a change under way.
func (d *detours) removeStuck() error {
	i := slices.IndexFunc(d.stuck, func(s stuck) bool { return s.tries < removeTries && !time.Now().Before(s.next) })
	if i < 0 {
		return nil
	}
	s := d.stuck[i]
	d.stuck = slices.Delete(d.stuck, i, i+1)
	return d.remove(s)
}

// remove tries to remove a detour, which is stuck if that fails. Only the first and the last failure are returned.
func (d *detours) remove(s stuck) error {
	err := s.remove()
	if err == nil {
		return nil
	}
	s.next = time.Now().Add(settleTime << s.tries)
	s.tries++
	d.stuck = append(d.stuck, s)
	switch s.tries {
	case 1:
		return fmt.Errorf("remove a detour (trying again): %w", err)
	case removeTries:
		return fmt.Errorf("remove a detour (tried %d times): %w", s.tries, err)
	}
	return nil
}

// end removes all there is, and tries once more what could not be removed.
func (d *detours) end() error {
	for _, l := range d.laid {
		d.stuck = append(d.stuck, stuck{remove: l.remove})
	}
	d.laid = nil
	var all []error
	for range 2 {
		all = nil
		d.stuck = slices.DeleteFunc(d.stuck, func(s stuck) bool {
			err := s.remove()
			all = append(all, err)
			return err == nil
		})
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
	return func() error {
		if err := end(); err != nil {
			return err // who had the port next would get what is led there
		}
		giveBack() //nolint:errcheck // whatever it says, the port is free: once
		return nil
	}, nil
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
