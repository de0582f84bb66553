package rpc

import (
	"bytes"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// isLent checks a reply with a body of size bytes.
func (l *lender) isLent(p peer, reply []byte, xid uint32, size int) {
	p.t.Helper()
	got := p.accepted(reply, xid, acceptSuccess)
	if len(got) != size+8 || !bytes.Equal(got[4:4+size], l.content[:size]) || string(got[4+size:]) != "end." {
		p.t.Errorf("reply %d: %d bytes, or wrong ones", xid, len(got))
	}
}

// The end of a reply with a body comes whatever the calls behind it are, and comes before what answers those.
func TestTheEndOfABodyComes(t *testing.T) {
	const size = 100_000
	for name, c := range map[string]struct {
		after  []byte              // what is sent with the call
		then   func(*lender, peer) // what comes after the reply
		leaves bool                // the connection is closed
	}{
		"nothing":               {},
		"half a call":           {after: record(call(2, echoNull), 0)[:20]},
		"one without an answer": {after: record(call(2, echoDrop), 0)},
		"one that closes":       {after: record(call(2, echoClose), 0), leaves: true},
		"no call":               {after: record([]byte("rubbish!"), 0), leaves: true},
		"a call too long":       {after: []byte{0xff, 0xff, 0xff, 0xff}, leaves: true},
		"one that panics": {after: record(call(2, echoPanic), 0), then: func(_ *lender, p peer) {
			p.accepted(p.recv(), 2, acceptSystemErr)
		}},
		"a late one": {after: record(call(2, echoLater, opaque("late")...), 0), then: func(l *lender, p peer) {
			l.echo.let <- struct{}{}
			p.accepted(p.recv(), 2, acceptSuccess)
		}},
		"more late ones than may be under way": {
			after: append(record(call(2, echoLater, opaque("late")...), 0), record(call(3, echoLater, opaque("later")...), 0)...),
			then: func(l *lender, p peer) {
				for xid := uint32(2); xid < 4; xid++ {
					l.echo.let <- struct{}{}
					p.accepted(p.recv(), xid, acceptSuccess)
				}
			},
		},
		"another body": {after: record(wanted(2, size, lendsHalf), 0), then: func(l *lender, p peer) { l.isLent(p, p.recv(), 2, size) }},
	} {
		t.Run(name, func(t *testing.T) {
			l, dial := lendingServerWith(t, func(c *Config) { c.MaxInFlight = 1 })
			p := dial()
			for _, kind := range []int{lendsAll, lendsLittle, lendsNone, lendsHalf} {
				if _, err := p.Write(append(record(wanted(1, size, kind), 0), c.after...)); err != nil {
					t.Fatal(err)
				}
				l.isLent(p, p.recv(), 1, size)
				if c.then != nil {
					c.then(l, p)
				}
				if c.leaves {
					p.closed()
				}
				if c.leaves || c.after != nil && c.then == nil {
					p = dial()
				}
			}
		})
	}
}

// A connection that is stopped while a reply's end is owed, or is to follow others', ends with whole replies.
func TestAStopBetweenBodies(t *testing.T) {
	l, dial := lendingServer(t)
	for range 20 {
		p := dial()
		const calls, size = 8, 150_000
		var stream []byte
		for xid := range uint32(calls) {
			stream = append(stream, record(wanted(xid, size, lendsLittle), 0)...)
		}
		if _, err := p.Write(stream); err != nil {
			t.Fatal(err)
		}
		l.isLent(p, p.recv(), 0, size)
		go l.s.Disconnect(t.Context(), func(netip.AddrPort, time.Time) bool { return true })
		for xid := uint32(1); xid < calls; xid++ {
			l.isLent(p, p.recv(), xid, size)
		}
		p.closed()
	}
}

// Among replies of all kinds, of workers and of one connection's calls in pieces, each body is whole and in one place.
func TestBodiesAmongAll(t *testing.T) {
	l, dial := lendingServerWith(t, func(c *Config) { c.MaxInFlight = 3 })
	const conns, calls = 6, 300
	var all sync.WaitGroup
	for i := range uint64(conns) {
		p, r := dial(), rand.New(rand.NewPCG(i, 9))
		want := orders(l.echo, r, calls)
		for xid := range want {
			if r.IntN(4) == 0 {
				size := 1 + r.IntN(100_000)
				result := append(AppendUint32(nil, uint32(size+4)), l.content[:size]...)
				want[xid] = order{record(wanted(uint32(xid), size, r.IntN(lendsHalf+1)), 0), append(result, "end."...)}
			}
		}
		all.Go(func() { place(t, p, rand.New(rand.NewPCG(i, 10)), want) })
		all.Go(func() { collect(t, p, i, want) })
	}
	all.Wait()
}

// A peer that takes every reply in time is not cut off because it takes longer for all that it has asked for at once.
func TestASlowPeerHasItsTimeForEachReply(t *testing.T) {
	const limit, calls, size = time.Second, 16, 1 << 20
	for name, one := range map[string]func(xid uint32) []byte{
		"lent":   func(xid uint32) []byte { return wanted(xid, size, lendsAll) },
		"copied": func(xid uint32) []byte { return call(xid, echoLarge, AppendUint32(nil, size)...) },
	} {
		t.Run(name, func(t *testing.T) {
			_, dial := lendingServerWith(t, func(c *Config) { c.WriteTimeout = limit })
			p := dial()
			p.Conn.(*net.TCPConn).SetReadBuffer(64 << 10) //nolint:errcheck // then it takes less long than it may
			var stream []byte
			for xid := range uint32(calls) {
				stream = append(stream, record(one(xid), 0)...)
			}
			if _, err := p.Write(stream); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			for xid := range uint32(calls) {
				p.accepted(p.recv(), xid, acceptSuccess)
				time.Sleep(limit / 8) // as a slow link has it
			}
			if took := time.Since(began); took < limit {
				t.Errorf("all took %v: that is no slow peer", took)
			}
		})
	}
}

// Who is at rest holds on to nothing that it has sent: buffers are the pool's again, and what was lent may be gone.
func TestNothingIsKeptOfABody(t *testing.T) {
	l, dial := lendingServer(t)
	p := dial()
	p.send(wanted(1, 10_000, lendsAll))
	l.isLent(p, p.recv(), 1, 10_000)
	atRest(t, l.s, 1)
	l.s.mu.Lock()
	c := l.s.chosen(func(*Conn, net.Listener) bool { return true })[0]
	l.s.mu.Unlock()
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.lending.parts != [3]unix.Iovec{} || len(c.unsent) > 0 || cap(c.unsent) > Headroom {
		t.Errorf("kept: %+v, and %d bytes", c.lending.parts, cap(c.unsent))
	}
}

// A body counts as lent once, however little of it the first write takes.
func TestABodyIsCountedOnce(t *testing.T) {
	c := newConn(New(Config{}), &halfWriter{})
	c.lending.ahead[0] = []byte("the head")
	for _, wrote := range []int{5, 5, 5} {
		c.lending.wrote, c.lending.good = wrote, true
		if err := c.afterLend(body{size: 100}); err != nil {
			t.Fatal(err)
		}
	}
	if n := c.srv.Stats().Lent; n != 1 || c.lending.off != 7 {
		t.Errorf("counted %d times, after %d bytes", n, c.lending.off)
	}
}
