package direct

import (
	"errors"
	"net/netip"
	"time"
)

// ErrUnsupported says that this kernel cannot do what is asked of it.
var ErrUnsupported = errors.New("this kernel does not support it")

// System is Linux, as far as this package reaches for it. Its methods may be called from any goroutine. None but Aim waits
// for anything but memory.
type System interface {
	// Transports lists the NFS client's TCP transports of this network namespace. ErrUnsupported: the kernel does not show
	// them.
	Transports() ([]Transport, error)
	// Transport looks at one transport again; it does not say its Devices.
	Transport(id string) (Transport, error)
	// Mounts lists the NFS mounts of this process's mount namespace.
	Mounts() ([]Mount, error)
	// Aim gives a transport another address and makes it connect anew. It waits while the kernel is connecting it.
	Aim(transport string, to netip.Addr) error
	// Sockets lists the TCP sockets of this network namespace that are, or were, connected to a port, but for those in
	// TIME_WAIT.
	Sockets(port uint16) ([]Socket, error)
	// Socket looks at one socket again.
	Socket(s Socket) (Socket, error)
	// Breakers returns the ways to break connections that this system has, the best first.
	Breakers() []Breaker
	// Detourers returns the ways to lay detours that this system may have, the best first.
	Detourers() []Detourer
}

// Transport is one of the kernel's connections to an NFS server; it outlives the TCP connections that it is made of.
type Transport struct {
	ID        string         // its directory in sysfs: unique until the next boot, but for a transport that is gone
	Addr      netip.AddrPort // where it is connected to, or will be; port 0: not known, while it is not connected
	LocalPort uint16         // of its TCP connection; 0: not known
	Connected bool
	// Waiting is how many calls wait for their reply, or to be sent; while it is not connected, with those of the others of
	// the same mount.
	Waiting int
	// Devices are the file systems that use it, as st_dev is written in mountinfo; nil: the kernel does not say (before 6.5).
	Devices []string
}

// Mount is an NFS mount.
type Mount struct {
	Dir    string
	Device string         // as st_dev is written in mountinfo
	Addr   netip.AddrPort // what it was mounted from, whatever its transport is connected to now
}

// Socket is a TCP socket.
type Socket struct {
	Local, Remote netip.AddrPort
	State         State
	Cookie        uint64        // of the socket: unique until the next boot
	Silent        time.Duration // since bytes last came; since it was connected, when none ever did
	Received      uint64        // bytes

	family uint8
}

// State is a TCP state, as Linux numbers them.
type State uint8

// The states that matter here.
const (
	Established State = 1
	SynSent     State = 2
	TimeWait    State = 6
	Closed      State = 7
)

// Breaker breaks the connections to a peer that does not answer, so that this host's side of them learns that they are over.
type Breaker interface {
	// Name says in a word what it is.
	Name() string
	// Check reports why this system cannot do it; ErrUnsupported: it never will.
	Check() error
	// First says that it works on what is sent afterwards, to the same peer, until release is called: then Catch goes before
	// an Aim, and Break after it. Else there is nothing to catch, and Break breaks the one connection as it is.
	First() bool
	// Catch has the FIN, with which this host ends a connection to the peer, break that connection. That holds for every
	// connection to the peer's address and port, those of other mounts and of greetings, too: they end as well, only at once.
	// What goes on is not touched. release is never nil and reports what could not be undone.
	Catch(s Socket) (release func() error, err error)
	// Break breaks a connection, and refuses new ones to the same peer if First. release is as Catch's.
	Break(s Socket) (release func() error, err error)
	// Sweep undoes what a process left behind that could not.
	Sweep() error
}
