package console

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// guard refuses what a browser sends on behalf of some other site. The API has no passwords: reaching the port is the
// right to use it, and a page that an operator looks at must not inherit that right.
func guard(next http.Handler, loopback bool) http.Handler {
	crossOrigin := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		err := crossOrigin.Check(r)
		switch {
		case err != nil:
			err = Errorf(ErrForbidden, "%w", err)
		case crossSiteRead(r):
			err = Errorf(ErrForbidden, "a page of another site asks: refused")
		case loopback && !localHost(r.Host):
			err = Errorf(ErrForbidden, "host %q is not this machine: ask http://127.0.0.1 or http://localhost", r.Host)
		default:
			next.ServeHTTP(w, r)
			return
		}
		body, status := toAPI(err)
		writeJSON(w, status, body)
	})
}

// crossSiteRead reports whether a page of another site reads the API. CrossOriginProtection lets every GET pass, and
// the page cannot see the answer, but it should not be able to make the master work either.
func crossSiteRead(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
		return false
	}
	return strings.HasPrefix(r.URL.Path, "/v1/")
}

// localHost reports whether a Host header names this machine in a way that no foreign DNS server can: a name that
// resolves to 127.0.0.1 at its owner's will is how a rebinding attack begins.
func localHost(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.TrimSuffix(strings.TrimPrefix(name, "["), "]")
	if _, err := netip.ParseAddr(name); err == nil {
		return true
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	return name == "localhost" || strings.HasSuffix(name, ".localhost")
}
