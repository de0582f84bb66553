package slave

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/control"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/direct"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/fdstore"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/mounts"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/resolve"
)

// Socket is the name of the agent's socket in its run directory.
const Socket = "agent.sock"

// MaxRoutes is how many SRV names a host can mount by at a time.
const MaxRoutes = 32

// restAfter is how long a route goes on without a mount, a connection or a wish for it.
const restAfter = 2 * time.Minute

// saveEvery is how often the state is written when only the masters' order has changed.
const saveEvery = 10 * time.Second

// Config is what an Agent needs.
type Config struct {
	RunDir   string   // for the socket, and for the state when StateDir cannot be written
	StateDir string   // for what outlives a restart
	Name     string   // this slave's name where the SRV name does not have it; "": the host's name
	DNS      []string // name servers of mounts that name none; none: the system's
	Version  string   // of the program
	Store    fdstore.Store
	Files    []fdstore.File // what the agent before handed on
	Logger   zerolog.Logger

	// For tests and trusted hosts.
	Insecure bool // any user may use the relay, and connections to masters come from any port
	Ports    []uint16
	Rest     time.Duration // instead of restAfter
	// Table watches the mounts instead of mounts.Watch.
	Table func(ctx context.Context, changed func([]mounts.Mount)) error
}

// Agent keeps a host's mounts on living masters.
type Agent struct {
	cfg   Config
	boot  string
	began time.Time
	dirs  []string // of the state: for good, and for as long as the machine runs
	hosts hosts

	direct sync.Once // makes shared
	shared *direct.Kernel

	group *errgroup.Group
	ctx   context.Context // of the group: ends with Run

	mu     sync.Mutex // guards what follows; taken before a route's
	routes map[key]*route
	known  map[key]routeRecord // what is not in routes
	table  []mounts.Mount
	change chan struct{} // closed when table changes

	saving sync.Mutex       // guards what follows; taken before mu
	saves  uint64           // state.Saved of the last one
	saved  map[string]state // by directory: what was last written there
}

// key tells routes apart.
type key struct{ name, via string }

// New returns an agent. Nothing happens before Run.
func New(cfg Config) *Agent {
	if cfg.Ports == nil {
		cfg.Ports = ports
	}
	if cfg.Table == nil {
		cfg.Table = mounts.Watch
	}
	cfg.Rest = cmp.Or(cfg.Rest, restAfter)
	return &Agent{
		cfg: cfg, boot: bootID(), began: time.Now(),
		routes: make(map[key]*route), known: make(map[key]routeRecord), change: make(chan struct{}), saved: make(map[string]state),
	}
}

// Run works until ctx ends. The kernel's connections are reset then, and find the next agent.
func (a *Agent) Run(ctx context.Context) error {
	if err := a.recall(); err != nil {
		return err
	}
	ln, err := control.Listen(filepath.Join(a.cfg.RunDir, Socket))
	if err != nil {
		return err
	}
	defer ln.Close()
	a.group, a.ctx = errgroup.WithContext(ctx)
	first := make(chan struct{})
	begun := sync.OnceFunc(func() { close(first) })
	a.group.Go(func() error {
		defer begun()
		return a.cfg.Table(a.ctx, func(t []mounts.Mount) { a.mounted(t); begun() })
	})
	<-first
	a.discard()
	a.group.Go(func() error { return control.Serve(a.ctx, ln, a) })
	a.group.Go(func() error { a.keepSaved(a.ctx); return nil })
	if err := a.cfg.Store.Notify("READY=1"); err != nil {
		a.cfg.Logger.Warn().Err(err).Msg("cannot tell whoever started the agent that it is ready")
	}
	err = a.group.Wait()
	a.save()
	return err
}

// recall takes over what the agent before left: its state, and its listeners.
func (a *Agent) recall() error {
	dir, err := stateDir(a.cfg.StateDir, a.cfg.RunDir)
	if err != nil {
		return err
	}
	if a.cfg.StateDir != dir {
		a.cfg.Logger.Warn().Str("wanted", a.cfg.StateDir).Str("dir", dir).Msg("the state is kept elsewhere: ports may differ after a reboot")
	}
	a.dirs = []string{dir}
	if dir != a.cfg.RunDir {
		a.dirs = append(a.dirs, a.cfg.RunDir)
	}
	s, err := latest(a.boot, a.dirs)
	if err != nil {
		a.cfg.Logger.Warn().Err(err).Msg("going on with what there is of the state")
	}
	a.saving.Lock()
	a.saves = s.Saved
	a.saving.Unlock()
	for _, r := range s.Routes {
		if s.Boot != a.boot { // other masters, maybe, and nothing is mounted
			r = routeRecord{Name: r.Name, Via: r.Via, Port: r.Port, Used: r.Used, Called: r.Called}
		}
		a.known[key{r.Name, r.Via}] = r
	}
	return nil
}

// inherited takes a listener over that the agent before handed on; nil when there is none at that port.
func (a *Agent) inherited(port uint16) *net.TCPListener {
	for i, f := range a.cfg.Files {
		if f.Name != fdName(port) {
			continue
		}
		a.cfg.Files = slices.Delete(a.cfg.Files, i, i+1)
		ln, err := net.FileListener(f.File)
		f.Close()
		if tcp, ok := ln.(*net.TCPListener); ok && err == nil && portOf(tcp) == port {
			return tcp
		}
		a.cfg.Logger.Warn().AnErr("err", err).Str("name", f.Name).Msg("what the agent before left is no listener")
		return nil
	}
	return nil
}

func fdName(port uint16) string { return fmt.Sprintf("relay-%d", port) }

// discard closes the listeners that no route wants; those of routes without a mount are wanted, too.
func (a *Agent) discard() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for k, r := range a.known {
		if k.via == control.Relay && slices.ContainsFunc(a.cfg.Files, func(f fdstore.File) bool { return f.Name == fdName(r.Port) }) {
			a.open(k, r.Port) //nolint:errcheck // logged there; whoever wants it asks again
		}
	}
	for _, f := range a.cfg.Files {
		f.Close()
		if err := a.cfg.Store.Drop(f.Name); err != nil {
			a.cfg.Logger.Warn().Err(err).Msg("cannot give a listener up")
		}
	}
	a.cfg.Files = nil
}

// mounted takes the present table of mounts into account: every mount has a route.
func (a *Agent) mounted(table []mounts.Mount) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !mounts.Same(a.table, table) || a.table == nil {
		close(a.change)
		a.change = make(chan struct{})
	}
	a.table = table
	a.follow()
}

// follow sees to it that every mount has a route, and every route knows its mounts. The caller holds mu.
func (a *Agent) follow() {
	of := make(map[key][]mounts.Mount)
	for _, m := range a.table {
		k := key{m.Name, a.via(m)}
		of[k] = append(of[k], m)
	}
	for k, ms := range of {
		if a.routes[k] == nil {
			a.cfg.Logger.Info().Str("name", k.name).Str("dir", ms[0].Dir).Stringer("addr", ms[0].Addr).Msg("found a mount")
			a.open(k, ms[0].Addr.Port()) //nolint:errcheck // logged there; keepSaved tries again
		}
	}
	for k, r := range a.routes {
		r.mounted(of[k])
	}
}

// via tells how a mount is kept on a living master.
func (a *Agent) via(m mounts.Mount) string {
	if port := m.Addr.Port(); m.Addr.Addr().IsLoopback() && (port < 1024 || slices.Contains(a.cfg.Ports, port)) {
		return control.Relay
	}
	return control.Direct
}

// kernel returns what all routes via direct share.
func (a *Agent) kernel() *direct.Kernel {
	a.direct.Do(func() { a.shared = direct.NewKernel(&direct.Linux{}, a.cfg.Logger) })
	return a.shared
}

// open makes a route; port is where it must be, or 0. The caller holds mu.
func (a *Agent) open(k key, port uint16) (*route, error) {
	record := a.known[k]
	r := newRoute(a, k, record)
	if k.via == control.Relay {
		var err error
		if r.listener, err = a.listener(k, port, record.Port); err != nil {
			a.cfg.Logger.Error().Err(err).Str("name", k.name).Msg("cannot listen for the kernel")
			return nil, err
		}
		r.addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), portOf(r.listener))
	}
	a.routes[k] = r
	delete(a.known, k)
	ctx, cancel := context.WithCancel(a.ctx)
	r.cancel = cancel
	a.group.Go(func() error {
		r.run(ctx)
		r.close()
		return nil
	})
	return r, nil
}

// listener returns the listener of a route: the one that was handed on, or a new one, which is handed on.
func (a *Agent) listener(k key, port, had uint16) (*net.TCPListener, error) {
	wish := []uint16{port}
	if port == 0 {
		wish = candidates(k.name, had, a.cfg.Ports, func(p uint16) bool { return p != had && a.taken(p) })
	}
	for _, p := range wish {
		if ln := a.inherited(p); ln != nil {
			return ln, nil
		}
	}
	ln, err := listen(wish)
	if err != nil {
		return nil, err
	}
	if err := a.cfg.Store.Keep(fdName(portOf(ln)), ln); err != nil {
		// It works, and is absent for a moment when the agent crashes.
		a.cfg.Logger.Error().Err(err).Msg("cannot hand the listener on")
	}
	return ln, nil
}

// Listeners calls fn with every listener and its name, under which the next agent looks for it, until fn fails.
func (a *Agent) Listeners(fn func(name string, ln syscall.Conn) error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.routes {
		if r.listener == nil {
			continue
		}
		if err := fn(fdName(portOf(r.listener)), r.listener); err != nil {
			return err
		}
	}
	return nil
}

// taken says whether a port is another name's.
func (a *Agent) taken(port uint16) bool {
	for _, r := range a.routes {
		if r.addr.Port() == port {
			return port != 0
		}
	}
	for _, r := range a.known {
		if r.Port == port {
			return port != 0
		}
	}
	return false
}

// Route has a way to the masters of a SRV name ready, and waits until it leads to one. It implements control.Agent.
func (a *Agent) Route(ctx context.Context, w control.Want) (control.Route, error) {
	if err := check(&w); err != nil {
		return control.Route{}, err
	}
	if w.Via == control.Direct {
		if err := a.kernel().Check(); err != nil {
			return control.Route{}, fmt.Errorf("%w: via=direct: %w; use via=relay", control.ErrInvalid, err)
		}
	}
	r, t, err := a.route(w)
	if err != nil {
		return control.Route{}, err
	}
	a.save()
	way, err := r.ready(ctx)
	r.done(t, err == nil)
	a.save()
	return way, err
}

// Release lets a route go that was made ready for a mount that came to nothing. It implements control.Agent.
func (a *Agent) Release(w control.Want) {
	if check(&w) != nil {
		return // no route was made of it
	}
	a.mu.Lock()
	r := a.routes[key{w.Name, w.Via}]
	a.mu.Unlock()
	if r != nil {
		r.release(w)
		a.save()
	}
}

// route returns the route that is wanted, and what it was told; route.done must follow.
func (a *Agent) route(w control.Want) (*route, *told, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ctx.Err() != nil {
		return nil, nil, fmt.Errorf("%w: the agent is stopping", control.ErrFailed)
	}
	k := key{w.Name, w.Via}
	r := a.routes[k]
	if r == nil {
		if len(a.routes) >= MaxRoutes && !a.evict() {
			return nil, nil, fmt.Errorf("%w SRV names: this host mounts by %d already", control.ErrTooMany, len(a.routes))
		}
		var err error
		if r, err = a.open(k, 0); err != nil {
			return nil, nil, err
		}
	}
	return r, r.want(w), nil
}

// evict ends the route that has been asleep longest, and says whether there was one. The caller holds mu.
func (a *Agent) evict() bool {
	var oldest *route
	for _, r := range a.routes {
		if r.dormant() && (oldest == nil || r.record().Used.Before(oldest.record().Used)) {
			oldest = r
		}
	}
	if oldest == nil {
		return false
	}
	oldest.log.Info().Msg("there are many SRV names: giving up one that nothing is mounted by")
	if rec := oldest.record(); !rec.Used.IsZero() { // else its port was of no use to anybody
		a.known[oldest.key] = rec
	}
	delete(a.routes, oldest.key)
	oldest.cancel()
	if oldest.listener != nil {
		if err := a.cfg.Store.Drop(fdName(portOf(oldest.listener))); err != nil {
			oldest.log.Warn().Err(err).Msg("cannot give a listener up")
		}
	}
	return true
}

// check puts a wish into its canonical form, and says what is wrong with it.
func check(w *control.Want) error {
	w.Name = mounts.Canonical(w.Name)
	w.Via = cmp.Or(w.Via, control.Relay)
	if err := mounts.CheckName(w.Name); err != nil {
		return fmt.Errorf("%w: %w", control.ErrInvalid, err)
	}
	if w.Via != control.Relay && w.Via != control.Direct {
		return fmt.Errorf("%w: via %q: want %s or %s", control.ErrInvalid, w.Via, control.Relay, control.Direct)
	}
	for _, s := range w.DNS {
		if err := resolve.CheckServer(s); err != nil {
			return fmt.Errorf("%w: %w", control.ErrInvalid, err)
		}
	}
	for _, m := range w.Masters {
		if _, _, err := splitMaster(m); err != nil {
			return fmt.Errorf("%w: %w", control.ErrInvalid, err)
		}
	}
	return nil
}

// Unused returns when nothing is mounted, or ctx ends.
func (a *Agent) Unused(ctx context.Context) error {
	for {
		a.mu.Lock()
		n, change := len(a.table), a.change
		a.mu.Unlock()
		if n == 0 {
			return nil
		}
		select {
		case <-change:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// keepSaved writes the state now and then, when the masters' order has changed, and tries again to have a route for a mount
// whose port was taken.
func (a *Agent) keepSaved(ctx context.Context) {
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			a.mu.Lock()
			a.follow()
			a.mu.Unlock()
			a.save()
		case <-ctx.Done():
			return
		}
	}
}

// save writes the state where it differs from what was last written, or that is gone. A directory that fails is tried again, and
// the others are left alone.
func (a *Agent) save() {
	a.saving.Lock()
	defer a.saving.Unlock()
	s := a.state()
	s.Saved = a.saves + 1
	var failed error
	for _, dir := range a.dirs {
		if s.same(a.saved[dir]) && kept(dir) {
			continue
		}
		a.saves = s.Saved
		if err := s.save(dir); err != nil {
			failed = errors.Join(failed, err)
			delete(a.saved, dir)
			continue
		}
		a.saved[dir] = s
	}
	if failed != nil {
		a.cfg.Logger.Warn().Err(failed).Msg("the state is not kept")
	}
}

// state is what the next agent is to know.
func (a *Agent) state() state {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := state{Format: stateFormat, Boot: a.boot}
	for _, r := range a.routes {
		s.Routes = append(s.Routes, r.record())
	}
	s.Routes = append(s.Routes, trim(slices.Collect(maps.Values(a.known)), MaxRoutes-len(s.Routes))...)
	slices.SortFunc(s.Routes, func(x, y routeRecord) int {
		return cmp.Or(cmp.Compare(x.Name, y.Name), cmp.Compare(x.Via, y.Via))
	})
	return s
}

// trim keeps the records that were used last.
func trim(records []routeRecord, most int) []routeRecord {
	slices.SortFunc(records, func(x, y routeRecord) int { return y.Used.Compare(x.Used) })
	return records[:min(len(records), max(most, 0))]
}
