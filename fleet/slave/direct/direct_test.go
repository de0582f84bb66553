package direct

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/relay"
)

var masterA, masterB, masterC = at("10.0.0.1:2049"), at("10.0.0.2:2049"), at("10.0.0.3:2049")

// run runs d until the test ends.
func run(t *testing.T, d *Direct) *Direct {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return d
}

// until waits until ok holds and returns how long that took.
func until(t *testing.T, limit time.Duration, ok func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > limit {
			t.Fatalf("not within %s", limit)
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(began)
}

// From a master that was silent, however its connections are broken, all are connected to another at once, and nothing is
// left in the packet filter.
func TestSwitchFromSilent(t *testing.T) {
	for _, breaker := range []func(*world) Breaker{
		func(w *world) Breaker { return &fakeDestroyer{w} },
		func(w *world) Breaker { return &fakeFence{w: w} },
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(masterA, masterB)
			w.breakers = []Breaker{breaker(w)}
			w.mount("/m", "1", masterA, 4)
			w.mount("/n", "2", masterA, 1)
			d := newDirect(t, NewKernel(w, zerolog.Nop()), "/m", "/n")
			d.Switch(masterA)
			synctest.Wait()
			w.set(masterA, silent)
			w.call(3)
			d.Switch(masterB)
			if took := until(t, time.Second, w.readable); took > 100*time.Millisecond {
				t.Errorf("%s: it took %s", w.breakers[0].Name(), took)
			}
			until(t, time.Second, func() bool { return w.fences() == 0 })
		})
	}
}

// Calls that were not sent any more keep the end of a connection from being sent, and from being caught: the connection is
// broken, but not before the kernel has another address to go to, where a refusal would cost it three seconds.
func TestSwitchFromSilentUnderManyCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(masterA, masterB)
		w.breakers = []Breaker{&fakeFence{w: w}}
		w.mount("/m", "1", masterA, 2)
		d := newDirect(t, NewKernel(w, zerolog.Nop()), "/m")
		d.Switch(masterA)
		synctest.Wait()
		w.set(masterA, silent)
		w.call(3)
		w.clog()
		d.Switch(masterB)
		if took := until(t, 5*time.Second, w.readable); took > 200*time.Millisecond {
			t.Errorf("it took %s", took)
		}
		until(t, time.Second, func() bool { return w.fences() == 0 })
	})
}

// A move from a master that answers breaks nothing, and returns when the kernel is connected.
func TestMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(masterA, masterB)
		w.mount("/m", "1", masterA, 2)
		w.breakers = []Breaker{&fakeFence{w: w}}
		d := newDirect(t, NewKernel(w, zerolog.Nop()), "/m")
		d.Switch(masterA)
		w.call(1)
		began := time.Now()
		if err := d.Move(t.Context(), masterB); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 50*time.Millisecond || !w.readable() {
			t.Errorf("it took %s", took)
		}
		for _, aimed := range w.written() {
			if !strings.HasSuffix(aimed, masterB.Addr().String()) {
				t.Errorf("wrote %q", aimed)
			}
		}
	})
}

// What a Move cannot do, it says.
func TestMoveFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(masterA, masterB)
		w.mount("/m", "1", masterA, 1)
		d := newDirect(t, NewKernel(w, zerolog.Nop()), "/m")
		if err := d.Move(t.Context(), at("10.0.0.2:2050")); err == nil || !strings.Contains(err.Error(), "2049") {
			t.Errorf("to another port: %v", err)
		}
		w.set(masterB, silent)
		w.call(1)
		moved := make(chan error)
		go func() { moved <- d.Move(t.Context(), masterB) }()
		time.Sleep(time.Second)
		d.Switch(masterA)
		if err := <-moved; !errors.Is(err, relay.ErrOvertaken) {
			t.Errorf("overtaken: %v", err)
		}
		until(t, 10*time.Second, w.readable)
		w.set(masterB, silent)
		if err := d.Move(t.Context(), masterB); err == nil || !strings.Contains(err.Error(), "not connected to 10.0.0.2:2049") {
			t.Errorf("to a silent one: %v", err)
		}
	})
}

// After a crash the kernel sleeps for three seconds, and is connected to another master then.
func TestSwitchFromDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(masterA, masterB)
		w.mount("/m", "1", masterA, 2)
		d := newDirect(t, NewKernel(w, zerolog.Nop()), "/m")
		d.Switch(masterA)
		synctest.Wait()
		w.call(1)
		w.set(masterA, dead)
		d.Switch(masterB)
		if took := until(t, 10*time.Second, w.readable); took > 3100*time.Millisecond {
			t.Errorf("it took %s", took)
		}
	})
}

// A kernel that is connecting to a silent master is got out of that.
func TestSwitchWhileConnecting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(masterA, masterB, masterC)
		w.mount("/m", "1", masterA, 2)
		d := newDirect(t, NewKernel(w, zerolog.Nop()), "/m")
		w.set(masterB, silent)
		w.call(1)
		d.Switch(masterB)
		time.Sleep(time.Second)
		if w.readable() {
			t.Fatal("it reads from a silent master")
		}
		d.Switch(masterC)
		if took := until(t, 10*time.Second, w.readable); took > 3200*time.Millisecond {
			t.Errorf("it took %s", took)
		}
	})
}

// The kernel is got out of connecting to a master that died when it was just switched to, however many targets have followed since:
// the write of one waits in the kernel, and those after it wait for that.
func TestSwitchTwiceWhileConnecting(t *testing.T) {
	masterD := at("10.0.0.4:2049")
	for _, breaker := range []func(*world) Breaker{
		func(w *world) Breaker { return &fakeDestroyer{w} },
		func(w *world) Breaker { return &fakeFence{w: w} },
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(masterA, masterB, masterC, masterD)
			w.breakers = []Breaker{breaker(w)}
			w.mount("/m", "1", masterA, 2)
			d := newDirect(t, NewKernel(w, zerolog.Nop()), "/m")
			d.Switch(masterA)
			synctest.Wait()
			w.set(masterA, silent)
			w.set(masterB, silent)
			w.call(1)
			d.Switch(masterB)
			until(t, time.Second, func() bool { return len(w.written()) == 2 })
			d.Switch(masterC)
			time.Sleep(stuckAfter - step) // its write is under way, and nothing is broken for it yet
			d.Switch(masterD)
			if took := until(t, 10*time.Second, w.readable); took > 3200*time.Millisecond {
				t.Errorf("%s: it took %s", w.breakers[0].Name(), took)
			}
			until(t, time.Second, func() bool { return w.fences() == 0 })
		})
	}
}

// Connections to the target that answer are left alone by a Switch to it; those that are silent are made anew.
func TestSwitchToTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(masterA)
		w.mount("/m", "1", masterA, 2)
		d := newDirect(t, NewKernel(w, zerolog.Nop()), "/m")
		w.call(1)
		d.Switch(masterA)
		time.Sleep(time.Second)
		if len(w.written()) > 0 {
			t.Errorf("connections that answer were made anew: %q", w.written())
		}
		w.set(masterA, silent) // and back, but the connections are dead
		time.Sleep(time.Second)
		before, _ := w.Sockets(2049)
		d.Switch(masterA)
		time.Sleep(500 * time.Millisecond)
		w.set(masterA, alive)
		d.Switch(masterA)
		until(t, 10*time.Second, w.readable)
		if after, _ := w.Sockets(2049); slices.ContainsFunc(after, func(s Socket) bool {
			return slices.ContainsFunc(before, func(o Socket) bool { return o.Cookie == s.Cookie })
		}) {
			t.Error("silent connections were kept")
		}
	})
}

// A mount that comes later is sent to where the others read from; at once, when that is told.
func TestLateMount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(masterA, masterB)
		d := newDirect(t, NewKernel(w, zerolog.Nop()), "/m")
		d.Switch(masterB)
		time.Sleep(5 * time.Second)
		w.mount("/m", "1", masterA, 2)
		time.Sleep(2 * time.Second)
		if aims := len(w.written()); aims != 2 {
			t.Errorf("%d transports were sent on: %q", aims, w.written())
		}
		w.mount("/m", "2", masterA, 1)
		d.Look()
		if took := until(t, 2*time.Second, func() bool { return len(w.written()) == 3 }); took > 100*time.Millisecond {
			t.Errorf("it took %s", took)
		}
	})
}

// Two SRV names do not fight over a transport that the kernel shares between their mounts: the first has it.
func TestTwoNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(masterA, masterB, masterC)
		w.mount("/m", "1", masterA, 1)
		w.mounts = append(w.mounts, Mount{Dir: "/n", Device: "0:2", Addr: masterA})
		k := NewKernel(w, zerolog.Nop())
		one, other := newDirect(t, k, "/m"), newDirect(t, k, "/n")
		one.Switch(masterB)
		time.Sleep(time.Second)
		other.Switch(masterC)
		time.Sleep(10 * time.Second)
		if !slices.Equal(w.written(), []string{"1/xprt-a 10.0.0.2"}) {
			t.Errorf("writes: %q", w.written())
		}
	})
}

// The flow shows since when calls wait, and what the kernel last heard.
func TestFlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(masterA, masterB)
		w.mount("/m", "1", masterA, 2)
		d := newDirect(t, NewKernel(w, zerolog.Nop()), "/m")
		if f := d.Flow(); f != (relay.Flow{}) {
			t.Errorf("without a target: %+v", f)
		}
		d.Switch(masterA)
		time.Sleep(time.Second)
		if f := d.Flow(); f.Conns != 2 || !f.Waiting.IsZero() {
			t.Errorf("at rest: %+v", f)
		}
		w.call(1)
		time.Sleep(50 * time.Millisecond)
		d.Flow()
		w.set(masterA, silent)
		since := time.Now()
		for range 10 {
			time.Sleep(50 * time.Millisecond)
			d.Flow()
		}
		f := d.Flow()
		if f.Waiting.Sub(since).Abs() > 60*time.Millisecond || f.Heard.Sub(since).Abs() > 60*time.Millisecond {
			t.Errorf("silent since %s: %+v", since, f)
		}
		d.Switch(masterB)
		time.Sleep(100 * time.Millisecond)
		d.Flow()
		time.Sleep(100 * time.Millisecond)
		if f := d.Flow(); time.Since(f.Waiting) > 60*time.Millisecond {
			t.Errorf("the other answers, and calls are said to wait: %+v", f)
		}
	})
}

// A connection that ends under calls is a loss; one that ends when nothing waits is not, nor is one that is moved.
func TestLosses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(masterA, masterB)
		w.mount("/m", "1", masterA, 1)
		d := newDirect(t, NewKernel(w, zerolog.Nop()), "/m")
		look := func() (losses []netip.AddrPort) {
			for range 10 {
				time.Sleep(50 * time.Millisecond)
				d.Flow()
			}
			for {
				select {
				case l := <-d.Losses():
					losses = append(losses, l.Addr)
				default:
					return losses
				}
			}
		}
		d.Switch(masterA)
		look()
		w.set(masterA, dead)
		if l := look(); l != nil {
			t.Errorf("nothing waits: %v", l)
		}
		w.set(masterA, alive)
		time.Sleep(5 * time.Second)
		w.call(1)
		look()
		d.Switch(masterB)
		if l := look(); l != nil {
			t.Errorf("a move: %v", l)
		}
		w.set(masterB, dead)
		if l := look(); !slices.Equal(l, []netip.AddrPort{masterB}) {
			t.Errorf("under calls: %v", l)
		}
	})
}

// The best way to break a connection that works here is chosen, and what an earlier process left is removed.
func TestBreakers(t *testing.T) {
	w := newWorld(masterA)
	bad, good := &fakeFence{w: w, check: ErrUnsupported}, &fakeFence{w: w}
	w.breakers = []Breaker{bad, good}
	k := NewKernel(w, zerolog.Nop())
	if b, err := k.Breaker(); b != "fence" || err != nil || bad.swept || !good.swept {
		t.Errorf("%q, %v; swept: %v, %v", b, err, bad.swept, good.swept)
	}
	w.breakers = []Breaker{bad}
	k = NewKernel(w, zerolog.Nop())
	if _, err := k.Breaker(); !errors.Is(err, ErrUnsupported) {
		t.Errorf("none: %v", err)
	}
	if err := k.Check(); err != nil {
		t.Error(err)
	}
	w.blind = true
	if err := k.Check(); !errors.Is(err, ErrUnsupported) {
		t.Errorf("no sysfs: %v", err)
	}
}

// A process that begins when the kernel is stuck with a master that fell silent before does not know the connection's local
// port, and gets the kernel out nevertheless.
func TestBeginWhileStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(masterA, masterB)
		w.mount("/m", "1", masterA, 1)
		w.set(masterA, silent)
		w.call(1)
		if err := w.Aim("1/xprt-a", masterA.Addr()); err != nil { // closes it, and is closing for ever
			t.Fatal(err)
		}
		d := newDirect(t, NewKernel(w, zerolog.Nop()), "/m")
		d.Switch(masterB)
		if took := until(t, 10*time.Second, w.readable); took > 200*time.Millisecond {
			t.Errorf("it took %s", took)
		}
	})
}

// A fence that cannot be made at first is made later, and nothing is written before: a connection that was closed without one
// would stay as it is. A change that fails for that is tried again for as long as it takes.
func TestFenceFails(t *testing.T) {
	for _, fails := range []int{3, 700} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(masterA, masterB)
			w.breakers = []Breaker{&fakeFence{w: w, fails: fails}}
			w.mount("/m", "1", masterA, 1)
			d := newDirect(t, NewKernel(w, zerolog.Nop()), "/m")
			d.Switch(masterA)
			synctest.Wait()
			w.set(masterA, silent)
			w.call(1)
			d.Switch(masterB)
			until(t, time.Duration(fails)*2*step+5*time.Second, w.readable)
			until(t, time.Second, func() bool { return w.fences() == 0 })
		})
	}
}
