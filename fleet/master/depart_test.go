package master

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/exporter/hello"
	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/relay"
)

// slave is one in this process: a relay that is kept on a master, and somebody who makes one call after the other through
// it, over one connection.
type slave struct {
	*testing.T
	all     map[string]*running
	relay   *relay.Relay
	prober  *relay.Prober
	calls   atomic.Int64 // that were answered
	longest atomic.Int64 // time between two answers, ns
	broken  atomic.Pointer[string]
}

// greeter says HELLO as an agent does.
type greeter struct {
	*hello.Client
	name   string
	change func() relay.Change
}

func (g greeter) Hello(ctx context.Context) (relay.Answer, error) {
	ch := g.change()
	said := hello.Greeting{Slave: g.name, Instance: "i1", Mode: "relay", Mounts: []hello.Mount{{Shard: "www"}}}
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

func startSlave(t *testing.T, name string, all map[string]*running) *slave {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	log := zerolog.New(newTestLog(t)).Level(zerolog.InfoLevel).With().Str("slave", name).Logger()
	s := &slave{T: t, all: all}
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
			return greeter{hello.NewClient(conn), name, func() relay.Change { return s.prober.Course().Change }}, nil
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

// A master that is drained, that stops, or that a slave is moved away from lets it go before anything is closed.
func TestAPlannedMoveEndsNoConnection(t *testing.T) {
	all, server := severalWith(t, anyPort, "m1", "m2", "m3")
	all["m1"].until("three masters serving", inStep(3, 1))
	s := startSlave(t, "web17", all)
	s.until("a master", func(string) bool { return true })
	s.undisturbed("at the start")

	record := func() (home fleet.Slave) {
		all["m1"].until("the slave's record", func(console.Status) bool {
			home = slaveIn(t, server.Dial(t), all["m1"].cfg.Fleet, "web17")
			return home.Master != ""
		})
		return home
	}
	s.until("its home", func(m string) bool { return m == record().Master })

	home := record()
	first := home.Master
	home.Master, home.Fallbacks, home.Since = home.Fallbacks[0], []string{home.Fallbacks[1], first}, time.Now().UTC()
	put(t, server.Dial(t), fleet.KeysOf(all["m1"].cfg.Fleet).Slave("web17"), home)
	s.until("its new home", func(m string) bool { return m == home.Master })
	s.undisturbed("moved")

	if err := all["m1"].client.Drain(t.Context(), home.Master); err != nil {
		t.Fatal(err)
	}
	second := s.until("another than the drained one", func(m string) bool { return m != home.Master })
	s.undisturbed("drained")

	began := time.Now()
	all[second].stop()
	if took := time.Since(began); took > stopLimit {
		t.Errorf("the stop took %s", took)
	}
	s.until("another than the one that stopped", func(m string) bool { return m != second && m != home.Master })
	s.undisturbed("stopped")
}
