package relay

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
)

// paper is a Mover and a fleet without a network. Its masters answer at once, or not at all.
type paper struct {
	losses chan Loss

	mu     sync.Mutex
	target netip.AddrPort
	log    []string
	silent map[netip.AddrPort]bool
	open   int // greeters
}

func (p *paper) note(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log = append(p.log, what)
}

// did returns what was done so far.
func (p *paper) did() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.log)
}

func (p *paper) Hold()   { p.note("hold") }
func (p *paper) Resume() { p.note("resume") }

func (p *paper) Switch(to netip.AddrPort) {
	p.note("switch " + to.String())
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = to
}

func (p *paper) Move(ctx context.Context, to netip.AddrPort) error {
	if err := p.answer(ctx, to); err != nil {
		return err
	}
	p.note("move " + to.String())
	return nil
}

func (p *paper) Flow() Flow          { return Flow{} }
func (p *paper) Losses() <-chan Loss { return p.losses }

// answer is when to answers, if it does.
func (p *paper) answer(ctx context.Context, to netip.AddrPort) error {
	p.mu.Lock()
	silent := p.silent[to]
	p.mu.Unlock()
	if silent {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return nil
}

func (p *paper) set(to netip.AddrPort, silent bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent[to] = silent
}

type paperGreeter struct {
	p  *paper
	to netip.AddrPort
}

func (g *paperGreeter) Hello(ctx context.Context) (Answer, error) {
	return Answer{}, g.p.answer(ctx, g.to)
}

func (g *paperGreeter) Close() error {
	g.p.mu.Lock()
	defer g.p.mu.Unlock()
	g.p.open--
	return nil
}

func TestTheProberFollowsTheCourse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &paper{losses: make(chan Loss), silent: make(map[netip.AddrPort]bool)}
		a, b := simAddr(1), simAddr(2)
		asked := 0
		var changes []Change
		prober := NewProber(ProberConfig{
			Relay: p,
			Dial: func(_ context.Context, to netip.AddrPort) (Greeter, error) {
				p.mu.Lock()
				defer p.mu.Unlock()
				p.open++
				return &paperGreeter{p, to}, nil
			},
			Discover: func(context.Context) ([]Target, error) {
				if asked++; asked == 1 {
					return nil, errors.New("no such host")
				}
				return []Target{{"a", a}, {"b", b}}, nil
			},
			Changed: func(ch Change) { changes = append(changes, ch) },
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- prober.Run(ctx) }()
		time.Sleep(3 * time.Second) // DNS fails once
		p.set(a, true)
		time.Sleep(1100 * time.Millisecond)
		if c := prober.Course(); c.Target.Addr != b || c.Change.Planned || c.Change.From.Name != "a" || len(c.Order) != 2 {
			t.Errorf("course: %+v", c)
		}
		p.losses <- Loss{Addr: b, Err: errors.New("EOF")}
		time.Sleep(time.Second)
		p.set(a, false)
		time.Sleep(35 * time.Second)
		synctest.Wait()
		want := []string{"switch " + a.String(), "hold", "switch " + b.String(), "hold", "resume", "move " + a.String()}
		if did := p.did(); !slices.Equal(did, want) {
			t.Errorf("it did %q, want %q", did, want)
		}
		if len(changes) != 3 || !changes[2].Planned || changes[2].To.Name != "a" {
			t.Errorf("changes: %v", changes)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if p.open != 0 {
			t.Errorf("%d connections are left open", p.open)
		}
	})
}

// brittle is a connection for greetings that the master may have ended.
type brittle struct{ ended bool }

func (b *brittle) Close() error { return nil }

func (b *brittle) Hello(context.Context) (Answer, error) {
	if b.ended {
		return Answer{}, errors.New("EOF")
	}
	return Answer{}, nil
}

// A master to which only an old connection has ended is not passed over when another is lost.
func TestAKeptConnectionThatHasEndedIsMadeAnew(t *testing.T) {
	var made []*brittle
	refused := false
	prober := NewProber(ProberConfig{Dial: func(context.Context, netip.AddrPort) (Greeter, error) {
		if refused {
			return nil, errors.New("refused")
		}
		made = append(made, &brittle{})
		return made[len(made)-1], nil
	}})
	say := func() any {
		go prober.greet(t.Context(), greet{id: 7, to: Target{Addr: simAddr(1)}})
		return <-prober.events
	}
	for range 2 {
		if e, ok := say().(answered); !ok || e.id != 7 || len(made) != 1 {
			t.Fatalf("%+v over %d connections", e, len(made))
		}
	}
	made[0].ended = true
	if e, ok := say().(answered); !ok || len(made) != 2 {
		t.Errorf("%+v over %d connections", e, len(made))
	}
	made[1].ended, refused = true, true
	if e, ok := say().(failed); !ok || e.err == nil {
		t.Errorf("%+v of a master that is gone", e)
	}
}

// That DNS tells nothing is said once a minute, however often it is asked.
func TestAVainLookUpIsSaidSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		asked := 0
		prober := NewProber(ProberConfig{
			Relay:    &paper{losses: make(chan Loss)},
			Discover: func(context.Context) ([]Target, error) { asked++; return nil, errors.New("no such host") },
			Logger:   zerolog.New(&log),
		})
		ctx, cancel := context.WithTimeout(t.Context(), 150*time.Second)
		defer cancel()
		if err := prober.Run(ctx); err != nil {
			t.Error(err)
		}
		if n := strings.Count(log.String(), "cannot look up"); asked < 100 || n < 2 || n > 3 {
			t.Errorf("%d look-ups, %d lines:\n%s", asked, n, &log)
		}
		if c := prober.Course(); c.LostSince.IsZero() || time.Since(c.LostSince) < 149*time.Second {
			t.Errorf("there was no master since %v", c.LostSince)
		}
	})
}
