package console

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"
)

const (
	headerTimeout = 5 * time.Second
	readTimeout   = 30 * time.Second // for a JSON body, and between two pieces of an upload
	writeTimeout  = 30 * time.Second // for an answer, and for each line of a stream
	idleTimeout   = 2 * time.Minute
	stopTimeout   = 2 * time.Second // for requests in flight when the server stops
	maxHeader     = 64 << 10
	maxJSON       = 1 << 20   // bytes of a JSON body
	maxUpload     = 512 << 20 // bytes of one stream of objects; an upload sends as many streams as it needs
)

// Config says what a Server serves.
type Config struct {
	Control Control
	Metrics prometheus.Gatherer // nil: no /metrics
	Logger  zerolog.Logger
}

// Server answers HTTP for one Control.
type Server struct {
	control Control
	metrics prometheus.Gatherer
	log     zerolog.Logger
}

// NewServer returns a server that does not listen yet.
func NewServer(c Config) *Server { return &Server{c.Control, c.Metrics, c.Logger} }

// Serve answers on l until ctx ends; then it closes l, cancels the requests in flight, waits a bounded time for them,
// and returns nil. On a loopback address only requests for loopback names and IP addresses are answered.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	h := &http.Server{
		Handler:           s.handler(ctx, isLoopback(l.Addr())),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeader,
		ErrorLog:       log.New(logWriter{s.log}, "", 0),
	}
	ended := make(chan error, 1)
	go func() { ended <- h.Serve(l) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve http on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	err := h.Shutdown(stop)
	if err != nil {
		err = h.Close()
	}
	if serveErr := <-ended; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	return err
}

func isLoopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return !ok || tcp.IP.IsLoopback()
}

// logWriter takes what net/http has to complain about: clients that misbehave, and panics of handlers.
type logWriter struct{ log zerolog.Logger }

func (w logWriter) Write(p []byte) (int, error) {
	event := w.log.Debug()
	if strings.Contains(string(p), "panic") {
		event = w.log.Error()
	}
	event.Str("part", "http").Msg(strings.TrimSpace(string(p)))
	return len(p), nil
}

// api is the handlers of one Serve. base ends when the server stops.
type api struct {
	*Server
	base context.Context
}

// endpoint answers one request: it writes a 2xx answer itself or returns an error and has written nothing.
type endpoint func(w http.ResponseWriter, r *http.Request) error

func (s *Server) handler(base context.Context, loopback bool) http.Handler {
	a := &api{s, base}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", probe(s.control.Healthy))
	mux.HandleFunc("GET /readyz", probe(s.control.Ready))
	if s.metrics != nil {
		mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: writeTimeout / 2}))
	}
	for pattern, e := range map[string]endpoint{
		"GET /v1/status":                                   a.status,
		"GET /v1/shards":                                   a.shards,
		"POST /v1/shards":                                  a.createShard,
		"GET /v1/shards/{shard}":                           a.showShard,
		"PATCH /v1/shards/{shard}":                         a.setShard,
		"DELETE /v1/shards/{shard}":                        a.deleteShard,
		"POST /v1/shards/{shard}/publish":                  a.publish,
		"POST /v1/shards/{shard}/rollback":                 a.rollback,
		"GET /v1/shards/{shard}/generations":               a.history,
		"GET /v1/shards/{shard}/diff":                      a.diff,
		"POST /v1/shards/{shard}/source/{action}":          a.source,
		"POST /v1/shards/{shard}/uploads":                  a.beginUpload,
		"DELETE /v1/shards/{shard}/uploads/{upload}":       a.endUpload,
		"POST /v1/shards/{shard}/uploads/{upload}/missing": a.missing,
		"POST /v1/shards/{shard}/uploads/{upload}/objects": a.putObjects,
		"POST /v1/shards/{shard}/lead":                     a.lead,
		"POST /v1/shards/{shard}/recover":                  a.recoverShard,
		"GET /v1/masters":                                  a.masters,
		"GET /v1/self":                                     a.self,
		"DELETE /v1/masters/{master}":                      a.removeMaster,
		"POST /v1/masters/{master}/drain":                  a.drain,
		"POST /v1/masters/{master}/undrain":                a.undrain,
		"GET /v1/tokens":                                   a.tokens,
		"POST /v1/tokens":                                  a.createToken,
		"DELETE /v1/tokens/{token}":                        a.revokeToken,
		"POST /v1/verify":                                  a.verify,
		"POST /v1/recover":                                 a.recover,
		"/v1/":                                             noEndpoint,
	} {
		mux.Handle(pattern, a.wrap(e))
	}
	return guard(mux, loopback)
}

func noEndpoint(_ http.ResponseWriter, r *http.Request) error {
	return Errorf(ErrInvalid, "no endpoint %s %s: docs/api.md lists them", r.Method, r.URL.Path)
}

// probe answers a load balancer: 200 or 503, and a line that says why.
func probe(check func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if err := check(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, err)
			return
		}
		fmt.Fprintln(w, "ok")
	}
}

// wrap answers errors and logs the request.
func (a *api) wrap(e endpoint) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		err := e(w, r)
		if err != nil {
			body, status := toAPI(err)
			writeJSON(w, status, body)
		}
		a.log.Debug().Str("client", r.RemoteAddr).Str("method", r.Method).Str("path", r.URL.Path).AnErr("err", err).
			Int64("took_ms", time.Since(began).Milliseconds()).Msg("http request")
	})
}
