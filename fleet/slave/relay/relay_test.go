package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// startRelay starts a relay without a target, and returns where it listens.
func startRelay(t testing.TB) (*Relay, netip.AddrPort) {
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	insecure := os.Geteuid() != 0
	r := New(Config{Listener: ln, Dialer: Dialer{Insecure: insecure}, Insecure: insecure, Logger: zerolog.New(zerolog.NewTestWriter(t))})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		ln.Close()
	})
	return r, ln.Addr().(*net.TCPAddr).AddrPort()
}

func TestBytesPassWhole(t *testing.T) {
	m := startMaster(t, "m0")
	r, addr := startRelay(t)
	r.Switch(m.addr)
	for _, size := range []uint32{0, 4, 4096, 65536, 1 << 20} {
		k := startKernel(t, t.Context(), addr, size, 4)
		k.goOn(200)
	}
}

func TestAPlannedMoveIsNotNoticed(t *testing.T) {
	a, b := startMaster(t, "a"), startMaster(t, "b")
	r, addr := startRelay(t)
	r.drainTime = time.Minute // machines that test are slow
	r.Switch(a.addr)
	var kernels []*kernel
	for _, size := range []uint32{4096, 1 << 20} {
		kernels = append(kernels, startKernel(t, t.Context(), addr, size, 8))
	}
	for i := range 20 {
		for _, k := range kernels {
			k.goOn(20)
		}
		to := []*fakeMaster{b, a}[i%2]
		if err := r.Move(t.Context(), to.addr); err != nil {
			t.Fatal(err)
		}
		n := to.reads.Load()
		await(t, "reads at the new master", func() bool { return to.reads.Load() > n })
	}
	for _, k := range kernels {
		t.Logf("%d replies, worst wait %s, %d connections", k.done.Load(), k.pause(), k.redial.Load())
		if k.redial.Load() != 1 {
			t.Errorf("the kernel made %d connections", k.redial.Load())
		}
	}
}

func TestAMasterThatStepsDownLosesNothing(t *testing.T) {
	m := startMaster(t, "m0")
	r, addr := startRelay(t)
	r.Switch(m.addr)
	k := startKernel(t, t.Context(), addr, 4096, 1)
	for range 20 {
		k.goOn(20)
		m.disconnect()
	}
	k.goOn(20)
	for range 20 {
		if loss := <-r.Losses(); loss.Addr != m.addr || loss.Useless {
			t.Errorf("loss: %+v", loss)
		}
	}
	if c := r.Counters(); c.Accepted != uint64(k.redial.Load()) || c.Joins < 21 {
		t.Errorf("counters: %+v, %d connections", c, k.redial.Load())
	}
}

func TestOthersAreRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be the kernel")
	}
	m := startMaster(t, "m0")
	r, addr := startRelay(t)
	r.Switch(m.addr)
	c, err := Dialer{Insecure: true}.Dial(t.Context(), addr)
	if err == nil {
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	if err == nil || !gone(err) {
		t.Errorf("not refused: %v", err)
	}
	if c := r.Counters(); c.Refused != 1 || c.Accepted != 0 || c.Joins != 0 {
		t.Errorf("counters: %+v", c)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	r, addr := startRelay(t)
	var conns []*net.TCPConn
	for i := range DefaultMaxConns + 1 {
		c, err := Dialer{Insecure: os.Geteuid() != 0}.Dial(t.Context(), addr)
		if i == DefaultMaxConns && errors.Is(err, syscall.ECONNRESET) {
			break // refused as soon as it was there
		}
		if err != nil {
			t.Fatal(err)
		}
		defer reset(c)
		conns = append(conns, c)
	}
	if len(conns) > DefaultMaxConns {
		last := conns[DefaultMaxConns]
		last.SetReadDeadline(time.Now().Add(DefaultWait / 2))
		if _, err := last.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("one too many: %v", err)
		}
	}
	await(t, "the one too many to be counted", func() bool { return r.Counters().Refused == 1 })
	if c := r.Counters(); c.Refused != 1 || c.Accepted != DefaultMaxConns {
		t.Errorf("counters: %+v", c)
	}
}

func TestAConnectionWaitsForAMaster(t *testing.T) {
	m := startMaster(t, "m0")
	r, addr := startRelay(t)
	k := startKernel(t, t.Context(), addr, 4096, 1)
	await(t, "three connections were given up", func() bool { return k.redial.Load() > 3 })
	if done := k.done.Load(); done > 0 {
		t.Fatalf("%d replies from nobody", done)
	}
	r.Switch(m.addr)
	k.goOn(10)
	n := k.redial.Load()
	r.Hold()
	k.goOn(10) // who is joined stays
	if now := k.redial.Load(); now != n {
		t.Errorf("%d connections, then %d", n, now)
	}
	m.kill()
	<-r.Losses()
	m.start()
	await(t, "a hold", func() bool { return r.Flow().Conns == 1 })
	done := k.done.Load()
	r.Resume()
	k.goOn(10)
	if done > 0 && r.Target() != m.addr {
		t.Errorf("target %s", r.Target())
	}
}

func TestTheListenerOutlivesTheRelay(t *testing.T) {
	m := startMaster(t, "m0")
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() }) // after the kernel has ended
	insecure := os.Geteuid() != 0
	k := startKernel(t, t.Context(), ln.Addr().(*net.TCPAddr).AddrPort(), 4096, 1)
	for range 5 { // the agent, started again and again
		r := New(Config{Listener: ln, Dialer: Dialer{Insecure: insecure}, Insecure: insecure})
		r.Switch(m.addr)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		k.goOn(20)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// The kernel may say that it will send no more, and still wants the replies.
func TestTheLastRepliesCome(t *testing.T) {
	m := startMaster(t, "m0")
	r, addr := startRelay(t)
	r.Switch(m.addr)
	c, err := Dialer{Insecure: os.Geteuid() != 0}.Dial(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const calls = 50
	for i := range calls {
		if _, err := c.Write(appendCall(nil, uint32(i), progNFS, procRead, 128<<10)); err != nil {
			t.Fatal(err)
		}
	}
	c.CloseWrite()
	for i := range calls {
		if _, err := readRecord(c); err != nil {
			t.Fatalf("reply %d: %v", i, err)
		}
	}
	if _, err := readRecord(c); err != io.EOF {
		t.Errorf("then: %v", err)
	}
	if n := len(r.losses); n > 0 {
		t.Errorf("%d losses", n)
	}
}

func TestAMoveToNobodyChangesNothing(t *testing.T) {
	m, dead, hung := startMaster(t, "m0"), startMaster(t, "dead"), startMaster(t, "hung")
	dead.kill()
	hung.hang()
	r, addr := startRelay(t)
	r.Switch(m.addr)
	k := startKernel(t, t.Context(), addr, 4096, 1)
	k.goOn(1)
	for _, to := range []*fakeMaster{dead, hung} {
		if err := r.Move(t.Context(), to.addr); err == nil {
			t.Errorf("moved to %s", to.name)
		}
		k.goOn(10)
	}
	if n := k.redial.Load(); n != 1 || r.Target() != m.addr {
		t.Errorf("%d connections, target %s", n, r.Target())
	}
	overtaken := make(chan error)
	go func() { overtaken <- r.Move(t.Context(), hung.addr) }()
	n := hung.reads.Load()
	r.Switch(m.addr)
	if err := <-overtaken; err == nil || hung.reads.Load() != n {
		t.Errorf("overtaken: %v", err)
	}
	k.goOn(10)
}

func FuzzFramer(f *testing.F) {
	f.Add([]byte{0x80, 0, 0, 4, 1, 2, 3, 4, 0, 0, 0, 1, 9, 0x80, 0, 0, 0}, uint8(3))
	f.Add([]byte{0x80, 0, 0, 0, 0x80, 0, 0}, uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, step uint8) {
		var whole, parts framer
		want := whole.feed(b)
		got := 0
		for rest := b; len(rest) > 0; {
			n := min(int(step)+1, len(rest))
			got += parts.feed(rest[:n])
			rest = rest[n:]
			if parts.left > 1 && len(rest) > 1 { // as a splice does
				n := min(parts.left, len(rest))
				got += parts.pass(n)
				rest = rest[n:]
			}
		}
		if got != want || whole.between() != parts.between() || whole.left != parts.left || whole.have != parts.have {
			t.Errorf("%d records, want %d: %+v %+v", got, want, parts, whole)
		}
	})
}

// A planned move that comes when half a call has been sent waits for the other half.
func TestACallIsNotCutByAMove(t *testing.T) {
	a, b := startMaster(t, "a"), startMaster(t, "b")
	r, addr := startRelay(t)
	r.drainTime = time.Minute
	r.Switch(a.addr)
	c, err := Dialer{Insecure: os.Geteuid() != 0}.Dial(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	defer reset(c)
	call := appendCall(nil, 1, progNFS, procRead, 64)
	c.Write(call[:10])
	await(t, "half a call is on its way", func() bool { return !r.Flow().Waiting.IsZero() || r.Counters().Joins == 1 })
	moved := make(chan error)
	go func() { moved <- r.Move(t.Context(), b.addr) }()
	await(t, "the move has begun", func() bool { return r.Target() == b.addr })
	c.Write(call[10:])
	c.Write(appendCall(nil, 2, progNFS, procRead, 64))
	for range 2 {
		if _, err := readRecord(c); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-moved; err != nil {
		t.Error(err)
	}
	c.Write(appendCall(nil, 3, progNFS, procRead, 64))
	if _, err := readRecord(c); err != nil || b.reads.Load() == 0 {
		t.Errorf("%v, %d reads at the new master", err, b.reads.Load())
	}
}
