package e2e

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// The portmapper's and the mount daemon's own clients find what they look for.
func TestRPCTools(t *testing.T) {
	needCommands(t, "showmount", "rpcinfo")
	lan := NewLAN(t)
	source := t.TempDir()
	writeFile(t, source+"/sub/file", "content")
	m := StartMaster(t, MasterConfig{
		Host: lan.Host(t, "m1"), Sources: []string{"www=" + source}, Flags: []string{"--listen-portmap", "0.0.0.0:111"},
	})
	m.WaitGeneration("www", 1)
	addr := m.Host.Addr

	t.Run("rpcinfo", func(t *testing.T) {
		listed := m.On("rpcinfo", "-p", addr).Stdout
		for _, want := range []string{`100000\s+2\s+tcp\s+111`, `100000\s+2\s+udp\s+111`, `100003\s+3\s+tcp\s+2049\s+nfs`, `100005\s+3\s+tcp\s+2049\s+mountd`} {
			if !regexp.MustCompile(want).MatchString(listed) {
				t.Errorf("rpcinfo -p does not list %s:\n%s", want, listed)
			}
		}
		for _, c := range [][]string{
			{"-T", "tcp", addr, "nfs", "3"}, {"-T", "tcp", addr, "mountd", "3"}, {"-t", addr, "nfs", "3"},
			{"-T", "tcp", addr, "portmapper", "2"}, {"-T", "tcp", addr, "portmapper", "3"}, {"-T", "udp", addr, "portmapper", "4"},
		} {
			if r := m.On(append([]string{"rpcinfo"}, c...)...); r.Code != 0 || !strings.Contains(r.Stdout, "ready and waiting") {
				t.Errorf("rpcinfo %q: %v", c, r)
			}
		}
		if r := m.On("rpcinfo", "-s", addr); r.Code != 0 || !strings.Contains(r.Stdout, "100003") {
			t.Errorf("rpcinfo -s: %v", r)
		}
		if r := m.On("rpcinfo", "-T", "tcp", addr, "nfs", "4"); r.Code == 0 {
			t.Errorf("rpcinfo finds NFSv4, which is not there: %v", r)
		}
	})
	t.Run("showmount -e", func(t *testing.T) {
		if r := m.On("showmount", "--no-headers", "-e", addr); r.Code != 0 || !strings.HasPrefix(r.Stdout, "/www") {
			t.Errorf("showmount -e: %v", r)
		}
	})
	t.Run("showmount -a", func(t *testing.T) {
		s := lan.Slave(t)
		// No ports in the options: this client asks the portmapper, as a plain mount does.
		s.Must("mkdir", "-p", "/mnt/www", "/mnt/sub")
		s.Must("mount", "-t", "nfs", "-o", "vers=3,ro,nolock", addr+":/www", "/mnt/www")
		mounted := func(want ...string) func() bool {
			return func() bool {
				r := m.On("showmount", "--no-headers", "-a", addr)
				got := strings.Fields(r.Stdout)
				slices.Sort(got)
				return r.Code == 0 && slices.Equal(got, want)
			}
		}
		eventually(t, 10*time.Second, "showmount -a shows the mount", mounted(s.Addr+":/www"))
		m.Kill()
		m.Start()
		m.WaitReady()
		eventually(t, 10*time.Second, "showmount -a shows the mount after a restart", mounted(s.Addr+":/www"))
		s.Must("umount", "/mnt/www")
		eventually(t, 10*time.Second, "showmount -a shows that it is gone", mounted())
	})
}

// etcdctl reads the embedded etcd, and a person can read what it prints.
func TestEtcdctl(t *testing.T) {
	needCommands(t, "etcdctl")
	source := t.TempDir()
	writeFile(t, source+"/file", "content")
	m := StartMaster(t, MasterConfig{Fleet: "readable", Sources: []string{"www=" + source}})
	m.WaitGeneration("www", 1)
	etcdctl := func(args ...string) Result {
		args = append([]string{"etcdctl", "--endpoints", "http://" + m.EtcdClient}, args...)
		return runOn(t, m.Host, time.Minute, []string{"ETCDCTL_API=3"}, args...)
	}
	r := etcdctl("get", "--prefix", "/nfs-fleet/readable/", "-w", "json")
	var dump struct {
		Kvs []struct {
			Key, Value []byte
			Lease      int64
		}
	}
	if err := json.Unmarshal([]byte(r.Stdout), &dump); err != nil || r.Code != 0 {
		t.Fatalf("etcdctl get: %v: %v", err, r)
	}
	leased := map[string]bool{}
	for _, kv := range dump.Kvs {
		key := strings.TrimPrefix(string(kv.Key), "/nfs-fleet/readable/")
		leased[key] = kv.Lease != 0
		var value map[string]any
		if err := json.Unmarshal(kv.Value, &value); err != nil || !utf8.Valid(kv.Value) || bytes.ContainsAny(kv.Value, "\x00") {
			t.Errorf("%s holds no readable JSON object: %q (%v)", key, kv.Value, err)
		}
		t.Logf("%s = %s", key, kv.Value)
	}
	for key, lease := range map[string]bool{
		"id": false, "shards/www": false, "heads/www": false, "generations/www/0000000001": false,
		"leaders/www": true, "masters/m1": true, "replicas/m1": true,
	} {
		if got, ok := leased[key]; !ok || got != lease {
			t.Errorf("key %s: there %v, under a lease %v; want %v", key, ok, got, lease)
		}
	}
	if plain := etcdctl("get", "--prefix", "/nfs-fleet/readable/heads/", "--print-value-only"); !strings.Contains(plain.Stdout, `"generation":1,`) && !strings.Contains(plain.Stdout, `"generation": 1,`) {
		t.Errorf("the head, as a person sees it: %s", plain.Stdout)
	}
	if r := etcdctl("endpoint", "health"); r.Code != 0 {
		t.Errorf("endpoint health: %v", r)
	}
}
