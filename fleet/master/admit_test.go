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

func TestUsedTokensAreSwept(t *testing.T) {
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
	made, err := m.registry.Token(ctx, token.ID)
	if err := errors.Join(err, m.registry.UseToken(ctx, made, "i1")); err != nil {
		t.Fatal(err)
	}
	m.sweepTokens(ctx)
	if _, err := m.registry.Token(ctx, token.ID); err != nil {
		t.Errorf("deleted before its user is a master: %v", err)
	}
	m.view.Roster = map[string]fleet.RosterEntry{"m1": {Instance: "i1"}}
	m.sweepTokens(ctx)
	if _, err := m.registry.Token(ctx, token.ID); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("after its user is a master: %v", err)
	}
}

func TestWhomATokenAdmits(t *testing.T) {
	secret, now := trust.NewSecret(), time.Unix(1000, 0)
	good := fleet.TokenRecord{ID: "t", Kind: trust.Join, Hash: trust.HashSecret(secret), ExpiresAt: now.Add(time.Second)}
	for name, tc := range map[string]struct {
		change func(*fleet.TokenRecord, *joinRequest)
		text   string // "": it does
	}{
		"its bearer":       {func(*fleet.TokenRecord, *joinRequest) {}, ""},
		"the same again":   {func(u *fleet.TokenRecord, _ *joinRequest) { u.UsedBy = "i" }, ""},
		"another one":      {func(u *fleet.TokenRecord, _ *joinRequest) { u.UsedBy = "j" }, "used up"},
		"a wrong secret":   {func(_ *fleet.TokenRecord, r *joinRequest) { r.Secret = trust.NewSecret() }, "unknown"},
		"no secret":        {func(_ *fleet.TokenRecord, r *joinRequest) { r.Secret = "" }, "unknown"},
		"a publisher":      {func(u *fleet.TokenRecord, _ *joinRequest) { u.Kind = trust.Publish }, "for publishing"},
		"a late one":       {func(u *fleet.TokenRecord, _ *joinRequest) { u.ExpiresAt = now }, "expired"},
		"late and unknown": {func(u *fleet.TokenRecord, r *joinRequest) { u.ExpiresAt = now; r.Secret = "x" }, "unknown"},
	} {
		u, r := good, joinRequest{Secret: secret, Instance: "i"}
		tc.change(&u, &r)
		err := r.admitted(u, now)
		if (err == nil) != (tc.text == "") || err != nil && !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b, err := json.Marshal(good)
	if err != nil || strings.Contains(string(b), secret) {
		t.Errorf("%s, %v", b, err)
	}
}
