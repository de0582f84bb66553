package direct

import (
	"errors"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
)

// putOff kills master A under a kernel that puts its next attempt to connect off, and holds the address back until then; the slave is
// sent to B.
func putOff(t *testing.T, w *world, conns int) *Direct {
	w.mount("/m", "1", masterA, conns)
	d := newDirect(t, NewKernel(w, zerolog.Nop()), "/m")
	d.Switch(masterA)
	synctest.Wait()
	w.call(1)
	w.eager = true
	w.set(masterA, dead)
	d.Switch(masterB)
	return d
}

// straight says whether every transport is connected to a master itself, and nothing is led astray any more.
func (w *world) straight() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.transports {
		if t.socket == nil || t.dest != t.socket.Remote {
			return false
		}
	}
	return len(w.detours) == 0
}

// An attempt to connect that the kernel has put off reaches the target, though it goes to the old master's address, and the kernel is
// sent to the target's own address from there. Nothing is broken for that.
func TestDetour(t *testing.T) {
	for _, breaker := range []func(*world) Breaker{
		func(w *world) Breaker { return &fakeDestroyer{w} },
		func(w *world) Breaker { return &fakeFence{w: w} },
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(masterA, masterB)
			w.breakers = []Breaker{breaker(w)}
			putOff(t, w, 2)
			if took := until(t, 10*time.Second, w.readable); took > 3100*time.Millisecond {
				t.Errorf("it took %s", took)
			}
			until(t, 500*time.Millisecond, w.straight)
			if !w.readable() || w.cuts > 0 {
				t.Errorf("readable: %v; %d connections were broken", w.readable(), w.cuts)
			}
		})
	}
}

// Where it is sent meanwhile does not matter: a move, a switch from a target that has died too, or back. Writes of the target before
// cannot be recalled, and may break the connection once more when they come through.
func TestDetourElsewhere(t *testing.T) {
	for name, do := range map[string]func(t *testing.T, w *world, d *Direct){
		"a move":      func(t *testing.T, _ *world, d *Direct) { go d.Move(t.Context(), masterC) }, //nolint:errcheck // awaited below
		"a switch":    func(_ *testing.T, w *world, d *Direct) { w.set(masterB, dead); d.Switch(masterC) },
		"back, alive": func(_ *testing.T, w *world, d *Direct) { w.set(masterA, alive); d.Switch(masterA) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(masterA, masterB, masterC)
				d := putOff(t, w, 2)
				time.Sleep(1600 * time.Millisecond)
				do(t, w, d)
				if took := until(t, 10*time.Second, w.readable); took > 1500*time.Millisecond {
					t.Errorf("it took %s", took)
				}
				until(t, 15*time.Second, func() bool { return w.straight() && w.readable() })
			})
		})
	}
}

// A target that dies when the kernel was just led to it is left like any other.
func TestDetourToOneThatDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(masterA, masterB, masterC)
		d := putOff(t, w, 1)
		until(t, 10*time.Second, w.readable)
		w.set(masterB, dead)
		d.Switch(masterC)
		if took := until(t, 20*time.Second, w.readable); took > 3100*time.Millisecond {
			t.Errorf("it took %s", took)
		}
		until(t, 15*time.Second, func() bool { return w.straight() && w.readable() })
	})
}

// Nothing is led astray that need not be: not when the kernel takes the address in time, nor when it is connected.
func TestNoDetour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(masterA, masterB, masterC)
		detourer := &fakeDetourer{w: w}
		w.detourers = []Detourer{detourer}
		w.mount("/m", "1", masterA, 2)
		d := newDirect(t, NewKernel(w, zerolog.Nop()), "/m")
		d.Switch(masterA)
		synctest.Wait()
		w.call(1)
		w.set(masterA, dead)
		d.Switch(masterB)
		until(t, 10*time.Second, w.readable)
		w.set(masterB, silent)
		d.Switch(masterC)
		until(t, 10*time.Second, w.readable)
		if detourer.laid > 0 {
			t.Errorf("%d detours", detourer.laid)
		}
		connected := Transport{ID: "x", Addr: masterA, LocalPort: 700, Connected: true, Waiting: 1}
		sockets := []Socket{{Local: at("10.0.0.100:700"), Remote: masterA, State: Established, Cookie: 1}}
		began := time.Now()
		c := newChange(masterB, false, false, began)
		c.aimed(began, c.look(began, []Transport{connected}, sockets).aim, func(string) begun { return begunNow })
		if do := c.look(began.Add(time.Second), []Transport{connected}, sockets); len(do.detours) > 0 {
			t.Errorf("a connection that is there is led astray: %+v", do)
		}
		connected.LocalPort, connected.Connected = 0, false
		if do := c.look(began.Add(time.Second), []Transport{connected}, nil); len(do.detours) > 0 {
			t.Errorf("all that goes there is led astray: %+v", do)
		}
	})
}

// Where no detour can be laid, the kernel comes to the target when its own pauses are over.
func TestDetourFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(masterA, masterB)
		w.detourers = []Detourer{&fakeDetourer{w: w, fails: ErrUnsupported}}
		putOff(t, w, 1)
		until(t, 20*time.Second, w.readable)
		until(t, time.Second, w.straight)
	})
}

// A detour that cannot be removed at first is removed a little later.
func TestDetourIsStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(masterA, masterB)
		w.detourers = []Detourer{&fakeDetourer{w: w, stuck: 3}}
		putOff(t, w, 1)
		until(t, 10*time.Second, w.readable)
		until(t, 15*time.Second, w.straight)
	})
}

// What cannot be removed at all is not tried for ever, but once more in the end.
func TestDetourIsStuckForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(masterA, masterB)
		d := &detours{kernel: NewKernel(w, zerolog.Nop())}
		detourer := &fakeDetourer{w: w, stuck: 1 << 20}
		w.detourers = []Detourer{detourer}
		said := 0
		keep := func(wanted map[string]Detour) {
			if err := d.keep(wanted); err != nil {
				said++
			}
		}
		keep(map[string]Detour{"x": {Local: 700, From: masterA, To: masterB}})
		for range 360_000 {
			keep(nil)
			time.Sleep(10 * time.Millisecond)
		}
		if detourer.tried != removeTries || said != 2 {
			t.Errorf("%d tries in an hour, which said %d times that they failed", detourer.tried, said)
		}
		for i := range 2 * maxStuck {
			keep(map[string]Detour{"x": {Local: uint16(i), From: masterA, To: masterB}})
			keep(nil)
		}
		if n := len(w.detours); n != maxStuck {
			t.Errorf("%d detours cannot be removed", n)
		}
		detourer.stuck = 5
		if err := d.end(); err != nil || len(w.detours) > 0 {
			t.Errorf("%d are left in the end: %v", len(w.detours), err)
		}
	})
}

// What is led to a port of its own is led to nobody else's: the port is kept until the detour is removed.
func TestDetourKeepsItsPort(t *testing.T) {
	var port uint16
	fails := errors.New("not removed today")
	remove, err := withOwnPort(Detour{From: masterA}, func(p uint16) (func() error, error) {
		port = p
		return func() error { return fails }, nil
	})
	if errors.Is(err, os.ErrPermission) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	taken := func() bool {
		l, err := net.ListenTCP("tcp4", &net.TCPAddr{Port: int(port)})
		if err == nil {
			l.Close()
		}
		return err != nil
	}
	if err := remove(); !errors.Is(err, fails) || !taken() {
		t.Errorf("after a removal that failed (%v) the port is free", err)
	}
	fails = nil
	if err := remove(); err != nil || taken() {
		t.Errorf("the detour is removed (%v), and the port is taken", err)
	}
}

// What came up over a detour is left alone until the address is taken, and has the time to end then, over the detour; after that it is
// broken.
func TestDetourEnds(t *testing.T) {
	began := time.Now()
	c := newChange(masterB, true, false, began)
	x := Transport{ID: "x", Addr: masterA, LocalPort: 700, Waiting: 1}
	led := Socket{Local: at("10.0.0.100:700"), Remote: masterA, State: Established, Cookie: 1}
	look := func(after time.Duration, sockets ...Socket) deeds {
		do := c.look(began.Add(after), []Transport{x}, sockets)
		c.aimed(began.Add(after), do.aim, func(string) begun { return begunNow })
		c.detours = do.detours
		return do
	}
	want := Detour{Local: 700, From: masterA, To: masterB}
	if do := look(0); len(do.detours) > 0 || len(do.aim) != 1 {
		t.Errorf("at once: %+v", do)
	}
	if do := look(detourAfter); do.detours["x"] != want {
		t.Errorf("not taken in time: %+v", do)
	}
	if do := look(4*time.Second, led); do.detours["x"] != want || len(do.cut) > 0 || do.done {
		t.Errorf("over the detour: %+v", do)
	}
	if err := c.heed([]aimed{{"x", masterB.Addr(), nil}}); err != nil {
		t.Fatal(err)
	}
	x.Addr, led.State = masterB, 4 // FIN_WAIT1
	if do := look(5*time.Second, led); do.detours["x"] != want || len(do.cut) > 0 || do.done {
		t.Errorf("ending: %+v", do)
	}
	if do := look(5*time.Second+patience, led); len(do.detours) > 0 || len(do.cut) != 1 || do.done {
		t.Errorf("not ending: %+v", do)
	}
	x.Connected = true
	if do := look(6 * time.Second); len(do.detours) > 0 || !do.done {
		t.Errorf("ended: %+v", do)
	}
}
