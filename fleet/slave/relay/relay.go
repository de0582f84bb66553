package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// Defaults of Config.
const (
	DefaultMaxConns = 64
	DefaultWait     = time.Second
)

// Config is what a Relay needs.
type Config struct {
	// Listener is where the kernel connects to; it stays open, also when Run returns: its owner may hand it on.
	Listener *net.TCPListener
	Dialer   Dialer
	// Insecure lets clients use any port. Only for tests and trusted hosts.
	Insecure bool
	// MaxConns is how many connections may be open at once; 0: DefaultMaxConns.
	MaxConns int
	// Wait is how long a connection is kept that finds no master; 0: DefaultWait.
	Wait   time.Duration
	Logger zerolog.Logger
}

// Relay joins the kernel's connections to a master. Its methods may be called from any goroutine.
type Relay struct {
	cfg    Config
	epoch  time.Time
	loop   *loop // Run's
	losses chan Loss
	// drainTime is how long a Move waits for the last replies.
	drainTime time.Duration

	mu      sync.Mutex // guards what follows; taken before a session's
	target  netip.AddrPort
	held    bool
	turn    uint64        // counts changes of target
	changed chan struct{} // closed at the next change of target or held
	links   map[*link]struct{}
	closing bool
	total   Counters  // without those of sessions under way
	heard   time.Time // when bytes last came from target, on sessions that have ended
	strange time.Time // when a refused client was last logged
}

// link is one connection of the kernel.
type link struct {
	kernel *socket
	// Guarded by Relay.mu:
	session *session
	turn    uint64       // of the session
	next    *net.TCPConn // made ahead for the turn nextTurn
	nextTo  uint64
}

// Loss is a connection to a master that ended, or could not be made.
type Loss struct {
	Addr netip.AddrPort
	Err  error
	// Useless says that no byte of a reply ever came over it.
	Useless bool
}

// Flow is how replies come, as far as the relay sees.
type Flow struct {
	Conns int // connections of the kernel
	// Waiting is since when a connection to the target has had unanswered calls and not one byte of a reply; zero: none has.
	// It is the oldest.
	Waiting time.Time
	// Heard is when a byte of a reply last came from the target; zero: never.
	Heard time.Time
}

// Counters count since the relay was made.
type Counters struct {
	Accepted, Refused uint64 // connections of the kernel, and of others
	Joins             uint64 // connections to masters
	Resets            uint64 // kernel connections that were reset on a loss
	Calls, Replies    int64
	ReplyBytes        int64
}

// New returns a Relay without a target. Nothing happens before Run.
func New(cfg Config) *Relay {
	if cfg.MaxConns == 0 {
		cfg.MaxConns = DefaultMaxConns
	}
	if cfg.Wait == 0 {
		cfg.Wait = DefaultWait
	}
	return &Relay{
		cfg: cfg, epoch: time.Now(), losses: make(chan Loss, 64), drainTime: drainTime,
		held: true, changed: make(chan struct{}), links: make(map[*link]struct{}),
	}
}

// Losses are the losses. When nobody receives them, some are dropped.
func (r *Relay) Losses() <-chan Loss { return r.losses }

// Run serves the kernel until ctx ends. The kernel's connections are reset then; it comes back and finds the next owner
// of the listener.
func (r *Relay) Run(ctx context.Context) error {
	ln := r.cfg.Listener
	if err := ln.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	if err := tune(ln); err != nil {
		r.cfg.Logger.Debug().Err(err).Msg("the kernel's connections are left as they come")
	}
	l, err := newLoop(r.epoch)
	if err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	r.loop = l
	go l.run()
	defer l.stop()
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() {
		ln.SetDeadline(past) //nolint:errcheck // Accept fails then anyhow
		r.close()
	})
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for pause := time.Duration(0); ; {
		conn, err := ln.AcceptTCP()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				reset(conn)
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("relay: %w", err)
		case err != nil: // out of descriptors or memory: it passes
			pause = min(pause+5*time.Millisecond, 100*time.Millisecond)
			r.cfg.Logger.Warn().Err(err).Msg("relay cannot accept")
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			continue
		}
		pause = 0
		if l := r.admit(conn); l != nil {
			wg.Go(func() { r.serve(ctx, l) })
		}
	}
}

// close ends all connections.
func (r *Relay) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closing = true
	for l := range r.links {
		if l.session != nil {
			l.session.kill()
		}
	}
}

// admit takes a connection when it is the kernel's and there is room; else it resets it.
func (r *Relay) admit(conn *net.TCPConn) *link {
	from := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	r.mu.Lock()
	defer r.mu.Unlock()
	why := ""
	switch {
	case !from.Addr().Unmap().IsLoopback():
		why = "it does not come from this host"
	case from.Port() >= 1024 && !r.cfg.Insecure:
		why = "its port is not below 1024: it is not the kernel's"
	case len(r.links) >= r.cfg.MaxConns:
		why = "there are too many"
	}
	if why != "" {
		reset(conn)
		r.total.Refused++
		if now := time.Now(); now.Sub(r.strange) > 10*time.Second {
			r.strange = now
			r.cfg.Logger.Warn().Stringer("from", from).Str("why", why).Msg("relay refuses a connection")
		}
		return nil
	}
	// Whenever it is closed, also because this process dies, the kernel is to come back at once: see reset.
	conn.SetLinger(0) //nolint:errcheck // it comes back later then
	kernel, err := detach(conn)
	if err != nil {
		r.cfg.Logger.Warn().Err(err).Msg("relay cannot take a connection")
		return nil
	}
	r.total.Accepted++
	l := &link{kernel: kernel}
	r.links[l] = struct{}{}
	return l
}

// serve joins one kernel connection to masters, one after the other, until it ends.
func (r *Relay) serve(ctx context.Context, l *link) {
	defer r.forget(l)
	var carry []byte
	for {
		s := r.join(ctx, l, carry)
		if s == nil {
			l.kernel.reset()
			return
		}
		out := r.loop.pass(s)
		r.leave(l, s, out)
		switch {
		case out.gone:
			l.kernel.close()
			return
		case ctx.Err() != nil, !out.clean:
			r.mu.Lock()
			r.total.Resets++
			r.mu.Unlock()
			l.kernel.reset()
			return
		}
		carry = out.carry
	}
}

func (r *Relay) forget(l *link) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.links, l)
	if l.next != nil {
		reset(l.next)
		l.next = nil
	}
}

// leave takes a session that has ended into account, and reports a loss.
func (r *Relay) leave(l *link, s *session, out outcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l.session = nil
	r.total.Calls += s.calls.Load()
	r.total.Replies += s.replies.Load()
	r.total.ReplyBytes += s.down.Load()
	if at := s.heard.Load(); at != 0 && s.addr == r.target {
		r.heard = later(r.heard, r.epoch.Add(time.Duration(at)))
	}
	if !out.gone && !out.ours && l.turn == r.turn {
		r.lose(Loss{Addr: s.addr, Err: out.err, Useless: s.heard.Load() == 0})
	}
}

func (r *Relay) lose(l Loss) {
	select {
	case r.losses <- l:
	default: // there are others to be read, which say the same
	}
}

// join makes a session with the present target, and waits for one when there is none. nil: none was found in time.
func (r *Relay) join(ctx context.Context, l *link, carry []byte) *session {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Wait)
	defer cancel()
	for ctx.Err() == nil {
		r.mu.Lock()
		to, held, turn, changed, next := r.target, r.held, r.turn, r.changed, l.next
		l.next = nil
		ahead := next != nil && l.nextTo == turn && !held
		r.mu.Unlock()
		if next != nil && !ahead {
			reset(next)
		}
		if held {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		conn := next
		if !ahead {
			var err error
			if conn, err = r.dial(ctx, to, changed); err != nil {
				r.miss(ctx, to, turn, changed, err)
				continue
			}
		}
		master, err := detach(conn)
		if err != nil {
			r.miss(ctx, to, turn, changed, err)
			continue
		}
		s := newSession(r.loop, l.kernel, master, to, carry)
		if r.enter(l, s, turn) {
			return s
		}
		master.reset()
	}
	return nil
}

// dial connects to a master, until the target changes.
func (r *Relay) dial(ctx context.Context, to netip.AddrPort, changed <-chan struct{}) (*net.TCPConn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-changed:
			cancel()
		case <-done:
		}
	}()
	return r.cfg.Dialer.Dial(ctx, to)
}

// miss reports a target that could not be reached, and waits a little, or until there is another.
func (r *Relay) miss(ctx context.Context, to netip.AddrPort, turn uint64, changed <-chan struct{}, err error) {
	r.mu.Lock()
	if r.turn == turn && !r.held {
		r.lose(Loss{Addr: to, Err: err, Useless: true})
	}
	r.mu.Unlock()
	select {
	case <-changed:
	case <-ctx.Done():
	case <-time.After(20 * time.Millisecond):
	}
}

// enter makes s the link's session, if the target is still its own.
func (r *Relay) enter(l *link, s *session, turn uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.turn != turn || r.closing {
		return false
	}
	l.session, l.turn = s, turn
	r.total.Joins++
	return true
}

// Flow says how replies come from the target.
func (r *Relay) Flow() Flow {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := Flow{Conns: len(r.links), Heard: r.heard}
	now := int64(time.Since(r.epoch))
	for l := range r.links {
		s := l.session
		if s == nil || l.turn != r.turn {
			continue
		}
		heard, waits := s.heard.Load(), s.unanswered() > 0
		if waits {
			heard = s.lastHeard(now)
		}
		if heard != 0 {
			f.Heard = later(f.Heard, r.epoch.Add(time.Duration(heard)))
		}
		if waits {
			since := r.epoch.Add(time.Duration(max(heard, s.waiting.Load())))
			if f.Waiting.IsZero() || since.Before(f.Waiting) {
				f.Waiting = since
			}
		}
	}
	return f
}

// Counters returns what the relay has done.
func (r *Relay) Counters() Counters {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.total
	for l := range r.links {
		if s := l.session; s != nil {
			c.Calls += s.calls.Load()
			c.Replies += s.replies.Load()
			c.ReplyBytes += s.down.Load()
		}
	}
	return c
}

// Target returns the present target; it is not valid when there is none.
func (r *Relay) Target() netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.target
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
