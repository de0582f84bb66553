package master

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/election/etcdtest"
	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
	"github.com/nfs-fleet/nfs-fleet/fleet/trust"
)

// joinToken has a master make a token for a new one.
func (r *running) joinToken(ttl time.Duration) string {
	r.Helper()
	var made console.TokenMade
	r.until("a join token", func(console.Status) bool {
		var err error
		made, err = r.client.CreateToken(r.Context(), console.TokenRequest{Kind: console.TokenJoin, TTL: fleet.Duration(ttl)})
		return err == nil
	})
	return made.Text
}

// joinConfig is the configuration of a master that has nothing but a token.
func joinConfig(t *testing.T, name, token string) Config {
	c := testConfig(t)
	c.Name, c.Join, c.Sources = name, token, map[string]SourceConfig{}
	return c
}

// refused runs a master that must not come up, and returns why.
func refused(t *testing.T, c Config, parts ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := Run(ctx, c, "test", zerolog.New(newTestLog(t)).Level(zerolog.InfoLevel))
	for _, part := range parts {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v, want an error that says %q", err, part)
		}
	}
}

func diskOf(t *testing.T, c Config) localIdentity {
	t.Helper()
	id, err := (&dataDir{path: c.DataDir}).identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func caOf(t *testing.T, c Config) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(c.DataDir, "pki", "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestJoin(t *testing.T) {
	first := testConfig(t)
	first.Fleet = "web"
	m1 := start(t, first)
	m1.until("generation 1", serves(1))
	token := m1.joinToken(time.Hour)
	second := joinConfig(t, "m2", token)
	m2 := start(t, second)
	m2.until("both masters serving generation 1, as m2 sees it", inStep(2, 1))
	m1.until("both masters serving generation 1, as m1 sees it", inStep(2, 1))
	disk := diskOf(t, second)
	if was := diskOf(t, first); disk.Fleet != "web" || disk.ID != was.ID || disk.Instance == was.Instance || disk.Joined == "" {
		t.Errorf("m2's disk has %+v, m1's %+v", disk, was)
	}
	if caOf(t, first) != caOf(t, second) {
		t.Error("two CAs in one fleet")
	}
	refused(t, joinConfig(t, "m3", token), "token create --join", "used up")
	again := joinConfig(t, "m2", m1.joinToken(time.Hour))
	refused(t, again, "lives in this fleet", "--name")

	m2.stop() // and with the token that is used up, it starts again
	m2 = start(t, second)
	m2.until("both masters after the restart", inStep(2, 1))
	if now := diskOf(t, second); now != disk {
		t.Errorf("a restart made %+v of %+v", now, disk)
	}
	m2.stop()
	refused(t, again, "master remove m2")

	second.Join = m1.joinToken(time.Hour) // a token that it would not have needed
	m2 = start(t, second)
	m2.until("both masters with another token", inStep(2, 1))
	if now := diskOf(t, second); now.Instance != disk.Instance {
		t.Errorf("a master of the fleet became another: %+v, was %+v", now, disk)
	}
}

// A master that was removed comes back with a new token and all that its disk has.
func TestJoinAgainAfterRemoval(t *testing.T) {
	m1 := start(t, testConfig(t))
	m1.until("generation 1", serves(1))
	cfg := joinConfig(t, "m2", m1.joinToken(time.Hour))
	m2 := start(t, cfg)
	m1.until("two masters", inStep(2, 1))
	before := diskOf(t, cfg)
	m2.stop()
	if err := m1.client.RemoveMaster(t.Context(), "m2"); err != nil {
		t.Fatal(err)
	}
	cfg.Join = m1.joinToken(time.Hour)
	start(t, cfg)
	m1.until("two masters again", inStep(2, 1))
	if now := diskOf(t, cfg); now.ID != before.ID || now.Instance == before.Instance || now.Joined == before.Joined {
		t.Errorf("%+v after %+v", now, before)
	}
}

func TestJoinIsRefused(t *testing.T) {
	m1 := start(t, testConfig(t))
	m1.until("generation 1", serves(1))
	token, err := trust.ParseToken(m1.joinToken(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	stranger := token
	stranger.CA = trust.Fingerprint{1}
	refused(t, joinConfig(t, "m2", stranger.String()), "not of the fleet that the token is for")
	wrong := token
	wrong.Secret = trust.NewSecret()
	refused(t, joinConfig(t, "m2", wrong.String()), "token create --join")
	wrong.ID = trust.NewToken(trust.Join, token.CA, nil).ID
	refused(t, joinConfig(t, "m2", wrong.String()), "token create --join")
	short := joinConfig(t, "m2", m1.joinToken(time.Second))
	m1.until("the end of a token", func(console.Status) bool {
		all, err := m1.client.Tokens(t.Context())
		for _, other := range all {
			if other.ExpiresAt.Before(time.Now()) {
				return true
			}
		}
		return err != nil
	})
	refused(t, short, "expired")

	named := joinConfig(t, "m2", token.String())
	named.Fleet = "other"
	refused(t, named, "--fleet")
	alone := testConfig(t)
	alone.Name = "m2"
	other := start(t, alone)
	other.until("a fleet of its own", serves(1))
	other.stop()
	before := diskOf(t, alone)
	alone.Join = token.String()
	refused(t, alone, "another fleet", "--data-dir")
	if after := diskOf(t, alone); after != before {
		t.Errorf("a refused join has changed the disk: %+v, was %+v", after, before)
	}
	if _, err := os.Stat(filepath.Join(alone.DataDir, "etcd")); err != nil {
		t.Errorf("a refused join has moved etcd: %v", err)
	}
	alone.Join = ""
	other = start(t, alone)
	other.until("its own fleet", serves(1))

	m2 := start(t, joinConfig(t, "m2", token.String())) // none of which has used the token up
	m2.until("two masters", inStep(2, 1))
}

// Whoever dies after it has used a token up, and before it is a master, tries again with the same token.
func TestJoinAgainAfterACrash(t *testing.T) {
	m1 := start(t, testConfig(t))
	m1.until("generation 1", serves(1))
	cfg := joinConfig(t, "m2", m1.joinToken(time.Hour))
	token, err := trust.ParseToken(cfg.Join)
	if err != nil {
		t.Fatal(err)
	}
	m := &Master{cfg: cfg, version: "test", log: zerolog.New(newTestLog(t))}
	if m.data, err = openDataDir(cfg.DataDir); err != nil {
		t.Fatal(err)
	}
	answer, instance, err := m.askToJoin(t.Context(), token, patience)
	if err != nil || answer.Masters["m1"] != m1.cfg.Listen.Peer {
		t.Fatalf("%+v, %v", answer.Masters, err)
	}
	// It even dies after it has written everything but its identity, which comes last.
	old := filepath.Join(cfg.DataDir, "etcd", "member")
	if err := errors.Join(os.MkdirAll(old, 0o700), os.Mkdir(m.data.join("identity"), 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := m.become(token, answer, instance); err == nil {
		t.Fatal("the identity was written over a directory")
	}
	if err := os.Remove(m.data.join("identity")); err != nil {
		t.Fatal(err)
	}
	aside, err := filepath.Glob(filepath.Join(cfg.DataDir, "etcd.old-*", "member"))
	if err != nil || len(aside) != 1 {
		t.Errorf("what was in the way lies in %q, %v", aside, err)
	}
	m.data.close()
	m2 := start(t, cfg)
	m2.until("two masters", inStep(2, 1))
	if disk := diskOf(t, cfg); disk.Instance != instance {
		t.Errorf("the second try is another instance: %+v, was %s", disk, instance)
	}
}

func TestJoinWithoutAnAnswer(t *testing.T) {
	nobody := trust.NewToken(trust.Join, trust.Fingerprint{1}, []string{etcdtest.FreeAddress()})
	_, err := newJoiner(nobody, zerolog.Nop()).ask(t.Context(), joinRequest{}, time.Nanosecond)
	if err == nil || !strings.Contains(err.Error(), "can be reached from here") || !strings.Contains(err.Error(), nobody.Addresses[0]) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("stopping")
	cancel(reason)
	if _, err := newJoiner(nobody, zerolog.Nop()).ask(ctx, joinRequest{}, patience); !errors.Is(err, reason) {
		t.Errorf("stopped: %v", err)
	}
}

func TestFits(t *testing.T) {
	view := func() fleet.View {
		return fleet.View{
			Identity: fleet.Identity{ID: "id", Fleet: "web"},
			Roster:   map[string]fleet.RosterEntry{"m1": {Name: "m1", Instance: "i1"}, "lost": {Name: "lost", Instance: "i2"}},
			Masters:  map[string]fleet.Master{"m1": {Name: "m1", Instance: "i1", Formats: 3, Version: "v3"}, "old": {Instance: "i3", Formats: 2, Version: "v2"}},
			Removed:  map[string]fleet.Removal{"gone": {}, "i3": {}},
		}
	}
	good := joinRequest{Name: "new", Instance: "n", Formats: 2}
	for name, tc := range map[string]struct {
		change func(*joinRequest, *fleet.View)
		status int    // 0: it fits
		text   string // of the refusal
		member bool
	}{
		"a new one":          {change: func(*joinRequest, *fleet.View) {}},
		"by the right name":  {change: func(r *joinRequest, _ *fleet.View) { r.FleetName, r.Fleet = "web", "id" }},
		"no fleet":           {func(_ *joinRequest, v *fleet.View) { v.Identity = fleet.Identity{} }, http.StatusServiceUnavailable, "no fleet", false},
		"another disk":       {func(r *joinRequest, _ *fleet.View) { r.Fleet = "other" }, http.StatusConflict, "--data-dir", false},
		"another fleet":      {func(r *joinRequest, _ *fleet.View) { r.FleetName = "other" }, http.StatusConflict, "--fleet", false},
		"removed meanwhile":  {func(r *joinRequest, _ *fleet.View) { r.Instance = "gone" }, http.StatusConflict, "another token", false},
		"too old":            {func(r *joinRequest, _ *fleet.View) { r.Formats = 1 }, http.StatusConflict, "v2", false},
		"a living name":      {func(r *joinRequest, _ *fleet.View) { r.Name = "m1" }, http.StatusConflict, "--name", false},
		"a lost name":        {func(r *joinRequest, _ *fleet.View) { r.Name = "lost" }, http.StatusConflict, "master remove lost", false},
		"a master already":   {change: func(r *joinRequest, _ *fleet.View) { r.Name, r.Was = "lost", "i2" }, member: true},
		"another disk of it": {func(r *joinRequest, _ *fleet.View) { r.Name, r.Was = "lost", "i4" }, http.StatusConflict, "master remove lost", false},
		"a second try":       {change: func(r *joinRequest, _ *fleet.View) { r.Name, r.Instance = "lost", "i2" }},
		"its old lease":      {func(r *joinRequest, _ *fleet.View) { r.Name, r.Was = "old", "i3" }, http.StatusServiceUnavailable, "lease", false},
		"etcd started over":  {change: func(r *joinRequest, _ *fleet.View) { r.Fleet, r.Was = "id", "i5" }},
	} {
		r, v := good, view()
		tc.change(&r, &v)
		member, err := r.fits(v)
		var no *refusal
		if errors.As(err, &no) != (tc.status != 0) || member != tc.member || no != nil && (no.status != tc.status || !strings.Contains(no.text, tc.text)) {
			t.Errorf("%s: %t, %v", name, member, err)
		}
	}
}

func TestWrongTokensAreSlowedDown(t *testing.T) {
	g := (&Master{}).joinHandler().(*gatekeeper)
	from, other := sender("192.0.2.1:1000"), sender("192.0.2.2:1000")
	for range joinFailures {
		if g.suspect(from) {
			t.Fatal("suspected too early")
		}
		g.failed(from)
	}
	g.mu.Lock()
	g.since = time.Now() // a slow machine is no reason to forget
	g.mu.Unlock()
	if !g.suspect(from) || g.suspect(other) {
		t.Error("the wrong one is slowed down")
	}
	g.mu.Lock()
	g.since = time.Now().Add(-time.Second)
	g.mu.Unlock()
	if g.suspect(from) {
		t.Error("not forgiven after a second")
	}
	if sender("[2001:db8::1]:1") != sender("[2001:db8::2]:1") || sender("[2001:db8::1]:1") == sender("[2001:db8:0:1::1]:1") || sender("x").IsValid() {
		t.Error("an IPv6 host has its whole /64")
	}
}

// A name that was not given follows the disk; one that was is meant.
func TestCheckOfTheDisk(t *testing.T) {
	id := localIdentity{Identity: fleet.Identity{ID: "id", Fleet: "web"}, Master: "m1"}
	for name, ok := range map[string]bool{"web": true, defaultFleet: true, "other": false} {
		if err := id.check(name, "m1", "/d"); (err == nil) != ok {
			t.Errorf("--fleet %s: %v", name, err)
		}
	}
	if id.check("web", "m2", "/d") == nil {
		t.Error("the disk of another master")
	}
	if Default().Fleet != defaultFleet {
		t.Error("the default fleet has another name")
	}
}

func FuzzJoinRequest(f *testing.F) {
	for _, seed := range []string{`{}`, `{"token":"abc","secret":"s","name":"m1","instance":"x","peer":"7050"}`, `[`, `{"formats":1e99}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r joinRequest
		if json.Unmarshal(b, &r) == nil && r.validate() == nil && (fleet.ValidName(r.Name) != nil || r.Instance == "" || r.Peer == "") {
			t.Errorf("%+v", r)
		}
	})
}
