package peer

import (
	"crypto/tls"
	"net"
	"net/http"
	"time"
)

// NewTransport returns a transport that suits a Fetcher: HTTP/1.1 over TLS with c, large buffers, and connections kept for
// the next batch. The caller closes its idle connections in the end.
func NewTransport(c *tls.Config) *http.Transport {
	d := net.Dialer{Timeout: 3 * time.Second, KeepAlive: 15 * time.Second}
	return &http.Transport{
		DialContext:         d.DialContext,
		TLSClientConfig:     c,
		TLSHandshakeTimeout: 5 * time.Second,
		DisableCompression:  true,
		MaxIdleConnsPerHost: 2 * streamsAPeer,
		IdleConnTimeout:     time.Minute,
		ReadBufferSize:      64 << 10,
		WriteBufferSize:     64 << 10,
		TLSNextProto:        map[string]func(string, *tls.Conn) http.RoundTripper{}, // no HTTP/2: one stream at half the speed
	}
}
