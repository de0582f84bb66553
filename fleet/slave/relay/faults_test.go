package relay

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// world is some masters, and a slave whose relay a Prober steers.
type world struct {
	t       *testing.T
	masters []*fakeMaster
	relay   *Relay
	prober  *Prober
	addr    netip.AddrPort

	mu      sync.Mutex
	changes []Change
}

func newWorld(t *testing.T, masters int) *world {
	w := &world{t: t}
	for i := range masters {
		w.masters = append(w.masters, startMaster(t, "m"+strconv.Itoa(i)))
	}
	w.relay, w.addr = startRelay(t)
	w.prober = NewProber(ProberConfig{
		Relay: w.relay, Targets: w.order(), Logger: zerolog.New(zerolog.NewTestWriter(t)),
		Dial: func(ctx context.Context, to netip.AddrPort) (Greeter, error) {
			conn, err := Dialer{Insecure: os.Geteuid() != 0}.Dial(ctx, to)
			if err != nil {
				return nil, err
			}
			return &fakeGreeter{conn: conn, order: w.order}, nil
		},
		Changed: func(ch Change) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.changes = append(w.changes, ch)
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.prober.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return w
}

// order is what masters tell.
func (w *world) order() []Target {
	var order []Target
	for _, m := range w.masters {
		order = append(order, m.target())
	}
	return order
}

// current is the master that is read from.
func (w *world) current() *fakeMaster {
	w.t.Helper()
	var at *fakeMaster
	await(w.t, "some master is read from", func() bool {
		c := w.prober.Course()
		i := slices.IndexFunc(w.masters, func(m *fakeMaster) bool { return m.addr == c.Target.Addr })
		if i < 0 || c.Lost {
			return false
		}
		at = w.masters[i]
		return true
	})
	return at
}

// rounds is how often a fault is repeated: RELAY_ROUNDS, or a few.
func rounds(few int) int {
	if n, err := strconv.Atoi(os.Getenv("RELAY_ROUNDS")); err == nil {
		return n
	}
	if testing.Short() {
		return 1
	}
	return few
}

// measure does a fault many times under a reader, and says how long it waited.
func (w *world) measure(k *kernel, times int, fault func(m *fakeMaster), heal func(m *fakeMaster)) {
	t := w.t
	t.Helper()
	var pauses []time.Duration
	for i := range times {
		k.goOn(5)
		time.Sleep(time.Duration(i*37%500) * time.Millisecond) // any time between two probes
		m := w.current()
		k.pause()
		fault(m)
		await(t, "reading goes on elsewhere", func() bool { return w.prober.Course().Target.Addr != m.addr })
		k.goOn(5)
		pauses = append(pauses, k.pause())
		heal(m)
	}
	slices.Sort(pauses)
	n := len(pauses)
	t.Logf("%d times: median %s, p90 %s, p99 %s, max %s", n, pauses[n/2].Round(100*time.Microsecond),
		pauses[n*9/10].Round(100*time.Microsecond), pauses[min(n-1, n*99/100)].Round(100*time.Microsecond), pauses[n-1].Round(100*time.Microsecond))
	if bound := 5 * time.Second; pauses[n-1] > bound {
		t.Errorf("a pause of %s", pauses[n-1])
	}
}

func TestAKilledMasterIsLeft(t *testing.T) {
	w := newWorld(t, 3)
	k := startKernel(t, t.Context(), w.addr, 4096, 1)
	w.measure(k, rounds(5), (*fakeMaster).kill, (*fakeMaster).start)
}

func TestAHungMasterIsLeft(t *testing.T) {
	w := newWorld(t, 3)
	k := startKernel(t, t.Context(), w.addr, 4096, 1)
	w.measure(k, rounds(3), (*fakeMaster).hang, (*fakeMaster).goOn)
}

func TestAMasterThatIsCutOffIsLeft(t *testing.T) {
	inOwnNetwork(t)
	w := newWorld(t, 3)
	k := startKernel(t, t.Context(), w.addr, 4096, 1)
	w.measure(k, rounds(3), func(m *fakeMaster) { cut(t, m) }, func(m *fakeMaster) { join(t); m.kill(); m.start() })
}

func TestAMasterThatWantsTheSlaveGoneIsLeft(t *testing.T) {
	w := newWorld(t, 3)
	k := startKernel(t, t.Context(), w.addr, 4096, 1)
	w.measure(k, rounds(3), func(m *fakeMaster) { m.status.Store(uint32(Leave)) }, func(m *fakeMaster) { m.status.Store(0) })
	if n := k.redial.Load(); n != 1 {
		t.Errorf("the kernel made %d connections", n)
	}
}

// Four connections stream through faults of all kinds, close one after the other.
func TestStreamsPassThroughFaults(t *testing.T) {
	w := newWorld(t, 3)
	var kernels []*kernel
	for range 4 {
		kernels = append(kernels, startKernel(t, t.Context(), w.addr, 256<<10, 4))
	}
	goOn := func() {
		for _, k := range kernels {
			k.goOn(20)
		}
	}
	goOn()
	for range rounds(2) {
		for _, fault := range []struct{ hit, heal func(*fakeMaster) }{
			{(*fakeMaster).kill, (*fakeMaster).start},
			{(*fakeMaster).hang, (*fakeMaster).goOn},
			{func(m *fakeMaster) { m.status.Store(uint32(Leave)) }, func(m *fakeMaster) { m.status.Store(uint32(OK)) }},
			{func(m *fakeMaster) { m.kill(); m.start() }, func(*fakeMaster) {}},
			{(*fakeMaster).disconnect, func(*fakeMaster) {}},
		} {
			first := w.current()
			fault.hit(first)
			goOn()
			second := w.current()
			second.kill() // within 1.3 s of the first
			goOn()
			second.start()
			fault.heal(first)
		}
	}
	for _, k := range kernels {
		t.Logf("%d replies, %d MB, %d connections, worst wait %s", k.done.Load(), k.bytes.Load()>>20, k.redial.Load(), k.pause())
	}
}

func TestABusyMasterKeepsItsReaders(t *testing.T) {
	w := newWorld(t, 3)
	k := startKernel(t, t.Context(), w.addr, 4096, 1)
	k.goOn(1)
	m := w.current()
	m.slow.Store(int64(2 * time.Second))
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); {
		k.goOn(10)
	}
	if w.current() != m {
		t.Error("it was left")
	}
}

// A link of the slave's own that is cut and mended: nobody answers, then all do.
func TestAllLinksAreCut(t *testing.T) {
	inOwnNetwork(t)
	w := newWorld(t, 2)
	k := startKernel(t, t.Context(), w.addr, 4096, 1)
	for range rounds(1) {
		k.goOn(5)
		cut(t, w.masters...)
		await(t, "the master is lost", func() bool { return w.prober.Course().Lost })
		done := k.done.Load()
		join(t)
		began := time.Now()
		k.goOn(5)
		t.Logf("reading again %s after the link was mended, %d replies meanwhile", time.Since(began).Round(time.Millisecond), k.done.Load()-done-5)
	}
}
