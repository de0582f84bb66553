package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/nfs-fleet/nfs-fleet/e2e/history"
)

// FleetConfig says what a fleet is made of.
type FleetConfig struct {
	Masters     int
	Etcd        EtcdKind
	EtcdMembers int           // of an external etcd; 0: one
	TTL         time.Duration // of the masters' leases; 0: the product's default
	Flags       []string      // more flags of every master's serve
	// DataDir, when set, says where a master keeps its data.
	DataDir func(name string) string
}

// Fleet is several masters, each on a host of its own (m1, m2, …), and a host for those who use them.
type Fleet struct {
	FleetConfig
	LAN     *LAN
	Etcd    *Etcd // nil: embedded
	Masters []*Master
	Outside *Host // a host on the LAN that runs nothing

	t testing.TB
}

// StartFleet starts a fleet and waits until every master is ready and, with an embedded etcd, until it has all the voters that
// it is to have.
func StartFleet(t testing.TB, c FleetConfig) *Fleet {
	t.Helper()
	f := &Fleet{FleetConfig: c, LAN: NewLAN(t), t: t}
	f.Outside = f.LAN.Host(t, "outside")
	if c.Etcd != Embedded {
		f.Etcd = StartEtcd(t, f.LAN, c.Etcd, max(1, c.EtcdMembers))
	}
	for range c.Masters {
		f.Add()
	}
	for _, m := range f.Masters {
		m.WaitReady()
	}
	f.WaitVoters(votersOf(c.Masters))
	return f
}

// votersOf is how many of so many masters are voters of the embedded etcd.
func votersOf(masters int) int { return min(5, masters-1+masters%2) }

// Add adds a master and starts it; with an embedded etcd it joins by a token of the first, which is waited for.
func (f *Fleet) Add() *Master {
	f.t.Helper()
	name := fmt.Sprintf("m%d", len(f.Masters)+1)
	c := MasterConfig{Name: name, Host: f.LAN.Host(f.t, name)}
	if f.DataDir != nil {
		c.DataDir = f.DataDir(name)
	}
	if f.TTL != 0 {
		c.Flags = append(c.Flags, "--lease-ttl", f.TTL.String())
	}
	c.Flags = append(c.Flags, f.Flags...)
	if f.Etcd != nil {
		c.Flags = append(c.Flags, "--etcd", f.Etcd.Flag())
	} else if len(f.Masters) > 0 {
		f.Masters[0].WaitReady()
		c.Join = f.JoinToken(f.Masters[0])
	}
	m := NewMaster(f.t, c)
	f.Masters = append(f.Masters, m)
	m.Start()
	return m
}

// JoinToken has a master make a token for a new one.
func (f *Fleet) JoinToken(m *Master) string {
	f.t.Helper()
	var made struct{ Token string }
	m.JSON(&made, "token", "create", "--join")
	if made.Token == "" {
		f.t.Fatal("no join token")
	}
	return made.Token
}

// WaitVoters waits until the embedded etcd has so many voters; without one there is nothing to wait for.
func (f *Fleet) WaitVoters(n int) {
	f.t.Helper()
	if f.Etcd != nil {
		return
	}
	roles := map[string]string{}
	defer func() {
		if f.t.Failed() {
			f.t.Logf("etcd's members: %v", roles)
		}
	}()
	eventually(f.t, 60*time.Second, fmt.Sprintf("%d voters", n), func() bool {
		s, err := f.Masters[0].Status()
		voters := 0
		for _, m := range s.Masters {
			roles[m.Name] = m.Etcd
			if m.Etcd == "voter" || m.Etcd == "leader" {
				voters++
			}
		}
		return err == nil && voters == n
	})
}

// Names returns the masters' names.
func (f *Fleet) Names() (names []string) {
	for _, m := range f.Masters {
		names = append(names, m.Name)
	}
	return names
}

// Master returns a master by its name.
func (f *Fleet) Master(name string) *Master {
	f.t.Helper()
	for _, m := range f.Masters {
		if m.Name == name {
			return m
		}
	}
	f.t.Fatalf("no master %q", name)
	return nil
}

// WaitServed waits until every master that runs serves at least generation n of the shard.
func (f *Fleet) WaitServed(shard string, n uint64, limit time.Duration) {
	f.t.Helper()
	behind := map[string]string{}
	defer func() {
		if f.t.Failed() {
			f.t.Logf("generation %d of %s is waited for: %v", n, shard, behind)
		}
	}()
	eventually(f.t, limit, fmt.Sprintf("every master serves generation %d of %s", n, shard), func() bool {
		clear(behind)
		for _, m := range f.Masters {
			if m.Down() {
				continue
			}
			s, err := m.Status()
			if got := s.shard(shard); err != nil || got.Generation < n || got.Stale {
				behind[m.Name] = fmt.Sprintf("%d, stale %v, problem %q, %v", got.Generation, got.Stale, got.Problem, err)
			}
		}
		return len(behind) == 0
	})
}

// createShard makes a shard that any client may read.
func (f *Fleet) createShard(name string) {
	f.t.Helper()
	eventually(f.t, 30*time.Second, "the shard "+name, func() bool { return f.Masters[0].CLI("shard", "create", name, "--insecure").Code == 0 })
}

// publishAnywhere publishes a directory through the first master that can do it, and waits until all in step serve it.
func (f *Fleet) publishAnywhere(shard, dir, note string) (g Generation) {
	f.t.Helper()
	var last Result
	defer func() {
		if f.t.Failed() {
			f.t.Logf("publish %s: %v", shard, last)
		}
	}()
	eventually(f.t, 30*time.Second, "a publish of "+shard, func() bool {
		for _, m := range f.Masters {
			if m.Down() {
				continue
			}
			last = m.CLI("publish", shard, dir, "--note", note, "--wait", "-o", "json")
			if last.Code == 0 {
				return json.Unmarshal([]byte(last.Stdout), &g) == nil
			}
		}
		return false
	})
	return g
}

// Leader returns who leads the shard, as some master sees it; "" when nobody does.
func (f *Fleet) Leader(shard string) string {
	f.t.Helper()
	for _, m := range f.Masters {
		if s, err := m.Status(); err == nil && s.Etcd.Healthy {
			return s.shard(shard).Leader
		}
	}
	return ""
}

// Status asks the master for its status, without its help from the command line.
func (m *Master) Status() (s Status, err error) {
	code, body := m.Get("/v1/status")
	if code != 200 {
		return s, fmt.Errorf("status of %s: %d %s", m.Name, code, body)
	}
	return s, json.Unmarshal([]byte(body), &s)
}

// shard returns the status of one shard, zero when there is none.
func (s Status) shard(name string) ShardStatus {
	for _, sh := range s.Shards {
		if sh.Name == name {
			return sh
		}
	}
	return ShardStatus{}
}

// etcdAt says where the fleet's etcd is asked: the host, and the address as that host sees it.
func (f *Fleet) etcdAt() (*Host, string) {
	if f.Etcd != nil {
		return f.Etcd.Members[0].Host, f.Etcd.Members[0].Host.Addr
	}
	return f.Masters[0].Host, "127.0.0.1"
}

// watchKey waits until a change of the fleet's key, made after start was called, is one that ok wants, and returns its value.
func (f *Fleet) watchKey(key string, start func(), ok func(value string) bool) (value string, err error) {
	host, addr := f.etcdAt()
	err = withEtcd(host, addr, func(ctx context.Context, c *clientv3.Client) error {
		key := "/nfs-fleet/" + f.Masters[0].Fleet + "/" + key
		now, err := c.Get(ctx, key)
		if err != nil {
			return err
		}
		watch := c.Watch(ctx, key, clientv3.WithRev(now.Header.Revision+1))
		start()
		for r := range watch {
			for _, e := range r.Events {
				if value = string(e.Kv.Value); e.Type == clientv3.EventTypePut && ok(value) {
					return nil
				}
			}
		}
		return context.Cause(ctx)
	})
	return value, err
}

// WaitKey is watchKey for what must happen.
func (f *Fleet) WaitKey(key string, start func(), ok func(value string) bool) {
	f.t.Helper()
	if _, err := f.watchKey(key, start, ok); err != nil {
		f.t.Fatalf("wait for %s: %v", key, err)
	}
}

// History returns all that etcd knows of the fleet's past.
func (f *Fleet) History() []history.Event {
	f.t.Helper()
	host, addr := f.etcdAt()
	events, _, err := etcdHistory(host, addr, f.Masters[0].Fleet, 0)
	if err != nil {
		f.t.Fatalf("fetch etcd's history: %v", err)
	}
	return events
}
