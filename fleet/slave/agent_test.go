package slave

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/relay"
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

func TestAMountFollowsLivingMasters(t *testing.T) {
	m1, m2 := startMaster(t, "m1"), startMaster(t, "m2")
	order := []hello.Target{{Name: "m1", Host: "127.0.0.1", Port: m1.addr.Port()}, {Name: "m2", Host: "127.0.0.1", Port: m2.addr.Port()}}
	m1.say(hello.Answer{Targets: order, Revision: 1, Every: 100 * time.Millisecond})
	m2.say(hello.Answer{Targets: order, Revision: 1, Every: 100 * time.Millisecond})
	h := newHost(t)
	a := h.start()
	route, err := a.client.Route(t.Context(), want(m1, m2))
	if err != nil || route.Addr.Addr().String() != "127.0.0.1" || !slices.Contains(h.ports, route.Addr.Port()) {
		t.Fatalf("%+v, %v", route, err)
	}
	if err := call(route.Addr); err != nil {
		t.Fatal(err)
	}
	h.mount(mountAt(7, route, "/www", "/srv/www"), mountAt(8, route, "/www/sub", "/srv/sub"))
	await(t, "the master hears of the mounts", func() bool { return len(m1.lastHeard().Mounts) == 2 })
	g := m1.lastHeard()
	if g.Slave != "web17" || g.Mode != "relay" || g.Version != "1" || g.Instance == "" || g.Mounts[1] != (hello.Mount{Name: web17, Shard: "www", Dir: "/srv/sub"}) {
		t.Errorf("the greeting: %+v", g)
	}
	ms := mountsOf(t, a)
	if len(ms) != 2 || ms[1].Dir != "/srv/www" || ms[1].State != control.Reading || ms[1].At != m1.addr.String() || ms[1].Reattach != nil || ms[1].Since == "" {
		t.Errorf("mounts: %+v", ms)
	}

	m1.stop()
	await(t, "the other master is read from", func() bool {
		ms = mountsOf(t, a)
		return ms[0].At == m2.addr.String() && ms[0].State == control.Reading
	})
	if err := call(route.Addr); err != nil {
		t.Error(err)
	}
	if r := ms[0].Reattach; r == nil || r.To != "m2" || r.Planned || ms[0].Home != "m1" {
		t.Errorf("mounts: %+v, reattach %+v", ms, r)
	}
	await(t, "the master hears of the reattach", func() bool { return m2.lastHeard().Last.To == "m2" })

	h.mount(mountAt(8, route, "/www/sub", "/srv/sub"))
	await(t, "one is unmounted", func() bool { return len(mountsOf(t, a)) == 1 && len(m2.lastHeard().Mounts) == 1 })
}

// A restart needs no remount: the port is the same, and never refuses; what the agent said is remembered.
func TestTheNextAgentGoesOn(t *testing.T) {
	m1, m2 := startMaster(t, "m1"), startMaster(t, "m2")
	h := newHost(t)
	a := h.start()
	route, err := a.client.Route(t.Context(), want(m1, m2))
	if err != nil {
		t.Fatal(err)
	}
	h.mount(mountAt(7, route, "/www", "/srv/www"))
	await(t, "the mount is known", func() bool { return len(mountsOf(t, a)) == 1 })
	m1.stop()
	await(t, "the other master is read from", func() bool { return mountsOf(t, a)[0].At == m2.addr.String() })
	reattach := mountsOf(t, a)[0].Reattach
	a.stop()

	waiting := make(chan error, 1)
	go func() { waiting <- call(route.Addr) }() // nobody accepts it yet, and it is not refused
	a = h.start()
	if err := <-waiting; err != nil {
		t.Errorf("a call between two agents: %v", err)
	}
	ms := mountsOf(t, a)
	if len(ms) != 1 || ms[0].Dir != "/srv/www" || ms[0].Addr != route.Addr.String() || ms[0].Slave != "web17" {
		t.Errorf("mounts: %+v", ms)
	}
	if got := ms[0].Reattach; got == nil || reattach == nil || *got != *reattach {
		t.Errorf("the last reattach was %+v and is %+v", reattach, got)
	}
}

// After a reboot a name has its port again, and is asked for anew: masters and mounts of before count for nothing.
func TestAfterAReboot(t *testing.T) {
	m1, m2 := startMaster(t, "m1"), startMaster(t, "m2")
	h := newHost(t)
	a := h.start()
	route, err := a.client.Route(t.Context(), want(m1))
	if err != nil {
		t.Fatal(err)
	}
	a.stop()
	h.lose()
	dir := filepath.Join(h.dir, "state")
	s, err := loadState(dir)
	if err != nil || len(s.Routes) != 1 || len(s.Routes[0].Order) != 1 {
		t.Fatalf("%+v, %v", s, err)
	}
	s.Boot = "the boot before"
	if err := errors.Join(s.save(dir), os.Remove(filepath.Join(h.dir, stateFile))); err != nil { // /run is empty after a boot
		t.Fatal(err)
	}
	m1.stop()
	a = h.start()
	if again, err := a.client.Route(t.Context(), want(m2)); err != nil || again.Addr != route.Addr {
		t.Errorf("%+v, %v; want %+v", again, err, route)
	}
	a.mu.Lock()
	r := a.routes[key{web17, control.Relay}]
	a.mu.Unlock()
	if c := r.record(); len(c.Order) != 1 || c.Order[0].Addr != m2.addr {
		t.Errorf("the order of before the boot counts: %+v", c)
	}
}

// Even without a state file and without its listeners an agent finds its way: by the mounts, and DNS or what it is told.
func TestAnAgentThatHasLostEverything(t *testing.T) {
	m := startMaster(t, "m1")
	h := newHost(t)
	a := h.start()
	route, err := a.client.Route(t.Context(), want(m))
	if err != nil {
		t.Fatal(err)
	}
	h.mount(mountAt(7, route, "/www", "/srv/www"))
	await(t, "the mount is known", func() bool { return len(mountsOf(t, a)) == 1 })
	a.stop()
	h.lose()
	for _, dir := range []string{"state", "."} {
		if err := os.WriteFile(filepath.Join(h.dir, dir, stateFile), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a = h.start()
	await(t, "the agent says that it knows no masters", func() bool {
		ms := mountsOf(t, a)
		return len(ms) == 1 && ms[0].State == control.Searching && strings.Contains(ms[0].Why, "its masters are not known: ")
	})
	if again, err := a.client.Route(t.Context(), want(m)); err != nil || again.Addr != route.Addr {
		t.Errorf("%+v, %v; want %+v", again, err, route)
	}
	if err := call(route.Addr); err != nil {
		t.Error(err)
	}
}

// A route without a mount stops bothering masters, and wakes when something connects: a mount that the agent cannot see.
func TestARouteRests(t *testing.T) {
	m := startMaster(t, "m1")
	h := newHost(t)
	h.rest = 100 * time.Millisecond
	a := h.start()
	route, err := a.client.Route(t.Context(), want(m))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		await(t, "the route sleeps", func() bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			return a.routes[key{web17, control.Relay}].dormant()
		})
		n := m.hellos.Load()
		time.Sleep(3 * h.rest) // nothing happens meanwhile: that is what is tested
		if got := m.hellos.Load(); got != n {
			t.Errorf("%d greetings of a route that sleeps", got-n)
		}
		if err := call(route.Addr); err != nil {
			t.Error(err)
		}
	}
	conn, err := net.Dial("tcp", route.Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	await(t, "the invisible mount is told of", func() bool { ms := mountsOf(t, a); return len(ms) == 1 && ms[0].Dir == "" })
	await(t, "masters are told of it, too, which enrols the slave", func() bool {
		told := m.lastHeard().Mounts
		return len(told) == 1 && told[0] == (hello.Mount{Name: web17})
	})
}

func TestWhatIsWrongIsSaid(t *testing.T) {
	none, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	none.Close()
	refuses := startMaster(t, "m1")
	refuses.say(hello.Answer{Status: hello.Refused, Why: "another fleet's slave"})
	stranger := exporterWithoutHello(t)
	h := newHost(t)
	h.ports = h.ports[:1]
	a := h.start()
	for name, c := range map[string]struct {
		want control.Want
		kind error
		word string
	}{
		"no SRV name": {control.Want{Name: "filer"}, control.ErrInvalid, "no SRV name"},
		"no way":      {control.Want{Name: web17, Via: "magic"}, control.ErrInvalid, "magic"},
		"bad server":  {control.Want{Name: web17, DNS: []string{"a:b"}}, control.ErrInvalid, "name server"},
		"bad master":  {control.Want{Name: web17, Masters: []string{"a:b"}}, control.ErrInvalid, "master"},
		"nobody":      {control.Want{Name: web17, Masters: []string{none.Addr().String()}, Wait: 500 * time.Millisecond}, control.ErrNoMaster, "refused"},
		"no fleet":    {control.Want{Name: web17, Masters: []string{stranger}, Wait: 500 * time.Millisecond}, control.ErrNoMaster, "no nfs-fleet master"},
		"itself":      {control.Want{Name: web17, Masters: []string{fmt.Sprintf("127.0.0.1:%d", h.ports[0])}, Wait: 500 * time.Millisecond}, control.ErrNoMaster, "own relay"},
		"all of it":   {control.Want{Name: web17, Masters: []string{"0.0.0.0:2049"}, Wait: 500 * time.Millisecond}, control.ErrNoMaster, "no address of a master"},
		"no DNS":      {control.Want{Name: web17, DNS: []string{none.Addr().String()}, Wait: 500 * time.Millisecond}, control.ErrNoMaster, none.Addr().String()},
		"no port":     {control.Want{Name: "_nfs._tcp.other.example", Masters: []string{none.Addr().String()}, Wait: time.Second}, control.ErrNoPort, "in use"},
	} {
		if name == "no port" {
			h.mount(mountAt(7, control.Route{Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), h.ports[0])}, "/www", "/srv/www"))
			await(t, "a mount takes the only port", func() bool { return len(mountsOf(t, a)) == 1 })
		}
		_, err := a.client.Route(t.Context(), c.want)
		if name == "no port" {
			h.mount()
			await(t, "nothing is mounted", func() bool { return len(mountsOf(t, a)) == 0 })
		}
		if !errors.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.word) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// exporterWithoutHello starts an NFS server that is no master.
func exporterWithoutHello(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- exporter.New(exporter.Config{Logger: zerolog.Nop()}).Serve(ctx, ln) }()
	t.Cleanup(func() { cancel(); <-done })
	return ln.Addr().String()
}

func TestUnused(t *testing.T) {
	h := newHost(t)
	h.mount(mounts.Mount{ID: 1, Name: web17, Path: "/www", Dir: "/srv", Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), h.ports[0])})
	a := h.start()
	done := make(chan error, 1)
	go func() { done <- a.Unused(t.Context()) }()
	select {
	case err := <-done:
		t.Errorf("something is mounted: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	h.mount()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A state that was read is the one that was written; of another boot only names and ports count.
func TestState(t *testing.T) {
	dir := t.TempDir()
	target := relay.Target{Name: "m1", Addr: netip.MustParseAddrPort("10.0.0.1:2049")}
	s := state{Format: stateFormat, Boot: "b", Routes: []routeRecord{{
		Name: web17, Via: control.Relay, Port: 300, Told: []told{{Dir: "/d", DNS: []string{"d"}, Masters: []string{"m"}, Slave: "s", Seen: true}}, Order: []relay.Target{target},
		Last: relay.Change{At: time.Unix(5, 0).UTC(), Took: time.Second, From: target, To: target, Why: "w"}, Used: time.Unix(9, 0).UTC(),
	}}}
	if err := s.save(dir); err != nil {
		t.Fatal(err)
	}
	got, err := loadState(dir)
	if err != nil || !got.same(s) {
		t.Errorf("%+v, %v; want %+v", got, err, s)
	}
	got.Routes[0].Order = nil
	if got.same(s) {
		t.Error("other states are the same")
	}
	for _, broken := range []string{"{", `{"format": 99}`} {
		if err := os.WriteFile(filepath.Join(dir, stateFile), []byte(broken), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := loadState(dir); err == nil || len(got.Routes) != 0 {
			t.Errorf("%s: %+v, %v", broken, got, err)
		}
	}
	if got, err := loadState(t.TempDir()); err != nil || len(got.Routes) != 0 {
		t.Errorf("no state: %+v, %v", got, err)
	}
	if dir, err := stateDir("/proc/none", dir); err != nil || dir == "/proc/none" {
		t.Errorf("%s, %v", dir, err)
	}
	if _, err := stateDir("/proc/none"); err == nil {
		t.Error("/proc can be written to")
	}
}

func TestPortsArePickedByName(t *testing.T) {
	free := func(uint16) bool { return false }
	all := candidates(web17, 0, ports, free)
	if len(all) != len(ports) || !slices.Equal(all, candidates(web17, 0, ports, free)) {
		t.Errorf("%d candidates of %d", len(all), len(ports))
	}
	if got := candidates(web17, 342, ports, free); got[0] != 342 || len(got) != len(ports) {
		t.Errorf("the port that it had is not first: %v", got)
	}
	if got := candidates(web17, 0, ports, func(p uint16) bool { return p == all[0] }); got[0] != all[1] {
		t.Errorf("a port of another name is taken: %v", got)
	}
	for _, p := range ports {
		if p >= 665 {
			t.Errorf("port %d is the kernel's", p)
		}
	}
	if len(ports) < MaxRoutes {
		t.Errorf("%d ports for %d names", len(ports), MaxRoutes)
	}
}

func TestSplitMaster(t *testing.T) {
	for text, want := range map[string]string{"m1": "m1:2049", "m1:700": "m1:700", "10.0.0.1": "10.0.0.1:2049", "[fd00::1]:5": "fd00::1:5", "fd00::1": "fd00::1:2049"} {
		host, port, err := splitMaster(text)
		if got := fmt.Sprintf("%s:%d", host, port); err != nil || got != want {
			t.Errorf("%q: %s, %v", text, got, err)
		}
	}
	for _, text := range []string{"", ":1", "a:0", "a:b", "a b", "a:1:2"} {
		if host, port, err := splitMaster(text); err == nil {
			t.Errorf("%q: %s %d", text, host, port)
		}
	}
}
