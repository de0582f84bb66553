package master

import (
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-billy/v5/memfs"

	"github.com/nfs-fleet/nfs-fleet/replicator/source"
)

// openSourceRoot opens a source directory. When it is not there but the shard has been published before, the master
// starts all the same, because its readers need it more than the source does: scans then fail, saying so, until the
// directory is back.
func openSourceRoot(dir string, published bool) (billy.Filesystem, error) {
	root, err := source.OpenRoot(dir)
	if err == nil || !published || !errors.Is(err, fs.ErrNotExist) {
		return root, err
	}
	return absentRoot{memfs.New(), dir}, nil
}

// absentRoot is an empty stand-in for a directory that is not there. Before each scan a source asks it to Reopen.
type absentRoot struct {
	billy.Filesystem
	dir string
}

// Lstat says that the root is there, and no file that anything can be the same as.
func (r absentRoot) Lstat(name string) (os.FileInfo, error) {
	if name == "." {
		return absentInfo{}, nil
	}
	return nil, &fs.PathError{Op: "lstat", Path: name, Err: fs.ErrNotExist}
}

// Root is the host path of the directory.
func (r absentRoot) Root() string { return r.dir }

// Reopen opens the directory if it is there by now.
func (r absentRoot) Reopen() (billy.Filesystem, error) { return source.OpenRoot(r.dir) }

type absentInfo struct{}

func (absentInfo) Name() string       { return "." }
func (absentInfo) Size() int64        { return 0 }
func (absentInfo) Mode() fs.FileMode  { return fs.ModeDir | 0o700 }
func (absentInfo) ModTime() time.Time { return time.Time{} }
func (absentInfo) IsDir() bool        { return true }
func (absentInfo) Sys() any           { return nil }
