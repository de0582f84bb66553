package hostile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nfs-fleet/nfs-fleet/e2e/nfs"
)

// Patience is how long a server may take to answer, or to let somebody in.
const Patience = 15 * time.Second

// Target is whom a client is after.
type Target struct {
	Addr  string     // host:port
	From  string     // the address of this host that is attacked from; "": any
	File  nfs.Handle // a file that can be read
	Dir   nfs.Handle // the directory that it is in
	Seed  uint64
	Conns int // that a client has at once, if it has many; 0: as many as it has a mind to
}

// Client is one kind. It counts what it does: calls, bytes or connections.
type client struct {
	about string
	conns int // when a target says nothing
	run   func(ctx context.Context, c *campaign) error
}

// The kinds, by name.
var clients = map[string]client{
	"never-reads": {"asks for much and never reads the replies", 4, each((*campaign).neverRead)},
	"dribble":     {"sends a byte a second", 64, each((*campaign).dribble)},
	"open":        {"opens connections as fast as it can", 256, open},
	"hold":        {"holds more connections open than there may be", 2000, each((*campaign).hold)},
	"half-sent":   {"begins long records and does not end them", 64, each((*campaign).halfSent)},
	"records":     {"sends what are no records, or no calls", 2, each((*campaign).records)},
	"calls":       {"makes calls whose arguments are nonsense", 2, each((*campaign).calls)},
	"datagrams":   {"sends nonsense over UDP", 1, each((*campaign).datagrams)},
	"http":        {"speaks nonsense to an HTTP server", 2, each((*campaign).http)},
}

// Kinds are the names of all clients.
func Kinds() []string { return slices.Sorted(maps.Keys(clients)) }

// campaign is what one client is at.
type campaign struct {
	Target
	done atomic.Uint64
}

// Run has one client do its worst until ctx ends. It returns how often it did: calls, bytes or connections.
func Run(ctx context.Context, kind string, t Target) (done uint64, err error) {
	k, ok := clients[kind]
	if !ok {
		return 0, fmt.Errorf("no hostile client %q; there are %v", kind, Kinds())
	}
	if t.Conns == 0 {
		t.Conns = k.conns
	}
	c := &campaign{Target: t}
	if err = k.run(ctx, c); ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		err = nil
	}
	return c.done.Load(), err
}

// each makes a client of what one of its connections does: over and over, on as many as it is to have at once. The first
// error ends all.
func each(do func(*campaign, context.Context, *rand.Rand) error) func(context.Context, *campaign) error {
	return func(ctx context.Context, c *campaign) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		failed := make(chan error)
		for i := range c.Conns {
			random := rand.New(rand.NewPCG(c.Seed, uint64(i)))
			go func() {
				var err error
				for err == nil && ctx.Err() == nil {
					err = do(c, ctx, random)
				}
				failed <- err
			}()
		}
		var first error
		for range c.Conns {
			if err := <-failed; err != nil && first == nil {
				first = err
				cancel()
			}
		}
		return first
	}
}

// dial opens a connection that ends with ctx. A server that turns it away is asked again a little later; a listener that lets
// nobody in for Patience is an error.
func (c *campaign) dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{Timeout: Patience}
	if c.From != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(c.From)}
	}
	for tries := 0; ; tries++ {
		conn, err := d.DialContext(ctx, "tcp", c.Addr)
		if err == nil {
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			return &ended{Conn: conn, stop: stop}, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if tries == 100 || !closed(err) {
			return nil, err
		}
		pause(ctx, 100*time.Millisecond)
	}
}

// ended is a connection that is closed when a context ends.
type ended struct {
	net.Conn
	stop func() bool
}

func (e *ended) Close() error {
	e.stop()
	return e.Conn.Close()
}

// closed says whether an error means that the other side has ended a connection, or will have none.
func closed(err error) bool {
	for _, e := range []error{syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNREFUSED, syscall.ECONNABORTED, net.ErrClosed} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// pause returns after d or when ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
