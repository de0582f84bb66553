package source

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"syscall"
	"time"

	"github.com/go-git/go-billy/v5"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// maxExtents bounds a file's chunk list; a file with more holes than that has its smallest ones filled with zeros.
const maxExtents = 1 << 16

// errTorn: the file is not the one that was lstat'ed, or changed while it was read.
var errTorn = errors.New("changed while it was read")

// storeError is an error of where things are written to. It must not be taken for one of the file that is read: a full
// or forbidden disk of ours is no reason to leave a file out.
type storeError struct{ err error }

func (e *storeError) Error() string { return "store: " + e.err.Error() }
func (e *storeError) Unwrap() error { return e.err }

// reader turns files into objects. Its buffers bound both memory and parallelism: whoever reads holds one.
type reader struct {
	objects tree.Objects
	buffers chan []byte
	tell    func(d tree.Digest, size int) // nil: nobody asks
}

// put stores an object.
func (r *reader) put(ctx context.Context, b []byte) (tree.Digest, error) {
	d, err := r.objects.Put(ctx, b)
	if err != nil {
		return d, &storeError{err}
	}
	if r.tell != nil {
		r.tell(d, len(b))
	}
	return d, nil
}

func newReader(objects tree.Objects, parallel int) *reader {
	r := &reader{objects: objects, buffers: make(chan []byte, parallel)}
	for range parallel {
		r.buffers <- nil // allocated when first needed
	}
	return r
}

func (r *reader) take(ctx context.Context) ([]byte, error) {
	select {
	case b := <-r.buffers:
		if b == nil {
			b = make([]byte, tree.ChunkSize)
		}
		return b, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (r *reader) give(b []byte) { r.buffers <- b }

// rest lets go of the buffers that nobody holds: until the next scan they would be idle memory.
func (r *reader) rest() {
	for range cap(r.buffers) {
		select {
		case <-r.buffers:
			r.give(nil)
		default:
			return
		}
	}
}

// file is a regular file that was opened to be read.
type file struct {
	billy.File
	stat func() (os.FileInfo, error)
	want *syscall.Stat_t // what lstat said: any other answer is errTorn
}

// open opens name in at and makes sure that it is the file that st describes.
func open(at billy.Filesystem, name string, st *syscall.Stat_t) (*file, error) {
	f, err := at.Open(name)
	if err != nil { // whatever it says: is it still that file? A link or a socket has many ways to refuse
		if info, err := at.Lstat(name); err != nil {
			return nil, err
		} else if now, err := statOf(info); err != nil || !same(now, st) {
			return nil, errors.Join(errTorn, err)
		}
		return nil, err
	}
	x := &file{File: f, want: st}
	if s, ok := f.(interface{ Stat() (os.FileInfo, error) }); ok {
		x.stat = s.Stat
	} else {
		x.stat = func() (os.FileInfo, error) { return at.Lstat(name) }
	}
	if err := x.unchanged(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return x, nil
}

func (f *file) unchanged() error {
	info, err := f.stat()
	if err != nil {
		return err
	}
	st, err := statOf(info)
	if err != nil {
		return err
	}
	if !same(st, f.want) {
		return errTorn
	}
	return nil
}

// xattrs tells whether the file has extended attributes or ACLs that NFSv3 cannot carry.
func (f *file) xattrs() (xattrs, acls bool) {
	x, ok := f.File.(interface{ Xattrs() ([]string, error) })
	if !ok {
		return false, false
	}
	names, err := x.Xattrs()
	if err != nil {
		return false, false // a file system without any
	}
	for _, n := range names {
		switch n {
		case "system.posix_acl_access", "system.posix_acl_default", "system.nfs4_acl", "system.richacl":
			acls = true
		case "security.selinux": // on every file where it is on; means nothing elsewhere
		default:
			xattrs = true
		}
	}
	return xattrs, acls
}

// read stores the content of f and returns its name and how many bytes take space. errTorn: f changed meanwhile.
func (r *reader) read(ctx context.Context, f *file) (tree.Content, uint64, error) {
	if f.want.Size > tree.ChunkSize {
		return r.readChunks(ctx, f)
	}
	b, err := r.take(ctx)
	if err != nil {
		return tree.Content{}, 0, err
	}
	defer r.give(b)
	b = b[:f.want.Size]
	if _, err := io.ReadFull(f, b); err != nil {
		return tree.Content{}, 0, short(err)
	}
	if err := f.unchanged(); err != nil {
		return tree.Content{}, 0, err
	}
	d, err := r.put(ctx, b)
	if err != nil {
		return tree.Content{}, 0, err
	}
	return tree.Content{Form: tree.Blob, Digest: d}, uint64(f.want.Size), nil
}

// short turns the end of a file that is shorter than its size said into errTorn.
func short(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errTorn
	}
	return err
}

func (r *reader) readChunks(ctx context.Context, f *file) (tree.Content, uint64, error) {
	spans, err := dataSpans(f, f.want.Size)
	if err != nil {
		return tree.Content{}, 0, err
	}
	extents, offsets := cut(spans, uint64(f.want.Size))
	var used uint64
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(cap(r.buffers))
	for i, at := range offsets {
		if at == hole {
			continue
		}
		used += extents[i].Length
		g.Go(func() (err error) {
			extents[i].Digest, err = r.readChunk(gctx, f, at, extents[i].Length)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return tree.Content{}, 0, err
	}
	if err := f.unchanged(); err != nil {
		return tree.Content{}, 0, err
	}
	d, err := r.put(ctx, tree.EncodeChunks(extents))
	if err != nil {
		return tree.Content{}, 0, err
	}
	return tree.Content{Form: tree.Chunks, Digest: d}, used, nil
}

func (r *reader) readChunk(ctx context.Context, f *file, at int64, length uint64) (tree.Digest, error) {
	b, err := r.take(ctx)
	if err != nil {
		return tree.Digest{}, err
	}
	defer r.give(b)
	b = b[:length]
	if n, err := f.ReadAt(b, at); n < len(b) {
		return tree.Digest{}, short(err)
	}
	// Asked after every chunk, so that a large file that is being written is given up early.
	if err := f.unchanged(); err != nil {
		return tree.Digest{}, err
	}
	return r.put(ctx, b)
}

// span is a range of a file that holds data: [from, to).
type span struct{ from, to int64 }

// dataSpans asks the file system where the data is. One that cannot tell has data everywhere.
func dataSpans(f io.Seeker, size int64) ([]span, error) {
	var spans []span
	for at := int64(0); at < size; {
		from, err := f.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, syscall.ENXIO) {
			break // nothing but a hole from here on
		}
		to := size
		if err == nil {
			to, err = f.Seek(from, unix.SEEK_HOLE)
		}
		switch {
		case errors.Is(err, syscall.EINVAL), errors.Is(err, errors.ErrUnsupported):
			return []span{{0, size}}, nil
		case errors.Is(err, syscall.ENXIO):
			return nil, errTorn // cut short meanwhile
		case err != nil:
			return nil, err
		}
		from, to = min(from, size), min(to, size)
		if to <= from {
			break
		}
		spans = append(spans, span{from, to})
		at = to
	}
	for small := int64(64 << 10); len(spans) > maxExtents; small *= 2 {
		spans = fill(spans, small)
	}
	return spans, nil
}

// fill joins spans that a hole shorter than small separates.
func fill(spans []span, small int64) []span {
	out := spans[:1]
	for _, s := range spans[1:] {
		if last := &out[len(out)-1]; s.from-last.to < small {
			last.to = s.to
		} else {
			out = append(out, s)
		}
	}
	return out
}

// hole is the offset that cut gives for an extent without data.
const hole = math.MinInt64

// cut turns spans into the extents of a file and the offset of each. Data is cut at multiples of the chunk size, so
// that a file that has grown, or lost a hole, shares its other chunks with the version before.
func cut(spans []span, size uint64) (extents []tree.Extent, offsets []int64) {
	var at int64
	add := func(to int64, offset int64) {
		if to > at {
			extents = append(extents, tree.Extent{Length: uint64(to - at)})
			offsets = append(offsets, offset)
			at = to
		}
	}
	for _, s := range spans {
		add(s.from, hole)
		for at < s.to {
			add(min(s.to, (at/tree.ChunkSize+1)*tree.ChunkSize), at)
		}
	}
	add(int64(size), hole)
	return extents, offsets
}

// wait is a pause that ends with the context.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// denied: the file is there and this process may not read it.
func denied(err error) bool { return errors.Is(err, fs.ErrPermission) }
