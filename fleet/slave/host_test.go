package slave

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/exporter"
	"github.com/nfs-fleet/nfs-fleet/exporter/hello"
	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/control"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/fdstore"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/mounts"
)

// paperMaster is an NFS server without a shard that answers HELLO.
type paperMaster struct {
	t      *testing.T
	name   string
	addr   netip.AddrPort
	hellos atomic.Int64
	stop   func()

	mu     sync.Mutex // guards what follows
	answer hello.Answer
	heard  hello.Greeting
}

func startMaster(t *testing.T, name string) *paperMaster {
	t.Helper()
	m := &paperMaster{t: t, name: name, addr: netip.MustParseAddrPort("127.0.0.1:0")}
	m.start()
	t.Cleanup(func() { m.stop() })
	return m
}

// start starts it, also again at the same address.
func (m *paperMaster) start() {
	m.t.Helper()
	ln, err := net.Listen("tcp", m.addr.String())
	if err != nil {
		m.t.Fatal(err)
	}
	m.addr = ln.Addr().(*net.TCPAddr).AddrPort()
	greet := func(_ context.Context, _ netip.AddrPort, g hello.Greeting) (hello.Answer, error) {
		m.hellos.Add(1)
		m.mu.Lock()
		defer m.mu.Unlock()
		m.heard = g
		a := m.answer
		a.Master = m.name
		return a, nil
	}
	s := exporter.New(exporter.Config{Logger: zerolog.Nop(), Programs: []rpc.Program{hello.Program(greet)}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	m.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			m.t.Errorf("master %s: %v", m.name, err)
		}
	})
}

func (m *paperMaster) say(a hello.Answer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.answer = a
}

func (m *paperMaster) lastHeard() hello.Greeting {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.heard
}

// host is a slave's machine: what outlives its agents.
type host struct {
	t     *testing.T
	dir   string
	ports []uint16
	rest  time.Duration
	held  *net.UnixConn // the supervisor's socket

	mu    sync.Mutex // guards what follows
	files map[string]int
	table []mounts.Mount
	news  chan struct{}
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t: t, dir: t.TempDir(), rest: time.Minute, files: map[string]int{}, news: make(chan struct{})}
	for range 3 {
		ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		h.ports = append(h.ports, portOf(ln))
		ln.Close()
	}
	var err error
	if h.held, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(h.dir, "notify"), Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	received := make(chan struct{})
	go func() {
		defer close(received)
		for {
			m, err := fdstore.Receive(h.held)
			if err != nil {
				return
			}
			if m.Has("FDSTORE=1") {
				h.mu.Lock()
				h.files[m.Get("FDNAME")] = m.FDs[0]
				h.mu.Unlock()
			}
			if m.Has("FDSTOREREMOVE=1") {
				h.mu.Lock()
				if fd, ok := h.files[m.Get("FDNAME")]; ok {
					os.NewFile(uintptr(fd), m.Get("FDNAME")).Close()
					delete(h.files, m.Get("FDNAME"))
				}
				h.mu.Unlock()
			}
		}
	}()
	t.Cleanup(func() { h.held.Close(); <-received })
	return h
}

// lose closes all that agents have handed on.
func (h *host) lose() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, fd := range h.files {
		os.NewFile(uintptr(fd), name).Close()
	}
	clear(h.files)
}

// mount changes what is mounted.
func (h *host) mount(table ...mounts.Mount) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.table = table
	close(h.news)
	h.news = make(chan struct{})
}

func (h *host) watch(ctx context.Context, changed func([]mounts.Mount)) error {
	for {
		h.mu.Lock()
		table, news := h.table, h.news
		h.mu.Unlock()
		changed(table)
		select {
		case <-news:
		case <-ctx.Done():
			return nil
		}
	}
}

// running is an agent at work.
type running struct {
	*Agent
	client *control.Client
	stop   func()
}

// start starts an agent with all that the one before has left.
func (h *host) start() *running {
	h.t.Helper()
	h.t.Setenv("NOTIFY_SOCKET", filepath.Join(h.dir, "notify"))
	store, _ := fdstore.Inherit()
	var files []fdstore.File
	h.mu.Lock()
	for name, fd := range h.files {
		files = append(files, fdstore.File{Name: name, File: os.NewFile(uintptr(fd), name)})
	}
	clear(h.files) // the agent closes them; it is a real supervisor's part to have duplicates
	h.mu.Unlock()
	for _, f := range files { // so here they are handed over again
		ln, err := net.FileListener(f.File)
		if err != nil {
			h.t.Fatal(err)
		}
		if err := store.Keep(f.Name, ln.(*net.TCPListener)); err != nil {
			h.t.Fatal(err)
		}
		ln.Close()
	}
	a := New(Config{
		RunDir: h.dir, StateDir: filepath.Join(h.dir, "state"), Name: "thishost", Version: "1", Store: store, Files: files,
		Logger: zerolog.New(zerolog.NewTestWriter(h.t)), Insecure: true, Ports: h.ports, Rest: h.rest, Table: h.watch,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	r := &running{Agent: a, client: control.NewClient(filepath.Join(h.dir, Socket))}
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Errorf("Run: %v", err)
		}
	})
	h.t.Cleanup(r.stop)
	await(h.t, "the agent answers", func() bool { _, err := r.client.Status(h.t.Context()); return err == nil })
	return r
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20s: %s", what)
		}
	}
}

// call makes a NULL call to NFS, as the kernel does when it has connected.
func call(addr netip.AddrPort) error {
	conn, err := net.Dial("tcp", addr.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	var b []byte
	for _, v := range [...]uint32{1<<31 | 40, 7, 0, 2, 100003, 3, 0, 0, 0, 0, 0} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	if _, err := conn.Write(b); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, 28))
	return err
}

const web17 = "_nfs._tcp.web17.slaves.prod.example"

func want(ms ...*paperMaster) control.Want {
	w := control.Want{Name: web17, Wait: 10 * time.Second}
	for _, m := range ms {
		w.Masters = append(w.Masters, m.addr.String())
	}
	return w
}

// mountAt is a mount as the kernel lists it.
func mountAt(id int, r control.Route, path, dir string) mounts.Mount {
	return mounts.Mount{ID: id, Name: web17, Path: path, Dir: dir, Addr: r.Addr}
}

func mountsOf(t *testing.T, r *running) []control.Mount {
	t.Helper()
	s, err := r.client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s.Mounts
}

// withOneMount returns a master, a host that has mounted /www from it, its agent, and what that answered the mount.
func withOneMount(t *testing.T) (*paperMaster, *host, *running, control.Route) {
	t.Helper()
	m, h := startMaster(t, "m1"), newHost(t)
	a := h.start()
	route, err := a.client.Route(t.Context(), want(m))
	if err != nil {
		t.Fatal(err)
	}
	h.mount(mountAt(7, route, "/www", "/srv/www"))
	await(t, "the mount is known", func() bool { return len(mountsOf(t, a)) == 1 })
	return m, h, a, route
}
