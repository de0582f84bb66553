package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// request is one request to a source: for a batch of objects, or for one large object.
type request struct {
	src    *source // belongs to run; only its name is read elsewhere
	lacks  set     // of the group that the items are from
	items  []item
	alone  bool // one large object
	begun  time.Time
	cancel context.CancelCauseFunc
	watch  *watch
	bytes  atomic.Int64 // that have come
	cost   int64        // bytes expected

	// What became of it; written by its goroutine before it ends.
	missing []item
	large   []item // to be asked for alone
	left    []item // not answered
	sent    int    // objects handed to the workers
	err     error
}

// slab is a stretch of an answer with whole objects in it, on its way to a worker.
type slab struct {
	req     *request
	buf     []byte
	objects []received
	pooled  bool
	large   bool // buf is from grow
}

// received is an object in a slab.
type received struct {
	item  item
	data  []byte // of the slab's buf
	wrong bool   // it is not what was asked for
}

const (
	slabSize   = 256 << 10
	slabsAhead = 4 // slabs that wait for a worker
)

var slabs = sync.Pool{New: func() any { return &slab{buf: make([]byte, slabSize), pooled: true} }}

func newSlab(req *request, size int) *slab {
	if size > slabSize {
		return &slab{req: req, buf: make([]byte, size)}
	}
	s := slabs.Get().(*slab)
	s.req = req
	return s
}

func (s *slab) free() {
	clear(s.objects)
	s.req, s.objects = nil, s.objects[:0]
	switch {
	case s.pooled:
		slabs.Put(s)
	case s.large:
		recycle(s.buf)
	}
}

// perform performs a request, hands what comes to the workers, and tells run when there is nothing more to come.
func (r *run) perform(ctx context.Context, req *request) {
	err := r.ask(ctx, req)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		req.err = fmt.Errorf("master %s: %w", req.src.name, err)
	}
	req.cancel(nil)
	r.tell(event{ended: req})
}

func (r *run) ask(ctx context.Context, req *request) error {
	client, base, err := r.f.cfg.Client(req.src.name)
	if err != nil {
		return err
	}
	var hr *http.Request
	if req.alone {
		hr, err = objectRequest(ctx, base, req)
	} else {
		hr, err = batchRequest(ctx, base, req.items)
	}
	if err != nil {
		return err
	}
	req.watch.begin()
	resp, err := client.Do(hr)
	req.watch.end(0)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if req.alone {
		return r.takeObject(resp, req)
	}
	if err := answerOf(resp, http.StatusOK); err != nil {
		return err
	}
	return r.takeBatch(resp.Body, req)
}

// answerOf returns an error for a status that is not the wanted one.
func answerOf(resp *http.Response, want int) error {
	switch resp.StatusCode {
	case want:
		return nil
	case http.StatusServiceUnavailable:
		return errBusy
	}
	const enough = 200
	text, _ := io.ReadAll(io.LimitReader(resp.Body, enough))
	return fmt.Errorf("it answers %s: %q", resp.Status, bytes.TrimSpace(text))
}

func batchRequest(ctx context.Context, base string, items []item) (*http.Request, error) {
	body := make([]byte, 0, len(items)*len(tree.Digest{}))
	for i := range items {
		body = append(body, items[i].digest[:]...)
	}
	return http.NewRequestWithContext(ctx, http.MethodPost, base+Path, bytes.NewReader(body))
}

// takeBatch reads the stream that answers a batch.
func (r *run) takeBatch(body io.Reader, req *request) error {
	s := newSlab(req, slabSize)
	begin, end := 0, 0 // of the bytes in the slab that are no whole record yet
	for {
		n, err := req.watch.read(body, s.buf[end:])
		req.bytes.Add(int64(n))
		end += n
		need, whole, wrong := s.parse(&begin, end)
		switch {
		case wrong != nil:
			err = wrong
		case whole:
			err = finish(req.watch, body)
		case errors.Is(err, io.EOF):
			err = io.ErrUnexpectedEOF
		}
		if whole || err != nil {
			r.hand(s)
			return err
		}
		if end < len(s.buf) {
			continue
		}
		full := s
		s = newSlab(req, need)
		begin, end = 0, copy(s.buf, full.buf[begin:end])
		r.hand(full)
	}
}

// parse takes the whole records out of s.buf[*begin:end]. need is how many bytes the next one has.
func (s *slab) parse(begin *int, end int) (need int, whole bool, err error) {
	req := s.req
	for {
		h, ok, err := parseHead(s.buf[*begin:end])
		if err != nil || !ok {
			return recordHeader, false, err
		}
		if h.kind == recordEnd {
			if len(req.left) > 0 || int(h.n) != len(req.items) || *begin+recordHeader != end {
				return 0, false, fmt.Errorf("end of an answer where none should be: %w", errProtocol)
			}
			return 0, true, nil
		}
		if len(req.left) == 0 {
			return 0, false, fmt.Errorf("more objects than were asked for: %w", errProtocol)
		}
		it := req.left[0]
		next := *begin + recordHeader
		switch h.kind {
		case recordFound:
			next += int(h.n)
			if next > end {
				return next - *begin, false, nil
			}
			s.objects = append(s.objects, received{item: it, data: s.buf[next-int(h.n) : next : next]})
			req.sent++
		case recordMissing:
			req.missing = append(req.missing, it)
		case recordLarge:
			if it.form == tree.Blob && it.size != h.n {
				return 0, false, fmt.Errorf("object %s of %d bytes, want %d: %w", it.digest, h.n, it.size, errProtocol)
			}
			it.partial = &partial{size: int64(h.n)}
			req.large = append(req.large, it)
		}
		req.left, *begin = req.left[1:], next
	}
}

// finish reads the end of a body, so that its connection can be used again.
func finish(w *watch, body io.Reader) error {
	var p [1]byte
	if n, err := w.read(body, p[:]); n > 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("bytes behind the end: %w", errProtocol)
	}
	return nil
}

// hand gives a slab to the workers. It waits for one to be free, but not for the peer, so that is not held against it.
func (r *run) hand(s *slab) {
	if len(s.objects) == 0 {
		s.free()
		return
	}
	select {
	case r.work <- task{slab: s}:
	case <-r.ctx.Done(): // all is given up
	}
}
