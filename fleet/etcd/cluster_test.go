package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/nfs-fleet/nfs-fleet/election/etcdtest"
	"github.com/nfs-fleet/nfs-fleet/fleet/trust"
)

// patience is how long what must happen may take on a machine that does much else.
const patience = 2 * time.Minute

// testFleet is a fleet whose masters are nothing but their etcd.
type testFleet struct {
	t         testing.TB
	authority *trust.Authority

	mu      sync.Mutex // guards masters and what each of them is to the fleet
	masters map[string]*testMaster
}

// testMaster is one of them: a data directory and addresses that last, and parts that run or do not.
type testMaster struct {
	f                *testFleet
	name, dir        string
	client, raft     string // listen addresses
	tunnel           string
	credentials      *trust.Credentials
	drained, removed bool
	failed           func(error) // Config.Failed

	member *Member // nil while it does not run
	routes *Routes
	etcd   *clientv3.Client
	end    func()
}

func newTestFleet(t testing.TB) *testFleet {
	a, err := trust.NewAuthority("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &testFleet{t: t, authority: a, masters: map[string]*testMaster{}}
}

// master makes a master that does not run yet.
func (f *testFleet) master(name string) *testMaster {
	f.t.Helper()
	c, err := trust.NewCredentials(f.authority, name, "instance-of-"+name)
	if err != nil {
		f.t.Fatal(err)
	}
	m := &testMaster{
		f: f, name: name, dir: f.t.TempDir(), credentials: c,
		client: freeAddress(), raft: freeAddress(), tunnel: freeAddress(),
	}
	f.mu.Lock()
	f.masters[name] = m
	f.mu.Unlock()
	f.t.Cleanup(m.stop)
	return m
}

var handedOut sync.Map

// freeAddress returns an address that no other test here has: they run side by side.
func freeAddress() string {
	for {
		a := etcdtest.FreeAddress()
		if _, taken := handedOut.LoadOrStore(a, true); !taken {
			return a
		}
	}
}

// roster is the tunnels of all masters that were not removed.
func (f *testFleet) roster() map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	peers := map[string]string{}
	for _, m := range f.masters {
		if !m.removed {
			peers[m.name] = m.tunnel
		}
	}
	return peers
}

// tellRoster is what every master does when the roster changes.
func (f *testFleet) tellRoster() {
	peers := f.roster()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.masters {
		if m.routes != nil {
			m.routes.Set(peers)
		}
	}
}

func (f *testFleet) candidates() (list []Candidate) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.masters {
		c := Candidate{Name: m.name, PeerURL: "https://" + m.raft, Alive: m.member != nil, Drained: m.drained, Removed: m.removed}
		if m.member != nil {
			c.Member = m.member.Status().MemberID
		}
		list = append(list, c)
	}
	return list
}

func (m *testMaster) config() Config {
	files, err := m.credentials.WriteFiles(filepath.Join(m.dir, "pki"))
	if err != nil {
		m.f.t.Fatal(err)
	}
	return Config{
		Name: m.name, Dir: filepath.Join(m.dir, "etcd"), ClientListen: m.client, PeerListen: m.raft, PeerURL: "https://" + m.raft,
		TLS: func() (cert, key, ca string) { return files.Cert, files.Key, files.CA }, Failed: m.failed, Logger: testLog(m.f.t).With().Str("master", m.name).Logger(),
	}
}

func testLog(t testing.TB) zerolog.Logger {
	if level, err := zerolog.ParseLevel(os.Getenv("ETCD_TEST_LOG")); err == nil && level != zerolog.NoLevel {
		return zerolog.New(zerolog.ConsoleWriter{Out: os.Stderr, TimeFormat: "05.000"}).Level(level).With().Timestamp().Logger()
	}
	return zerolog.Nop()
}

// start starts a master, as `serve` would.
func (m *testMaster) start(birth bool) {
	m.f.t.Helper()
	if err := m.tryStart(birth); err != nil {
		m.f.t.Fatalf("%s: %v", m.name, err)
	}
}

func (m *testMaster) tryStart(birth bool) error {
	return m.startBy(func(ctx context.Context, member *Member) error { return member.Open(ctx, birth) })
}

func (m *testMaster) startBy(open func(context.Context, *Member) error) error {
	member := New(m.config())
	member.noFsync = true
	ctx, cancel := context.WithCancel(context.Background())
	if err := open(ctx, member); err != nil {
		cancel()
		member.Close()
		return err
	}
	routes := OpenRoutes(RoutesConfig{Self: m.name, Own: m.client, File: filepath.Join(m.dir, "routes"), TLS: m.credentials.ClientTLS, Logger: testLog(m.f.t)})
	routes.Set(m.f.roster())
	client, err := clientv3.New(clientv3.Config{
		Endpoints: routes.Endpoints(), Logger: zap.NewNop(), DialOptions: []grpc.DialOption{grpc.WithContextDialer(routes.Dial)},
	})
	if err != nil {
		cancel()
		return err
	}
	l, err := net.Listen("tcp", m.tunnel)
	if err != nil {
		cancel()
		member.Close()
		return err
	}
	var wait sync.WaitGroup
	wait.Go(func() { acceptTunnels(ctx, tls.NewListener(l, m.credentials.ServerTLS(Protocol)), member) })
	wait.Go(func() { member.Run(ctx, client, routes) })
	m.f.mu.Lock()
	m.member, m.routes, m.etcd = member, routes, client
	m.f.mu.Unlock()
	m.f.tellRoster()
	m.end = func() {
		cancel()
		l.Close()
		client.Close()
		wait.Wait()
	}
	return nil
}

func acceptTunnels(ctx context.Context, l net.Listener, member *Member) {
	var wait sync.WaitGroup
	defer wait.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		wait.Go(func() {
			t := c.(*tls.Conn)
			if err := t.HandshakeContext(ctx); err != nil || t.ConnectionState().NegotiatedProtocol != Protocol {
				c.Close()
				return
			}
			member.ServeTunnel(ctx, c)
		})
	}
}

// stop ends a master in good order; it may be started again.
func (m *testMaster) stop() {
	m.f.mu.Lock()
	end := m.end
	m.end = nil
	m.member = nil
	m.f.mu.Unlock()
	if end != nil {
		end()
	}
}

// crash ends a master that hands nothing over.
func (m *testMaster) crash() {
	m.f.t.Helper()
	if r := m.member.present(); r != nil {
		r.closing.Store(true)
		r.server.Server.HardStop()
	}
	m.stop()
}

// steer runs Steer on a master until the test ends or the returned function is called.
func (m *testMaster) steer() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	s := Steering{Client: m.etcd, Routes: m.routes, Masters: m.f.candidates, Logger: testLog(m.f.t), hurry: time.Second}
	go func() {
		defer close(done)
		Steer(ctx, s)
	}()
	stop = func() { cancel(); <-done }
	m.f.t.Cleanup(stop)
	return stop
}

// put writes through a master's client, which takes a quorum; nil when it is done within the limit.
func (m *testMaster) put(key string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_, err := m.etcd.Put(ctx, key, "by "+m.name)
	return err
}

// eventually tries until what is nil.
func eventually(t testing.TB, name string, what func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := what()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", name, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// shape waits until the members, as a master sees them, are healthy and are: voters and learners by name, each in order.
func (m *testMaster) shape(voters, learners string) {
	m.f.t.Helper()
	eventually(m.f.t, fmt.Sprintf("voters %s and learners %s", voters, learners), func() error {
		seats, err := Members(context.Background(), m.etcd, m.routes)
		if err != nil {
			return err
		}
		var v, l []string
		for _, s := range seats {
			name := s.Name
			if !s.Healthy {
				name += "(ill)"
			}
			if s.Learner {
				l = append(l, name)
			} else {
				v = append(v, name)
			}
		}
		slices.Sort(v)
		slices.Sort(l)
		if got := strings.Join(v, " ") + "/" + strings.Join(l, " "); got != voters+"/"+learners {
			return errors.New("they are " + got)
		}
		return nil
	})
}

func (m *testMaster) works() {
	m.f.t.Helper()
	eventually(m.f.t, m.name+" writes", func() error { return m.put("/works", 3*time.Second) })
}
