package console

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// api is the handlers of one listener. base ends when the server stops.
type api struct {
	Config
	base      context.Context
	control   Control
	authorize func(*http.Request) (Caller, error)
}

// endpoint answers one request: it writes a 2xx answer itself or returns an error and has written nothing.
type endpoint func(w http.ResponseWriter, r *http.Request) error

// route is an endpoint, who may use it, and where it is answered.
type route struct {
	answer  endpoint
	token   bool // by the bearer of a token for the path's shard too
	leader  bool // by the shard's leader
	streams bool // the request's body is long, and is read once
}

func (a *api) routes() map[string]route {
	return map[string]route{
		"GET /v1/status":                                   {answer: a.status},
		"GET /v1/self":                                     {answer: a.self},
		"GET /v1/masters":                                  {answer: a.masters},
		"DELETE /v1/masters/{master}":                      {answer: a.removeMaster},
		"POST /v1/masters/{master}/drain":                  {answer: a.drain},
		"POST /v1/masters/{master}/undrain":                {answer: a.undrain},
		"GET /v1/self/slaves":                              {answer: a.heardSlaves},
		"GET /v1/slaves":                                   {answer: a.slaves},
		"GET /v1/slaves/{slave}":                           {answer: a.showSlave},
		"DELETE /v1/slaves/{slave}":                        {answer: a.forgetSlave},
		"POST /v1/slaves/{slave}/move":                     {answer: a.moveSlave},
		"POST /v1/rebalance":                               {answer: a.rebalance},
		"GET /v1/tokens":                                   {answer: a.tokens},
		"POST /v1/tokens":                                  {answer: a.createToken},
		"DELETE /v1/tokens/{token}":                        {answer: a.revokeToken},
		"GET /v1/shards":                                   {answer: a.shards},
		"POST /v1/shards":                                  {answer: a.createShard},
		"GET /v1/shards/{shard}":                           {answer: a.showShard, token: true},
		"PATCH /v1/shards/{shard}":                         {answer: a.setShard},
		"DELETE /v1/shards/{shard}":                        {answer: a.deleteShard},
		"POST /v1/shards/{shard}/publish":                  {answer: a.publish, token: true, leader: true},
		"POST /v1/shards/{shard}/rollback":                 {answer: a.rollback, token: true, leader: true},
		"GET /v1/shards/{shard}/generations":               {answer: a.history, token: true},
		"GET /v1/shards/{shard}/diff":                      {answer: a.diff, token: true},
		"POST /v1/shards/{shard}/source/{action}":          {answer: a.source},
		"POST /v1/shards/{shard}/source/resume":            {answer: a.resume, leader: true},
		"POST /v1/shards/{shard}/lead":                     {answer: a.lead},
		"POST /v1/shards/{shard}/recover":                  {answer: a.recoverShard},
		"POST /v1/shards/{shard}/uploads":                  {answer: a.beginUpload, token: true, leader: true},
		"DELETE /v1/shards/{shard}/uploads/{upload}":       {answer: a.endUpload, token: true, leader: true},
		"POST /v1/shards/{shard}/uploads/{upload}/missing": {answer: a.missing, token: true, leader: true},
		"POST /v1/shards/{shard}/uploads/{upload}/objects": {answer: a.putObjects, token: true, leader: true, streams: true},
		"POST /v1/verify":                                  {answer: a.verify},
		"POST /v1/recover":                                 {answer: a.recover},
		"/v1/":                                             {answer: noEndpoint, token: true},
	}
}

func (s *Server) handler(base context.Context, loopback bool, authorize func(*http.Request) (Caller, error)) http.Handler {
	a := &api{s.c, base, s.c.Control, authorize}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", probe(a.control.Healthy))
	mux.HandleFunc("GET /readyz", probe(a.control.Ready))
	if a.Metrics != nil {
		mux.Handle("GET /metrics", promhttp.HandlerFor(a.Metrics, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: writeTimeout / 2}))
	}
	for pattern, rt := range a.routes() {
		mux.Handle(pattern, a.wrap(rt))
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

// wrap finds out who asks, sees to it that the right master answers, answers errors and logs the request.
func (a *api) wrap(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		_ = http.NewResponseController(w).SetReadDeadline(began.Add(readTimeout)) // for a body; fails for what is no connection
		caller, err := a.admit(rt, r)
		if err == nil {
			r = r.WithContext(WithCaller(r.Context(), caller))
			err = a.dispatch(rt, w, r)
		}
		if err != nil {
			body, status := toAPI(err)
			writeJSON(w, status, body)
		}
		a.Logger.Debug().Str("client", r.RemoteAddr).Str("caller", caller.String()).Str("method", r.Method).Str("path", r.URL.Path).AnErr("err", err).
			Int64("took_ms", time.Since(began).Milliseconds()).Msg("http request")
	})
}
