package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// disk is every operation by which the store touches its directory. Tests make one of them fail by its name.
type disk struct {
	fault func(op, path string) error // nil but in tests
}

func (k *disk) check(op, path string) error {
	if k.fault == nil {
		return nil
	}
	if err := k.fault(op, path); err != nil {
		return &os.PathError{Op: op, Path: path, Err: err}
	}
	return nil
}

func (k *disk) create(path string) (*os.File, error) {
	if err := k.check("create", path); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640)
}

func (k *disk) open(path string, flag int) (*os.File, error) {
	if err := k.check("open", path); err != nil {
		return nil, err
	}
	return os.OpenFile(path, flag, 0)
}

// writeAt writes b at off. A fault leaves half of it written, as a full disk does.
func (k *disk) writeAt(f *os.File, b []byte, off int64) error {
	if err := k.check("write", f.Name()); err != nil {
		_, _ = f.WriteAt(b[:len(b)/2], off)
		return err
	}
	_, err := f.WriteAt(b, off)
	return err
}

// writeAround is writeAt of a new file's content, past the page cache as far as that goes: whole pages, from memory that
// is aligned to them, where the file system can do it. It reports whether anything went that way.
func (k *disk) writeAround(f *os.File, b []byte) (around bool, err error) {
	page := os.Getpagesize()
	if uintptr(unsafe.Pointer(unsafe.SliceData(b)))%uintptr(page) != 0 || setDirect(f, true) != nil {
		return false, k.writeAt(f, b, 0)
	}
	n, err := 0, k.check("direct write", f.Name())
	for whole := len(b) / page * page; n < whole && err == nil; {
		var m int
		if m, err = unix.Pwrite(int(f.Fd()), b[n:whole], int64(n)); errors.Is(err, unix.EINTR) {
			err = nil
		}
		n += max(m, 0) / page * page
	}
	if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: it says only now that it cannot
		return false, &os.PathError{Op: "write", Path: f.Name(), Err: err}
	}
	if err := setDirect(f, false); err != nil {
		return false, &os.PathError{Op: "fcntl", Path: f.Name(), Err: err}
	}
	return n > 0, k.writeAt(f, b[n:], int64(n))
}

// setDirect has the page cache gone around, or not, by what is read and written through f.
func setDirect(f *os.File, on bool) error {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	flags &^= unix.O_DIRECT
	if on {
		flags |= unix.O_DIRECT
	}
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETFL, flags)
	return err
}

func (k *disk) sync(f *os.File) error {
	if err := k.check("fsync", f.Name()); err != nil {
		return err
	}
	return f.Sync()
}

func (k *disk) truncate(f *os.File, size int64) error {
	if err := k.check("truncate", f.Name()); err != nil {
		return err
	}
	return f.Truncate(size)
}

func (k *disk) rename(from, to string) error {
	if err := k.check("rename", to); err != nil {
		return err
	}
	return os.Rename(from, to)
}

func (k *disk) remove(path string) error {
	if err := k.check("remove", path); err != nil {
		return err
	}
	return os.Remove(path)
}

func (k *disk) syncDir(path string) error {
	if err := k.check("syncdir", path); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// replace puts a file with the bytes b at path: written beside as tmp, made durable, and renamed. The rename itself is
// durable after a syncDir of path's directory.
func (k *disk) replace(path, tmp string, b []byte) error {
	f, err := k.create(tmp)
	if err != nil {
		return err
	}
	err = k.writeAt(f, b, 0)
	if err == nil {
		err = k.sync(f)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = k.rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return nil
}

// full makes a want of space known as ErrFull.
func full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

// file is a file open for reading. Its descriptor is used without the lock that os.File takes for each call; it is valid
// because it is closed only when nobody can reach it any more: a pack's by the garbage collector, through the os.File,
// a large object's when its last holder has let go.
type file struct {
	f       *os.File
	fd      int
	disk    *disk
	counted bool         // refs decides when it is closed; otherwise the garbage collector does
	refs    atomic.Int64 // holders: the cache, Sync's list, each Blob
	used    atomic.Bool  // read since the cache's clock hand passed
	blocks  *blocks      // of a large object; set before it is shared
	loaded  atomic.Int64 // of a pack: the end of what was last read from the disk
	view    view         // of a large object
}

// newFile takes f over. The kernel is told not to read ahead: what nobody has asked for would come into the page cache
// without having been hashed. It knows a descriptor that this is refused for only on strange file systems.
func newFile(f *os.File, k *disk) *file {
	c := &file{f: f, fd: int(f.Fd()), disk: k}
	_ = unix.Fadvise(c.fd, 0, 0, unix.FADV_RANDOM)
	return c
}

// newCounted returns a file that its caller holds.
func newCounted(f *os.File, k *disk) *file {
	c := newFile(f, k)
	c.counted = true
	c.refs.Store(1)
	return c
}

// acquire reports whether the caller holds f now; it does not when f has been closed.
func (f *file) acquire() bool {
	for {
		n := f.refs.Load()
		if n <= 0 {
			return false
		}
		if f.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (f *file) release() error {
	if f.refs.Add(-1) == 0 {
		f.view.close()
		return f.f.Close()
	}
	return nil
}

// pread fills p from off; fewer bytes without an error mean the end of the file.
func (f *file) pread(p []byte, off int64) (n int, err error) {
	if f.disk.fault != nil {
		if err := f.disk.check("read", f.f.Name()); err != nil {
			return 0, err
		}
	}
	for n < len(p) {
		m, err := unix.Pread(f.fd, p[n:], off+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			runtime.KeepAlive(f)
			return n, &os.PathError{Op: "read", Path: f.f.Name(), Err: err}
		}
		if m == 0 {
			break
		}
		n += m
	}
	runtime.KeepAlive(f)
	return n, nil
}

// dropCached makes the kernel forget the clean pages that hold these bytes, so that the next read has them from the disk.
func (f *file) dropCached(off, size int64) {
	page := int64(os.Getpagesize())
	end := (off + size + page - 1) / page * page
	off = off / page * page
	f.view.drop(off, end)
	_ = unix.Fadvise(f.fd, off, end-off, unix.FADV_DONTNEED)
	runtime.KeepAlive(f)
}

// readAhead makes the kernel begin to read these bytes.
func (f *file) readAhead(off, size int64) {
	_ = unix.Fadvise(f.fd, off, size, unix.FADV_WILLNEED)
	runtime.KeepAlive(f)
}

// same reports whether path still names this file.
func (f *file) same(path string) bool {
	var a, b unix.Stat_t
	err := unix.Fstat(f.fd, &a)
	runtime.KeepAlive(f)
	return err == nil && unix.Lstat(path, &b) == nil && a.Ino == b.Ino && a.Dev == b.Dev
}

// preadCached is one preadv2 with RWF_NOWAIT: what the page cache holds of p, from off, or 0 when that is nothing or the
// kernel or the file system does not know how. p is not empty. golang.org/x/sys has the call too, but allocates for
// it. Go's scheduler is not told: this never waits, and telling it costs as much as a small read.
func (f *file) preadCached(p []byte, off int64) int {
	if f.disk.fault != nil && f.disk.check("read", f.f.Name()) != nil {
		return 0
	}
	iov := unix.Iovec{Base: unsafe.SliceData(p)}
	iov.SetLen(len(p))
	n, _, errno := unix.RawSyscall6(unix.SYS_PREADV2, uintptr(f.fd), uintptr(unsafe.Pointer(&iov)), 1,
		uintptr(off), uintptr(uint64(off)>>(unsafe.Sizeof(uintptr(0))*4)>>(unsafe.Sizeof(uintptr(0))*4)), unix.RWF_NOWAIT)
	runtime.KeepAlive(p)
	runtime.KeepAlive(f)
	if errno != syscall.Errno(0) {
		return 0
	}
	return int(n)
}
