package master

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/nfs-fleet/nfs-fleet/fleet"
)

// steadyGate refuses everybody while this master has stepped down.
type steadyGate struct {
	master *Master
	next   *headGate
}

// Await implements exporter.Gate.
func (g steadyGate) Await(ctx context.Context) error {
	if g.master.steppedDown.Load() {
		return errSteppedDown
	}
	return g.next.Await(ctx)
}

// headGate parks a new connection until this master serves every head, so that no slave that comes from another master
// travels back in time. Connections that arrive together share one linearizable read of etcd, or of what the other masters serve (newest).
type headGate struct {
	load   func(ctx context.Context) (fleet.View, error)
	served func(ctx context.Context, v fleet.View) error // waits until every head of v is served
	open   <-chan struct{}                               // closed when this master serves at all

	mu   sync.Mutex // guards next
	next *gateRead  // the read that has not begun yet: newcomers join it
	busy chan struct{}
	pace *rate.Limiter // of reads
}

// gateRead is one read of the heads, shared by all that asked before it began.
type gateRead struct {
	done chan struct{}
	view fleet.View
	err  error
}

// Under a storm of connections etcd sees a read every gateRest, after gateBurst of them. A slave that comes from a lost master says
// HELLO, and connects anew to read when that was answered: its second connection must not wait for the first one's rest.
const (
	gateRest  = 20 * time.Millisecond
	gateBurst = 25
)

func newHeadGate(open <-chan struct{}, load func(context.Context) (fleet.View, error), served func(context.Context, fleet.View) error) *headGate {
	return &headGate{open: open, load: load, served: served, busy: make(chan struct{}, 1),
		pace: rate.NewLimiter(rate.Every(gateRest), gateBurst)}
}

// Await implements exporter.Gate. With etcd away the last known heads are good enough.
func (g *headGate) Await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, gatePatience)
	defer cancel()
	select {
	case <-g.open:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	r := g.join()
	select {
	case <-r.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if r.err != nil {
		return nil
	}
	return g.served(ctx, r.view)
}

// join returns a read that begins after this call.
func (g *headGate) join() *gateRead {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.next == nil {
		g.next = &gateRead{done: make(chan struct{})}
		go g.read(g.next)
	}
	return g.next
}

// read waits for the read before it and for its turn, takes itself out of the way of newcomers and asks etcd. It ends within
// gateTimeout, whoever waits.
func (g *headGate) read(r *gateRead) {
	defer close(r.done)
	g.busy <- struct{}{}
	defer func() { <-g.busy }()
	time.Sleep(g.pace.Reserve().Delay())
	g.mu.Lock()
	g.next = nil
	g.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), gateTimeout)
	defer cancel()
	r.view, r.err = g.load(ctx)
}

// gatePatience is how long a connection is parked; then it is closed, and the client tries again, here or elsewhere.
const gatePatience = 2 * time.Second

// gateTimeout is how long etcd and the other masters may take to name the heads before the last known ones count. A reader
// whose master has fallen silent has waited 600 ms by then, and is to read again within a second.
const gateTimeout = 200 * time.Millisecond
