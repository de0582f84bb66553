package exporter

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/exporter/export/exporttest"
	"github.com/nfs-fleet/nfs-fleet/exporter/mount3"
	"github.com/nfs-fleet/nfs-fleet/exporter/nfs3"
	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// www is the tree of the tests here.
func www(t testing.TB) *exporttest.Volume { return withFSID(t, 77) }

func withFSID(t testing.TB, fsid uint64) *exporttest.Volume {
	return exporttest.New(t, fsid, exporttest.Item{Path: "hello.txt", Data: []byte("hello, world\n")},
		exporttest.Item{Path: "dir/deep/file", Data: bytes.Repeat([]byte("0123456789"), 30000)},
		exporttest.Item{Path: "dir/link", Entry: tree.Entry{Type: tree.Symlink, Target: "deep/file"}},
		exporttest.Item{Path: "odd\nname \xff", Data: []byte("odd")})
}

// serve starts a server on a loopback port until the test ends; it returns the address.
func serve(t testing.TB, c Config, exports ...Export) (*Server, net.Addr) {
	t.Helper()
	c.Logger = zerolog.Nop()
	s := New(c)
	s.SetExports(exports)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s, l.Addr()
}

// client makes calls one at a time over a connection of its own.
type client struct {
	t testing.TB
	net.Conn
}

// dial connects from any port.
func dial(t testing.TB, to net.Addr) client {
	t.Helper()
	c, err := dialFrom(t, to, 0)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// dialFrom connects from a local port; 0 is any.
func dialFrom(t testing.TB, to net.Addr, port int) (client, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}, Timeout: 10 * time.Second}
	c, err := d.Dial("tcp", to.String())
	if err != nil {
		return client{}, err
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second)) //nolint:errcheck
	return client{t, c}, nil
}

// call returns accept_stat and what follows.
func (c client) call(prog, vers, proc uint32, args []byte) (uint32, []byte) {
	c.t.Helper()
	var b []byte
	for _, v := range []uint32{0, 9, 0, 2, prog, vers, proc, 1, 20, 0, 0, 0, 0, 0, 0, 0} { // AUTH_SYS, uid 0
		b = rpc.AppendUint32(b, v)
	}
	b = append(b, args...)
	binary.BigEndian.PutUint32(b, 1<<31|uint32(len(b)-4))
	if _, err := c.Write(b); err != nil {
		c.t.Fatal(err)
	}
	head := make([]byte, 28)
	if _, err := io.ReadFull(c, head); err != nil {
		c.t.Fatal(err)
	}
	rest := make([]byte, binary.BigEndian.Uint32(head)&^(1<<31)-24)
	if _, err := io.ReadFull(c, rest); err != nil {
		c.t.Fatal(err)
	}
	return binary.BigEndian.Uint32(head[24:]), rest
}

// mount returns the status and, when it is 0, the handle.
func (c client) mount(path string) (uint32, []byte) {
	c.t.Helper()
	stat, rest := c.call(mount3.Number, 3, 1, rpc.AppendOpaque(nil, path))
	if stat != 0 {
		c.t.Fatalf("MNT: accept_stat %d", stat)
	}
	d := rpc.NewDecoder(rest)
	return d.Uint32(), d.Opaque(64)
}

// getattr returns the status of GETATTR.
func (c client) getattr(fh []byte) uint32 {
	c.t.Helper()
	stat, rest := c.call(nfs3.Number, 3, 1, rpc.AppendOpaque(nil, fh))
	if stat != 0 {
		c.t.Fatalf("GETATTR: accept_stat %d", stat)
	}
	return binary.BigEndian.Uint32(rest)
}

func TestProbes(t *testing.T) {
	_, addr := serve(t, Config{})
	c := dial(t, addr)
	mismatch := func(low, high uint32) []byte { return rpc.AppendUint32(rpc.AppendUint32(nil, low), high) }
	for _, p := range []struct {
		what             string
		prog, vers, stat uint32
		rest             []byte
	}{
		{"NFSv3", nfs3.Number, 3, 0, nil},
		{"NFSv4", nfs3.Number, 4, 2, mismatch(3, 3)},
		{"NFSv2", nfs3.Number, 2, 2, mismatch(3, 3)},
		{"MOUNT v3", mount3.Number, 3, 0, nil},
		{"MOUNT v1", mount3.Number, 1, 0, nil},
		{"MOUNT v4", mount3.Number, 4, 2, mismatch(1, 3)},
		{"NFSACL", 100227, 3, 1, nil},
		{"NLM", 100021, 4, 1, nil},
		{"portmap", 100000, 2, 1, nil},
	} {
		if stat, rest := c.call(p.prog, p.vers, 0, nil); stat != p.stat || !bytes.Equal(rest, p.rest) {
			t.Errorf("%s: accept_stat %d, % x, want %d, % x", p.what, stat, rest, p.stat, p.rest)
		}
	}
}

// dialLow connects from a port below 1024, one that nobody uses now. That takes privilege.
func dialLow(t *testing.T, to net.Addr) client {
	t.Helper()
	for port := 1000; port > 600; port-- {
		c, err := dialFrom(t, to, port)
		switch {
		case err == nil:
			return c
		case errors.Is(err, os.ErrPermission):
			t.Skip("ports below 1024 cannot be used: not root")
		case !errors.Is(err, syscall.EADDRINUSE) && !errors.Is(err, syscall.EADDRNOTAVAIL):
			t.Fatal(err)
		}
	}
	t.Skip("every port from 601 to 1000 is in use")
	return client{}
}

func TestPortsAndNetworks(t *testing.T) {
	v := www(t)
	far := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	s, addr := serve(t, Config{}, Export{Name: "www", Volume: v.Volume})
	privileged, ordinary := dialLow(t, addr), dial(t, addr)
	status, fh := privileged.mount("/www")
	if status != 0 || privileged.getattr(fh) != 0 {
		t.Fatalf("from %s: status %d", privileged.LocalAddr(), status)
	}
	const acces = 13
	check := func(what string, c client, want uint32) {
		t.Helper()
		if status, _ := c.mount("/www"); status != want {
			t.Errorf("%s: MNT answers %d, want %d", what, status, want)
		}
		if status := c.getattr(fh); status != want {
			t.Errorf("%s: GETATTR answers %d, want %d", what, status, want)
		}
	}
	check("an ordinary port", ordinary, acces)
	// connections that are open feel a change of the rules at once
	s.SetExports([]Export{{Name: "www", Volume: v.Volume, Rules: Rules{Insecure: true}}})
	check("an ordinary port, insecure", ordinary, 0)
	s.SetExports([]Export{{Name: "www", Volume: v.Volume, Rules: Rules{Networks: far, Insecure: true}}})
	check("another network", privileged, acces)
	s.SetExports(nil)
	if got := ordinary.getattr(fh); got != 10001 {
		t.Errorf("without the export: GETATTR answers %d, want BADHANDLE", got)
	}
}

func TestUnprivilegedPortsAreRefused(t *testing.T) {
	_, addr := serve(t, Config{}, Export{Name: "www", Volume: www(t).Volume})
	if status, _ := dial(t, addr).mount("/www"); status != 13 {
		t.Errorf("MNT answers %d, want 13", status)
	}
}

type closedGate struct{}

func (closedGate) Await(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

func TestStopsWhileConnectionsWaitAtTheGate(t *testing.T) {
	s, addr := serve(t, Config{Gate: closedGate{}})
	dial(t, addr)
	if err := s.Drain(context.Background()); err != nil {
		t.Error(err)
	}
}

// The largest WRITE that FSINFO allows is answered; a peer that announces far more is not listened to, lest a thousand of
// them fill the memory.
func TestLargestCall(t *testing.T) {
	v := www(t)
	_, addr := serve(t, Config{}, Export{Name: "www", Volume: v.Volume, Rules: Rules{Insecure: true}})
	c := dial(t, addr)
	_, fh := c.mount("/www")
	args := rpc.AppendOpaque(nil, fh)
	args = rpc.AppendUint32(rpc.AppendUint32(rpc.AppendUint64(args, 0), 64<<10), 0)
	if stat, rest := c.call(nfs3.Number, nfs3.Version, 7, rpc.AppendOpaque(args, make([]byte, 64<<10))); stat != 0 || rest[3] != 30 {
		t.Errorf("WRITE of 64 KiB: accept_stat %d, status %d", stat, rest[3])
	}
	if _, err := c.Write(rpc.AppendUint32(nil, 1<<31|1<<20)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after a call of 1 MiB was announced: %d bytes, %v", n, err)
	}
}

func TestDrainAndServeAgain(t *testing.T) {
	s, addr := serve(t, Config{}, Export{Name: "www", Volume: www(t).Volume, Rules: Rules{Insecure: true}})
	c := dial(t, addr)
	_, fh := c.mount("/www")
	c.getattr(fh) // a batch is counted before the next is read
	if st := s.Stats(); st.Conns != 1 || st.Calls == 0 {
		t.Errorf("stats %+v", st)
	}
	drained := make(chan error)
	go func() { drained <- s.Drain(context.Background()) }()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Error("the connection is still open")
	}
	c.Close()
	if err := <-drained; err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	if got := dial(t, addr).getattr(fh); got != 0 {
		t.Errorf("after serving again GETATTR answers %d", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// ledger is a Mounts as a master has it.
type ledger struct {
	mu sync.Mutex
	m  []Mount
}

func (l *ledger) Mounted(shard, path string, client netip.Addr, _ string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.m = append(l.m, Mount{Shard: shard, Path: path, Client: client})
}

func (l *ledger) Unmounted(shard, path string, client netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.m = slices.DeleteFunc(l.m, func(m Mount) bool { return m.Client == client && (shard == "" || m.Shard == shard && m.Path == path) })
}

func (l *ledger) List() []Mount {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.m)
}

func TestMountsAreKept(t *testing.T) {
	kept := new(ledger)
	_, addr := serve(t, Config{Mounts: kept}, Export{Name: "www", Volume: www(t).Volume, Rules: Rules{Insecure: true}})
	c := dial(t, addr)
	c.mount("/www")
	c.mount("/www/dir/")
	c.call(mount3.Number, 3, 3, rpc.AppendOpaque(nil, "/www"))
	want := []Mount{{Shard: "www", Path: "/www/dir", Client: netip.MustParseAddr("127.0.0.1")}}
	if got := kept.List(); !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	c.call(mount3.Number, 3, 4, nil)
	if got := kept.List(); len(got) != 0 {
		t.Errorf("after UMNTALL: %+v", got)
	}
}

func TestServices(t *testing.T) {
	tcp, udp := &net.TCPAddr{IP: net.IPv6unspecified, Port: 2049}, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 2049}
	all := Services(tcp, udp)
	if len(all) != 7 || all[0].Program != nfs3.Number || all[0].Addr.Port() != 2049 || !all[0].Addr.Addr().IsUnspecified() {
		t.Errorf("%+v", all)
	}
	if n := len(Services(tcp, nil)); n != 4 {
		t.Errorf("%d services without UDP, want 4", n)
	}
}

// A listing of a directory and a read of each file, many connections at once, while the tree changes under them.
func TestPublishUnderLoad(t *testing.T) {
	v := www(t)
	_, addr := serve(t, Config{}, Export{Name: "www", Volume: v.Volume, Rules: Rules{Insecure: true}})
	var clients sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		c := dial(t, addr)
		_, root := c.mount("/www")
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				look := rpc.AppendOpaque(rpc.AppendOpaque(nil, root), "hello.txt")
				_, rest := c.call(nfs3.Number, 3, 3, look)
				d := rpc.NewDecoder(rest)
				if status := d.Uint32(); status != 0 {
					t.Errorf("LOOKUP answers %d", status)
					return
				}
				read := rpc.AppendUint32(rpc.AppendUint64(rpc.AppendOpaque(nil, d.Opaque(64)), 0), 100)
				if _, rest = c.call(nfs3.Number, 3, 6, read); binary.BigEndian.Uint32(rest) != 0 || !bytes.HasPrefix(rest[104:], []byte("version ")) && !bytes.HasPrefix(rest[104:], []byte("hello, ")) {
					t.Errorf("READ answers % x", rest)
					return
				}
			}
		})
	}
	for i := range 20 {
		v.Publish(t, exporttest.Item{Path: "hello.txt", Data: append([]byte("version "), byte('a'+i))})
	}
	close(stop)
	clients.Wait()
}
