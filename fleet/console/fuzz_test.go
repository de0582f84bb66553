package console

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/rs/zerolog"
)

// FuzzRequests asks the API anything, as an administrator of the host may: every answer is a status of HTTP, those of failure
// say what failed, and nothing is the master's own fault.
func FuzzRequests(f *testing.F) {
	for _, r := range []string{
		"GET /v1/status", "GET /v1/shards", "POST /v1/shards {\"name\":\"new\"}", "PATCH /v1/shards/www {\"squash\":\"all\",\"keep_for\":\"1h\",\"networks\":[\"::/0\"]}",
		"DELETE /v1/shards/www", "POST /v1/shards/www/publish {\"note\":\"n\",\"wait\":true,\"root\":\"00\"}", "POST /v1/shards/www/rollback {\"generation\":-3}",
		"GET /v1/shards/www/history", "GET /v1/shards/www/diff?from=3&to=18446744073709551615", "POST /v1/shards/www/source {\"action\":\"rescan\"}",
		"POST /v1/shards/www/uploads/u/objects \x00\x01", "POST /v1/shards/www/uploads/u/missing [\"aa\"]", "POST /v1/verify {\"shard\":\"www\"}", "POST /v1/recover null",
		"GET /v1/slaves", "POST /v1/slaves/web17/move {\"master\":\"m2\"}", "POST /v1/masters/m1/drain {}", "POST /v1/tokens {\"kind\":\"join\"}", "GET /metrics", "GET /nothing", "POST /v1/rebalance",
	} {
		method, rest, _ := strings.Cut(r, " ")
		path, body, _ := strings.Cut(rest, " ")
		f.Add(method, path, []byte(body))
	}
	h := NewServer(Config{Control: newFake(), Logger: zerolog.Nop()}).Handler(context.Background(), func(*http.Request) (Caller, error) { return Caller{}, nil })
	f.Fuzz(func(t *testing.T, method, path string, body []byte) {
		u, err := url.ParseRequestURI(path)
		if err != nil || method == "" || strings.Trim(method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
			return // net/http refuses it
		}
		r := httptest.NewRequest(method, "/", bytes.NewReader(body))
		r.URL = u
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code < 200 || w.Code > 599 || w.Code == http.StatusInternalServerError {
			t.Errorf("%d: %s", w.Code, w.Body)
		}
		if strings.HasPrefix(w.Header().Get("Content-Type"), "application/json") && w.Code >= 400 {
			var e apiError
			if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || e.Message == "" || e.Kind == "" {
				t.Errorf("%d: %s, %v", w.Code, w.Body, err)
			}
		}
	})
}
