package console

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/rs/zerolog"
)

// get sends one request with the given headers and returns status and body.
func get(t *testing.T, method, url string, header map[string]string, body ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(strings.Join(body, "")))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		if req.Header.Set(k, v); k == "Host" {
			req.Host = v
		}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Header.Values("Access-Control-Allow-Origin")) != 0 {
		t.Errorf("%s %s: a CORS header", method, url)
	}
	return resp.StatusCode, string(b)
}

func TestProbesAndMetrics(t *testing.T) {
	f := newFake()
	_, base, _ := serve(t, f)
	for path, want := range map[string]string{"/healthz": "ok\n", "/readyz": "ok\n", "/metrics": "nfs_fleet_up 1\n"} {
		if code, body := get(t, http.MethodGet, base+path, nil); code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
	f.fail = ErrNoQuorum
	for _, path := range []string{"/healthz", "/readyz"} {
		if code, body := get(t, http.MethodGet, base+path, nil); code != 503 || body != "no etcd quorum\n" {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
}

func TestForeignRequestsAreRefused(t *testing.T) {
	_, base, _ := serve(t, newFake())
	for name, tc := range map[string]struct {
		method, path string
		header       map[string]string
		want         int
	}{
		"curl":                           {"GET", "/v1/status", nil, 200},
		"curl publishes":                 {"POST", "/v1/shards/www/publish", nil, 200},
		"localhost":                      {"GET", "/v1/status", map[string]string{"Host": "LocalHost.:7049"}, 200},
		"a name below localhost":         {"GET", "/v1/status", map[string]string{"Host": "m1.localhost"}, 200},
		"IPv6":                           {"GET", "/v1/status", map[string]string{"Host": "[::1]:7049"}, 200},
		"IPv6 without a port":            {"GET", "/v1/status", map[string]string{"Host": "[::1]"}, 200},
		"rebound name":                   {"GET", "/v1/status", map[string]string{"Host": "evil.example"}, 403},
		"rebound name, metrics":          {"GET", "/metrics", map[string]string{"Host": "evil.example:7049"}, 403},
		"name that looks like localhost": {"GET", "/v1/status", map[string]string{"Host": "localhost.evil.example"}, 403},
		"another site's form":            {"POST", "/v1/shards/www/publish", map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		"another site's old browser":     {"POST", "/v1/shards/www/publish", map[string]string{"Origin": "http://evil.example"}, 403},
		"another port of this host":      {"POST", "/v1/shards/www/publish", map[string]string{"Sec-Fetch-Site": "same-site"}, 403},
		"another site's image":           {"GET", "/v1/shards/www/diff", map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		"delete from another site":       {"DELETE", "/v1/shards/www", map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		"typed into a browser":           {"GET", "/v1/status", map[string]string{"Sec-Fetch-Site": "none"}, 200},
		"our own page":                   {"POST", "/v1/shards/www/publish", map[string]string{"Sec-Fetch-Site": "same-origin"}, 200},
	} {
		t.Run(name, func(t *testing.T) {
			code, body := get(t, tc.method, base+tc.path, tc.header)
			if code != tc.want || (code == 403) != strings.Contains(body, `"kind":"forbidden"`) {
				t.Errorf("%d %s, want %d", code, body, tc.want)
			}
		})
	}
}

// Off loopback the operator has decided who reaches the port, and by what names.
func TestAnyHostNameOffLoopback(t *testing.T) {
	s := NewServer(Config{Control: newFake(), Logger: zerolog.Nop()})
	for loopback, want := range map[bool]int{true: 403, false: 200} {
		r, err := http.NewRequest(http.MethodGet, "http://m1.example.org:7049/healthz", nil)
		if err != nil {
			t.Fatal(err)
		}
		w := &recorder{header: http.Header{}}
		s.handler(context.Background(), loopback, local).ServeHTTP(w, r)
		if w.code != want {
			t.Errorf("loopback %t: %d, want %d", loopback, w.code, want)
		}
	}
}

// recorder keeps the status code of an answer.
type recorder struct {
	header http.Header
	code   int
}

func (r *recorder) Header() http.Header { return r.header }
func (r *recorder) WriteHeader(code int) {
	if r.code == 0 {
		r.code = code
	}
}
func (r *recorder) Write(b []byte) (int, error) { r.WriteHeader(200); return len(b), nil }

func TestBadRequests(t *testing.T) {
	f := newFake()
	_, base, _ := serve(t, f)
	long := fmt.Sprintf(`{"digests":[%s"%064x"]}`, strings.Repeat(fmt.Sprintf("%q,", strings.Repeat("a", 64)), MaxMissing), 1)
	for name, tc := range map[string]struct{ method, path, body, want string }{
		"unknown endpoint":    {"GET", "/v1/nothing", "", "no endpoint GET /v1/nothing"},
		"wrong method":        {"PUT", "/v1/status", "", "no endpoint PUT /v1/status"},
		"no JSON":             {"POST", "/v1/shards/www/publish", "{", "request body"},
		"two values":          {"POST", "/v1/shards/www/publish", "{}{}", "more than one"},
		"unknown field":       {"POST", "/v1/shards/www/publish", `{"nope":1}`, "nope"},
		"wrong type":          {"PATCH", "/v1/shards/www", `{"min_copies":"many"}`, "min_copies"},
		"bad digest":          {"POST", "/v1/shards/www/publish", `{"root":"ab"}`, "digest"},
		"too large":           {"POST", "/v1/recover", `{"dry_run":` + strings.Repeat(" ", maxJSON) + `true}`, "too large"},
		"too many digests":    {"POST", "/v1/shards/www/uploads/u/missing", long, "at most"},
		"source action":       {"POST", "/v1/shards/www/source/explode", "", "use pause, resume or rescan"},
		"generation":          {"GET", "/v1/shards/www/diff?a=-1", "", "a="},
		"generation too high": {"GET", "/v1/shards/www/diff?b=18446744073709551616", "", "b="},
		"shard's name":        {"POST", "/v1/shards", `{"name":"../x"}`, "lower-case"},
		"shard's settings":    {"POST", "/v1/shards", `{"name":"x","squash":"maybe"}`, "use none, root or all"},
		"cut-off stream":      {"POST", "/v1/shards/www/uploads/u/objects", "abc", "cut off"},
	} {
		t.Run(name, func(t *testing.T) {
			code, body := get(t, tc.method, base+tc.path, nil, tc.body)
			if code != 400 || !strings.Contains(body, tc.want) || !strings.Contains(body, `"kind":"invalid"`) {
				t.Errorf("%d %s, want 400 with %q", code, body, tc.want)
			}
		})
	}
}

func TestCreateFillsInDefaults(t *testing.T) {
	_, base, _ := serve(t, newFake())
	code, body := get(t, http.MethodPost, base+"/v1/shards", nil, `{"name":"new","min_copies":3}`)
	if code != 200 || !strings.Contains(body, `"min_copies":3`) || !strings.Contains(body, `"generations":10`) || !strings.Contains(body, `"squash":"none"`) {
		t.Errorf("%d %s", code, body)
	}
}

// A Control's error in the middle of a large upload reaches a client that is still sending.
func TestUploadErrorIsHeard(t *testing.T) {
	f := newFake()
	c, _, _ := serve(t, f)
	f.fail = fmt.Errorf("no space left on m1: %w", ErrUnavailable)
	stream := objectStream(strings.Repeat("x", 20<<20))
	if err := c.PutObjects(t.Context(), "www", "u", stream); err == nil || err.Error() != f.fail.Error() {
		t.Errorf("%v", err)
	}
}

func TestServeStopsAndSaysWhyItCannot(t *testing.T) {
	_, base, stop := serve(t, newFake())
	conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stop() // does not wait for the idle connection
	if _, err := bufio.NewReader(conn).ReadByte(); err == nil {
		t.Error("an idle connection is open still")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := NewServer(Config{Control: newFake(), Logger: zerolog.Nop()}).Serve(t.Context(), l); err == nil {
		t.Error("serving on a closed listener is no error")
	}
}
