package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/trust"
)

// site is a fleet's CA and tokens, and masters that answer over TLS.
type site struct {
	t  *testing.T
	ca *trust.Authority

	mu      sync.Mutex // guards what follows
	records map[string]fleet.TokenRecord
	removed map[string]bool
	away    error // of etcd
	lookups int
	urls    map[string]string // by master
	leads   func(shard string) (string, error)
}

func newSite(t *testing.T) *site {
	t.Helper()
	ca, err := trust.NewAuthority("prod", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &site{t: t, ca: ca, records: map[string]fleet.TokenRecord{}, removed: map[string]bool{}, urls: map[string]string{}}
}

func (s *site) token(_ context.Context, id string) (fleet.TokenRecord, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lookups++
	if s.away != nil {
		return fleet.TokenRecord{}, s.away
	}
	r, ok := s.records[id]
	if !ok {
		return r, fmt.Errorf("token %s: %w", id, fleet.ErrNotFound)
	}
	return r, nil
}

func (s *site) gone(instance string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.removed[instance]
}

// grant makes a token and returns it.
func (s *site) grant(kind trust.Kind, expires time.Time, shards ...string) trust.Token {
	t := trust.NewToken(kind, s.ca.Fingerprint(), nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, url := range s.urls {
		t.Addresses = append(t.Addresses, strings.TrimPrefix(url, "https://"))
	}
	s.records[t.ID] = fleet.TokenRecord{ID: t.ID, Kind: kind, Shards: shards, Hash: trust.HashSecret(t.Secret), ExpiresAt: expires}
	return t
}

func (s *site) credentials(master string) *trust.Credentials {
	s.t.Helper()
	c, err := trust.NewCredentials(s.ca, master, "instance of "+master)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

func readAll(t *testing.T, resp *http.Response) string {
	t.Helper()
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// peer is how one master reaches another.
func (s *site) peer(from string) func(string) (*http.Client, string, error) {
	creds := s.credentials(from)
	var mu sync.Mutex
	clients := map[string]*http.Client{}
	return func(to string) (*http.Client, string, error) {
		s.mu.Lock()
		url, ok := s.urls[to]
		s.mu.Unlock()
		if !ok {
			return nil, "", fmt.Errorf("no address of master %s", to)
		}
		mu.Lock()
		defer mu.Unlock()
		if clients[to] == nil {
			transport := &http.Transport{TLSClientConfig: creds.ClientTLS(to)}
			s.t.Cleanup(transport.CloseIdleConnections)
			clients[to] = &http.Client{Transport: transport, Timeout: time.Minute}
		}
		return clients[to], url, nil
	}
}

func (s *site) leader(shard string) (string, error) {
	s.mu.Lock()
	leads := s.leads
	s.mu.Unlock()
	return leads(shard)
}

func (s *site) setLeader(f func(shard string) (string, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leads = f
}

func always(master string) func(string) (string, error) {
	return func(string) (string, error) { return master, nil }
}

// start starts a master and returns its URL and a function that ends it at once.
func (s *site) start(name string, c Control) (string, func()) {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cfg := Config{Control: c, Metrics: prometheus.NewRegistry(), Logger: zerolog.Nop(), Name: name, Peer: s.peer(name)}
	if s.leads != nil {
		cfg.Leader = s.leader
	}
	h := &http.Server{Handler: NewServer(cfg).Handler(ctx, Remote(s.token, s.gone)), TLSConfig: s.credentials(name).ServerTLS(), ReadHeaderTimeout: time.Minute}
	done := make(chan error, 1)
	go func() { done <- h.ServeTLS(l, "", "") }()
	stop := sync.OnceFunc(func() {
		cancel()
		h.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			s.t.Errorf("serve: %v", err)
		}
	})
	s.t.Cleanup(stop)
	url := "https://" + l.Addr().String()
	s.mu.Lock()
	s.urls[name] = url
	s.mu.Unlock()
	return url, stop
}

// client is the bearer of a token.
func (s *site) client(t trust.Token, servers ...string) *Client {
	s.t.Helper()
	c, err := Connect(ClientConfig{Token: t.String(), Servers: servers, User: "root@web1"})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// as is a master that asks another one.
func (s *site) as(master, to string) *Client {
	s.t.Helper()
	h, url, err := s.peer(master)(to)
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := Connect(ClientConfig{Servers: []string{url}, HTTP: h})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

var tomorrow = time.Now().Add(24 * time.Hour)

// What is wrong with a token is said, and it opens nothing.
func TestTokensThatAreNoGood(t *testing.T) {
	s := newSite(t)
	f := newFake()
	url, _ := s.start("m1", f)
	good := s.grant(trust.Publish, tomorrow, "www")
	unknown, forged := trust.NewToken(trust.Publish, s.ca.Fingerprint(), nil), good
	forged.Secret = trust.NewSecret()
	h, _, err := s.peer("m1")("m1")
	if err != nil {
		t.Fatal(err)
	}
	h = &http.Client{Transport: &http.Transport{TLSClientConfig: trust.PinnedTLS(s.ca.Fingerprint())}, Timeout: h.Timeout}
	for name, tc := range map[string]struct {
		bearer string
		kind   error
		says   string
	}{
		"none":           {"", ErrUnauthorized, "a token is needed"},
		"not one":        {"Bearer hunter2", ErrUnauthorized, "not a token"},
		"basic":          {"Basic cm9vdDpyb290", ErrUnauthorized, "a token is needed"},
		"unknown":        {"Bearer " + unknown.String(), ErrUnauthorized, "unknown"},
		"another secret": {"Bearer " + forged.String(), ErrUnauthorized, "unknown"},
		"expired":        {"Bearer " + s.grant(trust.Publish, time.Now().Add(-time.Second), "www").String(), ErrUnauthorized, "expired at"},
		"for joining":    {"Bearer " + s.grant(trust.Join, tomorrow).String(), ErrForbidden, "no good for publishing"},
	} {
		for _, path := range []string{"/v1/status", "/v1/shards/www/generations", "/v1/nothing"} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", tc.bearer)
			req.Header.Set(callerHeader, `{"kind":"local"}`) // only a master is believed
			resp, err := h.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, status := readAll(t, resp), resp.StatusCode
			want, code := toAPI(tc.kind)
			if status != code || !strings.Contains(body, `"kind":"`+want.Kind+`"`) || !strings.Contains(body, tc.says) {
				t.Errorf("%s, %s: %d %s", name, path, status, body)
			}
			if strings.Contains(body, good.Secret) || strings.Contains(body, forged.Secret) {
				t.Errorf("%s: the answer holds a secret: %s", name, body)
			}
		}
	}
	resp, err := h.Get(url + "/metrics")
	if err != nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("metrics: %v, %v", resp, err)
	}
	resp.Body.Close()
	if f.last() != "" {
		t.Errorf("the master was asked %q", f.last())
	}
}

// A token is for publishing its shards, and for nothing else.
func TestWhatATokenMay(t *testing.T) {
	s := newSite(t)
	f := newFake()
	s.start("m1", f)
	c := s.client(s.grant(trust.Publish, tomorrow, "www", "zoo"))
	may := map[string]bool{
		"Publish": true, "Rollback": true, "History": true, "Diff": true, "BeginUpload": true, "Missing": true, "PutObjects": true, "EndUpload": true,
		"Healthy": true, "Ready": true,
	}
	other := s.client(s.grant(trust.Publish, tomorrow, "docs"))
	for _, x := range exchanges() {
		before := f.last()
		_, err := x.call(t.Context(), c)
		if may[x.name] != (err == nil) || !may[x.name] && !errors.Is(err, ErrForbidden) {
			t.Errorf("%s: %v", x.name, err)
		}
		if err != nil && f.last() != before {
			t.Errorf("%s: refused, and done: %s", x.name, f.last())
		}
		if _, err := x.call(t.Context(), other); x.name != "Healthy" && x.name != "Ready" && !errors.Is(err, ErrForbidden) {
			t.Errorf("%s with a token for another shard: %v", x.name, err)
		}
	}
	if _, err := c.Shard(t.Context(), "www"); err != nil {
		t.Errorf("show: %v", err)
	}
	if _, err := other.Shard(t.Context(), "www"); !errors.Is(err, ErrForbidden) || !strings.Contains(err.Error(), "is for shard docs, not for www") {
		t.Errorf("show another: %v", err)
	}
}

func TestMastersMayDoEverything(t *testing.T) {
	s := newSite(t)
	f := newFake()
	s.start("m1", f)
	c := s.as("m2", "m1")
	for _, x := range exchanges() {
		if _, err := x.call(t.Context(), c); err != nil {
			t.Errorf("%s: %v", x.name, err)
		}
	}
	s.mu.Lock()
	s.removed["instance of m2"] = true
	s.mu.Unlock()
	if _, err := c.Status(t.Context()); !errors.Is(err, ErrForbidden) || !strings.Contains(err.Error(), "m2 was removed") {
		t.Errorf("a removed master: %v", err)
	}
}

// Who asks is known to the Control, and cannot be made up.
func TestTheCallerIsKnown(t *testing.T) {
	s := newSite(t)
	f := &callers{Control: newFake()}
	s.start("m1", f)
	token := s.grant(trust.Publish, tomorrow, "www")
	c := s.client(token)
	c.user = "root@web1 漢"
	if _, err := c.Publish(t.Context(), "www", PublishRequest{Caller: Caller{Kind: CallerLocal}}, nil); err != nil {
		t.Fatal(err)
	}
	want := Caller{Kind: CallerToken, Name: token.ID, Shards: []string{"www"}, From: "127.0.0.1", User: "root@web1 漢"}
	if fmt.Sprintf("%#v", f.publisher) != fmt.Sprintf("%#v", want) || f.publisher.String() != "root@web1 漢 token "+token.ID+" from 127.0.0.1" {
		t.Errorf("%#v", f.publisher)
	}
	if err := s.as("m2", "m1").Drain(t.Context(), "m3", DrainRequest{}); err != nil || f.drainer.Kind != CallerMaster || f.drainer.Name != "m2" {
		t.Errorf("%v, %#v", err, f.drainer)
	}
	plain, _, _ := serve(t, f)
	if err := plain.Drain(t.Context(), "m3", DrainRequest{}); err != nil || f.drainer.String() != "local" {
		t.Errorf("%v, %#v", err, f.drainer)
	}
	if (Caller{}).String() != "" {
		t.Error("nobody is somebody")
	}
}

// callers remembers who has asked.
type callers struct {
	Control
	publisher, drainer Caller
}

func (c *callers) Publish(_ context.Context, _ string, r PublishRequest, _ func(Progress)) (Published, error) {
	c.publisher = r.Caller
	return Published{}, nil
}

func (c *callers) Drain(ctx context.Context, _ string, _ DrainRequest) error {
	c.drainer = CallerOf(ctx)
	return nil
}

// Without etcd nobody knows whether a token is good.
func TestTokensWithoutEtcd(t *testing.T) {
	s := newSite(t)
	s.start("m1", newFake())
	s.away = fmt.Errorf("read: %w", fleet.ErrUnavailable)
	if _, err := s.client(s.grant(trust.Publish, tomorrow, "www")).History(t.Context(), "www"); !errors.Is(err, ErrNoQuorum) {
		t.Errorf("%v", err)
	}
}

// Whoever guesses tokens is held up, for a while, and asks etcd nothing.
func TestGuessingIsSlow(t *testing.T) {
	s := newSite(t)
	now := time.Now()
	d := &door{tokens: s.token, removed: s.gone, now: func() time.Time { return now }, lookups: make(chan struct{}, 1), failures: map[netip.Addr]int{}}
	ask := func(from string, t trust.Token) error {
		r, err := http.NewRequest(http.MethodGet, "/v1/shards/www", nil)
		if err != nil {
			return err
		}
		r.RemoteAddr = from
		r.Header.Set("Authorization", "Bearer "+t.String())
		_, err = d.admit(r)
		return err
	}
	good := s.grant(trust.Publish, now.Add(time.Hour), "www")
	for range maxFailures {
		if err := ask("[2001:db8::1]:99", trust.NewToken(trust.Publish, s.ca.Fingerprint(), nil)); !errors.Is(err, ErrUnauthorized) || strings.Contains(err.Error(), "too many") {
			t.Fatal(err)
		}
	}
	if err := ask("[2001:db8::2]:99", good); !errors.Is(err, ErrUnauthorized) || !strings.Contains(err.Error(), "too many wrong tokens") {
		t.Errorf("its neighbour: %v", err)
	}
	if s.lookups != maxFailures {
		t.Errorf("etcd was asked %d times", s.lookups)
	}
	if err := ask("192.0.2.1:99", good); err != nil {
		t.Errorf("somebody else: %v", err)
	}
	now = now.Add(failuresEvery)
	if err := ask("[2001:db8::1]:99", good); err != nil {
		t.Errorf("later: %v", err)
	}
	for i := range 2 * maxSuspects {
		d.failed(netip.MustParseAddr(fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)))
	}
	if len(d.failures) > maxSuspects {
		t.Errorf("%d suspects are remembered", len(d.failures))
	}
	if err := ask("192.0.2.1:99", good); err != nil {
		t.Errorf("while many guess: %v", err)
	}
}

func TestPlainHTTPIsForThisMachine(t *testing.T) {
	at := func(host string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(host), Port: 7049} }
	for name, tc := range map[string]struct {
		remote string
		here   net.Addr
		ok     bool
	}{
		"loopback":              {"127.0.0.1:5", at("127.0.0.1"), true},
		"IPv6 loopback":         {"[::1]:5", at("::1"), true},
		"an address of its own": {"10.0.0.1:5", at("10.0.0.1"), true},
		"mapped":                {"[::ffff:10.0.0.1]:5", at("10.0.0.1"), true},
		"another machine":       {"10.0.0.2:5", at("10.0.0.1"), false},
		"another, IPv6":         {"[fe80::2%eth0]:5", at("fe80::1"), false},
		"a socket":              {"@", &net.UnixAddr{Name: "x"}, true},
	} {
		r, err := http.NewRequestWithContext(context.WithValue(t.Context(), http.LocalAddrContextKey, tc.here), http.MethodGet, "/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.RemoteAddr = tc.remote
		c, err := local(r)
		if tc.ok != (err == nil) || tc.ok != (c.Kind == CallerLocal) || !tc.ok && (!errors.Is(err, ErrForbidden) || !strings.Contains(err.Error(), "https://")) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}

func TestCleanUser(t *testing.T) {
	for text, want := range map[string]string{
		"root@web1": "root@web1", " a\x1b[2J\nb ": "a[2Jb", "\xff": "", strings.Repeat("漢", 100): strings.Repeat("漢", maxUser/3), "": "",
	} {
		if got := cleanUser(text); got != want {
			t.Errorf("%q: %q", text, got)
		}
	}
}
