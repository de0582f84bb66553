package master

import (
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/nfs-fleet/nfs-fleet/election/etcdtest"
	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

// skyRecords waits until the DNS records under a prefix are as ok wants them.
func (r *running) skyRecords(c *clientv3.Client, what, prefix string, ok func(records map[string]string) bool) map[string]string {
	r.Helper()
	got := map[string]string{}
	r.until(what, func(console.Status) bool {
		resp, err := c.Get(r.Context(), prefix, clientv3.WithPrefix())
		if err != nil {
			return false
		}
		clear(got)
		for _, kv := range resp.Kvs {
			got[strings.TrimPrefix(string(kv.Key), prefix)] = string(kv.Value)
			if kv.Lease != 0 {
				r.Errorf("%s has a lease", kv.Key)
			}
		}
		return ok(got)
	})
	return got
}

func has(keys ...string) func(map[string]string) bool {
	return func(got map[string]string) bool {
		for _, key := range keys {
			if _, there := got[key]; !there {
				return false
			}
		}
		return len(got) == len(keys)
	}
}

func TestTheCoordinatorKeepsRecordsForCoreDNS(t *testing.T) {
	domain := "d" + strings.ReplaceAll(etcdtest.FleetName(), "-", "") + ".example"
	set := func(c *Config) { c.Domain = domain }
	all, server := severalWith(t, set, "m1", "m2")
	m1, etcd := all["m1"], server.Dial(t)
	m1.until("two masters serving", inStep(2, 1))
	prefix := "/skydns/example/" + strings.TrimSuffix(domain, ".example") + "/"
	everything := has("_tcp/_nfs/m1", "_tcp/_nfs/m2", "masters/m1/a1", "masters/m2/a1")
	got := m1.skyRecords(etcd, "the records", prefix, everything)
	if text := got["masters/m1/a1"]; text != `{"host":"127.0.0.1","ttl":5,"fleet":"`+m1.cfg.Fleet+`"}` {
		t.Errorf("m1's address: %s", text)
	}

	// A slave is named while it is enrolled, and others' records are none of the fleet's business.
	put(t, etcd, prefix+"_tcp/_nfs/other", map[string]any{"host": "x.example", "ttl": 5, "fleet": "other"})
	put(t, etcd, prefix+"_tcp/_nfs/byhand", map[string]any{"host": "x.example", "ttl": 5})
	put(t, etcd, fleet.KeysOf(m1.cfg.Fleet).Slave("web17"), fleet.Slave{Name: "web17", Master: "m2", Fallbacks: []string{"m1"}, Mode: fleet.ModeRelay})
	got = m1.skyRecords(etcd, "a slave's records", prefix, has("_tcp/_nfs/m1", "_tcp/_nfs/m2", "_tcp/_nfs/other", "_tcp/_nfs/byhand",
		"masters/m1/a1", "masters/m2/a1", "slaves/web17/_tcp/_nfs/1", "slaves/web17/_tcp/_nfs/2"))
	if !strings.Contains(got["slaves/web17/_tcp/_nfs/1"], "m2.masters."+domain) {
		t.Errorf("the slave's first: %s", got["slaves/web17/_tcp/_nfs/1"])
	}
	for _, key := range []string{prefix + "_tcp/_nfs/other", prefix + "_tcp/_nfs/byhand", fleet.KeysOf(m1.cfg.Fleet).Slave("web17")} {
		if _, err := etcd.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}

	// A drained master goes, and so do all when another domain is chosen and when they are no longer wanted.
	if err := m1.client.Drain(t.Context(), "m2", console.DrainRequest{}); err != nil {
		t.Fatal(err)
	}
	m1.skyRecords(etcd, "m2 is drained", prefix, has("_tcp/_nfs/m1", "masters/m1/a1", "masters/m2/a1"))
	if err := m1.client.Undrain(t.Context(), "m2"); err != nil {
		t.Fatal(err)
	}
	m1.skyRecords(etcd, "m2 is back", prefix, everything)
	for _, m := range all {
		m.stop()
	}
	c := m1.cfg
	c.Domain = "new." + domain
	again := start(t, c)
	other := "/skydns/example/" + strings.TrimSuffix(domain, ".example") + "/new/"
	again.skyRecords(etcd, "the new domain", other, has("_tcp/_nfs/m1", "masters/m1/a1"))
	again.skyRecords(etcd, "nothing but the new domain", prefix, has("new/_tcp/_nfs/m1", "new/masters/m1/a1"))
	again.stop()

	c.SkyDNS = false
	off := start(t, c)
	off.skyRecords(etcd, "no records", prefix, has())
	off.until("no memory of them", func(console.Status) bool {
		resp, err := etcd.Get(t.Context(), fleet.KeysOf(c.Fleet).SkyDNS())
		return err == nil && len(resp.Kvs) == 0
	})
}
