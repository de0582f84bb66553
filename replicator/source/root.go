package source

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/go-git/go-billy/v5"
	"golang.org/x/sys/unix"
)

// OpenRoot opens dir for reading, as a billy file system whose root is dir. Names are slash-separated and relative to
// it; "." is the root itself. Everything that would write returns billy.ErrReadOnly.
//
// Beyond what billy asks for: no symbolic link is followed by Chroot, ReadDir and Stat, not even one that stays inside;
// FileInfos carry a *syscall.Stat_t; the file systems and files returned are io.Closers, files have Stat, and Open does
// not block on a FIFO. It is safe for concurrent use.
func OpenRoot(dir string) (billy.Filesystem, error) {
	r, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open source: %w", err)
	}
	return &rootFS{root: r, dir: dir}, nil
}

// rootFS is a read-only billy.Filesystem over an os.Root.
type rootFS struct {
	root *os.Root
	dir  string // host path, for Root and Reopen
}

// rootFile adds to an os.File what billy.File asks for beyond it.
type rootFile struct{ *os.File }

func (rootFile) Write([]byte) (int, error) { return 0, billy.ErrReadOnly }
func (rootFile) Truncate(int64) error      { return billy.ErrReadOnly }
func (rootFile) Lock() error               { return billy.ErrNotSupported }
func (rootFile) Unlock() error             { return billy.ErrNotSupported }

// Xattrs returns the names of the file's extended attributes, ACLs among them.
func (f rootFile) Xattrs() ([]string, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var list []byte
	var listErr error
	err = conn.Control(func(fd uintptr) {
		var n int
		list = make([]byte, 512)
		n, listErr = unix.Flistxattr(int(fd), list)
		if errors.Is(listErr, unix.ERANGE) {
			list = make([]byte, 64<<10) // the most that Linux allows
			n, listErr = unix.Flistxattr(int(fd), list)
		}
		list = list[:max(n, 0)]
	})
	if err = errors.Join(err, listErr); err != nil || len(list) == 0 {
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(string(list), "\x00"), "\x00"), nil
}

// Close releases the directory; calls in flight finish first.
func (r *rootFS) Close() error { return r.root.Close() }

// Root returns the host path that the file system was opened by.
func (r *rootFS) Root() string { return r.dir }

// Reopen opens the host path anew: another directory may be there by now.
func (r *rootFS) Reopen() (billy.Filesystem, error) { return OpenRoot(r.dir) }

// Chroot opens a directory below. Each step must be a directory itself: a symbolic link on the way is ENOTDIR.
func (r *rootFS) Chroot(name string) (billy.Filesystem, error) {
	at := r
	for step := range strings.SplitSeq(path.Clean(name), "/") {
		next, err := at.step(step)
		if at != r {
			at.Close()
		}
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: errnoOf(err)}
		}
		at = next
	}
	return at, nil
}

// step opens one directory directly below r, or r itself again for ".".
func (r *rootFS) step(name string) (*rootFS, error) {
	before, err := r.root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !before.IsDir() {
		return nil, syscall.ENOTDIR
	}
	sub, err := r.root.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	// os.Root follows a link that took the directory's place in between, if it stays inside.
	after, err := sub.Lstat(".")
	if err == nil && !os.SameFile(before, after) {
		err = syscall.ENOTDIR
	}
	if err != nil {
		sub.Close()
		return nil, err
	}
	return &rootFS{root: sub, dir: path.Join(r.dir, name)}, nil
}

// ReadDir returns what is in a directory, sorted by name, each lstat'ed once. Names that vanish meanwhile are left out.
func (r *rootFS) ReadDir(name string) ([]os.FileInfo, error) {
	f, err := r.openDir(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	infos, err := f.Readdir(-1)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(infos, func(a, b os.FileInfo) int { return strings.Compare(a.Name(), b.Name()) })
	return infos, nil
}

// Subdirs returns the names of the directories in a directory, without a lstat for each where the kernel tells types.
func (r *rootFS) Subdirs(name string) ([]string, error) {
	f, err := r.openDir(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries, err := f.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, e := range entries {
		if e.IsDir() {
			dirs = append(dirs, e.Name())
		}
	}
	return dirs, nil
}

func (r *rootFS) openDir(name string) (*os.File, error) {
	if name == "" || name == "." {
		return r.root.OpenFile(".", os.O_RDONLY|syscall.O_DIRECTORY, 0)
	}
	sub, err := r.Chroot(name)
	if err != nil {
		return nil, err
	}
	at := sub.(*rootFS)
	defer at.Close()
	return at.root.OpenFile(".", os.O_RDONLY|syscall.O_DIRECTORY, 0)
}

// Open opens a file for reading. Whoever must be sure which file it is compares its Stat with a Lstat: os.Root may
// have followed a link that stays inside.
func (r *rootFS) Open(name string) (billy.File, error) {
	f, err := r.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return rootFile{f}, nil
}

// OpenFile is Open; flags that would write are refused.
func (r *rootFS) OpenFile(name string, flag int, _ os.FileMode) (billy.File, error) {
	if flag&(os.O_WRONLY|os.O_RDWR|os.O_CREATE|os.O_TRUNC|os.O_APPEND) != 0 {
		return nil, billy.ErrReadOnly
	}
	return r.Open(name)
}

// Lstat describes a name without following it.
func (r *rootFS) Lstat(name string) (os.FileInfo, error) { return r.root.Lstat(name) }

// Stat is Lstat: what a link points to is the reader's affair.
func (r *rootFS) Stat(name string) (os.FileInfo, error) { return r.root.Lstat(name) }

// Readlink returns a symbolic link's target, whatever it says.
func (r *rootFS) Readlink(name string) (string, error) { return r.root.Readlink(name) }

// Join joins path elements with slashes.
func (r *rootFS) Join(elem ...string) string { return path.Join(elem...) }

// Capabilities says that the file system is for reading and seeking.
func (r *rootFS) Capabilities() billy.Capability {
	return billy.ReadCapability | billy.SeekCapability
}

// What would write is refused.

func (r *rootFS) Create(string) (billy.File, error)           { return nil, billy.ErrReadOnly }
func (r *rootFS) Rename(string, string) error                 { return billy.ErrReadOnly }
func (r *rootFS) Remove(string) error                         { return billy.ErrReadOnly }
func (r *rootFS) TempFile(string, string) (billy.File, error) { return nil, billy.ErrReadOnly }
func (r *rootFS) MkdirAll(string, os.FileMode) error          { return billy.ErrReadOnly }
func (r *rootFS) Symlink(string, string) error                { return billy.ErrReadOnly }

// errnoOf returns the error inside a PathError, for one that names the whole path.
func errnoOf(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
