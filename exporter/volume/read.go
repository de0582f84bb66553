package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sort"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// extents is a file's chunk list, made to be searched.
type extents struct {
	ends    []uint64 // where in the file each extent ends; ascending
	digests []tree.Digest
}

// ReadCached reads from the regular file n at off as much as p has room for, if that takes no waiting: ok is false when it
// does, or when Read has to say what is wrong, and then p may have been written to. eof says that the file ends there.
// Holes are zeros.
func (v *Volume) ReadCached(n Node, p []byte, off uint64) (count int, eof, ok bool) {
	p, eof = clip(n, p, off)
	if len(p) == 0 {
		return 0, eof, n.Type() == tree.Regular
	}
	o := v.contents.openCached(n.Ino(), 0, n.content(), n.Size())
	if o == nil {
		return 0, false, false
	}
	if o.list == nil {
		ok = readBlobCached(o, p, off)
	} else {
		ok = v.readListCached(o, p, off)
	}
	o.release()
	if !ok {
		return 0, false, false
	}
	return len(p), eof, true
}

// Read is ReadCached that waits for what is not in memory. It reads as much as p has room for or the file has. It wraps the
// Store's errors in a LostError, which Heal may mend, and tree.ErrCorrupt when content is not what the tree says of it.
func (v *Volume) Read(ctx context.Context, n Node, p []byte, off uint64) (count int, eof bool, err error) {
	if t := n.Type(); t != tree.Regular {
		return 0, false, fmt.Errorf("read ino %d of type %d: %w", n.Ino(), t, errors.ErrUnsupported)
	}
	p, eof = clip(n, p, off)
	if len(p) == 0 {
		return 0, eof, nil
	}
	err = v.contents.read(ctx, n, p, off)
	if errors.Is(err, errOpened) {
		err = v.contents.read(ctx, n, p, off) // opened anew: the store may have put a good copy in a bad one's place
	}
	if err != nil {
		return 0, false, fmt.Errorf("read ino %d at %d: %w", n.Ino(), off, err)
	}
	return len(p), eof, nil
}

// read fills p, which the file n has from off on. It wraps errOpened when a blob that was opened could not be read.
func (c *contents) read(ctx context.Context, n Node, p []byte, off uint64) error {
	o, err := c.open(ctx, n.Ino(), 0, n.content(), n.Size())
	if err != nil {
		return err
	}
	defer o.release()
	if o.list == nil {
		return c.readBlob(o, p, off)
	}
	return c.readList(ctx, o, p, off)
}

// clip cuts p to what a file has from off on, and says whether the file ends with that.
func clip(n Node, p []byte, off uint64) ([]byte, bool) {
	size := n.Size()
	if off >= size {
		return nil, true
	}
	if left := size - off; left <= uint64(len(p)) {
		return p[:left], true
	}
	return p, false
}

// openCached returns part of an ino's content if it is open, or can be without waiting; else nil.
func (c *contents) openCached(ino uint64, part uint32, content tree.Content, size uint64) *opened {
	o := c.acquire(ino, part)
	if o != nil || c.cached == nil || content.Form != tree.Blob {
		return o
	}
	b, ok := c.cached.OpenCached(content.Digest)
	if !ok {
		return nil
	}
	if uint64(b.Size()) != size {
		_ = b.Close() // open finds it again, and says so
		return nil
	}
	return c.add(&opened{ino: ino, part: part, blob: b, digest: content.Digest})
}

// open returns part of an ino's content, size bytes.
func (c *contents) open(ctx context.Context, ino uint64, part uint32, content tree.Content, size uint64) (*opened, error) {
	if o := c.acquire(ino, part); o != nil {
		return o, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	switch content.Form {
	case tree.Blob:
		b, err := c.store.OpenBlob(content.Digest)
		if err != nil {
			return nil, fmt.Errorf("open content: %w", &LostError{content.Digest, err})
		}
		if got := b.Size(); got < 0 || uint64(got) != size {
			_ = b.Close() // it was only opened
			return nil, fmt.Errorf("object %s has %d bytes, want %d: %w", content.Digest, got, size, tree.ErrCorrupt)
		}
		return c.add(&opened{ino: ino, part: part, blob: b, digest: content.Digest}), nil
	case tree.Chunks:
		list, err := loadExtents(ctx, c.store, content.Digest, size)
		if err != nil {
			return nil, err
		}
		return c.add(&opened{ino: ino, part: part, list: list}), nil
	}
	return nil, fmt.Errorf("content of form %d with %d bytes: %w", content.Form, size, tree.ErrCorrupt)
}

// loadExtents gets the chunk list of a file of size bytes.
func loadExtents(ctx context.Context, s Store, d tree.Digest, size uint64) (*extents, error) {
	b, err := s.Get(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("load chunk list: %w", &LostError{d, err})
	}
	list, err := tree.DecodeChunks(b)
	if err != nil {
		return nil, fmt.Errorf("object %s: %w", d, err)
	}
	x := &extents{ends: make([]uint64, len(list)), digests: make([]tree.Digest, len(list))}
	end := uint64(0)
	for i, e := range list {
		if e.Length > math.MaxUint64-end {
			return nil, fmt.Errorf("object %s: extents beyond all sizes: %w", d, tree.ErrCorrupt)
		}
		end += e.Length
		x.ends[i], x.digests[i] = end, e.Digest
	}
	if end != size {
		return nil, fmt.Errorf("object %s lists %d bytes, want %d: %w", d, end, size, tree.ErrCorrupt)
	}
	return x, nil
}

// piece is where a stretch of a file is: at off in extent i, which is size bytes.
type piece struct {
	i         int
	off, size uint64
	digest    tree.Digest // zero for a hole
}

// at returns the piece that has the file's byte off, which is less than the file's size, and how much of p it can fill.
func (x *extents) at(off uint64, p []byte) (piece, []byte) {
	i := sort.Search(len(x.ends), func(i int) bool { return x.ends[i] > off })
	start := uint64(0)
	if i > 0 {
		start = x.ends[i-1]
	}
	if left := x.ends[i] - off; left < uint64(len(p)) {
		p = p[:left]
	}
	return piece{i: i, off: off - start, size: x.ends[i] - start, digest: x.digests[i]}, p
}

func (c piece) content() tree.Content { return tree.Content{Form: tree.Blob, Digest: c.digest} }

func readBlobCached(o *opened, p []byte, off uint64) bool {
	n, ok := o.blob.ReadCached(p, int64(off))
	return ok && n == len(p)
}

func (v *Volume) readListCached(o *opened, p []byte, off uint64) bool {
	for len(p) > 0 {
		at, part := o.list.at(off, p)
		p, off = p[len(part):], off+uint64(len(part))
		if at.digest.IsZero() {
			clear(part)
			continue
		}
		b := v.contents.openCached(o.ino, uint32(at.i)+1, at.content(), at.size)
		if b == nil {
			return false
		}
		ok := readBlobCached(b, part, at.off)
		b.release()
		if !ok {
			return false
		}
	}
	return true
}

var errOpened = errors.New("opened content")

// readBlob fills p from an opened blob. After an error, which wraps errOpened, the blob is opened anew by whoever comes
// next: it may be mended.
func (c *contents) readBlob(o *opened, p []byte, off uint64) error {
	n, err := o.blob.ReadAt(p, int64(off))
	if n == len(p) {
		return nil
	}
	c.remove(o)
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("%d of %d bytes: %w", n, len(p), tree.ErrCorrupt)
	}
	return fmt.Errorf("%w: %w", errOpened, &LostError{o.digest, err})
}

func (c *contents) readList(ctx context.Context, o *opened, p []byte, off uint64) error {
	for len(p) > 0 {
		at, part := o.list.at(off, p)
		p, off = p[len(part):], off+uint64(len(part))
		if at.digest.IsZero() {
			clear(part)
			continue
		}
		b, err := c.open(ctx, o.ino, uint32(at.i)+1, at.content(), at.size)
		if err != nil {
			return err
		}
		err = c.readBlob(b, part, at.off)
		b.release()
		if err != nil {
			return err
		}
	}
	return nil
}
