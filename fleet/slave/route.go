package slave

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/control"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/direct"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/mounts"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/poll"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/relay"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/resolve"
)

// mover is what joins the kernel to a master.
type mover interface {
	relay.Mover
	Run(ctx context.Context) error
}

// route is the way to the masters of one SRV name. It is awake while something is mounted through it, connected to it or has
// lately been wished for: then a mover and a prober run. Asleep it only listens.
type route struct {
	key
	agent    *Agent
	log      zerolog.Logger
	listener *net.TCPListener // nil: via direct
	addr     netip.AddrPort   // of the listener
	wake     chan struct{}    // has room for one
	cancel   context.CancelFunc

	mu     sync.Mutex // guards what follows
	told   []*told    // the latest first
	heard  int        // how often something was told
	mounts []mounts.Mount
	used   time.Time          // when somebody last had a use for it; zero: never
	before time.Time          // used, before commands that wait asked for it
	mover  mover              // nil: asleep
	stop   context.CancelFunc // of the mover and the prober
	prober *relay.Prober      // nil: asleep, or being made anew
	course relay.Course       // as it was when the route fell asleep
	order  []relay.Target
	last   relay.Change             // as the agent before left it
	noDNS  error                    // why DNS did not tell the masters; nil: it did, or was not asked
	failed map[netip.AddrPort]error // why masters did not answer

	kernelPort uint16 // via direct: the masters' port as the kernel has it; 0 before it is known
}

// restTick is how often a route looks whether it may sleep, as a part of Config.Rest.
const restTick = 8

// discoverTime is how long DNS has to tell the masters' port.
const discoverTime = 5 * time.Second

// refusedTime is how long name servers that were named may still be starting when they refuse to answer for a domain.
const refusedTime = 2 * time.Second

// warnEvery is how often the same failure is said at the most.
const warnEvery = time.Minute

// retryAfter is the wait before a mover that has failed is made anew.
const retryAfter = time.Second

func newRoute(a *Agent, k key, rec routeRecord) *route {
	r := &route{
		key: k, agent: a, log: a.cfg.Logger.With().Str("name", k.name).Str("via", k.via).Logger(), wake: make(chan struct{}, 1),
		told: recall(rec.Told), used: rec.Used, order: rec.Order, last: rec.Last, failed: make(map[netip.AddrPort]error),
	}
	if name := r.slaveName(); rec.Called != "" && rec.Called != name {
		r.log.Warn().Str("was", rec.Called).Str("is", name).Msg("this slave has another name now: the fleet forgets the old one after 7 days, or by `nfs-fleet slave forget`")
	}
	return r
}

// record is what the next agent is to know.
func (r *route) record() routeRecord {
	r.mu.Lock()
	defer r.mu.Unlock()
	return routeRecord{
		Name: r.name, Via: r.via, Port: r.addr.Port(), Told: r.recorded(),
		Called: r.slaveName(), Order: r.present().Order, Last: r.present().Change, Used: r.used.Truncate(time.Minute),
	}
}

// present returns where the route is. The caller holds mu.
func (r *route) present() relay.Course {
	c := r.course
	if r.prober != nil {
		c = r.prober.Course()
	}
	if len(c.Order) == 0 {
		c.Order = r.order
	}
	if !c.Change.From.Addr.IsValid() { // the first after a start came from nowhere
		c.Change = r.last
	}
	return c
}

// want adds to what the route is told by, and wakes it. Whoever wants it says done when it no longer waits.
func (r *route) want(w control.Want) *told {
	r.mu.Lock()
	defer r.mu.Unlock()
	alone := len(r.mounts) == 0 && !r.waited() && !r.connected()
	if !r.pending() {
		r.before = r.used
	}
	old := r.told
	t := r.hear(w)
	r.used, r.noDNS = time.Now(), nil
	if c := r.present(); alone && !slices.ContainsFunc(old, t.leads) && (c.Lost || !c.Target.Addr.IsValid()) {
		// Nobody reads, and whoever was looked for in vain is forgotten.
		r.order, r.course = nil, relay.Course{}
		if r.stop != nil {
			r.stop()
			r.prober = nil
		}
	}
	r.rouse()
	return t
}

// done ends the wait of a command. When it came to nothing, and nobody else has a use for the route, it falls asleep.
func (r *route) done(t *told, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settle(t, ok)
	if ok {
		r.used = time.Now()
		return
	}
	r.dismiss()
}

// release forgets a mount for which the route was made ready, and that came to nothing.
func (r *route) release(w control.Want) {
	r.mu.Lock()
	defer r.mu.Unlock()
	what := told{Dir: w.Dir, DNS: w.DNS, Masters: w.Masters, Slave: w.Slave}
	i := slices.IndexFunc(r.told, func(t *told) bool { return !t.open && !r.live(t) && t.same(&what) })
	if i >= 0 {
		r.forget(r.told[i])
		r.dismiss()
	}
}

// dismiss has the route fall asleep if nobody has a use for it. The caller holds mu.
func (r *route) dismiss() {
	if len(r.mounts) == 0 && !r.pending() && !r.connected() {
		r.used = r.before
	}
	r.rouse()
}

// connected says whether the kernel is, for all that can be told from outside of the table of mounts: via direct nothing can, and
// its mover asks for the mounts, which mu guards. The caller holds mu.
func (r *route) connected() bool {
	return r.listener != nil && r.mover != nil && r.mover.Flow().Conns > 0
}

// mounted tells which mounts are the route's.
func (r *route) mounted(ms []mounts.Mount) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.mounts) > 0 {
		r.used = time.Now()
	}
	changed := !mounts.Same(r.mounts, ms)
	r.mounts = ms
	r.prune()
	if changed && r.prober != nil {
		r.prober.Tell() // nobody knows of a slave before it tells of a mount
	}
	if len(ms) > 0 {
		r.rouse()
	}
}

func (r *route) rouse() {
	select {
	case r.wake <- struct{}{}:
	default: // it is being waked
	}
}

// run works, and sleeps when there is nothing to do, until ctx ends.
func (r *route) run(ctx context.Context) {
	seldom := r.log.Sample(&zerolog.BurstSampler{Burst: 1, Period: warnEvery})
	for ctx.Err() == nil {
		if err := r.sleep(ctx); err != nil {
			r.log.Error().Err(err).Msg("cannot wait for the kernel")
		} else if err = r.work(ctx); err != nil {
			seldom.Error().Err(err).Msg("the way to the masters has failed: making it anew")
		} else {
			continue
		}
		select {
		case <-time.After(retryAfter):
		case <-ctx.Done():
		}
	}
}

// close closes the listener; whoever started the agent may have it still.
func (r *route) close() {
	if r.listener == nil {
		return
	}
	if err := r.listener.Close(); err != nil {
		r.log.Debug().Err(err).Msg("close a listener")
	}
}

// dormant says whether the route is asleep.
func (r *route) dormant() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.prober == nil && len(r.mounts) == 0 && !r.waited() && time.Since(r.used) > r.agent.cfg.Rest
}

// sleep returns when somebody wants the route: by a wish, by a mount, or by connecting.
func (r *route) sleep(ctx context.Context) error {
	if r.needed() {
		return nil
	}
	if r.listener == nil {
		select {
		case <-r.wake:
		case <-ctx.Done():
		}
		return nil
	}
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	connected := make(chan error, 1)
	go func() { connected <- connecting(waiting, r.listener) }()
	select {
	case err := <-connected:
		r.touch()
		return err
	case <-r.wake:
	case <-ctx.Done():
	}
	cancel()
	<-connected
	return nil
}

// needed says whether the route may not sleep.
func (r *route) needed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.mounts) > 0 || r.waited()
}

func (r *route) touch() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used = time.Now()
}

// connecting returns when somebody has connected to a listener and waits to be accepted, or ctx ends.
func connecting(ctx context.Context, ln *net.TCPListener) error {
	raw, err := ln.SyscallConn()
	if err != nil {
		return err
	}
	var waited error
	// Control keeps the descriptor open meanwhile. ln.File would make it blocking for everybody who has it.
	err = raw.Control(func(fd uintptr) {
		p, err := poll.New(fd, unix.POLLIN)
		if err != nil {
			waited = err
			return
		}
		defer p.Close() //nolint:errcheck // nothing is lost
		waited = p.Wait(ctx)
	})
	return errors.Join(err, waited)
}

// work keeps the kernel on a living master until nobody wants the route any more.
func (r *route) work(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m, err := r.newMover(ctx)
	if err != nil {
		return err
	}
	p := relay.NewProber(relay.ProberConfig{
		Relay: m, Dial: r.dial, Discover: r.discover, Targets: r.targets(), Logger: r.log,
	})
	r.awake(m, p, cancel)
	defer r.asleep()
	ended := make(chan error, 2)
	go func() { ended <- m.Run(ctx) }()
	go func() { ended <- p.Run(ctx) }()
	tick := time.NewTicker(r.agent.cfg.Rest / restTick)
	defer tick.Stop()
	for running := 2; running > 0; {
		select {
		case e := <-ended:
			err = cmp.Or(err, e)
			running--
			cancel()
		case <-tick.C:
			if r.unwanted(m) {
				cancel()
			}
		case <-r.wake: // something has changed
			if d, ok := m.(*direct.Direct); ok {
				d.Look()
			}
			if r.unwanted(m) {
				cancel()
			}
		}
	}
	return err
}

func (r *route) newMover(ctx context.Context) (mover, error) {
	insecure := r.agent.cfg.Insecure
	if r.via == control.Relay {
		return relay.New(relay.Config{
			Listener: r.listener, Dialer: relay.Dialer{Insecure: insecure}, Insecure: insecure, Logger: r.log,
		}), nil
	}
	port, err := r.port(ctx)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.kernelPort = port
	r.mu.Unlock()
	return direct.New(direct.Config{Kernel: r.agent.kernel(), Mounts: r.dirs, Port: port, Logger: r.log}), nil
}

// port returns the port of the masters, which is the same on all of them.
func (r *route) port(ctx context.Context) (uint16, error) {
	r.mu.Lock()
	order, ms := r.present().Order, r.mounts
	r.mu.Unlock()
	switch {
	case len(ms) > 0:
		return ms[0].Addr.Port(), nil
	case len(order) > 0:
		return order[0].Addr.Port(), nil
	}
	ctx, cancel := context.WithTimeout(ctx, discoverTime)
	defer cancel()
	targets, err := r.discover(ctx)
	if err != nil {
		return 0, fmt.Errorf("look up the masters: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.order = targets
	return targets[0].Addr.Port(), nil
}

// dirs returns where the route's mounts are.
func (r *route) dirs() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]string, len(r.mounts))
	for i, m := range r.mounts {
		out[i] = m.Dir
	}
	return out
}

func (r *route) awake(m mover, p *relay.Prober, stop context.CancelFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mover, r.prober, r.stop = m, p, stop
}

func (r *route) asleep() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.course = r.present()
	r.course.Target = relay.Target{}
	r.mover, r.prober, r.stop = nil, nil, nil
	clear(r.failed)
}

// unwanted says whether the route may sleep.
func (r *route) unwanted(m mover) bool {
	conns := m.Flow().Conns
	r.mu.Lock()
	defer r.mu.Unlock()
	if conns > 0 || len(r.mounts) > 0 || r.waited() {
		r.used = time.Now()
		return false
	}
	return time.Since(r.used) > r.agent.cfg.Rest
}

// ready waits until a master answers.
func (r *route) ready(ctx context.Context) (control.Route, error) {
	began := time.Now()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		r.mu.Lock()
		awake, c, noDNS := r.prober != nil, r.present(), r.noDNS
		r.mu.Unlock()
		switch {
		case awake && c.Target.Addr.IsValid() && !c.Lost:
			route := control.Route{Addr: r.addr, Master: c.Target.String()}
			if r.listener == nil {
				route.Addr = c.Target.Addr
			}
			return route, nil
		case errors.Is(noDNS, control.ErrNoName) && len(c.Order) == 0 && (!errors.Is(noDNS, resolve.ErrRefused) || time.Since(began) > refusedTime):
			return control.Route{}, fmt.Errorf("%w", noDNS)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return control.Route{}, r.explain(c, time.Since(began))
		}
	}
}

// explain says why no master answers.
func (r *route) explain(c relay.Course, waited time.Duration) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	waited = waited.Round(100 * time.Millisecond)
	if len(c.Order) == 0 {
		if r.noDNS != nil {
			return fmt.Errorf("%w: cannot look %s up: %w; masters answer DNS questions themselves: dns=HOST:5353",
				control.ErrNoMaster, r.name, r.noDNS)
		}
		return fmt.Errorf("%w: DNS has not told within %s who they are", control.ErrNoMaster, waited)
	}
	err := fmt.Errorf("%w within %s", control.ErrNoMaster, waited)
	for i, t := range c.Order {
		if i == 3 && len(c.Order) > 4 {
			return fmt.Errorf("%w; and %d more", err, len(c.Order)-i)
		}
		why := r.failed[t.Addr]
		if why == nil {
			why = errors.New("no answer")
		}
		if t.Name != "" {
			err = fmt.Errorf("%w; %s at %s: %w", err, t.Name, t.Addr, why)
		} else {
			err = fmt.Errorf("%w; %s: %w", err, t.Addr, why)
		}
	}
	return err
}

// same says whether two states say the same.
func (s state) same(o state) bool {
	return s.Boot == o.Boot && slices.EqualFunc(s.Routes, o.Routes, func(a, b routeRecord) bool {
		return a.Name == b.Name && a.Via == b.Via && a.Port == b.Port && a.Called == b.Called && a.Used.Equal(b.Used) &&
			a.Last == b.Last && slices.Equal(a.Order, b.Order) &&
			slices.EqualFunc(a.Told, b.Told, func(t, o told) bool { return t.same(&o) && t.Seen == o.Seen })
	})
}
