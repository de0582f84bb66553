package election

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// shared is one real etcd for all tests of the package; each test has a fleet of its own in it.
var shared *server

func TestMain(m *testing.M) {
	code, err := withEtcd(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func withEtcd(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "election-etcd-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if shared, err = startServer(dir, freeURL(), freeURL()); err != nil {
		return 0, err
	}
	defer shared.etcd.Close()
	return m.Run(), nil
}

// SharedEndpoint is for the tests that see the package from outside.
func SharedEndpoint() string { return shared.client.String() }

// server is an etcd in this process.
type server struct {
	etcd         *embed.Etcd
	client, peer url.URL
}

func startServer(dir string, client, peer url.URL) (*server, error) {
	c := embed.NewConfig()
	c.Dir, c.UnsafeNoFsync = dir, true
	c.AuthTokenTTL, c.BcryptCost = 1, 4 // seconds; the test with users waits for it
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	e, err := embed.StartEtcd(c)
	if err != nil {
		return nil, err
	}
	<-e.Server.ReadyNotify()
	return &server{e, client, peer}, nil
}

func freeURL() url.URL {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer l.Close()
	return url.URL{Scheme: "http", Host: l.Addr().String()}
}

// ownServer starts an etcd for a test that does something to it.
func ownServer(t *testing.T, dir string) *server {
	t.Helper()
	s, err := startServer(dir, freeURL(), freeURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.etcd.Close() })
	return s
}

func dial(t testing.TB, endpoints ...string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

var fleets atomic.Int64

// newPrefix returns the prefix of a fleet that nobody else uses.
func newPrefix() string { return fmt.Sprintf("/nfs-fleet/t%d/", fleets.Add(1)) }

// node is a running election of a test.
type node struct {
	Election
	t    testing.TB
	stop context.CancelFunc
	done chan error
}

func run(t testing.TB, e Election, err error) *node {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := &node{e, t, cancel, make(chan error, 1)}
	go func() { n.done <- e.Run(ctx) }()
	t.Cleanup(func() { n.end() })
	return n
}

// end stops the election and returns what Run returned.
func (n *node) end() error {
	n.stop()
	err := <-n.done
	n.done <- err
	return err
}

const patience = 20 * time.Second // far more than any step of a test takes

// term waits for the next term.
func (n *node) term() *Term {
	n.t.Helper()
	select {
	case t, ok := <-n.Terms():
		if !ok {
			n.t.Fatal("Run ended while a term was awaited")
		}
		return t
	case <-time.After(patience):
		n.t.Fatal("no term came")
	}
	return nil
}

// cause waits for the end of a term.
func cause(t testing.TB, term *Term) error {
	t.Helper()
	select {
	case <-term.Context().Done():
		return context.Cause(term.Context())
	case <-time.After(patience):
		t.Fatalf("the term for %s did not end", term.Shard())
	}
	return nil
}

// until waits for something that Changed tells of.
func (n *node) until(what string, is func() bool) {
	n.t.Helper()
	deadline := time.After(patience)
	for !is() {
		select {
		case <-n.Changed():
		case <-deadline:
			n.t.Fatalf("%s: it never came to that", what)
		}
	}
}

func etcdNode(t testing.TB, prefix, master string, endpoints ...string) *node {
	t.Helper()
	if len(endpoints) == 0 {
		endpoints = []string{shared.client.String()}
	}
	e, err := New(Config{Client: dial(t, endpoints...), Prefix: prefix, Master: master, TTL: MinTTL})
	return run(t, e, err)
}
