package election_test

import (
	"context"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/nfs-fleet/nfs-fleet/election"
	"github.com/nfs-fleet/nfs-fleet/election/electiontest"
	"github.com/nfs-fleet/nfs-fleet/election/etcdtest"
)

var clusters atomic.Int64

func newPrefix() string { return fmt.Sprintf("/nfs-fleet/suite%d/", clusters.Add(1)) }

func TestEtcd(t *testing.T) {
	electiontest.Suite(t, func(t *testing.T) electiontest.Cluster {
		return newEtcdCluster(t, election.SharedEndpoint())
	})
}

// TestOtherEtcds runs the suite on etcds that are processes of their own: Debian's, as long as it is there, and those of
// -etcds. They fsync.
func TestOtherEtcds(t *testing.T) {
	binaries := []string{"/usr/bin/etcd"}
	if *etcds != "" {
		binaries = append(binaries, strings.Split(*etcds, ",")...)
	}
	for _, binary := range binaries {
		t.Run(binary, func(t *testing.T) {
			if _, err := os.Stat(binary); err != nil {
				t.Skip(err)
			}
			url := startProcess(t, binary)
			electiontest.Suite(t, func(t *testing.T) electiontest.Cluster { return newEtcdCluster(t, url) })
		})
	}
}

var etcds = flag.String("etcds", "", "binaries of more etcds to test on, comma-separated")

// startProcess starts an etcd that ends with the test, and returns its URL.
func startProcess(t *testing.T, binary string) string {
	t.Helper()
	client, peer := "http://"+etcdtest.FreeAddress(), "http://"+etcdtest.FreeAddress()
	cmd := exec.Command(binary, "--data-dir", t.TempDir(), "--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed: the error says so
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := etcdtest.Dial(t, client).Get(ctx, "x"); err != nil { // it waits until there is an answer
		t.Fatal(err)
	}
	return client
}

func newEtcdCluster(t *testing.T, endpoint string) *etcdCluster {
	return &etcdCluster{prefix: newPrefix(), endpoint: endpoint, admin: etcdtest.Dial(t, endpoint), proxies: map[string]*etcdtest.Proxy{}}
}

func TestMemory(t *testing.T) {
	electiontest.Suite(t, func(t *testing.T) electiontest.Cluster {
		return &memoryCluster{newPrefix(), election.NewMemory()}
	})
}

// etcdCluster reaches a real etcd through one proxy a master.
type etcdCluster struct {
	prefix   string
	endpoint string
	admin    *clientv3.Client

	mu      sync.Mutex // guards proxies
	proxies map[string]*etcdtest.Proxy
}

func (c *etcdCluster) Prefix() string { return c.prefix }

func (c *etcdCluster) proxy(t *testing.T, master string) *etcdtest.Proxy {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.proxies[master] == nil {
		u, err := url.Parse(c.endpoint)
		if err != nil {
			t.Fatal(err)
		}
		c.proxies[master] = etcdtest.NewProxy(t, u.Host)
	}
	return c.proxies[master]
}

func (c *etcdCluster) Elect(t *testing.T, config election.Config) election.Election {
	t.Helper()
	config.Client, config.TTL = etcdtest.Dial(t, c.proxy(t, config.Master).URL()), election.MinTTL
	e, err := election.New(config)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (c *etcdCluster) Cut(t *testing.T, master string, cut bool) { c.proxy(t, master).Cut(cut) }

func (c *etcdCluster) Get(t *testing.T, key string) ([]byte, int64) {
	t.Helper()
	resp, err := c.admin.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range resp.Kvs {
		return kv.Value, kv.CreateRevision
	}
	return nil, 0
}

func (c *etcdCluster) Delete(t *testing.T, key string) {
	t.Helper()
	if _, err := c.admin.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
}

func (c *etcdCluster) Put(t *testing.T, key string, value []byte) {
	t.Helper()
	if _, err := c.admin.Put(t.Context(), key, string(value)); err != nil {
		t.Fatal(err)
	}
}

func (c *etcdCluster) Revoke(t *testing.T, lease int64) {
	t.Helper()
	if _, err := c.admin.Revoke(t.Context(), clientv3.LeaseID(lease)); err != nil {
		t.Fatal(err)
	}
}

// memoryCluster is an election.Memory. Its leases are shorter than etcd allows.
type memoryCluster struct {
	prefix string
	*election.Memory
}

func (c *memoryCluster) Prefix() string { return c.prefix }

func (c *memoryCluster) Elect(t *testing.T, config election.Config) election.Election {
	t.Helper()
	config.TTL = time.Second
	e, err := c.New(config)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (c *memoryCluster) Cut(_ *testing.T, master string, cut bool)    { c.Memory.Cut(master, cut) }
func (c *memoryCluster) Get(_ *testing.T, key string) ([]byte, int64) { return c.Memory.Get(key) }
func (c *memoryCluster) Delete(_ *testing.T, key string)              { c.Memory.Delete(key) }
func (c *memoryCluster) Put(_ *testing.T, key string, value []byte)   { c.Memory.Put(key, value) }
func (c *memoryCluster) Revoke(t *testing.T, lease int64) {
	t.Helper()
	if !c.Memory.Revoke(lease) {
		t.Fatalf("no lease %x", lease)
	}
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	client := etcdtest.Dial(t, election.SharedEndpoint())
	good := election.Config{Client: client, Prefix: "/nfs-fleet/x/", Master: "m1"}
	if _, err := election.New(good); err != nil {
		t.Errorf("defaults: %v", err)
	}
	for want, change := range map[string]func(*election.Config){
		"slash":       func(c *election.Config) { c.Prefix = "/nfs-fleet/x" },
		"not a name":  func(c *election.Config) { c.Master = "" },
		"use 2s":      func(c *election.Config) { c.TTL = time.Second },
		"negative":    func(c *election.Config) { c.TTL = -1 },
		"etcd client": func(c *election.Config) { c.Client = nil },
	} {
		c := good
		change(&c)
		if _, err := election.New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want something with %q", err, want)
		}
	}
}
