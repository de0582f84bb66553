package relay

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// Mover is a Relay as a Prober needs it. Its methods return at once, but for Move.
type Mover interface {
	Hold()
	Resume()
	Switch(to netip.AddrPort)
	Move(ctx context.Context, to netip.AddrPort) error
	Flow() Flow
	Losses() <-chan Loss
}

// Greeter says HELLO over one connection. It is used by one goroutine at a time.
type Greeter interface {
	// Hello fails when the connection does, or ctx ends; it is closed afterwards.
	Hello(ctx context.Context) (Answer, error)
	Close() error
}

// ProberConfig is what a Prober needs.
type ProberConfig struct {
	Relay Mover
	// Dial makes a connection for greetings.
	Dial func(ctx context.Context, to netip.AddrPort) (Greeter, error)
	// Discover asks DNS for the slave's order. It is called at the start when Targets is empty, and when nobody in the order
	// answers, at most once a second and one at a time. nil: there is only Targets.
	Discover func(ctx context.Context) ([]Target, error)
	// Targets is the order to begin with.
	Targets []Target
	// Changed is called after each change, one at a time; it must not block. nil: nobody wants to know.
	Changed func(Change)
	Logger  zerolog.Logger
}

// Course is where a relay is, and why.
type Course struct {
	Target Target // zero: nowhere yet
	Lost   bool   // it is lost, and another is looked for
	Since  time.Time
	Why    string
	Order  []Target // the home master first
	Change Change   // the last; zero: none

	// While none answers, since when and why; LostWhy is "" before one has ever answered.
	LostSince time.Time
	LostWhy   string
}

// Prober keeps a relay on a living master. Course may be called from any goroutine.
type Prober struct {
	cfg    ProberConfig
	events chan any
	news   chan struct{}  // has room for one
	vain   zerolog.Logger // for look-ups that fail, which are made again and again: it says so once a minute
	stuck  zerolog.Logger // the same for moves

	// Run's own.
	course *course
	asking map[uint64]context.CancelFunc

	mu    sync.Mutex // guards what follows
	idle  map[netip.AddrPort]Greeter
	state Course
}

// discoverTime is how long DNS has to answer.
const discoverTime = 5 * time.Second

// warnEvery is how often the same failure is said at the most.
const warnEvery = time.Minute

// NewProber returns a Prober. Nothing happens before Run.
func NewProber(cfg ProberConfig) *Prober {
	seldom := func() zerolog.Logger { return cfg.Logger.Sample(&zerolog.BurstSampler{Burst: 1, Period: warnEvery}) }
	return &Prober{
		vain: seldom(), stuck: seldom(),
		cfg: cfg, events: make(chan any), news: make(chan struct{}, 1), course: newCourse(),
		asking: make(map[uint64]context.CancelFunc), idle: make(map[netip.AddrPort]Greeter),
	}
}

// Course says where the relay is.
func (p *Prober) Course() Course {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

// Tell has the master hear at once what this slave says of itself, because that has changed. It returns at once.
func (p *Prober) Tell() {
	select {
	case p.news <- struct{}{}:
	default: // it is about to
	}
}

// Run works until ctx ends. The relay is left as it is.
func (p *Prober) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer p.closeIdle(nil)
	defer wg.Wait()
	defer cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var event any = told{p.cfg.Targets}
	for {
		for _, action := range p.course.step(time.Now(), p.cfg.Relay.Flow(), event) {
			p.perform(ctx, &wg, action)
		}
		p.settle()
		timer.Reset(time.Until(p.course.wake))
		select {
		case <-ctx.Done():
			return nil
		case event = <-p.events:
		case <-p.news:
			event = news{}
		case event = <-p.cfg.Relay.Losses():
		case <-timer.C:
			event = tick{}
		}
	}
}

// settle gives up what the course no longer waits for, and publishes where it is.
func (p *Prober) settle() {
	c := p.course
	for id, cancel := range p.asking {
		if _, ok := c.asks[id]; !ok {
			cancel()
			delete(p.asking, id)
		}
	}
	state := Course{Target: c.current, Lost: c.lost, Since: c.since, Why: c.why, Order: c.order, Change: c.change}
	switch {
	case c.lost:
		state.LostSince, state.LostWhy = c.lostAt, c.lostWhy
	case !c.current.Addr.IsValid() && c.race != nil:
		state.LostSince = c.race.since
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state = state
}

// perform does what the course wants.
func (p *Prober) perform(ctx context.Context, wg *sync.WaitGroup, action any) {
	log := &p.cfg.Logger
	switch a := action.(type) {
	case greet:
		ctx, cancel := context.WithCancel(ctx)
		p.asking[a.id] = cancel
		wg.Go(func() { defer cancel(); p.greet(ctx, a) })
	case hold:
		p.cfg.Relay.Hold()
	case resume:
		p.cfg.Relay.Resume()
	case switchTo:
		p.cfg.Relay.Switch(a.To.Addr)
		p.changed(a.Change)
	case arrived:
		p.changed(a.Change)
	case moveTo:
		log.Info().Stringer("from", a.From).Stringer("to", a.To).Str("why", a.Why).Msg("moving to another master")
		wg.Go(func() { p.move(ctx, a.Change) })
	case discover:
		if p.cfg.Discover != nil {
			wg.Go(func() { p.discover(ctx) })
		}
	}
}

func (p *Prober) changed(ch Change) {
	e := p.cfg.Logger.Info()
	if ch.From.Addr.IsValid() {
		e = e.Stringer("from", ch.From)
	}
	e.Stringer("to", ch.To).Str("why", ch.Why).Dur("took", ch.Took).Msg("reading from another master")
	p.closeIdle(func(addr netip.AddrPort) bool { return addr == ch.To.Addr })
	if p.cfg.Changed != nil {
		p.cfg.Changed(ch)
	}
}

func (p *Prober) move(ctx context.Context, ch Change) {
	err := p.cfg.Relay.Move(ctx, ch.To.Addr)
	if err != nil && ctx.Err() == nil {
		p.stuck.Warn().Err(err).Stringer("to", ch.To).Msg("cannot move to another master")
	}
	p.tell(ctx, moved{err})
}

func (p *Prober) discover(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, discoverTime)
	defer cancel()
	targets, err := p.cfg.Discover(ctx)
	if err != nil && ctx.Err() == nil {
		p.vain.Warn().Err(err).Msg("cannot look up the masters")
	}
	p.tell(ctx, told{targets})
}

func (p *Prober) tell(ctx context.Context, event any) {
	select {
	case p.events <- event:
	case <-ctx.Done():
	}
}

// greet says HELLO once, over the connection that was kept for it if there is one. That one may have ended since it was last
// used, when the master was started anew, say, which is no reason to pass the master over.
func (p *Prober) greet(ctx context.Context, a greet) {
	g := p.take(a.to.Addr)
	if g != nil && a.fresh {
		g.Close() //nolint:errcheck // it is not wanted
		g = nil
	}
	kept := g != nil
	began := time.Now()
	answer, err := p.hello(ctx, a.to.Addr, g)
	if err != nil && kept && ctx.Err() == nil {
		answer, err = p.hello(ctx, a.to.Addr, nil)
	}
	if err != nil || answer.Status != OK {
		p.cfg.Logger.Debug().Err(err).Stringer("master", a.to).Str("why", answer.Why).Dur("took", time.Since(began)).Msg("a greeting came to nothing")
	}
	if err != nil {
		p.tell(ctx, failed{a.id, err})
		return
	}
	p.tell(ctx, answered{a.id, answer})
}

// hello says HELLO over g, or over a new connection when that is nil, and keeps the connection unless it fails.
func (p *Prober) hello(ctx context.Context, to netip.AddrPort, g Greeter) (Answer, error) {
	if g == nil {
		var err error
		if g, err = p.cfg.Dial(ctx, to); err != nil {
			return Answer{}, err
		}
	}
	answer, err := g.Hello(ctx)
	if err != nil {
		g.Close() //nolint:errcheck // it has failed
		return Answer{}, err
	}
	p.keep(to, g)
	return answer, nil
}

// take returns the connection that is kept for a master; nil: there is none.
func (p *Prober) take(addr netip.AddrPort) Greeter {
	p.mu.Lock()
	defer p.mu.Unlock()
	g := p.idle[addr]
	delete(p.idle, addr)
	return g
}

func (p *Prober) keep(addr netip.AddrPort, g Greeter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if old := p.idle[addr]; old != nil {
		old.Close() //nolint:errcheck // it is not wanted
	}
	p.idle[addr] = g
}

// closeIdle closes the connections that are kept for greetings, but for some.
func (p *Prober) closeIdle(keep func(netip.AddrPort) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for addr, g := range p.idle {
		if keep == nil || !keep(addr) {
			g.Close() //nolint:errcheck // it is over
			delete(p.idle, addr)
		}
	}
}

var _ Mover = (*Relay)(nil)
