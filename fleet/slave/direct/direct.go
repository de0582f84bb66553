package direct

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/relay"
)

// DefaultPort is the NFS port of a fleet's masters.
const DefaultPort = 2049

// Config is what a Direct needs.
type Config struct {
	Kernel *Kernel
	// Mounts returns the directories at which the SRV name's mounts are. It may be called at any time and must not block.
	Mounts func() []string
	// Port is the masters' NFS port, which is the same on all of them: the kernel can be told another address, not another
	// port. 0: DefaultPort.
	Port   uint16
	Logger zerolog.Logger
}

// Direct keeps an SRV name's mounts connected to one master. Its methods may be called from any goroutine.
type Direct struct {
	cfg    Config
	losses chan relay.Loss
	wake   chan struct{} // something for Run to do

	mu      sync.Mutex // guards what follows; taken before Kernel.mu
	target  netip.AddrPort
	turn    uint64        // counts changes of target
	urgent  bool          // the present change is away from a master that does not answer
	busy    bool          // the present change is not done
	done    chan struct{} // closed when the present change is done, or overtaken
	result  error         // of the last change that is done
	fleet   []netip.Addr  // where it was ever sent to, the latest last
	flow    flow
	ours    []Transport // as Run last saw them
	sockets []Socket    // of ours, as Flow last saw them
	listed  time.Time   // when Flow last listed all sockets
}

// New returns a Direct without a target. Nothing happens before Run.
func New(cfg Config) *Direct {
	if cfg.Port == 0 {
		cfg.Port = DefaultPort
	}
	return &Direct{cfg: cfg, losses: make(chan relay.Loss, 16), wake: make(chan struct{}, 1), done: make(chan struct{})}
}

// Losses are the losses. When nobody receives them, some are dropped.
func (d *Direct) Losses() <-chan relay.Loss { return d.losses }

// Hold does nothing: the kernel itself keeps calls waiting that find no master.
func (d *Direct) Hold() {}

// Resume does nothing, as Hold.
func (d *Direct) Resume() {}

// Switch makes to the target, and breaks what connects the kernel with another, whatever its state. What is connected to
// the target already and has unanswered calls is connected anew.
func (d *Direct) Switch(to netip.AddrPort) { d.begin(to, true) }

// Move makes to the target, and returns when the kernel is connected to it, or would be for the next call. The old master
// is expected to answer; what it leaves unanswered for moveTime is broken.
func (d *Direct) Move(ctx context.Context, to netip.AddrPort) error {
	if to.Port() != d.cfg.Port {
		return fmt.Errorf("direct: move to %s: %w", to, errPort(d.cfg.Port))
	}
	turn, done := d.begin(to, false)
	select {
	case <-ctx.Done():
		return fmt.Errorf("direct: move to %s: %w", to, context.Cause(ctx))
	case <-done:
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.turn != turn {
		return fmt.Errorf("direct: move to %s: %w", to, relay.ErrOvertaken)
	}
	return d.result
}

func errPort(port uint16) error {
	return fmt.Errorf("the kernel can be sent to port %d only, where it was first connected to", port)
}

// begin begins a change of target. done is closed when it is over.
func (d *Direct) begin(to netip.AddrPort, urgent bool) (turn uint64, done <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	close(d.done)
	d.done = make(chan struct{})
	d.turn++
	d.target, d.urgent, d.busy, d.result = to, urgent, true, nil
	d.fleet = remember(d.fleet, to.Addr())
	d.flow.turn()
	d.Look()
	return d.turn, d.done
}

// Look has Run look at the kernel now: there may be a mount that it does not know, and what it knows of a transport is of use later.
func (d *Direct) Look() {
	select {
	case d.wake <- struct{}{}:
	default: // Run will see it
	}
}

// maxFleet is how many masters are remembered.
const maxFleet = 64

// remember adds an address as the latest.
func remember(list []netip.Addr, a netip.Addr) []netip.Addr {
	list = slices.DeleteFunc(slices.Clone(list), func(o netip.Addr) bool { return o == a })
	list = append(list, a)
	return list[max(0, len(list)-maxFleet):]
}

// Target returns the present target; it is not valid when there is none.
func (d *Direct) Target() netip.AddrPort {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.target
}

// Flow says how replies come, as far as the kernel shows. It looks at those transports that were ours when Run last looked.
func (d *Direct) Flow() relay.Flow {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	if !d.target.IsValid() || !d.flow.due(now) {
		return d.flow.flow
	}
	var ours []Transport
	calls := false // wait for a reply
	for _, t := range d.ours {
		if t, err := d.cfg.Kernel.transport(t.ID); err == nil {
			ours = append(ours, t)
			calls = calls || t.Waiting > 0
		}
	}
	if calls {
		d.refresh(now, ours)
	}
	if lost := d.flow.see(now, d.target, ours, d.sockets); lost && !d.busy {
		d.lose(relay.Loss{Addr: d.target, Err: errEnded, Useless: !d.flow.useful})
	}
	return d.flow.flow
}

// listEvery is how often all sockets are listed, at the most; one that is known is asked for by its name.
const listEvery = 100 * time.Millisecond

// refresh looks at the sockets of transports again. d.mu is held.
func (d *Direct) refresh(now time.Time, ours []Transport) {
	sys := d.cfg.Kernel.sys
	var sockets []Socket
	for _, s := range d.sockets {
		if s, err := sys.Socket(s); err == nil && s.State != Closed {
			sockets = append(sockets, s)
		}
	}
	complete := !slices.ContainsFunc(ours, func(t Transport) bool {
		return !slices.ContainsFunc(sockets, func(s Socket) bool { return s.of(t) })
	})
	if !complete && now.Sub(d.listed) >= listEvery {
		d.listed = now
		if all, err := sys.Sockets(d.cfg.Port); err == nil {
			sockets = slices.DeleteFunc(all, func(s Socket) bool {
				return !slices.ContainsFunc(ours, func(t Transport) bool { return s.of(t) })
			})
		}
	}
	d.sockets = sockets
}

// errEnded is why a connection of the kernel's is lost.
var errEnded = errors.New("the kernel's connection ended")

func (d *Direct) lose(l relay.Loss) {
	select {
	case d.losses <- l:
	default: // there are others to be read, which say the same
	}
}

// interest returns what is known of our mounts. d.mu is held.
func (d *Direct) interest() interest {
	return interest{port: d.cfg.Port, dirs: d.cfg.Mounts(), fleet: d.fleet}
}

// Times of a change.
const (
	step       = 10 * time.Millisecond // between looks at a change under way
	changeTime = 5 * time.Second       // after which no more is broken for one
	settleTime = time.Second           // between looks when nothing happens: a new mount is sent to the target too
)

// Run performs changes until ctx ends. The kernel's transports are left where they are.
func (d *Direct) Run(ctx context.Context) error {
	defer d.cfg.Kernel.disown(d)
	under := underway{detours: detours{kernel: d.cfg.Kernel}}
	defer func() {
		under.aims.wait()
		if err := under.detours.end(); err != nil {
			d.cfg.Logger.Error().Err(err).Msg("cannot undo what led the kernel to another master")
		}
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.wake:
		case <-timer.C:
		}
		d.change(ctx, &under)
		timer.Reset(settleTime)
	}
}
