package rpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// lender answers procedure 0 with an opaque whose bytes it lends; all of them come from content. The arguments say how many,
// and what goes wrong.
type lender struct {
	content []byte
	out     atomic.Int32 // bodies that have not been given back
	echo    *echo        // answers the other procedures
	s       *Server
}

const (
	lendsAll    = iota
	lendsLittle // 10,000 bytes at a time
	lendsNone
	lendsHalf // then they must be read
	lendsBad  // the second half is not good
	lendsLost // the second half can be neither lent nor read
	lendsPanics
)

func (l *lender) Number() uint32             { return echoNumber }
func (l *lender) Versions() (uint32, uint32) { return 3, 3 }

func (l *lender) Append(ctx context.Context, c *Call, dst []byte) ([]byte, error) {
	if c.Proc != 0 {
		return l.echo.Append(ctx, c, dst)
	}
	d := NewDecoder(c.Args)
	size, kind := int(d.Uint32()), int(d.Uint32())
	if !c.CanLend() {
		return nil, errors.New("cannot lend")
	}
	l.out.Add(1)
	dst = AppendUint32(dst, uint32(size+4))
	c.Attach(dst, &lentBody{l, kind, size}, size)
	if kind == lendsPanics {
		panic("told to")
	}
	return append(dst, "end."...), nil
}

type lentBody struct {
	l          *lender
	kind, size int
}

func (b *lentBody) GiveBack() { b.l.out.Add(-1) }

func (b *lentBody) Lend(off, n int, use func([]byte)) (int, bool) {
	second := off >= b.size/2
	switch {
	case b.kind == lendsNone, second && (b.kind == lendsHalf || b.kind == lendsLost):
		return 0, false
	case b.kind == lendsLittle:
		n = min(n, 10_000)
	case !second:
		n = min(n, b.size/2-off)
	}
	use(b.l.content[off : off+n])
	return n, b.kind != lendsBad || !second
}

func (b *lentBody) Read(p []byte, off int) error {
	if b.kind == lendsLost {
		return io.ErrUnexpectedEOF
	}
	copy(p, b.l.content[off:])
	return nil
}

func lendingServer(t *testing.T) (*lender, func() peer) {
	return lendingServerWith(t, func(*Config) {})
}

func lendingServerWith(t *testing.T, change func(*Config)) (*lender, func() peer) {
	l := &lender{content: make([]byte, 1<<20), echo: newEcho()}
	random := rand.NewChaCha8([32]byte{1})
	random.Read(l.content) //nolint:errcheck // never fails
	s, _, dial, stop := serving(t, func(c *Config) { c.Programs = []Program{l}; change(c) })
	l.s = s
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
		if n := l.out.Load(); n != 0 {
			t.Errorf("%d bodies were not given back", n)
		}
	})
	return l, dial
}

func wanted(xid uint32, size, kind int) []byte {
	return call(xid, 0, AppendUint32(AppendUint32(nil, uint32(size)), uint32(kind))...)
}

// Bodies come whole, in order and between other replies, however they are lent.
func TestBodies(t *testing.T) {
	l, dial := lendingServer(t)
	p := dial()
	sizes := []int{1, 4096, 100_000, 1 << 20}
	var calls [][]byte
	for i, size := range sizes {
		for kind := lendsAll; kind <= lendsHalf; kind++ {
			calls = append(calls, wanted(uint32(10*i+kind), size, kind))
		}
	}
	go func() {
		for _, c := range calls {
			if _, err := p.Write(record(c, 0)); err != nil {
				return // it shows in what comes back
			}
		}
	}()
	for i, size := range sizes {
		for kind := lendsAll; kind <= lendsHalf; kind++ {
			got := p.accepted(p.recv(), uint32(10*i+kind), acceptSuccess)
			if n := binary.BigEndian.Uint32(got); int(n) != size+4 || len(got) != size+8 {
				t.Fatalf("%d bytes, %d were announced; want %d", len(got), n, size+4)
			}
			if !bytes.Equal(got[4:4+size], l.content[:size]) || string(got[4+size:]) != "end." {
				t.Fatalf("size %d, kind %d: wrong bytes", size, kind)
			}
		}
	}
}

// What is not good, or lost, never becomes a whole reply: the connection ends before it.
func TestBodiesThatAreNotGood(t *testing.T) {
	l, dial := lendingServer(t)
	for _, kind := range []int{lendsBad, lendsLost} {
		p := dial()
		p.send(wanted(1, 300_000, lendsAll))
		p.accepted(p.recv(), 1, acceptSuccess)
		p.send(wanted(2, 300_000, kind), wanted(3, 300_000, lendsAll))
		if b, err := receive(p); err == nil {
			t.Errorf("kind %d: a reply of %d bytes", kind, len(b))
		}
	}
	if n := l.s.Stats().Spoiled; n != 1 {
		t.Errorf("%d connections were spoiled, want 1", n)
	}
}

// Replies of workers come between those with bodies, and never within.
func TestBodiesBetweenLateReplies(t *testing.T) {
	l, dial := lendingServer(t)
	p := dial()
	const n = 20
	payload := AppendOpaque(nil, bytes.Repeat([]byte("late"), 20_000))
	go func() {
		for i := range uint32(n) {
			l.echo.let <- struct{}{}
			b := append(record(call(2*i, echoLater, payload...), 0), record(wanted(2*i+1, 500_000, lendsLittle), 0)...)
			if _, err := p.Write(b); err != nil {
				return // it shows in what comes back
			}
		}
	}()
	for range 2 * n {
		reply := p.recv()
		xid := binary.BigEndian.Uint32(reply)
		got := p.accepted(reply, xid, acceptSuccess)
		if xid%2 == 0 && !bytes.Equal(got, payload) || xid%2 == 1 && !bytes.Equal(got[4:len(got)-4], l.content[:500_000]) {
			t.Fatalf("reply %d: wrong bytes", xid)
		}
	}
}

// A reply whose body is being written when the server drains is written whole.
func TestBodiesDuringADrain(t *testing.T) {
	l, dial := lendingServer(t)
	p := dial()
	p.send(wanted(1, 1<<20, lendsLittle))
	first := make([]byte, 1000)
	if _, err := io.ReadFull(p, first); err != nil {
		t.Fatal(err)
	}
	drained := make(chan error, 1)
	go func() { drained <- l.s.Drain(t.Context()) }()
	rest, err := io.ReadAll(p)
	if got := append(first, rest...); err != nil || len(got) != acceptedSize+4+1<<20+4 || !bytes.Equal(got[acceptedSize+4:len(got)-4], l.content) {
		t.Errorf("%d bytes, or wrong ones: %v", len(got), err)
	}
	p.Close()
	if err := <-drained; err != nil {
		t.Error(err)
	}
}

// A body is given back though its program panics; lendingServer looks.
func TestBodiesOfThoseWhoPanic(t *testing.T) {
	_, dial := lendingServer(t)
	p := dial()
	p.send(wanted(1, 300_000, lendsPanics), wanted(2, 300_000, lendsAll))
	p.accepted(p.recv(), 1, acceptSystemErr)
	p.accepted(p.recv(), 2, acceptSuccess)
}

// slowBody cannot be written before it is let, as if its pages came from a disk that does not answer.
type slowBody struct {
	began, let chan struct{}
}

func (b *slowBody) Number() uint32             { return echoNumber + 1 }
func (b *slowBody) Versions() (uint32, uint32) { return 3, 3 }
func (b *slowBody) GiveBack()                  {}
func (b *slowBody) Read([]byte, int) error     { return io.ErrUnexpectedEOF }

func (b *slowBody) Append(_ context.Context, c *Call, dst []byte) ([]byte, error) {
	c.Attach(dst, b, 4)
	return append(dst, "end."...), nil
}

func (b *slowBody) Lend(_, n int, use func([]byte)) (int, bool) {
	close(b.began)
	<-b.let
	use(make([]byte, n))
	return n, true
}

// A connection that is being lent to, and has to make room for another, keeps nobody waiting.
func TestALoanThatHangsKeepsNobodyWaiting(t *testing.T) {
	slow := &slowBody{make(chan struct{}), make(chan struct{})}
	s, _, dial, stop := serving(t, func(c *Config) { c.MaxConns, c.Programs = 2, append(c.Programs, slow) })
	let := sync.OnceFunc(func() { close(slow.let) })
	t.Cleanup(let) // before the server's, which waits for it
	dial().answers()
	p := dial()
	b := call(1, 0)
	binary.BigEndian.PutUint32(b[12:], slow.Number())
	p.send(b)
	<-slow.began
	other := p.from("127.0.0.2")
	other.answers()
	if st := s.Stats(); st.Conns != 2 || st.Refused != 1 {
		t.Errorf("stats %+v, want 2 connections, 1 refused", st)
	}
	let()
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// A peer that goes away in the middle leaves nothing behind; lendingServer looks.
func TestBodiesNobodyReads(t *testing.T) {
	_, dial := lendingServer(t)
	for range 10 {
		p := dial()
		p.send(wanted(1, 1<<20, lendsAll), wanted(2, 1<<20, lendsLittle))
		if _, err := io.ReadFull(p, make([]byte, 100_000)); err != nil {
			t.Fatal(err)
		}
		p.Close()
	}
}
