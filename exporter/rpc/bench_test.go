package rpc

import (
	"context"
	"runtime"
	"testing"
)

func TestAnsweringAllocatesNothing(t *testing.T) {
	s := New(Config{Programs: []Program{newEcho()}})
	c := &Call{out: getBuffer(0)}
	rec := callWith(1, echoBytes, sys("machine.example", 1000, 1000, 4, 24, 27), opaque("a handle or so"))
	allocs := testing.AllocsPerRun(1000, func() {
		c.out.b = c.out.b[:0]
		if err := s.respond(context.Background(), c, rec); err != nil {
			t.Fatal(err)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations a call, want 0", allocs)
	}
}

func TestRoundTripsAllocateNothing(t *testing.T) {
	_, _, dial, _ := serving(t, nil)
	p := dial()
	wire, reply := record(call(1, echoBytes, opaque("a handle or so")...), 0), make([]byte, 100)
	trip := func() {
		p.Write(wire) //nolint:errcheck
		if _, err := p.Read(reply); err != nil {
			t.Fatal(err)
		}
	}
	trip()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const trips = 2000
	for range trips {
		trip()
	}
	runtime.ReadMemStats(&after)
	// pools are emptied by a collection, which may happen
	if n := after.Mallocs - before.Mallocs; n > trips/20 && !raceEnabled {
		t.Errorf("%d allocations in %d round trips", n, trips)
	}
}

// An idle connection costs its goroutine and little more.
func TestIdleConnectionsAreSmall(t *testing.T) {
	_, _, dial, _ := serving(t, nil)
	const n = 200
	memory := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	before := memory()
	peers := make([]peer, 0, n)
	for i := range uint32(n) {
		p := dial()
		p.send(call(i, echoBytes, opaque("hello")...))
		p.recv()
		peers = append(peers, p)
	}
	if each := (memory() - before) / n; each > 20<<10 {
		t.Errorf("%d bytes an idle connection, want at most 20 KiB", each)
	}
	runtime.KeepAlive(peers)
}

func BenchmarkRespond(b *testing.B) {
	s := New(Config{Programs: []Program{newEcho()}})
	c := &Call{out: getBuffer(0)}
	rec := callWith(1, echoBytes, sys("machine.example", 1000, 1000, 4, 24, 27), opaque("a handle or so"))
	b.ReportAllocs()
	for b.Loop() {
		c.out.b = c.out.b[:0]
		if err := s.respond(context.Background(), c, rec); err != nil {
			b.Fatal(err)
		}
	}
}
