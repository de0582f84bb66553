package master

import (
	"context"
	"encoding/json"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/nfs-fleet/nfs-fleet/exporter/hello"
	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

// answers greets a master until ok accepts its answer.
func (r *running) answers(what string, g hello.Greeting, ok func(hello.Answer) bool) hello.Answer {
	r.Helper()
	var last hello.Answer
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		var conn net.Conn
		if conn, err = net.Dial("tcp", r.cfg.Listen.NFS); err != nil {
			continue
		}
		c := hello.NewClient(conn)
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		last, err = c.Hello(ctx, g)
		cancel()
		c.Close() //nolint:errcheck // another is made
		if err == nil && ok(last) {
			return last
		}
	}
	r.Fatalf("%s: last answered %+v, %v", what, last, err)
	return last
}

func targetNames(a hello.Answer) (out []string) {
	for _, t := range a.Targets {
		out = append(out, t.Name)
	}
	return out
}

func TestEveryMasterAnswersHello(t *testing.T) {
	all, server := several(t, "m1", "m2", "m3")
	m1 := all["m1"]
	m1.until("three masters serving", inStep(3, 1))
	g := hello.Greeting{Slave: "Web17", Instance: "i1", Mode: "relay", Version: "v1", Mounts: []hello.Mount{{Name: "_nfs._tcp.web17.slaves.nfs-fleet.internal", Shard: "www", Dir: "/srv/www"}}}
	welcome := func(a hello.Answer) bool { return a.Status == hello.OK && len(a.Targets) == 3 }
	order := targetNames(m1.answers("an order", g, welcome))
	for name, m := range all {
		a := m.answers("an answer of "+name, g, welcome)
		if got := targetNames(a); !slices.Equal(got, order) || a.Master != name || a.Revision == 0 {
			t.Errorf("%s answers %+v, m1 names %v", name, a, order)
		}
		for _, target := range a.Targets {
			if want := port(t, all[target.Name].cfg.Listen.NFS); target.Host != "127.0.0.1" || int(target.Port) != want {
				t.Errorf("%s says that %s is at %s:%d, want port %d", name, target.Name, target.Host, target.Port, want)
			}
		}
	}
	for _, bad := range []string{"", "_x", "a..b", strings.Repeat("x", 64), "a b"} {
		m1.answers("a name that is none", hello.Greeting{Slave: bad}, func(a hello.Answer) bool {
			return a.Status == hello.Refused && len(a.Targets) == 0 && a.Why != ""
		})
	}

	// The home that the fleet gives it comes first, on all masters.
	slave := fleet.Slave{Name: "web17", Master: order[2], Fallbacks: []string{order[1]}, Mode: fleet.ModeRelay}
	put(t, server.Dial(t), fleet.KeysOf(m1.cfg.Fleet).Slave("web17"), slave)
	want := []string{order[2], order[1], order[0]}
	for name, m := range all {
		m.answers("the home, of "+name, g, func(a hello.Answer) bool { return slices.Equal(targetNames(a), want) })
	}

	// A drained master sends slaves elsewhere.
	if err := m1.client.Drain(t.Context(), "m2", console.DrainRequest{}); err != nil {
		t.Fatal(err)
	}
	all["m2"].answers("m2 drained", g, func(a hello.Answer) bool {
		return a.Status == hello.Leave && len(a.Targets) == 2 && !slices.Contains(targetNames(a), "m2")
	})

	// All of etcd goes; what was known goes on being told.
	before := targetNames(m1.answers("the order without m2", g, func(a hello.Answer) bool { return a.Status == hello.OK && len(a.Targets) == 2 }))
	server.Stop()
	m1.answers("an answer without etcd", g, func(a hello.Answer) bool {
		return a.Status == hello.OK && slices.Equal(targetNames(a), before)
	})
}

func put(t *testing.T, c *clientv3.Client, key string, value any) {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put(t.Context(), key, string(text)); err != nil {
		t.Fatal(err)
	}
}

// slaveIn reads a slave's record; the zero value: there is none.
func slaveIn(t *testing.T, c *clientv3.Client, fleetName, name string) (s fleet.Slave) {
	t.Helper()
	resp, err := c.Get(t.Context(), fleet.KeysOf(fleetName).Slave(name))
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range resp.Kvs {
		if err := json.Unmarshal(kv.Value, &s); err != nil {
			t.Fatal(err)
		}
	}
	return s
}
