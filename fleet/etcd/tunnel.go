package etcd

import (
	"context"
	"io"
	"net"
	"sync"
)

// maxTunnels bounds how many connections others may have to this member at once.
const maxTunnels = 1024

// tunnels are the connections from others to the client port.
type tunnels struct {
	mu   sync.Mutex // guards what follows
	open map[net.Conn]bool
	shut bool // no further ones
}

// add reports whether there is room.
func (t *tunnels) add(c net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.shut || len(t.open) >= maxTunnels {
		return false
	}
	if t.open == nil {
		t.open = map[net.Conn]bool{}
	}
	t.open[c] = true
	return true
}

func (t *tunnels) remove(c net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, c)
}

// close ends them all. What serves them returns soon after.
func (t *tunnels) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.shut = true
	for c := range t.open {
		c.Close()
	}
}

// ServeTunnel connects a connection to the client port until either side closes it, ctx ends or the member does. It
// closes conn, at once when the member is not ready. Whoever may use it has been checked by the caller.
func (m *Member) ServeTunnel(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	r := m.present()
	if r == nil || !r.isReady() || !r.tunnels.add(conn) {
		return
	}
	defer r.tunnels.remove(conn)
	own, err := new(net.Dialer).DialContext(ctx, "tcp", m.cfg.ClientListen)
	if err != nil {
		return
	}
	defer own.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var back sync.WaitGroup
	back.Go(func() {
		io.Copy(conn, own) // an error is the end of the connection, which is all there is to say
		conn.Close()
	})
	io.Copy(own, conn)
	own.Close()
	back.Wait()
}
