package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/e2e/nfs"
)

// MasterInfo is what a test looks at of `master list -o json`.
type MasterInfo struct {
	Name  string            `json:"name"`
	State string            `json:"state"`
	Etcd  string            `json:"etcd_role"`
	Leads int               `json:"leads"`
	Lag   map[string]uint64 `json:"lag"`
}

// list returns what the first running master knows of all masters.
func (f *Fleet) list() map[string]MasterInfo {
	f.t.Helper()
	var all []MasterInfo
	for _, m := range f.Masters {
		if !m.Down() {
			m.JSON(&all, "master", "list")
			break
		}
	}
	byName := map[string]MasterInfo{}
	for _, m := range all {
		byName[m.Name] = m
	}
	return byName
}

// cat reads a file of a shard from a master, from elsewhere on the LAN.
func (f *Fleet) cat(m *Master, path string) string {
	f.t.Helper()
	r := runOn(f.t, f.Outside, time.Minute, nil, "nfs-cat", "nfs://"+m.Host.Addr+"/"+path+"?version=3&nfsport=2049&mountport=2049")
	if r.Code != 0 {
		return r.Stderr
	}
	return r.Stdout
}

// handle returns the file handle of a path of a shard, as a master gives it.
func (f *Fleet) handle(m *Master, shard string, names ...string) nfs.Handle {
	f.t.Helper()
	c, err := nfs.Dial(f.t.Context(), f.Outside.dial, m.Host.Addr+":2049", homeLimit)
	if err != nil {
		f.t.Fatal(err)
	}
	defer c.Close()
	h, err := c.Mount("/" + shard)
	for _, name := range names {
		if err == nil {
			h, _, err = c.Lookup(h, name)
		}
	}
	if err != nil {
		f.t.Fatalf("%s from %s: %v", names, m.Name, err)
	}
	return h
}

// A fleet grows from one master by tokens, serves the same everywhere, and shrinks again. Who was removed stays out.
func TestFleetGrowsAndShrinks(t *testing.T) {
	needCommands(t, "nfs-cat")
	f := StartFleet(t, FleetConfig{Masters: 1, TTL: 2 * time.Second})
	dir := t.TempDir()
	writeFile(t, dir+"/sub/file", "content")
	f.createShard("www")
	f.publishAnywhere("www", dir, "alone")
	f.Add()
	f.Add()
	for _, m := range f.Masters {
		m.WaitReady()
	}
	f.WaitVoters(3)
	f.WaitServed("www", 1, restLimit) // what was there before they came
	writeFile(t, dir+"/sub/new", "more")
	g := f.publishAnywhere("www", dir, "together")
	f.WaitServed("www", g.Number, restLimit)
	for _, m := range f.Masters {
		if got := f.cat(m, "www/sub/file") + f.cat(m, "www/sub/new"); got != "contentmore" {
			t.Errorf("%s serves %q", m.Name, got)
		}
		if h := f.handle(m, "www", "sub", "file"); h != f.handle(f.Masters[0], "www", "sub", "file") {
			t.Errorf("the file has another handle on %s", m.Name)
		}
	}
	t.Run("a token is good once", func(t *testing.T) {
		m := NewMaster(t, MasterConfig{Name: "m9", Host: f.LAN.Host(t, "m9"), Flags: []string{"--join", f.Masters[1].Join}})
		code, said := m.Ended(time.Minute)
		if code != 1 {
			t.Errorf("exit code %d", code)
		}
		checkSays(t, said, "token")
	})
	t.Run("restarts without the token", func(t *testing.T) {
		for _, m := range f.Masters {
			m.Stop()
			m.Start()
			m.WaitReady()
		}
		f.WaitVoters(3)
	})
	f.removed(t)
}

// removed removes the last master, once running and once dead, and has it try to come back.
func (f *Fleet) removed(t *testing.T) {
	m := f.Masters[2]
	if r := f.Masters[0].CLI("master", "remove", m.Name, "--yes"); r.Code == 0 {
		t.Errorf("a master that is neither drained nor lost is removed: %v", r)
	}
	f.Masters[0].MustCLI("master", "drain", m.Name)
	eventually(t, restLimit, "the drained master leads nothing", func() bool { return f.list()[m.Name].Leads == 0 })
	f.Masters[0].MustCLI("master", "remove", m.Name, "--yes")
	eventually(t, restLimit, "the removed master's process ends", m.Down)
	if code := m.proc.wait(t, time.Second); code == 0 {
		t.Errorf("a removed master ends with %d", code)
	}
	code, said := m.Ended(time.Minute)
	if code != 1 {
		t.Errorf("a removed master that starts ends with %d", code)
	}
	checkSays(t, said, "removed")
	if _, there := f.list()[m.Name]; there {
		t.Errorf("a removed master is listed: %v", f.list())
	}
	dir := t.TempDir()
	writeFile(t, dir+"/left", "two masters")
	f.Masters = f.Masters[:2]
	g := f.publishAnywhere("www", dir, "two are left")
	f.WaitServed("www", g.Number, restLimit)

	// With a new token, and nothing of its old life, the machine is a new master of the same name.
	again := NewMaster(t, MasterConfig{Name: m.Name, Host: m.Host, Flags: []string{"--lease-ttl", "2s"}, Join: f.JoinToken(f.Masters[1])})
	f.Masters = append(f.Masters, again)
	again.Start()
	again.WaitReady()
	f.WaitVoters(3)
	f.WaitServed("www", g.Number, restLimit)
}

// Who has a token publishes from another machine, what the token is for and as long as it lasts.
func TestPublishFromElsewhere(t *testing.T) {
	f := StartFleet(t, FleetConfig{Masters: 2, Etcd: EtcdDebian, TTL: 2 * time.Second})
	dir := t.TempDir()
	writeFile(t, dir+"/file", "content")
	f.createShard("www")
	f.createShard("docs")
	f.publishAnywhere("docs", dir, "")
	token := func(args ...string) (made struct{ ID, Token string }) {
		f.Masters[0].JSON(&made, append([]string{"token", "create"}, args...)...)
		return made
	}
	from := func(token string, args ...string) Result {
		return runOn(t, f.Outside, time.Minute, []string{"NFS_FLEET_TOKEN=" + token}, append([]string{f.Masters[0].bin}, args...)...)
	}
	good := token("--shard", "www", "--ttl", "1h")
	if r := from(good.Token, "publish", "www", dir, "--wait", "--note", "from elsewhere"); r.Code != 0 {
		t.Errorf("publish with a token: %v", r)
	}
	for _, m := range f.Masters { // whoever leads
		writeFile(t, dir+"/file", "through "+m.Name)
		if r := from(good.Token, "publish", "www", dir, "--server", "https://"+m.Host.Addr+":7050"); r.Code != 0 {
			t.Errorf("publish through %s: %v", m.Name, r)
		}
	}
	if r := from(good.Token, "rollback", "www"); r.Code != 0 {
		t.Errorf("rollback with a token: %v", r)
	}
	if r := from(good.Token, "history", "www"); r.Code != 0 || !strings.Contains(r.Stdout, "from elsewhere") {
		t.Errorf("history with a token: %v", r)
	}
	short := token("--shard", "www", "--ttl", "1s")
	for _, c := range []struct {
		name, token string
		args        []string
		says        string
	}{
		{"of another shard", good.Token, []string{"publish", "docs", dir}, "docs"},
		{"for an operator's work", good.Token, []string{"master", "drain", "m1"}, ""},
		{"without a token", "", []string{"publish", "www", dir, "--server", "https://" + f.Masters[0].Host.Addr + ":7050"}, "token"},
		{"with a token that is none", good.Token[:len(good.Token)-4] + "AAAA", []string{"publish", "www", dir}, "token"},
	} {
		if r := from(c.token, c.args...); r.Code == 0 || !strings.Contains(r.Stderr, c.says) || strings.Contains(r.Stderr, good.Token) {
			t.Errorf("%s: %v", c.name, r)
		}
	}
	f.Masters[1].MustCLI("token", "revoke", good.ID)
	refused := func(token string) func() bool {
		return func() bool {
			r := from(token, "publish", "www", dir)
			return r.Code == 1 && strings.Contains(r.Stderr, "token")
		}
	}
	eventually(t, restLimit, "a revoked token is refused", refused(good.Token))
	eventually(t, restLimit, "an expired token is refused", refused(short.Token))
	if out := f.Masters[0].MustCLI("token", "list"); strings.Contains(out, good.ID) {
		t.Errorf("a revoked token is listed: %s", out)
	}
}

// etcd loses everything: the masters serve on, and recover brings the fleet back above every number that was given out.
func TestRecoverManyMasters(t *testing.T) {
	needCommands(t, "nfs-cat")
	f := StartFleet(t, FleetConfig{Masters: 3, Etcd: EtcdDebian, TTL: 2 * time.Second})
	dir := t.TempDir()
	f.createShard("www")
	var g Generation
	for i := range 4 {
		writeFile(t, dir+"/file", fmt.Sprint("version ", i))
		g = f.publishAnywhere("www", dir, "")
	}
	f.WaitServed("www", g.Number, restLimit)
	before := f.Masters[0].Shard("www")
	e := f.Etcd.Members[0]
	e.Kill()
	if err := os.RemoveAll(filepath.Join(e.dataDir(), "member")); err != nil {
		t.Fatal(err)
	}
	e.Start()
	for _, m := range f.Masters {
		if got := f.cat(m, "www/file"); got != "version 3" {
			t.Errorf("%s serves %q while etcd has lost everything", m.Name, got)
		}
	}
	if r := f.Masters[1].CLI("publish", "www", dir); r.Code == 0 {
		t.Errorf("a publish into an etcd that has lost the fleet: %v", r)
	}
	eventually(t, restLimit, "recover", func() bool { return f.Masters[2].CLI("recover").Code == 0 })
	writeFile(t, dir+"/file", "version 4")
	next := f.publishAnywhere("www", dir, "")
	f.WaitServed("www", next.Number, restLimit)
	if after := f.Masters[1].Shard("www"); next.Number <= g.Number || after.FSID != before.FSID {
		t.Errorf("after the recovery %+v, generation %d; before %+v", after, next.Number, before)
	}
	for _, m := range f.Masters {
		if got := f.cat(m, "www/file"); got != "version 4" {
			t.Errorf("%s serves %q after the recovery", m.Name, got)
		}
		m.MustCLI("verify")
	}
}

// dataDir is where the member keeps its data.
func (m *EtcdMember) dataDir() string { return m.argv[slices.Index(m.argv, "--data-dir")+1] }

// A head that no living master holds is given up only when told to.
func TestShardRecover(t *testing.T) {
	needCommands(t, "nfs-cat")
	f := StartFleet(t, FleetConfig{Masters: 2, Etcd: EtcdDebian, TTL: 2 * time.Second})
	dir := t.TempDir()
	writeFile(t, dir+"/file", "old")
	f.createShard("www")
	f.WaitServed("www", f.publishAnywhere("www", dir, "").Number, restLimit)
	lost, left := f.Masters[0], f.Masters[1]
	left.Kill()
	writeFile(t, dir+"/file", "on one master only")
	g := f.publishAnywhere("www", dir, "")
	lost.Kill()
	left.Start()
	eventually(t, restLimit, "the master that is left serves", func() bool { code, _ := left.Get("/healthz"); return code == 200 })
	if r := left.CLI("shard", "recover", "www"); r.Code == 0 {
		t.Errorf("recovered without --accept-loss: %v", r)
	}
	var report struct {
		Was, Generation uint64
	}
	eventually(t, restLimit, "recover the shard", func() bool { return left.CLI("shard", "recover", "www", "--accept-loss").Code == 0 })
	var s Status
	left.JSON(&s, "status")
	if got := s.shard("www"); got.Generation != g.Number+1 {
		t.Errorf("recovered as generation %d over %d (%+v)", got.Generation, g.Number, report)
	}
	if got := f.cat(left, "www/file"); got != "old" {
		t.Errorf("it serves %q", got)
	}
	writeFile(t, dir+"/file", "new")
	left.Publish("www", dir)
	// The other one comes back, with its own idea of the past.
	lost.Start()
	lost.WaitReady()
	f.WaitServed("www", g.Number+2, restLimit)
	if got := f.cat(lost, "www/file"); got != "new" {
		t.Errorf("the master that came back serves %q", got)
	}
}

// Most voters of the embedded etcd are gone for good: the fleet goes on from the one that is left, and grows again.
func TestQuorumLostForGood(t *testing.T) {
	needCommands(t, "nfs-cat")
	f := StartFleet(t, FleetConfig{Masters: 3, TTL: 2 * time.Second})
	dir := t.TempDir()
	writeFile(t, dir+"/file", "kept")
	f.createShard("www")
	before := f.publishAnywhere("www", dir, "")
	f.WaitServed("www", before.Number, restLimit)
	left := f.Masters[2]
	if r := left.CLI("recover", "--lost-quorum"); r.Code == 0 {
		t.Errorf("a quorum that is there is given up: %v", r)
	}
	f.Masters[0].Kill()
	f.Masters[1].Kill()
	f.Masters = []*Master{left}
	eventually(t, restLimit, "it says that publishing cannot go on", func() bool { return left.CLI("publish", "www", dir).Code == exitNoLeader })
	if got := f.cat(left, "www/file"); got != "kept" {
		t.Errorf("without a quorum it serves %q", got)
	}
	eventually(t, restLimit, "recover", func() bool { return left.CLI("recover", "--lost-quorum").Code == 0 })
	left.Stop()
	left.Start()
	eventually(t, restLimit, "it serves", func() bool { return f.cat(left, "www/file") == "kept" })
	eventually(t, restLimit, "recover", func() bool { return left.CLI("recover").Code == 0 })
	writeFile(t, dir+"/file", "goes on")
	if g := f.publishAnywhere("www", dir, ""); g.Number <= before.Number {
		t.Errorf("generation %d after %d", g.Number, before.Number)
	}
	for _, gone := range []string{"m1", "m2"} {
		eventually(t, restLimit, "remove "+gone, func() bool { return left.CLI("master", "remove", gone, "--yes").Code == 0 })
	}
	for _, name := range []string{"m4", "m5"} {
		m := NewMaster(t, MasterConfig{Name: name, Host: f.LAN.Host(t, name), Flags: []string{"--lease-ttl", "2s"}, Join: f.JoinToken(left)})
		m.Start()
		m.WaitReady()
		f.Masters = append(f.Masters, m)
	}
	f.WaitVoters(3)
	f.WaitServed("www", before.Number+1, restLimit)
	for _, m := range f.Masters {
		if got := f.cat(m, "www/file"); got != "goes on" {
			t.Errorf("%s serves %q", m.Name, got)
		}
	}
}
