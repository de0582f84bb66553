package rpc

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

func opaque(s string) []byte { return AppendOpaque(nil, s) }

func TestRepliesToOneConnection(t *testing.T) {
	_, _, dial, _ := serving(t, nil)
	p := dial()
	cases := []struct {
		name   string
		call   []byte
		stat   uint32
		result []byte
	}{
		{"null", call(1, echoNull), acceptSuccess, nil},
		{"echo", call(2, echoBytes, opaque("hello")...), acceptSuccess, opaque("hello")},
		{"bytes after the arguments are ignored", call(3, echoBytes, append(opaque("hello"), 9, 9)...), acceptSuccess, opaque("hello")},
		{"arguments missing", call(4, echoBytes), acceptGarbageArgs, nil},
		{"hostile length", call(5, echoBytes, 0xff, 0xff, 0xff, 0xff, 0), acceptGarbageArgs, nil},
		{"no such procedure", call(6, 99), acceptProcUnavail, nil},
		{"panic", call(7, echoPanic), acceptSystemErr, nil},
		{"panic in a grown buffer", call(8, echoGrowBad), acceptSystemErr, nil},
		{"unforeseen error", call(9, echoFail), acceptSystemErr, nil},
		{"still alive", call(10, echoNull), acceptSuccess, nil},
	}
	for _, c := range cases {
		p.send(c.call)
	}
	for i, c := range cases {
		if got := p.accepted(p.recv(), uint32(i+1), c.stat); !bytes.Equal(got, c.result) {
			t.Errorf("%s: result % x, want % x", c.name, got, c.result)
		}
	}
}

func TestWrongProgramAndVersion(t *testing.T) {
	_, _, dial, _ := serving(t, nil)
	p := dial()
	other := call(1, 0)
	other[14]++ // program
	p.send(other)
	p.accepted(p.recv(), 1, acceptProgUnavail)
	for i, version := range []byte{0, 1, 4, 255} {
		old := call(uint32(i), 0)
		old[19] = version
		p.send(old)
		got := p.accepted(p.recv(), uint32(i), acceptProgMismatch)
		if want := []byte{0, 0, 0, 2, 0, 0, 0, 3}; !bytes.Equal(got, want) {
			t.Errorf("version %d: range % x, want % x", version, got, want)
		}
	}
	p.send(call(9, echoNull))
	p.accepted(p.recv(), 9, acceptSuccess)
}

func TestCredentialReachesTheProgram(t *testing.T) {
	_, _, dial, _ := serving(t, nil)
	p := dial()
	want := func(reply []byte, xid uint32, machine string, nums ...uint32) {
		t.Helper()
		var b []byte
		for _, n := range nums {
			b = AppendUint32(b, n)
		}
		if got := p.accepted(reply, xid, acceptSuccess); !bytes.Equal(got, AppendOpaque(b, machine)) {
			t.Errorf("call %d: credential % x, want %v and %q", xid, got, nums, machine)
		}
	}
	// changing between two on one connection, and back: the last one is remembered
	p.send(callWith(1, echoCred, sys("a", 1, 2, 3, 4), nil), callWith(2, echoCred, sys("bb", 5, 6), nil),
		callWith(3, echoCred, sys("a", 1, 2, 3, 4), nil), call(4, echoCred), callWith(5, echoCred, sys("a", 1, 2, 3, 4), nil),
		callWith(6, echoCred, sys("a", 1, 2, 3, 4), nil))
	want(p.recv(), 1, "a", AuthSys, 1, 2, 3, 4)
	want(p.recv(), 2, "bb", AuthSys, 5, 6)
	want(p.recv(), 3, "a", AuthSys, 1, 2, 3, 4)
	want(p.recv(), 4, "", AuthNone, 0, 0)
	want(p.recv(), 5, "a", AuthSys, 1, 2, 3, 4)
	want(p.recv(), 6, "a", AuthSys, 1, 2, 3, 4)
}

func TestFragments(t *testing.T) {
	_, _, dial, _ := serving(t, nil)
	p := dial()
	text := strings.Repeat("fragmented ", 9000)
	for _, size := range []int{1, 3, 4, 7, 1000, 65536} {
		go p.Write(record(call(uint32(size), echoBytes, opaque(text)...), size)) //nolint:errcheck
		if got := p.accepted(p.recv(), uint32(size), acceptSuccess); !bytes.Equal(got, opaque(text)) {
			t.Errorf("fragments of %d bytes: the echo differs", size)
		}
	}
	// a byte a write
	for _, b := range record(call(7, echoBytes, opaque("drip")...), 5) {
		p.Write([]byte{b}) //nolint:errcheck
	}
	p.accepted(p.recv(), 7, acceptSuccess)
	// empty fragments in between, and an empty last one
	rec := call(8, echoBytes, opaque("gaps")...)
	var wire []byte
	for _, part := range [][]byte{nil, rec[:10], nil, nil, rec[10:]} {
		wire = append(AppendUint32(wire, uint32(len(part))), part...)
	}
	p.Write(AppendUint32(wire, lastFragment)) //nolint:errcheck
	p.accepted(p.recv(), 8, acceptSuccess)
}

func TestRecordsThatEndTheConnection(t *testing.T) {
	_, _, dial, _ := serving(t, func(c *Config) { c.MaxRecord = 10000 })
	long := call(1, echoBytes, opaque(strings.Repeat("x", 10000))...)
	reply := appendAccepted(nil, 1, 0)[markSize:]
	for name, wire := range map[string][]byte{
		"longer than allowed":              record(long, 0),
		"longer than allowed in fragments": record(long, 900),
		"longest length there is":          {0xff, 0xff, 0xff, 0xff},
		"too short for a header":           record([]byte{1, 2, 3, 4, 5, 6, 7}, 0),
		"empty":                            record(nil, 0),
		"a reply":                          record(reply, 0),
		"another protocol":                 []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
	} {
		t.Run(name, func(t *testing.T) {
			p := dial()
			p.t = t
			p.send(call(5, echoNull))
			p.accepted(p.recv(), 5, acceptSuccess)
			p.Write(wire) //nolint:errcheck
			p.closed()
		})
	}
}

// What came before the end is answered: a peer may close its side and still read.
func TestHalfClosed(t *testing.T) {
	_, e, dial, _ := serving(t, nil)
	p := dial()
	p.send(call(1, echoLater, opaque("late")...), call(2, echoNull))
	p.Conn.(*net.TCPConn).CloseWrite() //nolint:errcheck
	p.accepted(p.recv(), 2, acceptSuccess)
	e.let <- struct{}{}
	p.accepted(p.recv(), 1, acceptSuccess)
	p.closed()
}

func TestPostponedCallsComeOutOfOrder(t *testing.T) {
	s, e, dial, _ := serving(t, nil)
	p := dial()
	p.send(call(1, echoLater, opaque("a")...), call(2, echoBytes, opaque("b")...))
	if got := p.accepted(p.recv(), 2, acceptSuccess); !bytes.Equal(got, opaque("b")) {
		t.Errorf("echo % x", got)
	}
	if n := s.Stats().InFlight; n != 1 {
		t.Errorf("%d calls in flight, want 1", n)
	}
	e.let <- struct{}{}
	if got := p.accepted(p.recv(), 1, acceptSuccess); !bytes.Equal(got, opaque("a")) {
		t.Errorf("echo % x", got)
	}
	p.send(callWith(3, echoCred, sys("m", 1, 2, 3), nil))
	p.accepted(p.recv(), 3, acceptSuccess)
}

// A connection with its fill of postponed calls is not read from, and others do not notice.
func TestCallsInFlightAreBounded(t *testing.T) {
	s, e, dial, _ := serving(t, func(c *Config) { c.MaxInFlight = 3 })
	p := dial()
	for i := range uint32(6) {
		p.send(call(i, echoLater, opaque("x")...))
	}
	for range 3 {
		<-e.began
	}
	q := dial()
	q.send(call(50, echoNull))
	q.accepted(q.recv(), 50, acceptSuccess)
	if n := s.Stats().InFlight; n != 3 {
		t.Errorf("%d calls in flight, want 3", n)
	}
	var got []int
	for range 6 {
		e.let <- struct{}{}
		got = append(got, int(p.recv()[3]))
	}
	slices.Sort(got)
	if want := []int{0, 1, 2, 3, 4, 5}; !slices.Equal(got, want) {
		t.Errorf("answered %v, want %v", got, want)
	}
}

// So are the bytes that their replies may take, but one call always goes.
func TestLateBytesAreBounded(t *testing.T) {
	s, e, dial, _ := serving(t, func(c *Config) { c.MaxLate = 100 << 10 })
	p := dial()
	text := opaque(strings.Repeat("y", 200<<10))
	p.send(call(1, echoLater, text...), call(2, echoLater, text...))
	<-e.began
	if n := s.Stats().InFlight; n != 1 {
		t.Errorf("%d calls in flight, want 1", n)
	}
	e.let <- struct{}{}
	e.let <- struct{}{}
	for xid := range uint32(2) {
		if got := p.accepted(p.recv(), xid+1, acceptSuccess); !bytes.Equal(got, text) {
			t.Errorf("call %d: the echo differs", xid+1)
		}
	}
}

func TestLargeRepliesInABatch(t *testing.T) {
	_, _, dial, _ := serving(t, nil)
	p := dial()
	sizes := []uint32{0, 1, 60 << 10, 3, 1 << 20, 1 << 20, 200 << 10, 2}
	go func() {
		for i, n := range sizes {
			p.Write(record(call(uint32(i), echoLarge, AppendUint32(nil, n)...), 0)) //nolint:errcheck
		}
	}()
	for i, n := range sizes {
		if got := p.accepted(p.recv(), uint32(i), acceptSuccess); len(got) != int(4+(n+3)/4*4) {
			t.Errorf("call %d: %d bytes for an opaque of %d", i, len(got), n)
		}
	}
}

func TestProgramClosesTheConnection(t *testing.T) {
	_, _, dial, _ := serving(t, nil)
	p := dial()
	p.send(call(1, echoNull), call(2, echoDrop), call(3, echoClose))
	p.accepted(p.recv(), 1, acceptSuccess)
	p.closed()
}

// One client that never reads does not keep another waiting, however much it asks for.
func TestSlowReaderCostsItselfOnly(t *testing.T) {
	_, e, dial, _ := serving(t, nil)
	slow := dial()
	for i := range uint32(30) {
		slow.send(call(i, echoLarge, AppendUint32(nil, 1<<20)...), call(i, echoLater, opaque("z")...))
		e.let <- struct{}{}
	}
	quick := dial()
	for i := range uint32(100) {
		quick.send(call(i, echoBytes, opaque("quick")...))
		quick.accepted(quick.recv(), i, acceptSuccess)
	}
}

func TestTooManyConnections(t *testing.T) {
	s, _, dial, _ := serving(t, func(c *Config) { c.MaxConns = 2 })
	a, b := dial(), dial()
	for i, p := range []peer{a, b} {
		p.send(call(uint32(i), echoNull))
		p.recv()
	}
	c := dial()
	c.closed()
	if st := s.Stats(); st.Conns != 2 || st.Refused != 1 {
		t.Errorf("stats %+v, want 2 connections, 1 refused", st)
	}
	a.Close()
	b.send(call(5, echoNull))
	b.accepted(b.recv(), 5, acceptSuccess)
}

type gateFunc func(context.Context) error

func (f gateFunc) Await(ctx context.Context) error { return f(ctx) }

func TestGate(t *testing.T) {
	open := make(chan error, 1)
	s, _, dial, _ := serving(t, func(c *Config) {
		c.Gate = gateFunc(func(ctx context.Context) error {
			select {
			case err := <-open:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	p := dial()
	p.send(call(1, echoNull))
	open <- nil
	p.accepted(p.recv(), 1, acceptSuccess)

	q := dial()
	q.send(call(1, echoNull))
	open <- errors.New("behind the others")
	q.closed()
	if n := s.Stats().Refused; n != 1 {
		t.Errorf("%d refused, want 1", n)
	}
	dial() // parked until the server stops
}

// Calls in flight are answered before the connection goes.
func TestDrain(t *testing.T) {
	s, e, dial, stop := serving(t, nil)
	p, idle := dial(), dial()
	p.send(call(1, echoLater, opaque("last words")...))
	<-e.began
	drained := make(chan error, 1)
	go func() { drained <- s.Drain(context.Background()) }()
	idle.closed()
	e.let <- struct{}{}
	if got := p.accepted(p.recv(), 1, acceptSuccess); !bytes.Equal(got, opaque("last words")) {
		t.Errorf("echo % x", got)
	}
	p.closed()
	p.Close()
	idle.Close()
	if err := <-drained; err != nil {
		t.Errorf("Drain: %v", err)
	}
	if err := stop(); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestServeEndsThoughACallHangs(t *testing.T) {
	_, e, dial, stop := serving(t, func(c *Config) { c.DrainTimeout = time.Millisecond })
	p := dial()
	p.send(call(1, echoLater, opaque("never")...))
	<-e.began
	if err := stop(); err != nil {
		t.Errorf("Serve: %v", err)
	}
	p.closed()
}

type counts struct {
	mu       sync.Mutex
	answered map[uint32]int
	in, out  int
}

func (o *counts) Answered(program, proc uint32, n int, took time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if program != echoNumber || took < 0 {
		n = -1000
	}
	o.answered[proc] += n
}

func (o *counts) Moved(in, out int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.in += in
	o.out += out
}

func TestObserver(t *testing.T) {
	seen := &counts{answered: make(map[uint32]int)}
	s, e, dial, stop := serving(t, func(c *Config) { c.Observer = seen })
	p := dial()
	var sent, received int
	for i := range uint32(5) {
		p.send(call(i, echoNull))
		sent += len(call(i, echoNull)) + 4
		received += len(p.recv()) + 4
	}
	later := call(9, echoLater, opaque("l")...)
	p.send(later)
	e.let <- struct{}{}
	received += len(p.recv()) + 4
	p.Close()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if seen.answered[echoNull] != 5 || seen.answered[echoLater] != 1 {
		t.Errorf("answered %v", seen.answered)
	}
	if sent += len(later) + 4; seen.in != sent || seen.out != received {
		t.Errorf("moved %d in and %d out, want %d and %d", seen.in, seen.out, sent, received)
	}
	if st := s.Stats(); st.Calls != 6 || st.In != uint64(sent) || st.Out != uint64(received) || st.Conns != 0 {
		t.Errorf("stats %+v", st)
	}
}

func TestABugIsLoggedOnce(t *testing.T) {
	var mu sync.Mutex
	var log bytes.Buffer
	_, _, dial, _ := serving(t, func(c *Config) {
		c.Log = zerolog.New(writerFunc(func(b []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return log.Write(b)
		}))
	})
	p := dial()
	for i := range uint32(5) {
		p.send(call(i, echoPanic))
		p.accepted(p.recv(), i, acceptSystemErr)
	}
	mu.Lock()
	defer mu.Unlock()
	if got := strings.Count(log.String(), "told to"); got != 1 || !strings.Contains(log.String(), `"procedure":3`) {
		t.Errorf("logged %d times, want once with the procedure: %s", got, log.String())
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestPackets(t *testing.T) {
	e := newEcho()
	s := New(Config{Programs: []Program{e}})
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.ServePacket(ctx, pc) }()
	c, err := net.Dial("udp", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second)) //nolint:errcheck
	e.let <- struct{}{}
	for i, packet := range [][]byte{{1, 2}, nil, call(3, echoBytes, opaque("udp")...), call(4, echoLater, opaque("udp")...)} {
		if _, err := c.Write(packet); err != nil {
			t.Fatal(err)
		}
		if i < 2 { // nonsense is not answered
			continue
		}
		b := make([]byte, 1000)
		n, err := c.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		p := peer{t: t}
		if got := p.accepted(b[:n], uint32(i+1), acceptSuccess); !bytes.Equal(got, opaque("udp")) {
			t.Errorf("echo % x", got)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("ServePacket: %v", err)
	}
}

// halfWriter takes half of the first write, as a socket does whose deadline passes, and all of later ones.
type halfWriter struct {
	net.Conn
	wrote  []byte
	writes int
	closed bool
}

func (w *halfWriter) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (w *halfWriter) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (w *halfWriter) SetWriteDeadline(time.Time) error { return nil }
func (w *halfWriter) Close() error                     { w.closed = true; return nil }

func (w *halfWriter) Write(b []byte) (int, error) {
	w.writes++
	if w.writes == 1 {
		w.wrote = append(w.wrote, b[:len(b)/2]...)
		return len(b) / 2, os.ErrDeadlineExceeded
	}
	w.wrote = append(w.wrote, b...)
	return len(b), nil
}

// Nothing is ever written after half a reply: the client would take it for the rest.
func TestNothingFollowsHalfAReply(t *testing.T) {
	w := &halfWriter{}
	c := newConn(New(Config{}), w)
	if err := c.write([]byte("one reply"), time.Now()); err == nil {
		t.Fatal("half a write is no error")
	}
	if err := c.write([]byte("a late one"), time.Now().Add(time.Minute)); err == nil {
		t.Error("a late reply is written after half of another")
	}
	if string(w.wrote) != "one " || !w.closed {
		t.Errorf("the peer got %q, closed: %v", w.wrote, w.closed)
	}
}
