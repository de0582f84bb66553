package slave

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nfs-fleet/nfs-fleet/exporter/hello"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/control"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/mounts"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/relay"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/resolve"
)

// noName is what DNS says for good, as the commands know it.
type noName struct{ error }

func (e noName) Unwrap() error        { return e.error }
func (e noName) Is(target error) bool { return target == control.ErrNoName }

// patience is how long a HELLO may take; whoever waits for it gives it up sooner when it matters.
const patience = 5 * time.Second

// hostTime is how long the address of a master that is given by its host name may be looked for.
const hostTime = 300 * time.Millisecond

// dial makes a connection for greetings. It comes from where reads come from, so it is let in where they are.
func (r *route) dial(ctx context.Context, to netip.AddrPort) (relay.Greeter, error) {
	if err := cmp.Or(r.agent.mayBeMaster(to), r.hasOurPort(to)); err != nil {
		r.note(ctx, to, err)
		return nil, err
	}
	conn, err := relay.Dialer{Insecure: r.agent.cfg.Insecure}.Dial(ctx, to)
	r.note(ctx, to, err)
	if err != nil {
		return nil, err
	}
	return &greeter{client: hello.NewClient(conn), to: to, r: r}, nil
}

// mayBeMaster says why an address that DNS or a master told cannot be a master's. Nobody is read from who was not greeted, so
// that this keeps a relay from being sent to itself, which would go round until no connection is left.
func (a *Agent) mayBeMaster(to netip.AddrPort) error {
	switch addr := to.Addr().Unmap(); {
	case to.Port() == 0 || addr.IsUnspecified() || addr.IsMulticast() || addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return errors.New("that is no address of a master")
	case addr.IsLoopback() && slices.Contains(a.cfg.Ports, to.Port()):
		return errors.New("that is this host's own relay, and no master")
	}
	return nil
}

// hasOurPort says why a mount via direct cannot go to an address: the kernel takes another master's address, and keeps the port
// that it was given when it mounted.
func (r *route) hasOurPort(to netip.AddrPort) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kernelPort != 0 && to.Port() != r.kernelPort {
		return fmt.Errorf("its port is not %d, to which mounts via direct are bound: give all masters one NFS port, or mount via relay", r.kernelPort)
	}
	return nil
}

// greeter says HELLO for a route.
type greeter struct {
	client *hello.Client
	to     netip.AddrPort
	r      *route
}

func (g *greeter) Close() error { return g.client.Close() }

// Hello implements relay.Greeter.
func (g *greeter) Hello(ctx context.Context) (relay.Answer, error) {
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	a, err := g.client.Hello(limited, g.r.greeting())
	g.r.note(ctx, g.to, err)
	if err != nil {
		return relay.Answer{}, err
	}
	out := relay.Answer{Status: status(a.Status), Why: a.Why, Revision: a.Revision, Every: a.Every}
	if out.Status != relay.OK {
		g.r.note(ctx, g.to, fmt.Errorf("it says %s: %s", a.Status, cmp.Or(a.Why, "no reason given")))
	}
	for _, t := range a.Targets {
		for _, addr := range g.r.host(ctx, t.Host) {
			out.Targets = append(out.Targets, relay.Target{Name: t.Name, Addr: netip.AddrPortFrom(addr, t.Port)})
		}
	}
	return out, nil
}

// status translates what a master thinks: one that refuses the slave is as good as one that cannot serve it.
func status(s hello.Status) relay.Status {
	switch s {
	case hello.OK:
		return relay.OK
	case hello.Leave:
		return relay.Leave
	}
	return relay.Unwell
}

// note remembers why a master does not answer; nil: it does. What was given up on purpose says nothing about it.
func (r *route) note(ctx context.Context, to netip.AddrPort, err error) {
	if ctx.Err() != nil {
		return
	}
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err // the address is said anyhow
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil:
		delete(r.failed, to)
	case len(r.failed) < 64:
		r.failed[to] = err
	}
}

// greeting is what this slave says of itself.
func (r *route) greeting() hello.Greeting {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := hello.Greeting{
		Slave: r.slaveName(), Instance: r.agent.boot, Mode: r.via, Version: r.agent.cfg.Version, Last: reattach(r.present().Change),
	}
	for i, m := range r.mounts {
		if i == hello.MaxMounts {
			g.More = len(r.mounts) - i
			break
		}
		g.Mounts = append(g.Mounts, hello.Mount{Name: m.Name, Shard: m.Shard(), Dir: m.Dir})
	}
	if len(r.mounts) == 0 && r.connected() {
		g.Mounts = []hello.Mount{{Name: r.name}} // masters take a slave without a mount for none
	}
	return g
}

// reattach tells of a change; the first one, which came from nowhere, is none.
func reattach(ch relay.Change) hello.Reattach {
	if !ch.From.Addr.IsValid() {
		return hello.Reattach{}
	}
	return hello.Reattach{At: ch.At, Took: ch.Took, From: ch.From.String(), To: ch.To.String(), Why: ch.Why}
}

// slaveName returns this slave's name in the fleet. The caller holds mu.
func (r *route) slaveName() string {
	if name := cmp.Or(r.called(), mounts.SlaveName(r.name), r.agent.cfg.Name); name != "" {
		return name
	}
	host, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	name, _, _ := strings.Cut(strings.ToLower(host), ".")
	return name
}

func (r *route) resolver() resolve.Resolver {
	r.mu.Lock()
	defer r.mu.Unlock()
	return resolve.Resolver{Servers: r.nameServers()}
}

// targets returns the masters to begin with. Those that were named by their addresses need no name server, and begin at once.
func (r *route) targets() []relay.Target {
	r.mu.Lock()
	defer r.mu.Unlock()
	if order := r.present().Order; len(order) > 0 {
		return order
	}
	var out []relay.Target
	_, masters := r.sources()
	for _, m := range masters {
		host, port, err := splitMaster(m)
		if addr, bad := netip.ParseAddr(host); err == nil && bad == nil {
			out = append(out, relay.Target{Addr: netip.AddrPortFrom(addr, port)})
		}
	}
	return out
}

// discover finds the masters: those that DNS lists, and those that mounts name.
func (r *route) discover(ctx context.Context) ([]relay.Target, error) {
	r.mu.Lock()
	groups, masters := r.sources()
	heard := r.heard
	r.mu.Unlock()
	var ask []source
	for _, servers := range groups {
		ask = append(ask, func(ctx context.Context) ([]relay.Target, error) {
			return resolve.Resolver{Servers: servers}.Masters(ctx, r.name)
		})
	}
	if len(masters) > 0 {
		ask = append(ask, func(ctx context.Context) ([]relay.Target, error) { return r.named(ctx, masters) })
	}
	targets, err := gather(ctx, ask)
	r.mu.Lock()
	defer r.mu.Unlock()
	if heard == r.heard { // else it says nothing about what was told meanwhile
		r.noDNS = err
	}
	if err != nil && r.via == control.Direct {
		// What the kernel has mounted was a master, and may be one still.
		for _, m := range r.mounts {
			targets = append(targets, relay.Target{Addr: m.Addr})
		}
		if len(targets) > 0 {
			return targets, nil
		}
	}
	return targets, err
}

// source is somebody who may know the masters.
type source func(ctx context.Context) ([]relay.Target, error)

// besides is how long others are waited for when one source has answered: three name servers, two of them silent.
const besides = time.Second

// gather asks several sources at once, and returns what they know, that of the first one first. None of them speaks for another:
// that one knows nothing, or is silent, matters only when all do.
func gather(ctx context.Context, ask []source) ([]relay.Target, error) {
	type reply struct {
		from    int
		targets []relay.Target
		err     error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	replies := make(chan reply, len(ask)) // room for all: nobody waits to tell
	for i, from := range ask {
		go func() {
			targets, err := from(ctx)
			replies <- reply{i, targets, err}
		}()
	}
	found, failed := make([][]relay.Target, len(ask)), make([]error, len(ask))
	var late <-chan time.Time // nil: nobody has answered yet
	for range ask {
		select {
		case a := <-replies:
			found[a.from], failed[a.from] = a.targets, a.err
			if len(a.targets) > 0 && late == nil {
				late = time.After(besides)
			}
			continue
		case <-late:
		}
		break
	}
	if targets := slices.Concat(found...); len(targets) > 0 {
		return targets, nil
	}
	return nil, vain(failed)
}

// vain is what it comes to when no source knows masters: that there are none is known only when all say so.
func vain(failed []error) error {
	said := slices.DeleteFunc(failed, func(err error) bool { return err == nil })
	for _, err := range said {
		if !errors.Is(err, resolve.ErrNoName) && !errors.Is(err, resolve.ErrRefused) {
			return errors.Join(said...)
		}
	}
	if len(said) == 0 {
		return errors.New("nobody is known who might tell the masters")
	}
	return noName{errors.Join(said...)}
}

// named returns the masters that a mount names.
func (r *route) named(ctx context.Context, masters []string) (targets []relay.Target, failed error) {
	for _, m := range masters {
		host, port, err := splitMaster(m)
		if err != nil {
			failed = cmp.Or(failed, err)
			continue
		}
		addrs, err := r.resolver().Host(ctx, host)
		if err != nil {
			failed = cmp.Or(failed, err)
		}
		for _, addr := range addrs {
			t := relay.Target{Addr: netip.AddrPortFrom(addr, port)}
			if host != addr.String() {
				t.Name = host
			}
			targets = append(targets, t)
		}
	}
	if len(targets) > 0 {
		return targets, nil
	}
	return nil, failed
}

// nfsPort is where masters serve unless told otherwise.
const nfsPort = 2049

// splitMaster splits HOST[:PORT].
func splitMaster(s string) (host string, port uint16, err error) {
	if addr, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return addr.String(), nfsPort, nil
	}
	host, text, err := net.SplitHostPort(s)
	if err != nil {
		host, text = s, strconv.Itoa(nfsPort)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	_, bad := netip.ParseAddr(host)
	if err != nil || n == 0 || host == "" || bad != nil && strings.ContainsAny(host, ":/, ") {
		return "", 0, fmt.Errorf("%q is no master: want HOST:PORT", s)
	}
	return host, uint16(n), nil
}

// host returns the addresses of a master. Masters name addresses as a rule; a host name is looked up within hostTime.
func (r *route) host(ctx context.Context, host string) []netip.Addr {
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{addr}
	}
	return r.agent.hosts.lookup(ctx, r.resolver().Host, host)
}
