package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// line is one line of an NDJSON stream: progress or a change any number of times, and at the end a result or an error.
type line struct {
	Progress *Progress       `json:"progress,omitempty"`
	Change   *Change         `json:"change,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Error    string          `json:"error,omitempty"`
	Kind     string          `json:"kind,omitempty"`
}

const (
	progressEvery = 100 * time.Millisecond
	flushEvery    = 50 * time.Millisecond
)

// streamType is the media type of a stream.
const streamType = "application/x-ndjson"

// stream writes an NDJSON answer. Nothing is sent before the first line, so that an operation that fails at once is
// answered with a proper status code. Whoever has to wait for a line gets an empty one every heartbeat.
type stream struct {
	w     http.ResponseWriter
	ctl   *http.ResponseController
	quit  chan struct{} // closed when nothing is written any more
	ended chan struct{} // closed when the heart has stopped
	stop  func()        // closes quit and waits for ended; more than once is no mistake

	mu      sync.Mutex // guards what follows, and writing
	started bool
	broken  error // of the first write that failed; the client is gone
	flushed time.Time

	reported time.Time // used by whoever reports progress
	step     string
}

// newStream returns a stream, which is stopped before its request's handler returns.
func newStream(w http.ResponseWriter) *stream {
	s := &stream{w: w, ctl: http.NewResponseController(w), quit: make(chan struct{}), ended: make(chan struct{})}
	s.stop = sync.OnceFunc(func() { close(s.quit); <-s.ended })
	go s.beat()
	return s
}

// beat shows that the stream is alive when nothing else does.
func (s *stream) beat() {
	defer close(s.ended)
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-s.quit:
			return
		case now := <-tick.C:
			s.mu.Lock()
			if now.Sub(s.flushed) >= heartbeat {
				_ = s.put([]byte{'\n'}, true)
			}
			s.mu.Unlock()
		}
	}
}

func (s *stream) send(l line) error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.put(append(b, '\n'), l.Change == nil)
}

// put writes bytes, the first ones with the header. The caller holds mu.
func (s *stream) put(b []byte, flush bool) error {
	if s.broken != nil {
		return s.broken
	}
	if !s.started {
		s.started = true
		s.w.Header().Set("Content-Type", streamType)
	}
	s.broken = s.write(b, flush)
	return s.broken
}

func (s *stream) write(b []byte, flush bool) error {
	now := time.Now()
	if err := s.ctl.SetWriteDeadline(now.Add(writeTimeout)); err != nil {
		return err
	}
	if _, err := s.w.Write(b); err != nil {
		return err
	}
	if !flush && now.Sub(s.flushed) < flushEvery {
		return nil
	}
	s.flushed = now
	return s.ctl.Flush()
}

// progress sends p unless it sent one of the same step just now. A client that is gone is found out by the context.
func (s *stream) progress(p Progress) {
	now := time.Now()
	if p.Step == s.step && now.Sub(s.reported) < progressEvery {
		return
	}
	s.step, s.reported = p.Step, now
	_ = s.send(line{Progress: &p})
}

// end sends the last line. It returns err when nothing was sent yet, and nil otherwise.
func (s *stream) end(result any, err error) error {
	s.stop()
	if err != nil && !s.started {
		return err
	}
	l := line{}
	if err != nil {
		body, _ := toAPI(err)
		l.Error, l.Kind = body.Message, body.Kind
	} else if l.Result, err = json.Marshal(result); err != nil {
		return err
	}
	_ = s.send(l) // when the client is gone, there is nobody to tell
	return nil
}

// detached returns a context that outlives the request's client but not the server.
func (a *api) detached(r *http.Request) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	stop := context.AfterFunc(a.base, cancel)
	return ctx, func() { stop(); cancel() }
}

// readBody reads a JSON body over what into holds already; no body at all changes nothing. Afterwards the request's
// read deadline is lifted: from here on a client may take its time, and one that hangs up is still noticed.
func readBody(w http.ResponseWriter, r *http.Request, into any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxJSON))
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if err == nil {
		_, err = d.Token()
		if err == nil {
			err = errors.New("more than one JSON value")
		}
	}
	if !errors.Is(err, io.EOF) {
		return Errorf(ErrInvalid, "request body: %w", err)
	}
	return http.NewResponseController(w).SetReadDeadline(time.Time{})
}

// patient lifts the deadlines of a request whose answer may take long.
func patient(w http.ResponseWriter) {
	ctl := http.NewResponseController(w)
	_ = ctl.SetReadDeadline(time.Time{}) // a connection that has no deadlines needs none lifted
	_ = ctl.SetWriteDeadline(time.Time{})
}

// writeJSON answers with one JSON value. Errors are not returned: when writing fails the client is gone.
func writeJSON(w http.ResponseWriter, status int, v any) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	b, err := json.Marshal(v)
	if err != nil {
		body, failed := toAPI(fmt.Errorf("encode the answer: %w", err))
		b, status = []byte(fmt.Sprintf(`{"error":%q,"kind":%q}`, body.Message, body.Kind)), failed
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
}
