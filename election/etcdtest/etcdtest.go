// Package etcdtest runs real etcd members inside a test's process.
//
// A package whose tests share one member starts it in TestMain (Main) and gives each test a fleet of its own in it
// (FleetName); a test that does something to its etcd starts one for itself (New), or a cluster of several (NewCluster).
// A member keeps its directory and its ports over Stop or Kill and Start. Members do not fsync: they are for tests.
//
// With ETCDTEST_URL=http://127.0.0.1:2379 in the environment the tests that share a member use the etcd there, of
// whatever version it is.
package etcdtest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// patience is how long a member may take to be ready. It never does; a test that would hang ends with an error.
const patience = time.Minute

// Server is one etcd member. Its methods are not for concurrent use, those that only read apart.
type Server struct {
	name, dir    string
	client, peer url.URL
	cluster      string // the initial cluster, as etcd's flag has it

	etcd    *embed.Etcd // nil while it does not run
	closing sync.WaitGroup
}

// Main starts a member, hands it to use, runs the tests and returns what TestMain exits with.
func Main(m *testing.M, use func(*Server)) int {
	if there := os.Getenv("ETCDTEST_URL"); there != "" {
		u, err := url.Parse(there)
		if err != nil {
			fmt.Fprintln(os.Stderr, "ETCDTEST_URL:", err)
			return 1
		}
		use(&Server{client: *u})
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "etcdtest-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	servers, err := start(dir, 1)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer servers[0].Stop()
	use(servers[0])
	return m.Run()
}

// New starts a member that ends with the test.
func New(t testing.TB) *Server {
	t.Helper()
	return NewCluster(t, 1)[0]
}

// NewCluster starts a cluster of n voters that ends with the test. It returns when all are ready.
func NewCluster(t testing.TB, n int) []*Server {
	t.Helper()
	servers, err := start(t.TempDir(), n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, s := range servers {
			s.Kill() // nobody is left to hand leadership to in the end
		}
		for _, s := range servers {
			s.closing.Wait()
		}
	})
	return servers
}

// start starts n members in directories below dir, on other ports when somebody was faster to take one.
func start(dir string, n int) ([]*Server, error) {
	for attempt := 0; ; attempt++ {
		servers := newServers(filepath.Join(dir, strconv.Itoa(attempt)), n)
		errs := make([]error, n)
		var wait sync.WaitGroup
		for i, s := range servers {
			wait.Go(func() { errs[i] = s.Start() })
		}
		wait.Wait()
		err := errors.Join(errs...)
		if err == nil {
			return servers, nil
		}
		for _, s := range servers {
			s.Kill()
			s.closing.Wait()
		}
		if attempt == 5 {
			return nil, err
		}
	}
}

func newServers(dir string, n int) []*Server {
	servers, cluster := make([]*Server, n), make([]string, n)
	for i := range servers {
		s := &Server{name: "e" + strconv.Itoa(i+1), client: freeURL(), peer: freeURL()}
		s.dir = filepath.Join(dir, s.name)
		servers[i], cluster[i] = s, s.name+"="+s.peer.String()
	}
	for _, s := range servers {
		s.cluster = strings.Join(cluster, ",")
	}
	return servers
}

// Start starts a member that was stopped or killed, where and with what it was. It returns when it is ready, which takes
// a quorum.
func (s *Server) Start() error {
	s.closing.Wait()
	c := embed.NewConfig()
	c.Name, c.Dir, c.UnsafeNoFsync = s.name, s.dir, true
	c.AuthTokenTTL, c.BcryptCost = 1, 4 // seconds, and the least: for tests with users
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{s.client}, []url.URL{s.client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{s.peer}, []url.URL{s.peer}
	c.InitialCluster = s.cluster
	etcd, err := embed.StartEtcd(c)
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	s.etcd = etcd
	select {
	case <-etcd.Server.ReadyNotify():
		return nil
	case err = <-etcd.Err():
	case <-time.After(patience):
		err = errors.New("it does not get ready")
	}
	s.Kill()
	return fmt.Errorf("start etcd: %w", err)
}

// Stop ends the member as a signal would: a leader of several hands over first. It does nothing when it does not run.
func (s *Server) Stop() {
	s.closing.Wait()
	if s.etcd != nil {
		s.etcd.Close()
		s.etcd = nil
	}
}

// Kill ends the member with nothing handed over. It returns when it is no part of its cluster any more; its connections
// end soon after.
func (s *Server) Kill() {
	etcd := s.etcd
	if s.etcd = nil; etcd == nil {
		return
	}
	etcd.Server.HardStop()
	s.closing.Go(etcd.Close)
}

// Etcd is the member itself; nil while it does not run.
func (s *Server) Etcd() *embed.Etcd { return s.etcd }

// Leads reports whether the member leads its cluster.
func (s *Server) Leads() bool {
	return s.etcd != nil && s.etcd.Server.Leader() == s.etcd.Server.MemberID()
}

// URL is what clients call the member: http://host:port.
func (s *Server) URL() string { return s.client.String() }

// Host is the host:port of the member's client listener.
func (s *Server) Host() string { return s.client.Host }

// URLs are the URLs of several members.
func URLs(servers []*Server) []string {
	urls := make([]string, len(servers))
	for i, s := range servers {
		urls[i] = s.URL()
	}
	return urls
}

// Dial returns a client of the member, which ends with the test.
func (s *Server) Dial(t testing.TB) *clientv3.Client {
	t.Helper()
	return Dial(t, s.URL())
}

// Dial returns a client of the endpoints, which ends with the test.
func Dial(t testing.TB, endpoints ...string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

var (
	fleets atomic.Int64
	run    = strconv.FormatUint(rand.Uint64(), 36)
)

// FleetName returns the name of a fleet that nobody else uses, in this process or another.
func FleetName() string { return "t" + run + "-" + strconv.FormatInt(fleets.Add(1), 10) }

// FreeAddress returns a loopback host:port that nobody listens on. It is below the ports that the kernel gives to
// connections, so that nobody takes it by chance while the test has nothing there.
func FreeAddress() string {
	for {
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(15000+rand.IntN(17000)))
		if err != nil {
			continue
		}
		defer l.Close()
		return l.Addr().String()
	}
}

func freeURL() url.URL { return url.URL{Scheme: "http", Host: FreeAddress()} }
