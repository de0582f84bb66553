package rpc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// order is a call and the result that it must have.
type order struct {
	record []byte // with its mark, perhaps in fragments
	result []byte
}

// collect takes the replies to all orders of a connection, in any order: one to each, and the right one.
func collect(t *testing.T, p peer, connection uint64, want []order) {
	answered := make([]bool, len(want))
	for range want {
		reply, err := receive(p)
		if err != nil {
			t.Errorf("connection %d: %v", connection, err)
			return
		}
		xid := binary.BigEndian.Uint32(reply)
		if int(xid) >= len(want) || answered[xid] || !bytes.Equal(reply[acceptedSize-markSize:], want[xid].result) {
			t.Errorf("connection %d: call %d was answered twice, or wrongly", connection, xid)
			return
		}
		answered[xid] = true
	}
}

// orders makes calls of all sizes, some of them postponed.
func orders(e *echo, r *rand.Rand, n int) []order {
	all := make([]order, n)
	for i := range all {
		xid := uint32(i)
		payload := make([]byte, r.IntN(300))
		if r.IntN(10) == 0 {
			payload = make([]byte, r.IntN(80<<10))
		}
		for j := range payload {
			payload[j] = byte(j * i)
		}
		proc := uint32(echoBytes)
		if r.IntN(8) == 0 {
			proc = echoLater
			e.let <- struct{}{}
		}
		fragment := 0
		if r.IntN(10) == 0 {
			fragment = 1 + r.IntN(len(payload)+1)
		}
		result := AppendOpaque(nil, payload)
		all[i] = order{record(call(xid, proc, result...), fragment), result}
	}
	return all
}

// place sends the calls in pieces as they may come out of a network.
func place(t *testing.T, c net.Conn, r *rand.Rand, all []order) {
	var stream []byte
	for _, o := range all {
		stream = append(stream, o.record...)
	}
	for len(stream) > 0 {
		n := min(len(stream), 1+r.IntN(1<<r.IntN(18)))
		if _, err := c.Write(stream[:n]); err != nil {
			t.Errorf("send: %v", err)
			return
		}
		stream = stream[n:]
		if r.IntN(20) == 0 {
			time.Sleep(time.Duration(r.IntN(200)) * time.Microsecond) // long enough for the connection to come to rest
		}
	}
}

// Every call is answered once, with its own bytes, whoever has the connection: the loop, its helpers or its goroutine.
func TestEveryCallIsAnsweredOnce(t *testing.T) {
	_, e, dial, _ := serving(t, func(c *Config) {
		c.MaxInFlight = 3
		e := c.Programs[0].(*echo)
		e.let, e.began = make(chan struct{}, 100_000), make(chan uint32, 100_000)
	})
	const conns, calls = 12, 400
	var all sync.WaitGroup
	for i := range uint64(conns) {
		p := dial()
		r := rand.New(rand.NewPCG(i, 7))
		want := orders(e, r, calls)
		all.Go(func() { place(t, p, rand.New(rand.NewPCG(i, 8)), want) })
		all.Go(func() { collect(t, p, i, want) })
	}
	all.Wait()
}

// Replies that do not fit into the socket wait, whole and in order, for the peer to read.
func TestRepliesThatDoNotFit(t *testing.T) {
	_, _, dial, _ := serving(t, nil)
	p := dial()
	payload := AppendOpaque(nil, bytes.Repeat([]byte("x"), 900))
	var stream []byte
	const calls = 25_000
	for i := range uint32(calls) {
		stream = append(stream, record(call(i, echoBytes, payload...), 0)...)
	}
	p.SetWriteDeadline(time.Now().Add(time.Second)) //nolint:errcheck // a failure shows below
	n, err := p.Write(stream)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the server has taken %d bytes of calls though nobody reads its replies: %v", n, err)
	}
	p.SetWriteDeadline(time.Now().Add(20 * time.Second)) //nolint:errcheck // as above
	sent := make(chan error, 1)
	go func() {
		_, err := p.Write(stream[n:])
		sent <- err
	}()
	for i := range uint32(calls) {
		if got := p.accepted(p.recv(), i, acceptSuccess); !bytes.Equal(got, payload) {
			t.Fatalf("reply %d is not what was sent", i)
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

// A connection that is at rest is closed when it has been silent for the idle time, and not before.
func TestRestEnds(t *testing.T) {
	const idle = time.Second // this test must not be kept waiting for longer between two calls
	_, _, dial, _ := serving(t, func(c *Config) { c.IdleTimeout = idle })
	p := dial()
	start, last := time.Now(), time.Now()
	for i := uint32(0); last.Sub(start) < idle+idle/2; i++ {
		last = time.Now()
		p.send(call(i, echoNull))
		p.accepted(p.recv(), i, acceptSuccess)
	}
	p.closed()
	if silent := time.Since(last); silent < idle {
		t.Errorf("closed %v after the last call", silent)
	}
}

// Half a reply that the loop could not write is written when the connection is stopped, too.
func TestHalfARepliesRestIsWritten(t *testing.T) {
	s, _, dial, _ := serving(t, nil)
	p := dial()
	p.answers()
	atRest(t, s, 1)
	s.mu.Lock()
	c := s.chosen(func(*Conn, net.Listener) bool { return true })[0]
	s.mu.Unlock()
	if !c.turn.CompareAndSwap(turnRest, turnBusy) {
		t.Fatal("the loop is at it")
	}
	c.Stop()
	for c.turn.Load() != turnWanted { // its goroutine has taken note
		time.Sleep(time.Millisecond)
	}
	c.wmu.Lock()
	c.unsent = append(c.unsent, "the rest"...)
	c.wmu.Unlock()
	_ = c.loop.watch(c, false)
	c.turn.Store(turnOwn)
	c.back <- struct{}{}
	got, err := io.ReadAll(p)
	if err != nil || string(got) != "the rest" {
		t.Errorf("the peer has got %q, %v", got, err)
	}
}

// An event may come for who had a connection's place before it; it is not taken for the connection's own end.
func TestEventsOfThoseBefore(t *testing.T) {
	s, _, dial, _ := serving(t, nil)
	p := dial()
	p.send(call(1, echoNull))
	p.accepted(p.recv(), 1, acceptSuccess)
	s.mu.Lock()
	for c := range s.conns {
		for range 10 {
			c.onEvent(t.Context(), true)
		}
	}
	s.mu.Unlock()
	p.send(call(2, echoNull))
	p.accepted(p.recv(), 2, acceptSuccess)
	p.Conn.(*net.TCPConn).CloseWrite() //nolint:errcheck // shows below
	p.closed()
}
