package peer

import (
	"context"
	"io"
	"sync"
	"time"
)

// A peer that sends less than stallBytes in stallTime has stalled.
const (
	stallTime  = 5 * time.Second
	stallBytes = 64 << 10
)

// watch ends a request whose peer stalls. Only the time in which this side waits for the peer counts: what a slow disk or
// a paused fetch takes here is not the peer's fault. It belongs to the goroutine of the request, but for total.
type watch struct {
	timer  *time.Timer
	waited time.Duration // since the last stallBytes came
	bytes  int

	mu    sync.Mutex    // guards what follows
	begun time.Time     // zero: it does not wait
	all   time.Duration // waited before
}

// newWatch returns a watch that calls cancel with errStalled.
func newWatch(cancel context.CancelCauseFunc) *watch {
	w := &watch{timer: time.AfterFunc(time.Hour, func() { cancel(errStalled) })}
	w.timer.Stop()
	return w
}

// begin says that this side waits from now on.
func (w *watch) begin() {
	w.mu.Lock()
	w.begun = time.Now()
	w.mu.Unlock()
	w.timer.Reset(stallTime - w.waited)
}

// end says that n bytes have come.
func (w *watch) end(n int) {
	w.timer.Stop()
	w.mu.Lock()
	took := time.Since(w.begun)
	w.begun = time.Time{}
	w.all += took
	w.mu.Unlock()
	w.waited += took
	if w.bytes += n; w.bytes >= stallBytes {
		w.bytes, w.waited = 0, 0
	}
}

// read reads from r under the watch: all of p, or stallBytes and perhaps more, or less before an error. A Read of a
// connection gives no more than one TLS record, and the watch costs as much for that as for this.
func (w *watch) read(r io.Reader, p []byte) (n int, err error) {
	w.begin()
	for n < min(len(p), stallBytes) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	w.end(n)
	return n, err
}

// total is how long this side has waited for the peer until now.
func (w *watch) total() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.begun.IsZero() {
		return w.all
	}
	return w.all + time.Since(w.begun)
}
