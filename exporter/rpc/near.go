package rpc

import (
	"net"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// nearBuffer is how many bytes may be on their way to a peer on this machine. What is much more falls out of the processor's
// cache before the peer takes it; with less, replies wait for the peer. The way to others is long, and the kernel finds out how
// long: they are left to it.
const nearBuffer = 512 << 10

// unpaced is a way to control congestion that every kernel has, and that sends at once.
const unpaced = "reno"

// paced is how the names of those begin that pace: bbr, bbr2 and so on.
const paced = "bbr"

// pace is how replies are let go. Where the system's way to control congestion paces what is sent, as BBR does, a timer goes
// off for every few packets: a third of a large READ's time when the peer is on this machine, where nothing can be congested.
// Pacing stays once it is on, so a listener that has BBR is told not to begin with it, and connections from elsewhere are given
// what it had before. Any other way is left alone.
type pace struct{ far string } // what they are given; empty: they have it

// newPace tells a listener.
func newPace(l net.Listener) (p pace) {
	control(l, func(fd int) {
		far, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		if err == nil && strings.HasPrefix(far, paced) && unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, unpaced) == nil {
			p.far = far
		}
	})
	return p
}

// set prepares a connection that came by the listener. What fails makes it slower, no more.
func (p pace) set(c *Conn) {
	if c.remote.Addr() != c.local.Addr() {
		if p.far != "" {
			control(c.nc, func(fd int) { _ = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, p.far) })
		}
		return
	}
	if b, ok := c.nc.(interface{ SetWriteBuffer(int) error }); ok {
		_ = b.SetWriteBuffer(nearBuffer)
	}
}

// control calls f with the descriptor of a listener or a connection, if there is one.
func control(x any, f func(fd int)) {
	if sc, ok := x.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { f(int(fd)) })
		}
	}
}
