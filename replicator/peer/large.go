package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// partial is a large object on its way. It goes on at another source where the first one stopped.
type partial struct {
	size  int64  // as a source said, or the tree
	buf   []byte // what has come
	from  set    // the sources that it came from
	mixed bool   // they are several: if a byte is wrong, nobody can say whose it was
	whole bool   // that has happened: the next bytes are from one source, or are dropped

	charged int64 // of run's largeMemory
}

// firstGrowth is what is allotted for a large object before its bytes come: a source could claim any size.
const firstGrowth = tree.ChunkSize

// chunks are buffers of firstGrowth bytes, for one large object after the other: new memory costs more than its content.
var chunks = sync.Pool{New: func() any { return new([firstGrowth]byte) }}

// grow returns b with room for more of an object of size bytes.
func grow(b []byte, size int64) []byte {
	if cap(b) == 0 {
		return chunks.Get().(*[firstGrowth]byte)[:0]
	}
	grown := make([]byte, len(b), min(size, 2*int64(cap(b))))
	copy(grown, b)
	recycle(b)
	return grown
}

// recycle gives back what grow has returned, and nobody uses any more.
func recycle(b []byte) {
	if cap(b) == firstGrowth {
		chunks.Put((*[firstGrowth]byte)(b[:firstGrowth]))
	}
}

// reset forgets what has come.
func (p *partial) reset() { p.buf, p.from, p.mixed = nil, "", false }

func objectRequest(ctx context.Context, base string, req *request) (*http.Request, error) {
	it := &req.items[0]
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, base+Path+"/"+it.digest.String(), nil)
	if n := len(it.partial.buf); err == nil && n > 0 {
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-", n))
	}
	return r, err
}

// takeObject reads one object, or the rest of it.
func (r *run) takeObject(resp *http.Response, req *request) error {
	it := &req.items[0]
	p := it.partial
	if resp.StatusCode == http.StatusNotFound && resp.Header.Get(objectHeader) == objectMissing {
		req.missing, req.left = req.items, nil
		return nil
	}
	if resp.StatusCode == http.StatusRequestedRangeNotSatisfiable {
		return fmt.Errorf("object %s has %s here: %w", it.digest, resp.Header.Get("Content-Range"), errProtocol)
	}
	want := http.StatusOK
	if len(p.buf) > 0 {
		want = http.StatusPartialContent
	}
	if err := answerOf(resp, want); err != nil {
		return err
	}
	if err := p.agree(resp.ContentLength, it); err != nil {
		return err
	}
	if n := len(p.buf); n > 0 {
		said := fmt.Sprintf("bytes %d-%d/%d", n, p.size-1, p.size)
		if got := resp.Header.Get("Content-Range"); got != said {
			return fmt.Errorf("object %s: range %q, want %q: %w", it.digest, got, said, errProtocol)
		}
	}
	p.mixed = p.mixed || p.from != "" && p.from != set("").with(req.src.number)
	p.from = p.from.with(req.src.number)
	if err := p.fill(resp.Body, req); err != nil {
		return err
	}
	if err := finish(req.watch, resp.Body); err != nil {
		return err
	}
	req.left = nil
	s := &slab{req: req, buf: p.buf, objects: []received{{item: *it, data: p.buf}}, large: true}
	p.buf = nil // the slab's now
	req.sent++
	r.hand(s)
	return nil
}

// agree checks that length more bytes make the object.
func (p *partial) agree(length int64, it *item) error {
	total := length + int64(len(p.buf))
	if total == p.size {
		return nil
	}
	if it.form == tree.Blob {
		return fmt.Errorf("object %s has %d bytes there, and %d in the tree: %w", it.digest, total, p.size, errProtocol)
	}
	if length < 0 || total > store.MaxObject {
		return fmt.Errorf("object %s of %d bytes: %w", it.digest, total, errProtocol)
	}
	if len(p.buf) > 0 {
		p.reset() // one of the two lies, and nobody can say which
		return fmt.Errorf("object %s has %d bytes there, and %d elsewhere", it.digest, total, p.size)
	}
	p.size = total // what another source had announced
	return nil
}

// fill reads to the end of the object.
func (p *partial) fill(body io.Reader, req *request) error {
	for int64(len(p.buf)) < p.size {
		if len(p.buf) == cap(p.buf) {
			p.buf = grow(p.buf, p.size)
		}
		n, err := req.watch.read(body, p.buf[len(p.buf):min(int64(cap(p.buf)), p.size)])
		p.buf = p.buf[:len(p.buf)+n]
		req.bytes.Add(int64(n))
		if err != nil && int64(len(p.buf)) < p.size {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}
