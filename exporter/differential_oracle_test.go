package exporter_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-git/go-billy/v5"
	"github.com/willscott/go-nfs"
	"github.com/willscott/go-nfs/file"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// treeFS is one generation as a read-only filesystem: its tree objects, decoded once, and nothing of the exporter's. What
// would change something is not there: go-nfs is never asked to.
type treeFS struct {
	billy.Filesystem
	objs    tree.Objects
	entries map[string]tree.Entry // by path; "" is the root
	names   map[string][]string   // of a directory, by its path
	show    show
}

// show says which of an entry's numbers stand for size and time of modification. A FileInfo has one of each, an entry two:
// with a second show every number of an entry goes through the oracle.
type show func(*tree.Entry) (size uint64, modified tree.Time)

func sizeAndMtime(e *tree.Entry) (uint64, tree.Time) { return e.Size, e.Mtime }
func usedAndCtime(e *tree.Entry) (uint64, tree.Time) { return e.Used, e.Ctime }

// newTreeFS reads a whole generation.
func newTreeFS(t testing.TB, objs tree.Objects, g tree.Generation, s show) *treeFS {
	t.Helper()
	root, err := tree.LoadRoot(t.Context(), objs, g.Root)
	if err != nil {
		t.Fatal(err)
	}
	f := &treeFS{objs: objs, entries: map[string]tree.Entry{"": root}, names: make(map[string][]string), show: s}
	for dirs := []string{""}; len(dirs) > 0; dirs = dirs[1:] {
		dir, err := tree.LoadDirectory(t.Context(), objs, f.entries[dirs[0]].Content.Digest)
		if err != nil {
			t.Fatal(err)
		}
		for e, err := range dir.All(t.Context(), objs) {
			if err != nil {
				t.Fatal(err)
			}
			p := f.Join(dirs[0], e.Name)
			f.entries[p] = e
			f.names[dirs[0]] = append(f.names[dirs[0]], e.Name)
			if e.Type == tree.Directory {
				dirs = append(dirs, p)
			}
		}
	}
	return f
}

func (f *treeFS) Join(elem ...string) string {
	return strings.Join(slices.DeleteFunc(slices.Clone(elem), func(s string) bool { return s == "" }), "/")
}

func (f *treeFS) Capabilities() billy.Capability { return billy.ReadCapability | billy.SeekCapability }

func (f *treeFS) Lstat(name string) (os.FileInfo, error) {
	e, ok := f.entries[name]
	if !ok {
		return nil, &fs.PathError{Op: "lstat", Path: name, Err: fs.ErrNotExist}
	}
	return info{e: e, show: f.show}, nil
}

// Stat is Lstat: go-nfs asks for the size of files that it has opened, and so are no links.
func (f *treeFS) Stat(name string) (os.FileInfo, error) { return f.Lstat(name) }

func (f *treeFS) ReadDir(name string) ([]os.FileInfo, error) {
	if f.entries[name].Type != tree.Directory {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: fs.ErrInvalid}
	}
	all := make([]os.FileInfo, 0, len(f.names[name]))
	for _, n := range f.names[name] {
		all = append(all, info{e: f.entries[f.Join(name, n)], show: f.show})
	}
	return all, nil
}

func (f *treeFS) Readlink(name string) (string, error) {
	e, ok := f.entries[name]
	if !ok || e.Type != tree.Symlink {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	return e.Target, nil
}

func (f *treeFS) Open(name string) (billy.File, error) {
	e, ok := f.entries[name]
	if !ok || e.Type != tree.Regular {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	o := &openFile{objs: f.objs}
	switch e.Content.Form {
	case tree.Blob:
		o.extents = []tree.Extent{{Length: e.Size, Digest: e.Content.Digest}}
	case tree.Chunks:
		b, err := f.objs.Get(context.Background(), e.Content.Digest)
		if err != nil {
			return nil, err
		}
		if o.extents, err = tree.DecodeChunks(b); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// openFile reads a file from its extents.
type openFile struct {
	billy.File
	objs    tree.Objects
	extents []tree.Extent
}

func (o *openFile) Close() error { return nil }

func (o *openFile) ReadAt(p []byte, off int64) (n int, err error) {
	start := int64(0)
	for _, x := range o.extents {
		end := start + int64(x.Length)
		if at := off + int64(n); at < end && n < len(p) {
			here := p[n:min(len(p), n+int(end-at))]
			clear(here)
			if !x.Digest.IsZero() {
				b, err := o.objs.Get(context.Background(), x.Digest)
				if err != nil {
					return n, err
				}
				copy(here, b[at-start:])
			}
			n += len(here)
		}
		start = end
	}
	if n < len(p) {
		err = io.EOF
	}
	return n, err
}

// info is an entry as go-nfs asks about it.
type info struct {
	e    tree.Entry
	show show
}

func (i info) Name() string { return i.e.Name }
func (i info) IsDir() bool  { return i.e.Type == tree.Directory }
func (i info) Size() int64  { size, _ := i.show(&i.e); return int64(size) }
func (i info) ModTime() time.Time {
	_, modified := i.show(&i.e)
	return modified.Go()
}

func (i info) Sys() any {
	return &file.FileInfo{Nlink: i.e.Links, UID: i.e.UID, GID: i.e.GID, Major: i.e.Rdev.Major, Minor: i.e.Rdev.Minor, Fileid: i.e.Ino}
}

// goTypes is how package os tells of a type.
var goTypes = map[tree.Type]fs.FileMode{
	tree.Regular: 0, tree.Directory: fs.ModeDir, tree.Block: fs.ModeDevice, tree.Char: fs.ModeDevice | fs.ModeCharDevice,
	tree.Symlink: fs.ModeSymlink, tree.Socket: fs.ModeSocket, tree.FIFO: fs.ModeNamedPipe,
}

// goBits is how package os tells of the bits above the permissions.
var goBits = map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky}

func (i info) Mode() fs.FileMode {
	m := goTypes[i.e.Type] | fs.FileMode(i.e.Mode&0o777)
	for bit, goBit := range goBits {
		if i.e.Mode&bit != 0 {
			m |= goBit
		}
	}
	return m
}

// keeper is go-nfs's Handler for one filesystem, with handles that are never forgotten: the cache that go-nfs comes with
// looks through all its handles at every call.
type keeper struct {
	fs *treeFS

	mu      sync.Mutex // guards the rest
	paths   [][]string // by handle
	handles map[string]uint64
}

func (k *keeper) Mount(context.Context, net.Conn, nfs.MountRequest) (nfs.MountStatus, billy.Filesystem, []nfs.AuthFlavor) {
	return nfs.MountStatusOk, k.fs, []nfs.AuthFlavor{nfs.AuthFlavorNull}
}

func (k *keeper) Change(billy.Filesystem) billy.Change                        { return nil }
func (k *keeper) FSStat(context.Context, billy.Filesystem, *nfs.FSStat) error { return nil }
func (k *keeper) InvalidateHandle(billy.Filesystem, []byte) error             { return nil }
func (k *keeper) HandleLimit() int                                            { return 1 << 20 }
func (k *keeper) ToHandle(_ billy.Filesystem, elem []string) []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := path.Join(elem...)
	n, ok := k.handles[p]
	if !ok {
		n = uint64(len(k.paths))
		k.handles[p], k.paths = n, append(k.paths, slices.Clone(elem))
	}
	return binary.BigEndian.AppendUint64(nil, n)
}

func (k *keeper) FromHandle(fh []byte) (billy.Filesystem, []string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(fh) != 8 || binary.BigEndian.Uint64(fh) >= uint64(len(k.paths)) {
		return nil, nil, fmt.Errorf("handle %x", fh)
	}
	return k.fs, slices.Clone(k.paths[binary.BigEndian.Uint64(fh)]), nil
}

// serveOracle serves a filesystem with go-nfs until the test ends.
func serveOracle(t testing.TB, f *treeFS) net.Addr {
	t.Helper()
	l := listen(t)
	server := &nfs.Server{Handler: &keeper{fs: f, handles: make(map[string]uint64)}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(l) //nolint:errcheck // ends when the listener is closed, with an error that says so
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr()
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}
