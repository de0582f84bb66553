package master

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/nfs-fleet/nfs-fleet/election/etcdtest"
	"github.com/nfs-fleet/nfs-fleet/exporter/hello"
	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/relay"
)

// slave is one in this process: a relay that is kept on a master, and somebody who makes one call after the other through
// it, over one connection.
type slave struct {
	*testing.T
	name    string
	all     map[string]*running
	etcd    *clientv3.Client
	relay   *relay.Relay
	prober  *relay.Prober
	calls   atomic.Int64 // that were answered
	longest atomic.Int64 // time between two answers, ns
	broken  atomic.Pointer[string]

	unreachable atomic.Pointer[string] // a master that it does not reach
	tried       atomic.Int64           // how often it has tried that
}

// greeter says HELLO as an agent does.
type greeter struct {
	*hello.Client
	s  *slave
	to netip.AddrPort
}

func (g greeter) Hello(ctx context.Context) (relay.Answer, error) {
	if cut := g.s.unreachable.Load(); cut != nil && g.to.String() == g.s.all[*cut].cfg.Listen.NFS {
		g.s.tried.Add(1)
		return relay.Answer{}, syscall.EHOSTUNREACH
	}
	ch := g.s.prober.Course().Change
	said := hello.Greeting{Slave: g.s.name, Instance: "i1", Mode: "relay", Mounts: []hello.Mount{{Shard: "www"}}}
	if ch.From.Addr.IsValid() {
		said.Last = hello.Reattach{At: ch.At, Took: ch.Took, From: ch.From.String(), To: ch.To.String(), Why: ch.Why}
	}
	a, err := g.Client.Hello(ctx, said)
	out := relay.Answer{Status: relay.Unwell, Why: a.Why, Revision: a.Revision, Every: a.Every}
	switch a.Status {
	case hello.OK:
		out.Status = relay.OK
	case hello.Leave:
		out.Status = relay.Leave
	}
	for _, t := range a.Targets {
		out.Targets = append(out.Targets, relay.Target{Name: t.Name, Addr: netip.AddrPortFrom(netip.MustParseAddr(t.Host), t.Port)})
	}
	return out, err
}

func startSlave(t *testing.T, name string, all map[string]*running, etcd *clientv3.Client) *slave {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	log := zerolog.New(newTestLog(t)).Level(zerolog.InfoLevel).With().Str("slave", name).Logger()
	s := &slave{T: t, name: name, all: all, etcd: etcd}
	s.relay = relay.New(relay.Config{Listener: l, Dialer: relay.Dialer{Insecure: true}, Insecure: true, Logger: log})
	var targets []relay.Target
	for master, m := range all {
		targets = append(targets, relay.Target{Name: master, Addr: netip.MustParseAddrPort(m.cfg.Listen.NFS)})
	}
	s.prober = relay.NewProber(relay.ProberConfig{
		Relay: s.relay, Targets: targets, Logger: log,
		Dial: func(ctx context.Context, to netip.AddrPort) (relay.Greeter, error) {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", to.String())
			if err != nil {
				return nil, err
			}
			return greeter{hello.NewClient(conn), s, to}, nil
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 3)
	go func() { done <- s.relay.Run(ctx) }()
	go func() { done <- s.prober.Run(ctx) }()
	go func() { s.read(ctx, l.Addr().String()); done <- nil }()
	t.Cleanup(func() {
		cancel()
		for range 3 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		l.Close() //nolint:errcheck // it was the relay's
	})
	return s
}

// read makes calls until ctx ends. A connection that ends is what must not happen.
func (s *slave) read(ctx context.Context, through string) {
	fail := func(err error) {
		if ctx.Err() == nil {
			text := err.Error()
			s.broken.Store(&text)
		}
	}
	conn, err := net.Dial("tcp", through)
	if err != nil {
		fail(err)
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })() //nolint:errcheck // the test is over
	call, reply := make([]byte, 44), make([]byte, 28)
	for i, v := range [...]uint32{1<<31 | 40, 7, 0, 2, 100003, 3, 0, 0, 0, 0, 0} { // NFS, version 3, NULL
		binary.BigEndian.PutUint32(call[4*i:], v)
	}
	for last := time.Now(); ; time.Sleep(time.Millisecond) {
		_, err := conn.Write(call)
		if err == nil {
			_, err = io.ReadFull(conn, reply)
		}
		if err != nil {
			fail(err)
			return
		}
		now := time.Now()
		if gap := int64(now.Sub(last)); s.calls.Add(1) > 1 && gap > s.longest.Load() {
			s.longest.Store(gap)
		}
		last = now
	}
}

// until waits until the slave reads from a master that ok accepts, and returns it.
func (s *slave) until(what string, ok func(master string) bool) string {
	s.Helper()
	var at relay.Course
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		calls := s.calls.Load()
		at = s.prober.Course()
		if calls > 0 && !at.Lost && at.Target.Addr == s.relay.Target() && ok(at.Target.Name) {
			return at.Target.Name
		}
	}
	s.Fatalf("%s: not within %s; it is at %+v", what, patience, at)
	return ""
}

// undisturbed demands that no connection was ended under its calls, and that it went of its own accord if it went.
func (s *slave) undisturbed(what string) {
	s.Helper()
	if ch := s.prober.Course().Change; !ch.Planned && ch.From.Addr.IsValid() {
		s.Errorf("%s: it went because %s", what, ch.Why)
	}
	if text := s.broken.Load(); text != nil {
		s.Errorf("%s: the reader's connection ended: %s", what, *text)
	}
	if c := s.relay.Counters(); c.Resets != 0 {
		s.Errorf("%s: %d connections were reset", what, c.Resets)
	}
	s.Logf("%s: the longest time between two answers was %s", what, time.Duration(s.longest.Swap(0)))
}

func anyPort(c *Config) { c.NewShards.Insecure = true }

// home is the slave's record, once there is one.
func (s *slave) home() (home fleet.Slave) {
	s.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if home = slaveIn(s.T, s.etcd, s.anybody().cfg.Fleet, s.name); home.Master != "" {
			return home
		}
	}
	s.Fatalf("%s has no record", s.name)
	return home
}

// anybody is one of the masters.
func (s *slave) anybody() *running {
	for _, m := range s.all {
		return m
	}
	return nil
}

// place gives the slave a home, as the coordinator does.
func (s *slave) place(master string) {
	s.Helper()
	home := s.home()
	home.Master, home.Since, home.Fallbacks = master, time.Now().UTC(), nil
	for other := range s.all {
		if other != master {
			home.Fallbacks = append(home.Fallbacks, other)
		}
	}
	put(s.T, s.etcd, fleet.KeysOf(s.anybody().cfg.Fleet).Slave(s.name), home)
}

func is(master string) func(string) bool {
	return func(now string) bool { return now == master }
}

// A master that is drained, that stops, or that a slave is moved away from lets it go before anything is closed.
func TestAPlannedMoveEndsNoConnection(t *testing.T) {
	all, server := severalWith(t, anyPort, "m1", "m2", "m3")
	all["m1"].until("three masters serving", inStep(3, 1))
	s := startSlave(t, "web17", all, server.Dial(t))
	s.until("its home", func(now string) bool { return now == s.home().Master })

	first := s.home()
	s.place(first.Fallbacks[0])
	s.until("its new home", is(first.Fallbacks[0]))
	s.undisturbed("moved")

	drained := first.Fallbacks[0]
	if err := all["m1"].client.Drain(t.Context(), drained, console.DrainRequest{}); err != nil {
		t.Fatal(err)
	}
	second := s.until("another than the drained one", func(now string) bool { return now != drained })
	s.undisturbed("drained")

	began := time.Now()
	all[second].stop()
	if took := time.Since(began); took > stopLimit {
		t.Errorf("the stop took %s", took)
	}
	s.until("another than the one that stopped", func(now string) bool { return now != second && now != drained })
	s.undisturbed("stopped")
}

// A master that alone has lost its lease lets its slaves go before it closes its door.
func TestALeaselessMasterLetsItsSlavesGo(t *testing.T) {
	server := etcdtest.New(t)
	wire := startWire(t, server.Host())
	fleetName := etcdtest.FleetName()
	all := map[string]*running{}
	for _, name := range []string{"m1", "m2"} {
		c := testConfig(t)
		c.Name, c.Fleet, c.Etcd, c.NewShards.Insecure, c.LeaseTTL = name, fleetName, Default().Etcd, true, MinLeaseTTL
		c.Etcd.Endpoints = []string{server.URL()}
		if name == "m2" {
			c.Sources, c.Etcd.Endpoints = map[string]SourceConfig{}, []string{"http://" + wire.address()}
		}
		all[name] = start(t, c)
	}
	all["m1"].until("two masters serving", inStep(2, 1))
	s := startSlave(t, "web17", all, server.Dial(t))
	s.until("its home", func(now string) bool { return now == s.home().Master })
	s.place("m2")
	s.until("m2", is("m2"))
	wire.cut()
	s.until("m1", is("m1"))
	s.undisturbed("m2 has lost its lease")
	all["m2"].until("the step-down", func(st console.Status) bool {
		return strings.Contains(strings.Join(st.Warnings, " "), errSteppedDown.Error())
	})
}

// A slave that cannot reach the home that it was given reads on from another master, and is not sent to and fro.
func TestOneBrokenLinkSendsNobodyToAndFro(t *testing.T) {
	all, server := severalWith(t, anyPort, "m1", "m2", "m3")
	all["m1"].until("three masters serving", inStep(3, 1))
	s := startSlave(t, "web17", all, server.Dial(t))
	here := s.until("its home", func(now string) bool { return now == s.home().Master })
	there := s.home().Fallbacks[0]
	s.unreachable.Store(&there)
	s.place(there)
	// It is asked to go, tries its home in vain, and goes to the third; or has gone nowhere.
	s.until("that it was asked to go", func(string) bool { return s.tried.Load() > 0 })
	joins := s.relay.Counters().Joins
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if now := s.prober.Course(); now.Lost || now.Target.Name == there {
			t.Fatalf("it is at %+v", now)
		}
	}
	if more := s.relay.Counters().Joins - joins; more > 2 {
		t.Errorf("%d times to another master within 3 s, from %s with its home %s out of reach", more, here, there)
	}
	s.undisturbed("its home is out of reach")
}

// wire is a TCP proxy that can be cut.
type wire struct {
	net.Listener
	mu    sync.Mutex // guards what follows
	ended bool
	conns []net.Conn
}

func startWire(t *testing.T, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{Listener: l}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil || !w.add(in, out) {
				in.Close() //nolint:errcheck // it is refused
				continue
			}
			for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
				all.Go(func() {
					io.Copy(pair[0], pair[1]) //nolint:errcheck // its end is all that matters
					in.Close()                //nolint:errcheck // it is over
					out.Close()               //nolint:errcheck // it is over
				})
			}
		}
	})
	t.Cleanup(func() { w.cut(); all.Wait() })
	return w
}

func (w *wire) address() string { return w.Addr().String() }

func (w *wire) add(conns ...net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conns = append(w.conns, conns...)
	return !w.ended
}

// cut ends all connections and lets no more through.
func (w *wire) cut() {
	w.Close() //nolint:errcheck // fails only when cut before
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	for _, c := range w.conns {
		c.Close() //nolint:errcheck // it is cut
	}
}
