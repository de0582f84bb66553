package e2e

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// occupy listens on addr until the test ends.
func occupy(t *testing.T, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

// A master that cannot start says why and what to do, and ends.
func TestStartErrors(t *testing.T) {
	source := t.TempDir()
	writeFile(t, source+"/file", "content")
	file := filepath.Join(t.TempDir(), "a-file")
	writeFile(t, file, "no directory")
	badYAML := filepath.Join(t.TempDir(), "config.yaml")
	writeFile(t, badYAML, "name: m1\nno_such_setting: 1\n")
	for _, c := range []struct {
		name  string
		flags []string
		code  int
		says  []string
	}{
		{"an unknown flag", []string{"--no-such-flag"}, 2, []string{"no-such-flag"}},
		{"a name that is none", []string{"--name", "No Name"}, 2, []string{"--name", "No Name"}},
		{"a source without a shard", []string{"--source", "/srv/www"}, 2, []string{"--source", "SHARD=DIR"}},
		{"a source with an odd mode", []string{"--source", "www=" + source + ",mode=odd"}, 2, []string{"mode", "odd", "manual"}},
		{"an address without a port", []string{"--listen-nfs", "localhost"}, 2, []string{"--listen-nfs", "localhost"}},
		{"a log level that is none", []string{"--log-level", "loud"}, 2, []string{"--log-level", "loud", "debug"}},
		{"an etcd address that is none", []string{"--etcd", "ftp://x:1"}, 2, []string{"--etcd", "ftp"}},
		{"a setting that is none", []string{"--config", badYAML}, 2, []string{"no_such_setting"}},
		{"a configuration that is not there", []string{"--config", "/absent.yaml"}, 2, []string{"/absent.yaml"}},
		{"a data directory that is a file", []string{"--data-dir", file}, 1, []string{file}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := NewMaster(t, MasterConfig{Flags: c.flags})
			code, said := m.Ended(30 * time.Second)
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			checkSays(t, said, c.says...)
		})
	}
}

// checkSays demands a message that names what matters, without a stack trace.
func checkSays(t *testing.T, said string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(said, w) {
			t.Errorf("the message does not name %q:\n%s", w, said)
		}
	}
	if strings.Contains(said, "goroutine ") || strings.Contains(said, "panic:") {
		t.Errorf("a stack trace:\n%s", said)
	}
}

func TestPortTaken(t *testing.T) {
	for _, c := range []struct {
		name string
		addr func(m *Master) string
		flag string
	}{
		{"NFS", func(m *Master) string { return m.NFS }, "--listen-nfs"},
		{"HTTP", func(m *Master) string { return m.HTTP }, "--listen-http"},
		{"other masters", func(m *Master) string { return m.Peer }, "--listen-peer"},
		{"etcd's clients", func(m *Master) string { return m.EtcdClient }, "--etcd-client-listen"},
		{"etcd's peers", func(m *Master) string { return m.EtcdPeer }, "--etcd-peer-listen"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := NewMaster(t, MasterConfig{})
			occupy(t, c.addr(m))
			code, said := m.Ended(30 * time.Second)
			if code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			checkSays(t, said, port(c.addr(m)), c.flag)
			if !strings.Contains(said, "port is taken") && !strings.Contains(said, "already in use") {
				t.Errorf("the message does not say what is wrong:\n%s", said)
			}
		})
	}
}

// A source that is not there is an error when it is new; later it is the trouble of its shard alone, and its readers go on.
func TestMissingSource(t *testing.T) {
	needCommands(t, "nfs-cat")
	www, docs := t.TempDir(), filepath.Join(t.TempDir(), "docs")
	writeFile(t, www+"/file", "content")
	m := NewMaster(t, MasterConfig{Sources: []string{"docs=" + docs, "www=" + www}, Flags: []string{"--insecure"}})
	code, said := m.Ended(30 * time.Second)
	if code != 1 {
		t.Errorf("exit code %d for a source that is not there, want 1", code)
	}
	checkSays(t, said, docs, "--source docs=")

	writeFile(t, docs+"/file", "documented")
	m.Start()
	m.WaitReady()
	m.WaitGeneration("docs", 1)
	m.WaitGeneration("www", 1)
	m.Stop()
	if err := os.Rename(docs, docs+".away"); err != nil {
		t.Fatal(err)
	}
	m.Start()
	m.WaitReady()
	if r := m.On("nfs-cat", m.url("docs/file")); r.Stdout != "documented" {
		t.Errorf("a read without the source: %v", r)
	}
	if r := m.CLI("publish", "docs"); r.Code == 0 || !strings.Contains(r.Stderr, docs) {
		t.Errorf("a publish without the source: %v", r)
	}
	writeFile(t, www+"/file", "changed")
	m.WaitGeneration("www", 2)
	if err := os.Rename(docs+".away", docs); err != nil {
		t.Fatal(err)
	}
	writeFile(t, docs+"/more", "it is back")
	if g := m.Publish("docs"); g.Number != 2 || g.Files != 2 {
		t.Errorf("published once it was back: %+v", g)
	}
}

func TestDataDirectoryOfAnother(t *testing.T) {
	source := t.TempDir()
	writeFile(t, source+"/file", "content")
	first := StartMaster(t, MasterConfig{Fleet: "one", Sources: []string{"www=" + source}})
	first.WaitGeneration("www", 1)
	t.Run("in use", func(t *testing.T) {
		second := NewMaster(t, MasterConfig{Fleet: "one", Name: "m2", DataDir: first.DataDir})
		code, said := second.Ended(30 * time.Second)
		if code != 1 {
			t.Errorf("exit code %d, want 1", code)
		}
		checkSays(t, said, first.DataDir)
	})
	first.Stop()
	t.Run("of another fleet", func(t *testing.T) {
		second := NewMaster(t, MasterConfig{Fleet: "two", DataDir: first.DataDir})
		code, said := second.Ended(30 * time.Second)
		if code != 1 {
			t.Errorf("exit code %d, want 1", code)
		}
		checkSays(t, said, first.DataDir, "fleet")
	})
	// The refusals have changed nothing.
	first.Start()
	first.WaitReady()
	if g := first.Shard("www").Generation; g != 1 {
		t.Errorf("generation %d after the refusals, want 1", g)
	}
}

// While etcd is away a master retries, says so, and serves what it served last, marked stale; nothing can be published.
func TestEtcdAway(t *testing.T) {
	needCommands(t, "nfs-cat")
	source := t.TempDir()
	writeFile(t, source+"/file", "content")
	// Another fleet's embedded etcd is the external one here.
	etcd := StartMaster(t, MasterConfig{Name: "etcd", Fleet: "other"})
	m := NewMaster(t, MasterConfig{
		Sources: []string{"www=" + source + ",mode=manual"}, Flags: []string{"--etcd", "http://" + etcd.EtcdClient},
	})
	etcd.Kill()

	m.Start() // never had an etcd: waits for one, and says what it waits for
	eventually(t, 30*time.Second, "the log says that etcd cannot be reached", func() bool {
		return strings.Contains(m.log.String(), etcd.EtcdClient) && strings.Contains(m.log.String(), "etcd")
	})
	if m.proc.ended() {
		t.Fatalf("it ended instead of trying again:\n%s", m.log.tail(20))
	}
	etcd.Start()
	m.waitEtcd(true)
	m.WaitLeader("www")
	m.MustCLI("shard", "set", "www", "--insecure")
	m.Publish("www")

	etcd.Kill()
	if r := m.CLI("publish", "www"); r.Code != 4 {
		t.Errorf("publish without etcd: %v", r)
	}
	m.Stop()
	m.Start()
	eventually(t, 40*time.Second, "it serves without etcd", func() bool { code, _ := m.Get("/readyz"); return code == http.StatusOK })
	if s := m.Shard("www"); !s.Stale || s.Generation != 1 {
		t.Errorf("the shard's status without etcd: %+v", s)
	}
	if r := m.On("nfs-cat", m.url("www/file")); r.Code != 0 || r.Stdout != "content" {
		t.Errorf("a read without etcd: %v", r)
	}
	etcd.Start()
	eventually(t, 60*time.Second, "it is no longer stale", func() bool { return !m.Shard("www").Stale })
	writeFile(t, source+"/file", "new content")
	if g := m.WaitLeader("www"); g.Number != 2 {
		t.Errorf("published %+v after etcd came back", g)
	}
}

// What an administrator types first, and its exit codes.
func TestCLI(t *testing.T) {
	source, other := t.TempDir(), t.TempDir()
	writeFile(t, source+"/file", "one")
	writeFile(t, other+"/elsewhere", "uploaded")
	m := StartMaster(t, MasterConfig{Sources: []string{"www=" + source + ",mode=manual"}})
	m.Publish("www", "--note", "the first")
	writeFile(t, source+"/file", "two")
	if err := os.Remove(source + "/file"); err != nil {
		t.Fatal(err)
	}
	writeFile(t, source+"/second", "two")
	if g := m.Publish("www"); g.Number != 2 || !g.Changed {
		t.Errorf("second publish: %+v", g)
	}
	if g := m.Publish("www"); g.Number != 2 || g.Changed {
		t.Errorf("nothing to publish: %+v", g)
	}
	if d := m.MustCLI("diff", "www"); !strings.Contains(d, "file") || !strings.Contains(d, "second") {
		t.Errorf("diff: %s", d)
	}
	var history []Generation
	m.JSON(&history, "history", "www")
	if len(history) != 2 || history[0].Number != 2 || history[1].Note != "the first" {
		t.Errorf("history: %+v", history)
	}
	m.MustCLI("rollback", "www")
	m.JSON(&history, "history", "www")
	if len(history) != 3 || history[0].Number != 3 || history[0].Files != 1 {
		t.Errorf("history after a rollback: %+v", history)
	}
	m.MustCLI("shard", "create", "docs")
	if g := m.Publish("docs", other); g.Number != 1 || g.Files != 1 {
		t.Errorf("an upload: %+v", g)
	}
	m.MustCLI("verify")
	for _, c := range []struct {
		code int
		args []string
	}{
		{0, []string{"version"}}, {0, []string{"status"}}, {0, []string{"shard", "list"}}, {0, []string{"shard", "show", "www"}}, {0, []string{"--help"}},
		{2, []string{"publish"}}, {2, []string{"no-such-command"}}, {2, []string{"status", "--no-such-flag"}}, {2, []string{"rollback", "www", "x"}},
		{3, []string{"publish", "absent"}}, {3, []string{"history", "absent"}}, {3, []string{"rollback", "www", "99"}}, {3, []string{"shard", "show", "absent"}},
		{3, []string{"publish", "docs", "/no/such/dir"}},
	} {
		r := m.CLI(c.args...)
		if r.Code != c.code {
			t.Errorf("%q: %v; want exit code %d", c.args, r, c.code)
		}
		if c.code != 0 && r.Stderr == "" {
			t.Errorf("%q fails without a word", c.args)
		}
	}
	m.Stop()
	if r := m.CLI("status"); r.Code != 1 || !strings.Contains(r.Stderr, m.HTTP) {
		t.Errorf("status without a master: %v", r)
	}
}
