package direct

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// world is a System that behaves as Linux does, as far as it was seen to: reconnects at once after a reset, sleeps for
// three seconds after a refusal, and never recovers from a silent master by itself. When it is eager, another call wants a connection
// when one is refused: then the next attempt is put off instead, for three seconds the first time and six the second, and no address is
// taken before. Times are synctest's.
type world struct {
	mu         sync.Mutex // guards what follows
	changed    *sync.Cond // at every change of a lock
	masters    map[netip.AddrPort]fate
	transports map[string]*transport
	mounts     []Mount
	breakers   []Breaker
	cuts       int // how often the destroyer was at work
	detourers  []Detourer
	detours    map[Detour]bool
	eager      bool
	fenced     map[netip.Addr]int
	caught     map[netip.Addr]int
	cookie     uint64
	aims       []string
	blind      bool
}

// fate is what a master does.
type fate int

const (
	alive fate = iota
	silent
	dead // its host refuses
)

// transport is one of the world's.
type transport struct {
	Transport
	socket  *Socket
	dest    netip.AddrPort // where its packets arrive, whatever its address
	locked  bool           // the kernel is connecting it
	putOff  time.Duration  // the last time
	ends    int            // of attempts to connect: who waits for the lock wakes then
	passed  int            // the end at which the lock was passed on to a call instead
	clogged bool           // calls were not sent any more: an end would be sent after them
	heardAt time.Time
}

// shown is what Linux shows of it: no ports while it is not connected.
func (t *transport) shown() Transport {
	out := t.Transport
	if !t.Connected {
		out.LocalPort, out.Addr = 0, netip.AddrPortFrom(t.Addr.Addr(), 0)
	}
	return out
}

func newWorld(masters ...netip.AddrPort) *world {
	w := &world{masters: make(map[netip.AddrPort]fate), transports: make(map[string]*transport), fenced: make(map[netip.Addr]int), caught: make(map[netip.Addr]int), detours: make(map[Detour]bool)}
	w.changed = sync.NewCond(&w.mu)
	for _, m := range masters {
		w.masters[m] = alive
	}
	w.breakers = []Breaker{&fakeDestroyer{w}}
	w.detourers = []Detourer{&fakeDetourer{w: w}}
	return w
}

// mount makes a mount with so many connections.
func (w *world) mount(dir, id string, to netip.AddrPort, conns int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mounts = append(w.mounts, Mount{Dir: dir, Device: "0:" + id, Addr: to})
	for i := range conns {
		name := id + "/xprt-" + string(rune('a'+i))
		t := &transport{Transport: Transport{ID: name, Addr: to, LocalPort: uint16(700 + len(w.transports))}}
		w.transports[name] = t
		w.connect(t)
	}
}

// connect is what the kernel does when a transport is not connected. w.mu is held.
func (w *world) connect(t *transport) {
	to := t.Addr
	t.dest = to
	for d := range w.detours {
		if d.Local == t.LocalPort && d.From == to {
			t.dest = d.To
		}
	}
	w.cookie++
	t.ends++
	t.Connected, t.locked = false, false
	switch {
	case w.fenced[t.dest.Addr()] > 0 || w.masters[t.dest] == dead:
		t.socket = nil
		wait := 3 * time.Second
		if w.eager && t.putOff < 6*time.Second {
			if t.putOff > 0 {
				wait = 6 * time.Second
			}
			t.putOff, t.locked = wait, true
		}
		putOff := t.locked
		w.later(wait, func() {
			if putOff { // its lock is passed on to a call that waits for it
				t.passed = t.ends + 1
			}
			w.connect(t)
		})
	case w.masters[t.dest] == silent:
		t.locked = true
		t.socket = &Socket{Local: w.local(t), Remote: to, State: SynSent, Cookie: w.cookie}
	default:
		t.socket = &Socket{Local: w.local(t), Remote: to, State: Established, Cookie: w.cookie, Received: 1}
		t.Connected, t.heardAt, t.putOff = true, time.Now(), 0
	}
	w.changed.Broadcast()
}

func (w *world) local(t *transport) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("10.0.0.100"), t.LocalPort)
}

func (w *world) later(after time.Duration, do func()) {
	time.AfterFunc(after, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		do()
	})
}

// set changes what a master does. One that dies resets its connections, and the kernel comes back at once;
// one that comes alive accepts who waits for it.
func (w *world) set(m netip.AddrPort, f fate) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.masters[m] = f
	for _, t := range w.transports {
		if t.dest == m && (f == dead && t.socket != nil || f == alive && t.locked) {
			w.connect(t)
		}
	}
}

// call leaves so many calls unanswered on every transport.
func (w *world) call(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.transports {
		t.Waiting = n
	}
}

// clog leaves calls unsent on every transport.
func (w *world) clog() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.transports {
		t.clogged = true
	}
}

// readable says whether every transport is connected to a master that answers.
func (w *world) readable() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.transports {
		if !t.Connected || t.socket == nil || w.masters[t.dest] != alive {
			return false
		}
	}
	return true
}

func (w *world) Transports() ([]Transport, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.blind {
		return nil, ErrUnsupported
	}
	var out []Transport
	for _, t := range w.transports {
		out = append(out, t.shown())
	}
	return out, nil
}

func (w *world) Transport(id string) (Transport, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if t := w.transports[id]; t != nil {
		return t.shown(), nil
	}
	return Transport{}, errors.New("gone")
}

func (w *world) Mounts() ([]Mount, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.mounts), nil
}

// Aim waits for the lock, writes the address, and ends the connection: at once when the master answers.
func (w *world) Aim(id string, to netip.Addr) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	t := w.transports[id]
	for slept := false; t.locked || slept && t.ends <= t.passed; slept = true {
		w.changed.Wait()
	}
	w.aims = append(w.aims, id+" "+to.String())
	t.Addr = netip.AddrPortFrom(to, t.Addr.Port())
	t.Connected = false
	s := t.socket
	switch {
	case s == nil: // it sleeps
	case w.masters[t.dest] == silent && (t.clogged || w.caught[s.Remote.Addr()]+w.fenced[s.Remote.Addr()] == 0):
		s.State = 4 // FIN_WAIT1, for ever
	default:
		w.connect(t)
	}
	return nil
}

func (w *world) Sockets(port uint16) ([]Socket, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []Socket
	for _, t := range w.transports {
		if t.socket != nil && t.socket.Remote.Port() == port {
			out = append(out, w.seen(t))
		}
	}
	return out, nil
}

// seen is a transport's socket as it is now. w.mu is held.
func (w *world) seen(t *transport) Socket {
	s := *t.socket
	if t.Waiting == 0 || w.masters[t.dest] == alive {
		t.heardAt = time.Now()
	}
	s.Silent = time.Since(t.heardAt)
	return s
}

func (w *world) Socket(s Socket) (Socket, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.transports {
		if t.socket != nil && t.socket.Cookie == s.Cookie {
			return w.seen(t), nil
		}
	}
	return s, syscall.ENOENT
}

func (w *world) Breakers() []Breaker { return w.breakers }

func (w *world) Detourers() []Detourer { return w.detourers }

// fakeDestroyer ends a connection as SOCK_DESTROY does.
type fakeDestroyer struct{ w *world }

func (*fakeDestroyer) Name() string { return "destroyer" }
func (*fakeDestroyer) First() bool  { return false }
func (*fakeDestroyer) Check() error { return nil }
func (*fakeDestroyer) Sweep() error { return nil }

func (*fakeDestroyer) Catch(Socket) (func() error, error) { return func() error { return nil }, nil }

func (f *fakeDestroyer) Break(s Socket) (func() error, error) {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	f.w.cuts++
	for _, t := range f.w.transports {
		if t.socket != nil && t.socket.Cookie == s.Cookie {
			if s.State == SynSent { // the call that was connecting sleeps
				t.socket, t.locked = nil, false
				f.w.changed.Broadcast()
				f.w.later(3*time.Second, func() { f.w.connect(t) })
				continue
			}
			f.w.connect(t)
		}
	}
	return func() error { return nil }, nil
}

// fakeFence resets what is sent to an address as long as it is there, or the ends of connections. To make it takes time, and it
// works before it is made.
type fakeFence struct {
	w     *world
	check error
	swept bool
	fails int // so many times
}

func (*fakeFence) Name() string   { return "fence" }
func (*fakeFence) First() bool    { return true }
func (f *fakeFence) Check() error { return f.check }
func (f *fakeFence) Sweep() error { f.swept = true; return nil }

func (f *fakeFence) Catch(s Socket) (func() error, error) { return f.make(f.w.caught, s) }

func (f *fakeFence) Break(s Socket) (func() error, error) { return f.make(f.w.fenced, s) }

// make makes a fence of a kind. What waits for an answer from behind a whole one is sent again every moment, and is reset.
func (f *fakeFence) make(kind map[netip.Addr]int, s Socket) (func() error, error) {
	nothing := func() error { return nil }
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	if f.fails > 0 {
		f.fails--
		return nothing, errors.New("no fence today")
	}
	addr := s.Remote.Addr()
	kind[addr]++
	if f.w.fenced[addr] > 0 {
		for _, t := range f.w.transports {
			if t.socket != nil && t.socket.Remote.Addr() == addr {
				t.clogged = false
				f.w.connect(t)
			}
		}
	}
	f.w.mu.Unlock()
	time.Sleep(commandTime)
	f.w.mu.Lock()
	return func() error {
		f.w.mu.Lock()
		defer f.w.mu.Unlock()
		kind[addr]--
		return nil
	}, nil
}

// fakeDetourer leads what is connected from then on.
type fakeDetourer struct {
	w     *world
	fails error
	stuck int // so many removals fail
	tried int // removals
	laid  int
}

func (*fakeDetourer) Name() string { return "detourer" }
func (*fakeDetourer) Sweep() error { return nil }

func (f *fakeDetourer) Lay(d Detour) (func() error, error) {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	if f.fails != nil {
		return func() error { return nil }, f.fails
	}
	f.laid++
	f.w.detours[d] = true
	return func() error {
		f.w.mu.Lock()
		defer f.w.mu.Unlock()
		f.tried++
		if f.stuck > 0 {
			f.stuck--
			return errors.New("not removed today")
		}
		delete(f.w.detours, d)
		for _, t := range f.w.transports {
			if t.socket != nil && t.LocalPort == d.Local && t.socket.Remote == d.From && t.dest == d.To && d.From != d.To {
				f.w.connect(t) // whoever is at the old address resets what he does not know
			}
		}
		return nil
	}, nil
}

// commandTime is how long a fence takes.
const commandTime = 20 * time.Millisecond

// written returns what was written to the transports' addresses.
func (w *world) written() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.aims)
}

// fences says how many are there.
func (w *world) fences() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, kind := range []map[netip.Addr]int{w.caught, w.fenced} {
		for _, f := range kind {
			n += f
		}
	}
	return n
}

// newDirect returns a Direct that runs until the test ends, for the mounts at dirs.
func newDirect(t *testing.T, k *Kernel, dirs ...string) *Direct {
	d := New(Config{Kernel: k, Mounts: func() []string { return dirs }, Logger: zerolog.Nop()})
	return run(t, d)
}
