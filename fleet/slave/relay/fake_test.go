package relay

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const (
	progNFS   = 100003
	progHello = 0x2F1EE702
	procRead  = 6
)

// fakeMaster is a small RPC server: NULL, READ of any size, and a HELLO that answers a status.
type fakeMaster struct {
	t    testing.TB
	name string
	addr netip.AddrPort

	hung   atomic.Bool
	wake   chan struct{} // closed when it is no longer hung
	status atomic.Uint32
	slow   atomic.Int64 // ns before a HELLO is answered
	reads  atomic.Int64
	nulls  atomic.Int64

	mu    sync.Mutex
	ln    *net.TCPListener
	conns map[*net.TCPConn]bool // true: it has read
}

func startMaster(t testing.TB, name string) *fakeMaster {
	m := &fakeMaster{t: t, name: name, addr: netip.MustParseAddrPort("127.0.0.1:0")}
	m.start()
	t.Cleanup(m.kill)
	return m
}

// start starts it, also again after a kill, at the same address.
func (m *fakeMaster) start() {
	m.t.Helper()
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(m.addr))
	if err != nil {
		m.t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ln, m.conns, m.wake = ln, make(map[*net.TCPConn]bool), make(chan struct{})
	m.hung.Store(false)
	if m.addr.Port() == 0 {
		m.addr = ln.Addr().(*net.TCPAddr).AddrPort()
	}
	go func() {
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			m.mu.Lock()
			m.conns[c] = false
			m.mu.Unlock()
			go m.serve(c)
		}
	}()
}

func (m *fakeMaster) target() Target { return Target{Name: m.name, Addr: m.addr} }

// kill ends it as SIGKILL does: with a reset of every connection on which something was unread, here on all.
func (m *fakeMaster) kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ln.Close()
	for c := range m.conns {
		reset(c)
	}
	if m.hung.Load() {
		m.hung.Store(false)
		close(m.wake)
	}
}

// hang stops it as SIGSTOP does: the system still accepts connections and acknowledges what comes.
func (m *fakeMaster) hang() { m.hung.Store(true) }

func (m *fakeMaster) goOn() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hung.Store(false)
	close(m.wake)
	m.wake = make(chan struct{})
}

// disconnect ends the connections over which reads came between two calls, as a master does that steps down.
func (m *fakeMaster) disconnect() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for c, reader := range m.conns {
		if reader {
			c.SetReadDeadline(past)
		}
	}
}

func (m *fakeMaster) park() {
	for m.hung.Load() {
		m.mu.Lock()
		wake := m.wake
		m.mu.Unlock()
		<-wake
	}
}

func (m *fakeMaster) serve(c *net.TCPConn) {
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.conns, c)
		c.Close()
	}()
	for {
		m.park()
		call, err := readRecord(c)
		if err != nil {
			return
		}
		m.park()
		xid, prog, proc := binary.BigEndian.Uint32(call), binary.BigEndian.Uint32(call[12:]), binary.BigEndian.Uint32(call[20:])
		reply := make([]byte, 28)
		binary.BigEndian.PutUint32(reply[4:], xid)
		binary.BigEndian.PutUint32(reply[8:], 1)
		switch {
		case prog == progHello:
			time.Sleep(time.Duration(m.slow.Load()))
			m.park()
			reply = binary.BigEndian.AppendUint32(reply, m.status.Load())
		case proc == procRead:
			m.reads.Add(1)
			m.mu.Lock()
			m.conns[c] = true
			m.mu.Unlock()
			reply = append(reply, content(xid, int(binary.BigEndian.Uint32(call[40:])))...)
		default:
			m.nulls.Add(1)
		}
		binary.BigEndian.PutUint32(reply, lastFragment|uint32(len(reply)-4))
		if _, err := c.Write(reply); err != nil {
			return
		}
	}
}

// pattern is what replies are cut from.
var pattern = func() []byte {
	b := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{}).Read(b) //nolint:errcheck // never fails
	return b
}()

// content is the n bytes (2 MiB at most) that belong to a seed.
func content(seed uint32, n int) []byte {
	from := int(seed*2654435761) % (1 << 20)
	return pattern[from : from+n]
}

func readRecord(r io.Reader) ([]byte, error) {
	var mark [4]byte
	if _, err := io.ReadFull(r, mark[:]); err != nil {
		return nil, err
	}
	rec := make([]byte, binary.BigEndian.Uint32(mark[:])&^lastFragment)
	_, err := io.ReadFull(r, rec)
	return rec, err
}

func appendCall(b []byte, xid, prog, proc, arg uint32) []byte {
	for _, v := range [...]uint32{lastFragment | 44, xid, 0, 2, prog, 3, proc, 0, 0, 0, 0, arg} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}

// fakeGreeter says HELLO to a fakeMaster; the masters are told by fleet.
type fakeGreeter struct {
	conn  *net.TCPConn
	xid   uint32
	order func() []Target
}

func (g *fakeGreeter) Close() error { return g.conn.Close() }

func (g *fakeGreeter) Hello(ctx context.Context) (Answer, error) {
	stop := context.AfterFunc(ctx, func() { g.conn.SetDeadline(past) })
	defer stop()
	g.xid++
	if _, err := g.conn.Write(appendCall(nil, g.xid, progHello, 1, 0)); err != nil {
		return Answer{}, err
	}
	rec, err := readRecord(g.conn)
	if err != nil {
		return Answer{}, err
	}
	return Answer{Status: Status(binary.BigEndian.Uint32(rec[24:])), Targets: g.order()}, nil
}

// kernel reads through a relay as the kernel's NFS client does: when its connection is gone it makes another at once and
// sends again what was not answered.
type kernel struct {
	t      testing.TB
	to     netip.AddrPort
	size   uint32
	depth  int                  // calls at once
	sent   map[uint32]time.Time // unanswered
	xid    uint32
	redial atomic.Int64 // connections made

	mu    sync.Mutex
	worst time.Duration // longest wait for a reply
	done  atomic.Int64  // replies
	bytes atomic.Int64
}

func startKernel(t testing.TB, ctx context.Context, to netip.AddrPort, size uint32, depth int) *kernel {
	k := &kernel{t: t, to: to, size: size, depth: depth, sent: make(map[uint32]time.Time)}
	finished := make(chan struct{})
	ctx, cancel := context.WithCancel(ctx)
	t.Cleanup(func() { cancel(); <-finished })
	go func() {
		defer close(finished)
		for ctx.Err() == nil {
			if err := k.read(ctx); err != nil && ctx.Err() == nil && !gone(err) {
				t.Errorf("read: %v", err)
				return
			}
		}
	}()
	return k
}

// gone says that an error is the end of a connection.
func gone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// read reads over one connection.
func (k *kernel) read(ctx context.Context) error {
	conn, err := Dialer{Insecure: os.Geteuid() != 0}.Dial(ctx, k.to)
	if err != nil {
		return fmt.Errorf("connect to the relay: %w", err)
	}
	k.redial.Add(1)
	defer reset(conn)
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(past) })
	defer stop()
	for xid := range k.sent {
		if _, err := conn.Write(appendCall(nil, xid, progNFS, procRead, k.size)); err != nil {
			return err
		}
	}
	for {
		for len(k.sent) < k.depth {
			k.xid++
			k.sent[k.xid] = time.Now()
			if _, err := conn.Write(appendCall(nil, k.xid, progNFS, procRead, k.size)); err != nil {
				return err
			}
		}
		rec, err := readRecord(conn)
		if err != nil {
			return err
		}
		xid := binary.BigEndian.Uint32(rec)
		sent, ok := k.sent[xid]
		if !ok {
			continue // answered twice
		}
		if !bytes.Equal(rec[24:], content(xid, int(k.size))) {
			return fmt.Errorf("reply to %d has %d wrong bytes", xid, len(rec))
		}
		delete(k.sent, xid)
		k.bytes.Add(int64(k.size))
		k.mu.Lock()
		k.worst = max(k.worst, time.Since(sent))
		k.mu.Unlock()
		k.done.Add(1)
		if k.depth == 1 {
			time.Sleep(200 * time.Microsecond) // others want to run too
		}
	}
}

// pause returns the longest wait since the last call of it.
func (k *kernel) pause() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	w := k.worst
	k.worst = 0
	return w
}

// await waits for a condition.
func await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20s: %s", what)
		}
	}
}

// goOn waits until n more replies have come.
func (k *kernel) goOn(n int64) {
	k.t.Helper()
	from := k.done.Load()
	await(k.t, "reading goes on", func() bool { return k.done.Load() >= from+n })
}
