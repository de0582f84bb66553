package peer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

const (
	maxAnswers  = 32               // answers under way at once
	slotWait    = 2 * time.Second  // for one of them to end
	bodyTimeout = 10 * time.Second // for a request's digests to arrive
	// writeTimeout is for writeSize bytes to be taken by a receiver, or by the buffers on the way to it.
	writeTimeout = 30 * time.Second
	writeSize    = 256 << 10
	sendSize     = 1 << 20 // of a large object, read at a time
)

// Server returns the handler of Path and what is below. It never blocks for long on a receiver that does not read, and
// serves a bounded number of requests at once; after a short wait the others are told to come back (503). It does not ask
// who is there.
func Server(s *store.Store) http.Handler {
	h := &handler{store: s, slots: make(chan struct{}, maxAnswers)}
	h.buffers.New = func() any { b := make([]byte, 0, writeSize+largeObject); return &b }
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+Path, h.batch)
	mux.HandleFunc("GET "+Path+"/{digest}", h.object)
	return mux
}

type handler struct {
	store   *store.Store
	slots   chan struct{}
	buffers sync.Pool // of *[]byte
}

// enter waits for a slot and reports whether there was one; leave gives it back.
func (h *handler) enter(w http.ResponseWriter, r *http.Request) bool {
	select {
	case h.slots <- struct{}{}:
		return true
	default:
	}
	wait := time.NewTimer(slotWait)
	defer wait.Stop()
	select {
	case h.slots <- struct{}{}:
		return true
	case <-r.Context().Done():
	case <-wait.C:
		w.Header().Set("Retry-After", "1")
		http.Error(w, "this master gives away as much as it can already", http.StatusServiceUnavailable)
	}
	return false
}

func (h *handler) leave() { <-h.slots }

// batch answers with a stream of the objects that are asked for.
func (h *handler) batch(w http.ResponseWriter, r *http.Request) {
	// A handler without a connection below, as in a test, has no deadlines.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
	digests, err := readDigests(r.Body, r.ContentLength)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	if !h.enter(w, r) {
		return
	}
	defer h.leave()
	w.Header().Set("Content-Type", contentType)
	buf := h.buffers.Get().(*[]byte)
	defer h.buffers.Put(buf)
	o := output{w: w, rc: http.NewResponseController(w), ctx: r.Context()}
	defer o.done()
	b := (*buf)[:0]
	for i := range digests {
		if b, err = h.appendObject(b, digests[i]); err != nil {
			panic(http.ErrAbortHandler) // the receiver sees a stream without its end, and asks somebody else
		}
		if len(b) >= writeSize {
			if o.write(b) != nil {
				panic(http.ErrAbortHandler)
			}
			b = b[:0]
		}
	}
	*buf = b[:0]
	if o.write(appendHead(b, recordEnd, uint32(len(digests)))) != nil {
		panic(http.ErrAbortHandler)
	}
}

// appendObject appends the record of an object. What the disk does not give back is missing; an error says that the
// store does not work.
func (h *handler) appendObject(b []byte, d tree.Digest) ([]byte, error) {
	blob, err := h.store.OpenBlob(d)
	if errors.Is(err, store.ErrClosed) {
		return b, err
	}
	if err != nil {
		return appendHead(b, recordMissing, 0), nil
	}
	defer func() { _ = blob.Close() }()
	if blob.Size() >= largeObject {
		return appendHead(b, recordLarge, uint32(blob.Size())), nil
	}
	n, size := len(b), int(blob.Size())
	b = slices.Grow(b, recordHeader+size)
	b = appendHead(b, recordFound, uint32(size))[:n+recordHeader+size]
	if got, _ := blob.ReadRaw(b[n+recordHeader:], 0); got < size {
		return appendHead(b[:n], recordMissing, 0), nil
	}
	return b, nil
}

// object answers with one object, or what follows an offset in it.
func (h *handler) object(w http.ResponseWriter, r *http.Request) {
	var d tree.Digest
	if err := d.UnmarshalText([]byte(r.PathValue("digest"))); err != nil || d.IsZero() {
		http.Error(w, "not a digest", http.StatusBadRequest)
		return
	}
	if !h.enter(w, r) {
		return
	}
	defer h.leave()
	if r.URL.Query().Get(verifyQuery) != "" {
		// The receiver has had wrong bytes of it: then it is to be known here, too.
		if _, err := h.store.Get(r.Context(), d); err != nil {
			h.refuse(w, err)
			return
		}
	}
	blob, err := h.store.OpenBlob(d)
	if err != nil {
		h.refuse(w, err)
		return
	}
	defer func() { _ = blob.Close() }()
	from, ok := offset(r.Header.Get("Range"), blob.Size())
	if !ok {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", blob.Size()))
		http.Error(w, "the only ranges are bytes=N-", http.StatusRequestedRangeNotSatisfiable)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Accept-Ranges", "bytes")
	w.Header().Set("Content-Length", strconv.FormatInt(blob.Size()-from, 10))
	if from > 0 {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, blob.Size()-1, blob.Size()))
		w.WriteHeader(http.StatusPartialContent)
	}
	if r.Method == http.MethodHead {
		return
	}
	h.send(w, r, blob, from)
}

// refuse says why an object is not given away.
func (h *handler) refuse(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, store.ErrClosed), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		http.Error(w, "this master is stopping", http.StatusServiceUnavailable)
	default:
		w.Header().Set(objectHeader, objectMissing)
		http.Error(w, "no such object", http.StatusNotFound)
	}
}

func (h *handler) send(w http.ResponseWriter, r *http.Request, blob store.Blob, from int64) {
	buf := h.buffers.Get().(*[]byte)
	defer h.buffers.Put(buf)
	o := output{w: w, rc: http.NewResponseController(w), ctx: r.Context()}
	defer o.done()
	raw := blob.Raw()
	defer raw.Close()
	for p := (*buf)[:sendSize]; from < blob.Size(); {
		n, _ := raw.ReadAt(p, from)
		if n == 0 || o.write(p[:n]) != nil {
			panic(http.ErrAbortHandler)
		}
		from += int64(n)
	}
}

// offset reads a Range header: N of "bytes=N-", 0 when there is none.
func offset(text string, size int64) (int64, bool) {
	if text == "" {
		return 0, true
	}
	text, ok := strings.CutPrefix(text, "bytes=")
	text, open := strings.CutSuffix(text, "-")
	n, err := strconv.ParseInt(text, 10, 64)
	return n, ok && open && err == nil && n >= 0 && n < size
}

// output writes an answer, and gives up on a receiver that does not take it.
type output struct {
	w   http.ResponseWriter
	rc  *http.ResponseController
	ctx context.Context
}

func (o *output) write(b []byte) error {
	if err := o.ctx.Err(); err != nil {
		return err
	}
	_ = o.rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err := o.w.Write(b)
	if err == nil {
		return nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("the receiver takes nothing: %w", err)
	}
	return err
}

// done takes the deadline off the connection, for what is asked next on it.
func (o *output) done() { _ = o.rc.SetWriteDeadline(time.Time{}) }
