package console

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"time"
)

const (
	leaderWait   = 2 * time.Second        // for a leader, while a hand-over is under way
	leaderRetry  = 25 * time.Millisecond  // between two looks
	leaderLook   = 250 * time.Millisecond // between two looks while another master answers
	leaderGrace  = 5 * time.Second        // for a master to answer that leads no more
	maxForwarded = 16 << 20               // bytes of an answer that is passed on in one piece
)

// dispatch has a request answered by the shard's leader if that is what it takes, and otherwise here. A request that
// another master has passed on is answered here whatever this master thinks: no request goes in circles.
func (a *api) dispatch(rt route, w http.ResponseWriter, r *http.Request) error {
	if !rt.leader || a.Leader == nil || r.Header.Get(callerHeader) != "" {
		return rt.answer(w, r)
	}
	var body []byte
	if !rt.streams {
		var err error
		if body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxJSON)); err != nil {
			return Errorf(ErrInvalid, "request body: %w", err)
		}
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // the answer may take its time; who hangs up is noticed still
	}
	for deadline := time.Now().Add(leaderWait); ; {
		if !rt.streams {
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		}
		used, err := a.attempt(rt, w, r, body)
		if !errors.Is(err, ErrNoLeader) || rt.streams && used || !time.Now().Before(deadline) {
			return err
		}
		if err := pause(r.Context(), leaderRetry); err != nil {
			return err
		}
	}
}

// pause waits unless ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// attempt has the request answered by who leads now. used reports whether its body may have been read. An ErrNoLeader
// means that nothing was done.
func (a *api) attempt(rt route, w http.ResponseWriter, r *http.Request, body []byte) (used bool, err error) {
	shard := r.PathValue("shard")
	master, err := a.Leader(shard)
	switch {
	case err != nil:
		return false, err
	case master == a.Name:
		return true, rt.answer(w, r)
	}
	h := &hop{api: a, shard: shard, master: master}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	h.ctx, h.cancel = ctx, cancel
	from := io.Reader(bytes.NewReader(body)) // which net/http can send again over another connection
	if rt.streams {
		from = &patientReader{http.MaxBytesReader(w, r.Body, maxUpload), http.NewResponseController(w)}
	}
	err = h.pass(w, r, from)
	return h.sent.Load(), err
}

// hop passes one request on to another master.
type hop struct {
	*api
	shard, master string
	ctx           context.Context // of the request as it is passed on
	cancel        context.CancelCauseFunc
	sent          atomic.Bool // there was a connection: the master may have got the request
}

func (h *hop) pass(w http.ResponseWriter, r *http.Request, body io.Reader) error {
	client, base, err := h.Peer(h.master)
	if err != nil {
		return Errorf(ErrNoLeader, "master %s leads shard %s, and cannot be asked: %w", h.master, h.shard, err)
	}
	out, err := h.request(base, r, body)
	if err != nil {
		return err
	}
	whole := *client
	whole.Timeout = 0 // a publish takes as long as it takes
	watching, stop := context.WithCancel(h.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.watch(watching)
	}()
	defer func() { stop(); <-done }()
	resp, err := whole.Do(out)
	if err != nil {
		return h.failed(r.Context(), err)
	}
	defer resp.Body.Close()
	return h.answer(w, r, resp)
}

func (h *hop) request(base string, r *http.Request, body io.Reader) (*http.Request, error) {
	target := base + r.URL.EscapedPath()
	if r.URL.RawQuery != "" {
		target += "?" + r.URL.RawQuery
	}
	ctx := httptrace.WithClientTrace(h.ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { h.sent.Store(true) }})
	out, err := http.NewRequestWithContext(ctx, r.Method, target, body)
	if err != nil {
		return nil, fmt.Errorf("pass on: %w", err)
	}
	if out.ContentLength == 0 {
		out.ContentLength = r.ContentLength
	}
	caller, err := passOn(CallerOf(r.Context()))
	if err != nil {
		return nil, err
	}
	out.Header.Set(callerHeader, caller)
	if v := r.Header.Get("Content-Type"); v != "" {
		out.Header.Set("Content-Type", v)
	}
	return out, nil
}

// watch gives the master up that has led no more for a while and has not answered: it may be paused, and its lease over.
func (h *hop) watch(ctx context.Context) {
	tick := time.NewTicker(leaderLook)
	defer tick.Stop()
	var since time.Time // it is not the leader
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			master, err := h.Leader(h.shard)
			switch {
			case err == nil && master == h.master || err != nil && !errors.Is(err, ErrNoLeader):
				since = time.Time{}
			case since.IsZero():
				since = now
			case now.Sub(since) >= leaderGrace:
				h.cancel(h.doubtful("lost the leadership and does not answer"))
				return
			}
		}
	}
}

// doubtful is the error of a request that the master may have carried out.
func (h *hop) doubtful(format string, args ...any) error {
	return Errorf(ErrUnavailable, "master %s, which led shard %s, %w: `nfs-fleet history %s` shows whether it was done", h.master, h.shard, fmt.Errorf(format, args...), h.shard)
}

// failed says what a request that got no answer has come to.
func (h *hop) failed(client context.Context, err error) error {
	switch {
	case client.Err() != nil:
		return context.Cause(client)
	case h.ctx.Err() != nil:
		return context.Cause(h.ctx)
	case !h.sent.Load():
		return Errorf(ErrNoLeader, "master %s leads shard %s and does not answer: %w", h.master, h.shard, bare(err))
	}
	return h.doubtful("broke off (%w)", bare(err))
}

// answer passes an answer on.
func (h *hop) answer(w http.ResponseWriter, r *http.Request, resp *http.Response) error {
	kind := resp.Header.Get("Content-Type")
	if resp.StatusCode == http.StatusOK && strings.HasPrefix(kind, streamType) {
		return h.stream(w, r, resp)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxForwarded))
	if err != nil {
		return h.failed(r.Context(), err)
	}
	if resp.StatusCode != http.StatusOK {
		var e apiError
		if json.Unmarshal(body, &e) != nil || e.Kind == "" {
			return Errorf(ErrUnavailable, "master %s, which leads shard %s, answered %s", h.master, h.shard, resp.Status)
		}
		return e.err()
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	w.Header().Set("Content-Type", kind)
	_, _ = w.Write(body) // when it fails the client is gone
	return nil
}

// stream passes a stream of lines on as they come. When it breaks off, its last line says so.
func (h *hop) stream(w http.ResponseWriter, r *http.Request, resp *http.Response) error {
	w.Header().Set("Content-Type", streamType)
	alive := newVigil(silence, h.cancel)
	defer alive.stop()
	between, err := flow(w, alive.reader(resp.Body))
	if err == nil {
		return nil
	}
	if !between {
		panic(http.ErrAbortHandler) // in the middle of a line only a broken connection says that this was not all
	}
	body, _ := toAPI(h.failed(r.Context(), err))
	b, err := json.Marshal(line{Error: body.Message, Kind: body.Kind})
	if err == nil {
		_, _ = w.Write(append(b, '\n')) // when it fails the client is gone
	}
	return nil
}

// flow copies a stream as it comes. between reports whether it ended between two lines.
func flow(w http.ResponseWriter, r io.Reader) (between bool, err error) {
	ctl := http.NewResponseController(w)
	buf := make([]byte, 32<<10)
	between = true
	for {
		n, err := r.Read(buf)
		if n > 0 {
			between = buf[n-1] == '\n'
			_ = ctl.SetWriteDeadline(time.Now().Add(writeTimeout))
			if _, err := w.Write(buf[:n]); err != nil {
				return false, err
			}
			if err := ctl.Flush(); err != nil {
				return false, err
			}
		}
		if errors.Is(err, io.EOF) {
			return between, nil
		}
		if err != nil {
			return between, err
		}
	}
}
