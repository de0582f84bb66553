package e2e

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/nfs-fleet/nfs-fleet/e2e/history"
)

// EtcdKind says which etcd a fleet uses.
type EtcdKind string

// The kinds of etcd.
const (
	Embedded   EtcdKind = ""       // inside the masters
	EtcdDebian EtcdKind = "debian" // external, Debian's etcd-server: 3.4 on Debian 12
	EtcdModule EtcdKind = "module" // external, of the version that this module embeds
)

// binary returns the program of an external etcd.
func (k EtcdKind) binary(t testing.TB) string {
	t.Helper()
	if k == EtcdModule {
		return built(t, "go.etcd.io/etcd/server/v3")
	}
	needCommands(t, "etcd")
	return "etcd"
}

// Etcd is an external etcd cluster, each member on a host of its own, named e1, e2, ….
type Etcd struct {
	Members []*EtcdMember
}

// EtcdMember is one etcd process with what it needs to be started again.
type EtcdMember struct {
	Host *Host
	Name string

	t    testing.TB
	argv []string
	log  *procLog
	proc *proc
}

// StartEtcd starts an external cluster; it answers when all members have joined.
func StartEtcd(t testing.TB, lan *LAN, kind EtcdKind, members int) *Etcd {
	t.Helper()
	e, bin := &Etcd{}, kind.binary(t)
	var cluster []string
	for i := range members {
		name := fmt.Sprintf("e%d", i+1)
		host := lan.Host(t, name)
		e.Members = append(e.Members, &EtcdMember{Host: host, Name: name, t: t, log: &procLog{}})
		cluster = append(cluster, fmt.Sprintf("%s=http://%s:2380", name, host.Addr))
	}
	dir := t.TempDir()
	for _, m := range e.Members {
		client, peer := "http://"+m.Host.Addr+":2379", "http://"+m.Host.Addr+":2380"
		m.argv = []string{
			bin, "--name", m.Name, "--data-dir", filepath.Join(dir, m.Name),
			"--listen-client-urls", client, "--advertise-client-urls", client,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
			"--initial-cluster", strings.Join(cluster, ","), "--initial-cluster-state", "new",
		}
		m.Start()
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("log of %s:\n%s", m.Name, m.log.tail(15))
			}
		})
	}
	eventually(t, 30*time.Second, "etcd answers", func() bool { return e.healthy() == nil })
	return e
}

// Start starts the member, without waiting for anything.
func (m *EtcdMember) Start() {
	m.t.Helper()
	m.proc = start(m.t, m.Name, m.Host, m.log, m.argv, nil)
}

// Kill ends the member as a power failure would.
func (m *EtcdMember) Kill() {
	m.t.Helper()
	m.proc.kill(m.t)
}

// Signal sends sig to the member.
func (m *EtcdMember) Signal(sig syscall.Signal) {
	m.t.Helper()
	m.proc.signal(m.t, sig)
}

// Flag is what serve's --etcd takes.
func (e *Etcd) Flag() string {
	var urls []string
	for _, m := range e.Members {
		urls = append(urls, "http://"+m.Host.Addr+":2379")
	}
	return strings.Join(urls, ",")
}

// hosts are the members' hosts.
func (e *Etcd) hosts() (all []*Host) {
	for _, m := range e.Members {
		all = append(all, m.Host)
	}
	return all
}

// healthy asks every member for a linearizable read.
func (e *Etcd) healthy() error {
	for _, m := range e.Members {
		if err := withEtcd(m.Host, m.Host.Addr, func(ctx context.Context, c *clientv3.Client) error {
			_, err := c.Get(ctx, "health")
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// withEtcd runs fn with a client of the etcd at addr, as it is seen from host. fn has ten seconds.
func withEtcd(host *Host, addr string, fn func(ctx context.Context, c *clientv3.Client) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	addr = net.JoinHostPort(addr, "2379")
	c, err := clientv3.New(clientv3.Config{
		Context: ctx, Endpoints: []string{"http://" + addr}, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return host.dial(ctx, "tcp", addr)
		})},
	})
	if err != nil {
		return fmt.Errorf("etcd client: %w", err)
	}
	defer c.Close()
	return fn(ctx, c)
}

// etcdMark is a key that a reader of the history writes, to know where the present is. No fleet's prefix holds it.
const etcdMark = "/e2e/mark"

// etcdHistory returns the changes of the fleet's keys after revision, as the etcd at addr has them, and the last revision
// that it has looked at. What has been compacted away is an error.
func etcdHistory(host *Host, addr, fleet string, revision int64) (events []history.Event, last int64, err error) {
	prefix := "/nfs-fleet/" + fleet + "/"
	err = withEtcd(host, addr, func(ctx context.Context, c *clientv3.Client) error {
		mark, err := c.Put(ctx, etcdMark, "")
		if err != nil {
			return err
		}
		last = mark.Header.Revision
		for r := range c.Watch(ctx, "/", clientv3.WithRange("0"), clientv3.WithRev(revision+1), clientv3.WithFragment()) {
			if err := r.Err(); err != nil {
				return fmt.Errorf("watch from revision %d: %w", revision+1, err)
			}
			for _, e := range r.Events {
				if e.Kv.ModRevision > last {
					return nil
				}
				if key, ours := strings.CutPrefix(string(e.Kv.Key), prefix); ours {
					events = append(events, history.Event{
						Revision: e.Kv.ModRevision, Key: key, Deleted: e.Type == clientv3.EventTypeDelete, Value: string(e.Kv.Value), Created: e.Kv.CreateRevision,
					})
				}
				if string(e.Kv.Key) == etcdMark && e.Kv.ModRevision == last {
					return nil
				}
			}
		}
		return fmt.Errorf("watch from revision %d: %w", revision+1, context.Cause(ctx))
	})
	return events, last, err
}
