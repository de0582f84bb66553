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
	Name    string // of this master

	// Leader returns the name of the master that leads a shard now. An ErrNoLeader is asked about again for a while,
	// because a hand-over may be under way; any other error is the answer to whoever asked. It does not block. nil:
	// this master answers everything itself.
	Leader func(shard string) (master string, err error)
	// Peer returns how another master's API is reached: a client that presents this master's certificate, and a URL
	// without a path.
	Peer func(master string) (client *http.Client, url string, err error)
}

// Server answers HTTP for one Control.
type Server struct{ c Config }

// NewServer returns a server that does not listen yet.
func NewServer(c Config) *Server { return &Server{c} }

// Handler answers requests from other machines: authorize says who asks, as Remote does; an error of it is the answer.
// Long operations end with ctx. There are no metrics here. The http.Server around it needs no timeouts but those for headers and idle connections.
func (s *Server) Handler(ctx context.Context, authorize func(*http.Request) (Caller, error)) http.Handler {
	remote := &Server{s.c}
	remote.c.Metrics = nil // they are for whoever reaches the plain port
	return remote.handler(ctx, false, authorize)
}

// Serve answers on l until ctx ends; then it closes l, cancels the requests in flight, waits a bounded time for them,
// and returns nil. Whoever asks from this machine may do everything, others only see health and metrics. On a loopback
// address only requests for loopback names and IP addresses are answered.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	h := &http.Server{
		Handler:           s.handler(ctx, isLoopback(l.Addr()), local),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeader,
		ErrorLog:       log.New(logWriter{s.c.Logger}, "", 0),
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
