package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// MasterConfig says how a master is started. Only Sources has no useful default.
type MasterConfig struct {
	Name    string   // "m1"
	Fleet   string   // "test"
	DataDir string   // a temporary one
	Sources []string // SHARD=DIR[,…]
	Host    *Host    // nil: this machine, on loopback, with free ports
	Flags   []string // more flags of serve
	Join    string   // a join token, given until the master has been ready once
}

// Master is an nfs-fleet process with what it needs to be started again: same directory, same ports.
type Master struct {
	MasterConfig
	NFS, HTTP, Peer, DNS, EtcdClient, EtcdPeer string // host:port

	t    testing.TB
	bin  string
	log  *procLog // of all its lives
	proc *proc    // of the present one
	web  *http.Client

	joined bool // Join has done its work

	life atomic.Pointer[proc] // proc, for goroutines beside the test's
}

// NewMaster prepares a master and does not start it.
func NewMaster(t testing.TB, c MasterConfig) *Master {
	t.Helper()
	if c.Name == "" {
		c.Name = "m1"
	}
	if c.Fleet == "" {
		c.Fleet = "test"
	}
	if c.DataDir == "" {
		c.DataDir = t.TempDir()
	}
	m := &Master{MasterConfig: c, t: t, bin: product(t), log: &procLog{}}
	m.web = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: c.Host.dial, DisableKeepAlives: true}}
	if c.Host != nil {
		// Nobody else lives in its namespace: the ports are the product's own.
		m.NFS, m.HTTP, m.Peer, m.DNS, m.EtcdClient, m.EtcdPeer = "0.0.0.0:2049", "127.0.0.1:7049", "0.0.0.0:7050", "0.0.0.0:5353", "127.0.0.1:2379", "0.0.0.0:2380"
	} else {
		p := freePorts(t, 6)
		m.NFS, m.HTTP, m.Peer, m.EtcdClient, m.EtcdPeer, m.DNS = p[0], p[1], p[2], p[3], p[4], p[5]
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the master %s:\n%s", c.Name, m.log.tail(60))
		}
	})
	return m
}

// StartMaster starts a master and waits until it is ready.
func StartMaster(t testing.TB, c MasterConfig) *Master {
	t.Helper()
	m := NewMaster(t, c)
	m.Start()
	m.WaitReady()
	return m
}

// freePorts returns loopback addresses that nobody listens on at this moment.
func freePorts(t testing.TB, n int) []string {
	t.Helper()
	var addrs []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatalf("find a free port: %v", err)
		}
		defer l.Close() // all are held until all are found
		addrs = append(addrs, l.Addr().String())
	}
	return addrs
}

// args is the command line of serve.
func (m *Master) args() []string {
	args := []string{m.bin, "serve", "--name", m.Name, "--fleet", m.Fleet, "--data-dir", m.DataDir,
		"--listen-nfs", m.NFS, "--listen-http", m.HTTP, "--listen-peer", m.Peer, "--listen-dns", m.DNS, "--log-format", "json"}
	if !strings.Contains(strings.Join(m.Flags, " "), "--etcd ") {
		args = append(args, "--etcd-client-listen", m.EtcdClient, "--etcd-peer-listen", m.EtcdPeer)
	}
	if m.Host != nil {
		args = append(args, "--advertise", m.Host.Addr)
	}
	if m.Join != "" && !m.joined {
		args = append(args, "--join", m.Join)
	}
	for _, s := range m.Sources {
		args = append(args, "--source", s)
	}
	return append(args, m.Flags...)
}

// Start starts the process, without waiting for anything.
func (m *Master) Start() {
	m.t.Helper()
	if m.proc != nil && !m.proc.ended() {
		m.t.Fatalf("master %s runs already", m.Name)
	}
	m.proc = start(m.t, "master "+m.Name, m.Host, m.log, m.args(), nil)
	m.life.Store(m.proc)
}

// WaitReady waits until /readyz says so.
func (m *Master) WaitReady() {
	m.t.Helper()
	eventually(m.t, 60*time.Second, "master "+m.Name+" ready", func() bool {
		if m.proc.ended() {
			m.t.Fatalf("master %s ended with %d instead of being ready:\n%s", m.Name, m.proc.cmd.ProcessState.ExitCode(), m.log.tail(30))
		}
		code, _ := m.Get("/readyz")
		return code == http.StatusOK
	})
	m.joined = true
}

// Down says whether the process has ended. Any goroutine may ask.
func (m *Master) Down() bool { return m.life.Load().ended() }

// Kill ends the process as a power failure would, and returns when it is gone.
func (m *Master) Kill() {
	m.t.Helper()
	m.proc.kill(m.t)
}

// Stop asks the process to end, and returns how long that took; it must end in order.
func (m *Master) Stop() time.Duration {
	m.t.Helper()
	began := time.Now()
	m.proc.signal(m.t, syscall.SIGTERM)
	if code := m.proc.wait(m.t, 30*time.Second); code != 0 {
		m.t.Errorf("master %s ended with %d after SIGTERM:\n%s", m.Name, code, m.log.tail(30))
	}
	return time.Since(began)
}

// Ended starts the process, waits until it ends by itself, and returns its exit code and what it said.
func (m *Master) Ended(limit time.Duration) (code int, said string) {
	m.t.Helper()
	m.log = &procLog{}
	m.Start()
	return m.proc.wait(m.t, limit), m.log.String()
}

// Get fetches a page from the master's HTTP address; code 0 stands for no answer.
func (m *Master) Get(path string) (code int, body string) {
	m.t.Helper()
	resp, err := m.web.Get("http://" + m.HTTP + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(b)
}

// CLI runs a subcommand against this master.
func (m *Master) CLI(args ...string) Result {
	m.t.Helper()
	return runOn(m.t, m.Host, 3*time.Minute, m.env(), append([]string{m.bin}, args...)...)
}

func (m *Master) env() []string { return []string{"NFS_FLEET_SERVER=http://" + m.HTTP} }

// MustCLI is CLI for what must succeed; it returns the output.
func (m *Master) MustCLI(args ...string) string {
	m.t.Helper()
	r := m.CLI(args...)
	if r.Code != 0 {
		m.t.Fatalf("nfs-fleet %q: %v\nmaster's log:\n%s", args, r, m.log.tail(20))
	}
	return r.Stdout
}

// JSON is MustCLI with -o json, decoded into v.
func (m *Master) JSON(v any, args ...string) {
	m.t.Helper()
	out := m.MustCLI(append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), v); err != nil {
		m.t.Fatalf("nfs-fleet %q: %v in\n%s", args, err, clip(out))
	}
}

// Generation is what a test looks at of a published state.
type Generation struct {
	Number  uint64 `json:"generation"`
	Root    string `json:"root"`
	Files   uint64 `json:"files"`
	Bytes   uint64 `json:"bytes"`
	Note    string `json:"note"`
	Changed bool   `json:"changed"`

	Warnings []string `json:"warnings"`
}

// Publish publishes the shard's source, or dir when one is given, and waits until the master serves it.
func (m *Master) Publish(shard string, args ...string) Generation {
	m.t.Helper()
	var g Generation
	m.JSON(&g, append([]string{"publish", "--wait", shard}, args...)...)
	return g
}

// ShardStatus is what a test looks at of `status -o json`.
type ShardStatus struct {
	Name       string `json:"name"`
	FSID       any    `json:"fsid"`
	Generation uint64 `json:"generation"`
	Root       string `json:"root"`
	Files      uint64 `json:"files"`
	Bytes      uint64 `json:"bytes"`
	Leader     string `json:"leader"`
	Epoch      int64  `json:"epoch"`
	Stale      bool   `json:"stale"`
	Problem    string `json:"problem"`
	Source     struct {
		State  string `json:"state"`
		Reason string `json:"reason"`
		Dirty  int    `json:"dirty"`
	} `json:"source"`
}

// Status is what a test looks at of `status -o json`.
type Status struct {
	Fleet   string        `json:"fleet"`
	Shards  []ShardStatus `json:"shards"`
	Masters []struct {
		Name  string `json:"name"`
		State string `json:"state"`
		Etcd  string `json:"etcd_role"` // its part in the embedded etcd: leader, voter, learner, client
	} `json:"masters"`
	Warnings []string `json:"warnings"`
	Etcd     struct {
		Healthy bool `json:"healthy"`
	} `json:"etcd"`
}

// waitEtcd waits until the master's status says that etcd answers, or does not.
func (m *Master) waitEtcd(healthy bool) {
	m.t.Helper()
	eventually(m.t, 30*time.Second, fmt.Sprintf("etcd healthy: %v", healthy), func() bool {
		var s Status
		m.JSON(&s, "status")
		return s.Etcd.Healthy == healthy
	})
}

// Shard returns one shard's status.
func (m *Master) Shard(name string) ShardStatus {
	m.t.Helper()
	var s Status
	m.JSON(&s, "status")
	for _, sh := range s.Shards {
		if sh.Name == name {
			return sh
		}
	}
	m.t.Fatalf("no shard %q in the status: %+v", name, s)
	return ShardStatus{}
}

// WaitLeader waits until this master leads the shard (after SIGKILL, the lease of its former life must run out first) by
// publishing the shard's source, and returns what that did.
func (m *Master) WaitLeader(shard string) (g Generation) {
	m.t.Helper()
	eventually(m.t, 30*time.Second, "a leader for "+shard, func() bool {
		r := m.CLI("publish", "--wait", shard, "-o", "json")
		if r.Code != exitNoLeader && r.Code != exitNotFound {
			if err := json.Unmarshal([]byte(r.Stdout), &g); r.Code != 0 || err != nil {
				m.t.Fatalf("publish %s: %v, %v", shard, r, err)
			}
		}
		return r.Code == 0
	})
	return g
}

// Exit codes of the product.
const (
	exitNotFound = 3
	exitNoLeader = 4
)

// WaitGeneration waits until the shard has a generation of at least n, and returns its status.
func (m *Master) WaitGeneration(shard string, n uint64) (s ShardStatus) {
	m.t.Helper()
	eventually(m.t, 60*time.Second, fmt.Sprintf("generation %d of %s", n, shard), func() bool {
		var st Status
		m.JSON(&st, "status")
		for _, s = range st.Shards {
			if s.Name == shard && s.Generation >= n {
				return true
			}
		}
		return false
	})
	return s
}

// On runs a command where the master is, e.g. showmount.
func (m *Master) On(args ...string) Result {
	m.t.Helper()
	return runOn(m.t, m.Host, time.Minute, nil, args...)
}

// background starts a command where the master is; its output is in the log when it has ended.
func (m *Master) background(args ...string) (*proc, *procLog) {
	m.t.Helper()
	log := &procLog{}
	return start(m.t, args[0], m.Host, log, args, func(c *exec.Cmd) { c.Env = append(c.Environ(), m.env()...) }), log
}

// port returns the port of host:port.
func port(addr string) string {
	_, p, err := net.SplitHostPort(addr)
	if err != nil {
		panic(err) // addresses come from this package
	}
	return p
}

// url is a file's address for libnfs, which asks no portmapper when it is told the ports.
func (m *Master) url(path string) string {
	return fmt.Sprintf("nfs://127.0.0.1/%s?nfsport=%s&mountport=%s&version=3", path, port(m.NFS), port(m.NFS))
}
