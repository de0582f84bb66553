package e2e

import (
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"
)

// Who may read what: mode bits, squash, networks and ports, as a kernel client meets them.
func TestAccess(t *testing.T) {
	f := newFixture(t, ",mode=manual", func(source string) {
		writeFile(t, source+"/public", "public")
		writeFile(t, source+"/private", "private")
		writeFile(t, source+"/group/file", "group")
		for _, c := range [][]string{
			{"chmod", "600", source + "/private"}, {"chown", "1000:2000", source + "/group"}, {"chmod", "750", source + "/group"},
		} {
			if r := runOn(t, nil, time.Minute, nil, c...); r.Code != 0 {
				t.Fatalf("%q: %v", c, r)
			}
		}
	})
	as := func(ids, name string) Result {
		return f.slave.Run("sh", "-c", "LC_ALL=C setpriv "+ids+" cat "+f.mnt+"/"+name)
	}
	t.Run("mode bits", func(t *testing.T) {
		for _, c := range []struct {
			ids, name string
			allowed   bool
		}{
			{"--reuid 0 --regid 0 --clear-groups", "private", true},
			{"--reuid 3000 --regid 3000 --clear-groups", "public", true},
			{"--reuid 3000 --regid 3000 --clear-groups", "private", false},
			{"--reuid 1000 --regid 3000 --clear-groups", "group/file", true},
			{"--reuid 3000 --regid 3000 --clear-groups", "group/file", false},
			{"--reuid 3000 --regid 2000 --clear-groups", "group/file", true},
			{"--reuid 3000 --regid 3000 --groups 7,2000", "group/file", true},
		} {
			f.slave.DropCaches()
			if r := as(c.ids, c.name); (r.Code == 0) != c.allowed || (!c.allowed && !strings.Contains(r.Stderr, "Permission denied")) {
				t.Errorf("%s reads %s: allowed %v, want %v: %v", c.ids, c.name, r.Code == 0, c.allowed, r)
			}
		}
	})
	denied := func(what string) func() bool {
		return func() bool {
			f.slave.DropCaches()
			return as("--reuid 0 --regid 0 --clear-groups", what).Code != 0
		}
	}
	t.Run("squash", func(t *testing.T) {
		f.MustCLI("shard", "set", "www", "--squash", "root")
		eventually(t, 10*time.Second, "root is nobody", denied("private"))
		if denied("public")() {
			t.Error("nobody cannot read what everybody may")
		}
		f.MustCLI("shard", "set", "www", "--squash", "none")
		eventually(t, 10*time.Second, "root is root again", func() bool { return !denied("private")() })
	})
	t.Run("ports", func(t *testing.T) {
		f.slave.Must("mkdir", "-p", "/mnt/high")
		high := func() Result {
			return f.slave.Run("mount", "-t", "nfs", "-o", mountOptions+",noresvport", f.Host.Addr+":/www", "/mnt/high")
		}
		if r := high(); r.Code == 0 {
			t.Error("a mount from a port above 1023 is let in")
		}
		f.MustCLI("shard", "set", "www", "--insecure")
		eventually(t, 10*time.Second, "a mount from a port above 1023", func() bool { return high().Code == 0 })
		f.slave.Must("umount", "/mnt/high")
	})
	t.Run("networks", func(t *testing.T) {
		f.MustCLI("shard", "set", "www", "--network", "192.0.2.0/24")
		eventually(t, 10*time.Second, "the slave is shut out, though it has the shard mounted", denied("public"))
		if r := f.slave.Run("mount", "-t", "nfs", "-o", mountOptions, f.Host.Addr+":/www", "/mnt/high"); r.Code == 0 || !strings.Contains(r.Stderr, "denied") {
			t.Errorf("a mount from elsewhere: %v", r)
		}
		f.MustCLI("shard", "set", "www", "--network", "192.0.2.0/24,10.77.0.0/24")
		eventually(t, 10*time.Second, "the slave is let in again", func() bool { return !denied("public")() })
	})
}

// A watched source is published by itself; a rollback pauses it until it is resumed.
func TestSourceFollowsAndPauses(t *testing.T) {
	source := t.TempDir()
	writeFile(t, source+"/file", "one")
	m := StartMaster(t, MasterConfig{Sources: []string{"www=" + source}})
	m.WaitGeneration("www", 1)
	writeFile(t, source+"/new/dir/file", "two")
	if s := m.WaitGeneration("www", 2); s.Files != 2 || s.Source.State != "watching" {
		t.Errorf("after a change: %+v", s)
	}
	m.MustCLI("rollback", "www")
	if s := m.Shard("www"); s.Generation != 3 || s.Files != 1 || s.Source.State != "paused" {
		t.Errorf("after a rollback: %+v", s)
	}
	writeFile(t, source+"/third", "three")
	m.Stop() // a restart goes on where it was: paused
	m.Start()
	m.WaitReady()
	if s := m.Shard("www"); s.Generation != 3 || s.Source.State != "paused" {
		t.Errorf("after a restart of a paused source: %+v", s)
	}
	m.MustCLI("source", "resume", "www")
	if s := m.WaitGeneration("www", 4); s.Files != 3 || s.Source.State != "watching" {
		t.Errorf("after resume: %+v", s)
	}
	m.MustCLI("source", "pause", "www")
	if s := m.Shard("www"); s.Source.State != "paused" {
		t.Errorf("after pause: %+v", s)
	}
	writeFile(t, source+"/fourth", "four")
	m.MustCLI("source", "rescan", "www")
	if g := m.Publish("www"); g.Files != 4 {
		t.Errorf("a publish by hand from a paused source: %+v", g)
	}
}

// What watches a master sees it.
func TestHTTP(t *testing.T) {
	needCommands(t, "nfs-cat")
	source := t.TempDir()
	writeFile(t, source+"/file", "content")
	m := StartMaster(t, MasterConfig{Sources: []string{"www=" + source}})
	m.WaitGeneration("www", 1)
	m.MustCLI("shard", "set", "www", "--insecure")
	eventually(t, 10*time.Second, "a read", func() bool { return m.On("nfs-cat", m.url("www/file")).Stdout == "content" })
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		if code, body := m.Get(path); code != http.StatusOK {
			t.Errorf("%s: %d %s", path, code, clip(body))
		}
	}
	_, metrics := m.Get("/metrics")
	for _, want := range []string{
		`(?m)^nfs_fleet_\S*\{[^}]*READ[^}]*\} [1-9]`, `(?m)^nfs_fleet_\S*generation\S*\{[^}]*www[^}]*\} 1$`, `(?m)^nfs_fleet_store_\S+ [1-9]`,
		`(?m)^nfs_fleet_\S*connections\S* \d`, `(?m)^nfs_fleet_publish_\S+_count`,
	} {
		if !regexp.MustCompile(want).MatchString(metrics) {
			t.Errorf("no metric like %s in\n%s", want, grep(metrics, "nfs_fleet"))
		}
	}
	if code, _ := m.Get("/no/such/page"); code != http.StatusNotFound {
		t.Errorf("a page that is not there: %d", code)
	}
}

// grep returns the lines that begin with prefix.
func grep(text, prefix string) string {
	var b strings.Builder
	for l := range strings.Lines(text) {
		if strings.HasPrefix(l, prefix) {
			b.WriteString(l)
		}
	}
	return b.String()
}
