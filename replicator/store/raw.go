package store

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// RawReader reads one object from its beginning to its end as Blob.ReadRaw does, hashing nothing. What went past the page
// cache when it was put, and nobody has read since, is read past it too: a transfer of much that is new leaves the cache to
// the readers. It is for one user, who closes it; the Blob stays his to close.
type RawReader struct {
	b      Blob
	direct *os.File // nil: through the page cache
}

// Raw returns a reader of the object's bytes.
func (b Blob) Raw() *RawReader {
	r := &RawReader{b: b}
	if b.e.pack != 0 || !b.file.blocks.around.Load() {
		return r
	}
	// By its descriptor: the file may still be in tmp, or on its way from there. Whatever goes wrong, the page cache works.
	r.direct, _ = b.s.disk.open(fmt.Sprintf("/proc/self/fd/%d", b.file.fd), os.O_RDONLY|unix.O_DIRECT)
	runtime.KeepAlive(b.file)
	return r
}

// ReadAt is Blob.ReadRaw. Past the page cache go reads into page-aligned memory at page-aligned offsets.
func (r *RawReader) ReadAt(p []byte, off int64) (int, error) {
	if want, eof, err := r.b.clip(p, off); r.direct != nil && err == nil && len(want) > 0 {
		if n, err := preadDirect(r.direct, p, off); err == nil && n >= len(want) {
			return len(want), eof
		}
		r.Close() // an unaligned buffer, a file system that cannot, a file that is too short: ReadRaw will say
	}
	return r.b.ReadRaw(p, off)
}

// preadDirect is one read. It asks for all of p: a file's last page is read whole, though the file ends within it.
func preadDirect(f *os.File, p []byte, off int64) (int, error) {
	for {
		n, err := unix.Pread(int(f.Fd()), p, off)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// Close lets go of what the reader has opened.
func (r *RawReader) Close() {
	if r.direct != nil {
		_ = r.direct.Close() // it was only read
		r.direct = nil
	}
}
