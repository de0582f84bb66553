package store

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// directWindow is how many bytes a directFile reads at a time.
const directWindow = 1 << 20

// directFile reads a file from the disk, whatever the page cache holds, and leaves the page cache as it is. Where the file
// system cannot do that, it makes the kernel forget the pages before it reads them. It is for one user.
type directFile struct {
	f       *os.File
	disk    *disk
	around  bool                    // the page cache is gone around
	loading func(off, length int64) // told before these bytes come into the page cache, when it is not
	window  []byte                  // page-aligned memory
	off     int64                   // of what window holds
	n       int                     // bytes of it
}

// openDirect opens the file at path for reading by way of window, whose memory is aligned to pages.
func (k *disk) openDirect(path string, window []byte, loading func(off, length int64)) (*directFile, error) {
	d := &directFile{disk: k, around: true, window: window, loading: loading}
	var err error
	d.f, err = k.open(path, os.O_RDONLY|unix.O_DIRECT)
	if errors.Is(err, unix.EINVAL) {
		d.around = false
		d.f, err = k.open(path, os.O_RDONLY)
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// readAt fills p from off; again makes it go to the disk for all of it. A file that ends too early is tree.ErrCorrupt.
func (d *directFile) readAt(p []byte, off int64, again bool) (n int, err error) {
	if again {
		d.n = 0
	}
	for n < len(p) {
		at := off + int64(n)
		if at < d.off || at >= d.off+int64(d.n) {
			if err := d.fill(at, len(p)-n); err != nil {
				return n, err
			}
			if at >= d.off+int64(d.n) {
				return n, fmt.Errorf("its file ends early: %w", tree.ErrCorrupt)
			}
		}
		n += copy(p[n:], d.window[at-d.off:d.n])
	}
	return n, nil
}

// fill reads a window from the page of byte off on; when that fails, so much of it only as has the wanted bytes: it may be
// other bytes that cannot be read.
func (d *directFile) fill(off int64, want int) error {
	page := os.Getpagesize()
	d.off, d.n = off/int64(page)*int64(page), 0
	window := d.window
	err := d.pread(window)
	if need := (int(off-d.off) + want + page - 1) / page * page; err != nil && need < len(window) {
		err = d.pread(window[:need])
	}
	return err
}

func (d *directFile) pread(window []byte) error {
	if err := errors.Join(d.disk.check("direct read", d.f.Name()), d.disk.check("read", d.f.Name())); err != nil {
		return err
	}
	if !d.around {
		d.loading(d.off, int64(len(window)))
		_ = unix.Fadvise(int(d.f.Fd()), d.off, int64(len(window)), unix.FADV_DONTNEED)
	}
	for {
		n, err := unix.Pread(int(d.f.Fd()), window, d.off)
		runtime.KeepAlive(d.f)
		switch {
		case err == nil:
			d.n = n
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EINVAL) && d.around: // some file systems say only now that they cannot
			if err := d.reopen(); err != nil {
				return err
			}
			return d.pread(window)
		default:
			return &os.PathError{Op: "read", Path: d.f.Name(), Err: err}
		}
	}
}

// reopen opens the file for reading through the page cache.
func (d *directFile) reopen() error {
	f, err := d.disk.open(d.f.Name(), os.O_RDONLY)
	if err != nil {
		return err
	}
	_ = d.f.Close() // it was only read
	d.f, d.around = f, false
	return nil
}

func (d *directFile) close() { _ = d.f.Close() } // it was only read
