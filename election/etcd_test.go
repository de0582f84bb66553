package election

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/election/etcdtest"
)

// shared is one real etcd for all tests of the package; each test has a fleet of its own in it.
var shared *etcdtest.Server

func TestMain(m *testing.M) { os.Exit(etcdtest.Main(m, func(s *etcdtest.Server) { shared = s })) }

// SharedEndpoint is for the tests that see the package from outside.
func SharedEndpoint() string { return shared.URL() }

// newPrefix returns the prefix of a fleet that nobody else uses.
func newPrefix() string { return "/nfs-fleet/" + etcdtest.FleetName() + "/" }

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
		endpoints = []string{shared.URL()}
	}
	e, err := New(Config{Client: etcdtest.Dial(t, endpoints...), Prefix: prefix, Master: master, TTL: MinTTL})
	return run(t, e, err)
}
