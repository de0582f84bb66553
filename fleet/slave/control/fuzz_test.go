package control

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"
)

// FuzzRequest asks an agent anything: it answers in JSON, what it hears is within bounds, and a failure is one that a client
// knows.
func FuzzRequest(f *testing.F) {
	f.Add("POST", "/v1/routes", []byte(`{"name":"_nfs._tcp.x","via":"relay","dns":["a:53"],"masters":["b:1"],"slave":"s","wait_ns":5}`))
	f.Add("POST", "/v1/routes", []byte(`{"wait_ns":-1}`))
	f.Add("POST", "/v1/routes", []byte(`[]`))
	f.Add("GET", "/v1/status", []byte(nil))
	f.Add("GET", "/v1/../x", []byte("{"))
	f.Fuzz(func(t *testing.T, method, path string, body []byte) {
		if _, err := url.ParseRequestURI(path); err != nil || method == "" {
			return // net/http refuses it
		}
		for _, c := range method {
			if c < 'A' || c > 'Z' {
				return
			}
		}
		heard := false
		h := handler(paperAgent{route: func(ctx context.Context, w Want) (Route, error) {
			heard = true
			if end, ok := ctx.Deadline(); !ok || w.Wait < 0 || time.Until(end) > maxWait {
				t.Errorf("it waits until %v for %+v", end, w)
			}
			return Route{Master: w.Name}, nil
		}})
		r := httptest.NewRequest(method, "/", bytes.NewReader(body))
		r.URL, _ = url.ParseRequestURI(path) // was parsed above
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		var failed failure
		if w.Code == 422 && (heard || json.Unmarshal(w.Body.Bytes(), &failed) != nil || kinds[failed.Kind] == nil) {
			t.Errorf("answered %s, heard: %v", w.Body, heard)
		}
		if w.Code == 200 && !json.Valid(w.Body.Bytes()) {
			t.Errorf("answered %s", w.Body)
		}
	})
}
