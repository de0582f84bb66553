package relay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// joined returns both ends of one connection through a relay: the kernel's, and the master's.
func joined(t *testing.T) (r *Relay, kernel, master *net.TCPConn) {
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	r, addr := startRelay(t)
	r.Switch(ln.Addr().(*net.TCPAddr).AddrPort())
	if kernel, err = (Dialer{Insecure: os.Geteuid() != 0}).Dial(t.Context(), addr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reset(kernel) })
	if master, err = ln.AcceptTCP(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reset(master) })
	return r, kernel, master
}

// call sends a call from the kernel and takes it at the master.
func call(t *testing.T, kernel, master *net.TCPConn) {
	t.Helper()
	if _, err := kernel.Write(appendCall(nil, 1, progNFS, procRead, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := readRecord(master); err != nil {
		t.Fatal(err)
	}
}

// appendRecord appends a record of n bytes in some fragments.
func appendRecord(b []byte, rng *rand.Rand, n int) []byte {
	for {
		size, last := n, uint32(lastFragment)
		if rng.IntN(4) == 0 {
			size, last = rng.IntN(n+1), 0
		}
		b = binary.BigEndian.AppendUint32(b, last|uint32(size))
		from := rng.IntN(1 << 20)
		b = append(b, pattern[from:from+size]...)
		if n -= size; last != 0 {
			return b
		}
	}
}

// Records of all sizes, cut anywhere, pass unchanged in both directions, and are counted.
func TestRecordsPassUnchanged(t *testing.T) {
	r, kernel, master := joined(t)
	const records = 300
	pass := func(seed uint64, from, to *net.TCPConn, most int) <-chan error {
		rng := rand.New(rand.NewPCG(seed, 0))
		var stream []byte
		for range records {
			stream = appendRecord(stream, rng, rng.IntN(1<<rng.IntN(most)))
		}
		done := make(chan error, 2)
		go func() {
			for rest := stream; len(rest) > 0; {
				n := min(1+rng.IntN(1<<rng.IntN(20)), len(rest))
				if _, err := from.Write(rest[:n]); err != nil {
					done <- err
					return
				}
				rest = rest[n:]
			}
		}()
		go func() {
			got := make([]byte, len(stream))
			_, err := io.ReadFull(to, got)
			if err == nil && !bytes.Equal(got, stream) {
				err = errors.New("other bytes came than were sent")
			}
			done <- err
		}()
		return done
	}
	calls, replies := pass(1, kernel, master, 17), pass(2, master, kernel, 21)
	for _, done := range []<-chan error{calls, replies} {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if c := r.Counters(); c.Calls != records || c.Replies != records {
		t.Errorf("counters: %+v", c)
	}
	if f := r.Flow(); !f.Waiting.IsZero() {
		t.Errorf("flow: %+v", f)
	}
}

// The relay does not look at a large reply before much of it has come. What has come counts all the same: who sends slowly is
// not silent.
func TestAReplyThatTricklesIsHeard(t *testing.T) {
	r, kernel, master := joined(t)
	call(t, kernel, master)
	const size = 512 << 10
	reply := binary.BigEndian.AppendUint32(nil, lastFragment|size)
	reply = append(reply, pattern[:size]...)
	for len(reply) > 0 {
		sent := time.Now()
		n := min(32<<10, len(reply))
		if _, err := master.Write(reply[:n]); err != nil {
			t.Fatal(err)
		}
		reply = reply[n:]
		if len(reply) == 0 {
			break
		}
		const tick = 10 * time.Millisecond // what the system counts in, at the most
		await(t, "bytes are heard", func() bool {
			f := r.Flow()
			return f.Heard.After(sent.Add(-tick)) && f.Waiting.After(sent.Add(-tick))
		})
		time.Sleep(2 * tick) // the next are to be told from these
	}
	if rec, err := readRecord(kernel); err != nil || !bytes.Equal(rec, pattern[:size]) {
		t.Errorf("%d bytes: %v", len(rec), err)
	}
}

// steps is a session whose loop the test turns itself.
type steps struct {
	t              *testing.T
	loop           *loop
	session        *session
	kernel, master *net.TCPConn // the far ends
	sent           int          // bytes of replies
}

func newSteps(t *testing.T) *steps {
	l, err := newLoop(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.close)
	p := &steps{t: t, loop: l}
	var near [2]*socket
	for i, far := range []**net.TCPConn{&p.kernel, &p.master} {
		ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		if *far, err = (Dialer{Insecure: true}).Dial(t.Context(), ln.Addr().(*net.TCPAddr).AddrPort()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { reset(*far) })
		c, err := ln.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		if near[i], err = detach(c); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(near[0].reset)
	p.session = newSession(l, near[0], near[1], netip.AddrPort{}, nil)
	l.call(p.session)
	l.turn(0)
	return p
}

// until turns the loop until a condition holds.
func (p *steps) until(what string, cond func() bool) {
	p.t.Helper()
	await(p.t, what, func() bool { p.loop.turn(1); return cond() })
}

// call passes a call.
func (p *steps) call() {
	p.t.Helper()
	if _, err := p.kernel.Write(appendCall(nil, 1, progNFS, procRead, 0)); err != nil {
		p.t.Fatal(err)
	}
	n := p.session.calls.Load()
	p.until("a call is passed", func() bool { return p.session.calls.Load() > n })
}

// answer sends a reply, all of which is there when the loop comes to it.
func (p *steps) answer(size int) {
	p.t.Helper()
	b := binary.BigEndian.AppendUint32(nil, lastFragment|uint32(size))
	if _, err := p.master.Write(append(b, pattern[:size]...)); err != nil {
		p.t.Fatal(err)
	}
	await(p.t, "the reply is there", func() bool {
		n, _ := unix.IoctlGetInt(p.session.master.fd, unix.TIOCINQ)
		return n == 4+size
	})
	n := p.session.replies.Load()
	p.until("the reply is taken", func() bool { return p.session.replies.Load() > n })
	p.sent += 4 + size
}

// stuff sends replies to a kernel that does not read until one is taken and not given on.
func (p *steps) stuff(size int) {
	p.t.Helper()
	p.kernel.SetReadBuffer(64 << 10)
	unix.SetsockoptInt(p.session.kernel.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 64<<10)
	for !p.session.back.pending() {
		p.call()
		p.answer(size)
	}
	if n := p.session.unanswered(); n != 0 {
		p.t.Fatalf("%d calls are unanswered", n)
	}
}

// sizes of replies that fit into a master's first window: the first is copied, the second may be spliced.
var sizes = []struct {
	bytes   int
	spliced bool
}{{bigReply - 1, false}, {bigReply, true}}

// A kernel that has got a reply in part never gets another master's.
func TestAReplyIsNotCutByASwitch(t *testing.T) {
	for _, size := range sizes {
		p := newSteps(t)
		p.session.back.big = size.spliced
		p.stuff(size.bytes)
		if (p.session.back.pipe != nil) != size.spliced {
			t.Errorf("%d bytes: spliced is not %t", size.bytes, size.spliced)
		}
		p.session.kill()
		p.until("the session ends", func() bool { return p.session.over })
		if p.session.out.clean || !p.session.out.ours {
			t.Errorf("%d bytes: %+v", size.bytes, p.session.out)
		}
	}
}

// A planned move waits until the kernel has taken the last reply.
func TestAReplyIsNotCutByAMove(t *testing.T) {
	for _, size := range sizes {
		p := newSteps(t)
		p.session.back.big = size.spliced
		p.stuff(size.bytes)
		p.session.drain(time.Minute)
		p.loop.turn(10)
		if p.session.over {
			t.Fatalf("%d bytes: it has not waited", size.bytes)
		}
		got := make(chan error, 1)
		go func() {
			_, err := io.ReadFull(p.kernel, make([]byte, p.sent))
			got <- err
		}()
		p.until("the session ends", func() bool { return p.session.over })
		if err := <-got; err != nil || !p.session.out.clean {
			t.Errorf("%d bytes: %v, %+v", size.bytes, err, p.session.out)
		}
	}
}

// A kernel connection that takes nothing does not stop the others.
func TestOneThatDoesNotReadStopsNobody(t *testing.T) {
	m := startMaster(t, "m0")
	r, addr := startRelay(t)
	r.Switch(m.addr)
	c, err := Dialer{Insecure: os.Geteuid() != 0}.Dial(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	defer reset(c)
	c.SetReadBuffer(256 << 10)
	const calls = 64
	for i := range uint32(calls) {
		if _, err := c.Write(appendCall(nil, i, progNFS, procRead, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	k := startKernel(t, t.Context(), addr, 1<<20, 4)
	k.goOn(200)
	for i := range uint32(calls) {
		rec, err := readRecord(c)
		if err != nil || !bytes.Equal(rec[24:], content(i, 1<<20)) {
			t.Fatalf("reply %d: %d bytes: %v", i, len(rec), err)
		}
	}
}

// Calls that the master takes slowly are kept, and go to it whole and in order.
func TestCallsWaitForASlowMaster(t *testing.T) {
	r, kernel, master := joined(t)
	master.SetReadBuffer(64 << 10)
	const size = 1 << 20
	sent := make(chan error, 1)
	go func() {
		for range 16 {
			b := binary.BigEndian.AppendUint32(nil, lastFragment|size)
			if _, err := kernel.Write(append(b, pattern[:size]...)); err != nil {
				sent <- err
				return
			}
		}
		sent <- kernel.CloseWrite()
	}()
	for i := range 16 {
		rec, err := readRecord(master)
		if err != nil || !bytes.Equal(rec, pattern[:size]) {
			t.Fatalf("call %d: %d bytes: %v", i, len(rec), err)
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if _, err := readRecord(master); err != io.EOF {
		t.Errorf("then: %v", err)
	}
	if c := r.Counters(); c.Calls != 16 {
		t.Errorf("counters: %+v", c)
	}
}
