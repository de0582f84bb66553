package master

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/nfs-fleet/nfs-fleet/election/etcdtest"
	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/trust"
)

// A fleet whose etcd is elsewhere lets nobody in by a token, and says how to come in.
func TestJoinWithAnEtcdElsewhere(t *testing.T) {
	all, _ := several(t, "m1")
	m1 := all["m1"]
	m1.until("generation 1", inStep(1, 1))
	ca, err := trust.ParseAuthority([]byte(caOf(t, m1.cfg)))
	if err != nil {
		t.Fatal(err)
	}
	token := trust.NewToken(trust.Join, ca.Fingerprint(), []string{m1.cfg.Listen.Peer})
	refused(t, joinConfig(t, "m2", token.String()), "--etcd")
}

// The first address that answers is enough, and what a machine without a token may send is bounded.
func TestJoinByTheMasterThatAnswers(t *testing.T) {
	m1 := start(t, testConfig(t))
	m1.until("generation 1", serves(1))
	token, err := trust.ParseToken(m1.joinToken(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: trust.PinnedTLS(token.CA), DisableKeepAlives: true}}
	for name, tc := range map[string]struct {
		method string
		body   io.Reader
		status int
	}{
		"no JSON":       {http.MethodPost, strings.NewReader("x"), http.StatusBadRequest},
		"too much":      {http.MethodPost, io.MultiReader(strings.NewReader(`{"name":"`), bytes.NewReader(bytes.Repeat([]byte("x"), 2*maxJoinBody))), http.StatusBadRequest},
		"a strange one": {http.MethodPost, strings.NewReader(`{"name":"../m1","instance":"x","peer":"0x50"}`), http.StatusBadRequest},
		"nothing":       {http.MethodPost, nil, http.StatusBadRequest},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tc.method, "https://"+m1.cfg.Listen.Peer+pathJoin, tc.body)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if resp.Body.Close(); resp.StatusCode != tc.status {
			t.Errorf("%s: %s, want %d", name, resp.Status, tc.status)
		}
	}
	token.Addresses = append([]string{etcdtest.FreeAddress()}, token.Addresses...)
	m2 := start(t, joinConfig(t, "m2", token.String()))
	m2.until("two masters", inStep(2, 1))
}

// A connection that was let in without the pinned CA would give the fleet's key away to anybody in between.
func TestJoinerKnowsWhomItAsks(t *testing.T) {
	secure := newJoiner(trust.NewToken(trust.Join, trust.Fingerprint{1}, nil), zerolog.Nop()).client.Transport.(*http.Transport).TLSClientConfig
	if err := secure.VerifyConnection(tls.ConnectionState{}); !errors.Is(err, errStranger) || secure.MinVersion != tls.VersionTLS13 {
		t.Errorf("%v, TLS %x", err, secure.MinVersion)
	}
}

func TestUsedTokens(t *testing.T) {
	server := etcdtest.New(t)
	client, ctx := etcdtest.Dial(t, server.URL()), t.Context()
	m := &Master{client: client, registry: fleet.NewRegistry(client, etcdtest.FleetName()), log: zerolog.Nop()}
	token := trust.NewToken(trust.Join, trust.Fingerprint{}, nil)
	now := time.Now().UTC()
	record := fleet.TokenRecord{
		ID: token.ID, Kind: trust.Join, Hash: trust.HashSecret(token.Secret), CreatedAt: now, ExpiresAt: now.Add(time.Hour), By: "local",
	}
	if err := m.registry.CreateToken(ctx, record); err != nil {
		t.Fatal(err)
	}
	first, err := m.readToken(ctx, token.ID)
	if err != nil || first.TokenRecord.ID != record.ID || first.UsedBy != "" {
		t.Fatalf("%+v, %v", first, err)
	}
	lease := leaseOf(t, m, token.ID)
	if err := m.useToken(ctx, first, "i1"); err != nil {
		t.Fatal(err)
	}
	if err := m.useToken(ctx, first, "i2"); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("two at once: %v", err)
	}
	used, err := m.readToken(ctx, token.ID)
	if err != nil || used.UsedBy != "i1" || leaseOf(t, m, token.ID) != lease || lease == 0 {
		t.Errorf("%+v, %v, lease %d", used, err, lease)
	}
	if err := m.useToken(ctx, used, "i1"); err != nil {
		t.Errorf("the same one again: %v", err)
	}
	m.sweepTokens(ctx)
	if _, err := m.readToken(ctx, token.ID); err != nil {
		t.Errorf("deleted before its user is a master: %v", err)
	}
	m.view.Roster = map[string]fleet.RosterEntry{"m1": {Instance: "i1"}}
	m.sweepTokens(ctx)
	if _, err := m.readToken(ctx, token.ID); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("after its user is a master: %v", err)
	}
	if err := m.useToken(ctx, used, "i3"); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("one that is gone: %v", err)
	}
}

func leaseOf(t *testing.T, m *Master, token string) int64 {
	t.Helper()
	resp, err := m.client.Get(t.Context(), m.registry.Keys().Token(token), clientv3.WithLimit(1))
	if err != nil || len(resp.Kvs) != 1 {
		t.Fatalf("%+v, %v", resp, err)
	}
	return resp.Kvs[0].Lease
}

func TestWhomATokenAdmits(t *testing.T) {
	secret, now := trust.NewSecret(), time.Unix(1000, 0)
	good := usedToken{TokenRecord: fleet.TokenRecord{ID: "t", Kind: trust.Join, Hash: trust.HashSecret(secret), ExpiresAt: now.Add(time.Second)}}
	for name, tc := range map[string]struct {
		change func(*usedToken, *joinRequest)
		text   string // "": it does
	}{
		"its bearer":       {func(*usedToken, *joinRequest) {}, ""},
		"the same again":   {func(u *usedToken, _ *joinRequest) { u.UsedBy = "i" }, ""},
		"another one":      {func(u *usedToken, _ *joinRequest) { u.UsedBy = "j" }, "used up"},
		"a wrong secret":   {func(_ *usedToken, r *joinRequest) { r.Secret = trust.NewSecret() }, "unknown"},
		"no secret":        {func(_ *usedToken, r *joinRequest) { r.Secret = "" }, "unknown"},
		"a publisher":      {func(u *usedToken, _ *joinRequest) { u.Kind = trust.Publish }, "for publishing"},
		"a late one":       {func(u *usedToken, _ *joinRequest) { u.ExpiresAt = now }, "expired"},
		"late and unknown": {func(u *usedToken, r *joinRequest) { u.ExpiresAt = now; r.Secret = "x" }, "unknown"},
	} {
		u, r := good, joinRequest{Secret: secret, Instance: "i"}
		tc.change(&u, &r)
		err := u.admits(r, now)
		if (err == nil) != (tc.text == "") || err != nil && !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b, err := json.Marshal(good)
	if err != nil || strings.Contains(string(b), secret) {
		t.Errorf("%s, %v", b, err)
	}
}
