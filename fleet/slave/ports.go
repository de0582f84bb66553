package slave

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"slices"
	"syscall"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/control"
)

// ports are what routes listen at: below 1024, so that no user can take one before the agent does, assigned by IANA to
// nobody, and outside of 665 to 1023, where the kernel's NFS client and the agent take the other ends of connections from.
var ports = portRanges([2]uint16{288, 307}, [2]uint16{325, 332}, [2]uint16{334, 343})

func portRanges(ranges ...[2]uint16) (out []uint16) {
	for _, r := range ranges {
		for p := r[0]; p <= r[1]; p++ {
			out = append(out, p)
		}
	}
	return out
}

// candidates returns the ports that a name may have, in the order of preference: one that it has had, and then from a place
// that is the name's own, so that a host that has lost its state most likely takes the same again.
func candidates(name string, had uint16, all []uint16, taken func(uint16) bool) []uint16 {
	h := fnv.New32a()
	h.Write([]byte(name)) //nolint:errcheck // never fails
	first := int(h.Sum32() % uint32(len(all)))
	order := slices.Concat(all[first:], all[:first])
	if had != 0 {
		order = slices.Insert(slices.DeleteFunc(order, func(p uint16) bool { return p == had }), 0, had)
	}
	return slices.DeleteFunc(order, taken)
}

// listen opens the first of some ports that is free.
func listen(ports []uint16) (*net.TCPListener, error) {
	for _, p := range ports {
		ln, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(p)})
		switch {
		case err == nil:
			return ln, nil
		case errors.Is(err, syscall.EACCES):
			return nil, fmt.Errorf("%w: the agent may not listen at ports below 1024: it must run as root", control.ErrNoPort)
		case !errors.Is(err, syscall.EADDRINUSE):
			return nil, fmt.Errorf("%w: %w", control.ErrNoPort, err)
		}
	}
	return nil, fmt.Errorf("%w: all of %d ports of 127.0.0.1 are in use, or kept for other names", control.ErrNoPort, len(ports))
}

// portOf returns the port of a listener.
func portOf(ln *net.TCPListener) uint16 { return ln.Addr().(*net.TCPAddr).AddrPort().Port() }
