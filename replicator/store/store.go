package store

import (
	"context"
	"errors"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

var errTodo = errors.New("not yet")

// MaxObject is the size in bytes of the largest object that Put accepts.
const MaxObject = 64 << 20

// The errors of this package; they come wrapped. A missing object is tree.ErrMissing, a damaged one tree.ErrCorrupt.
var (
	ErrLocked = errors.New("store is in use by another process")
	ErrFull   = errors.New("no space left for the store") // wraps the system's ENOSPC or EDQUOT too
	ErrHeld   = errors.New("store is held")
	ErrClosed = errors.New("store is closed")
)

// Options are the settings of a Store; the zero value has the defaults.
type Options struct {
	Logger    zerolog.Logger
	PackSize  int64 // bytes after which a pack is sealed; default 256 MiB
	LargeSize int   // objects of at least so many bytes are files of their own; default 256 KiB
	MaxOpen   int   // large objects kept open; default 1024
}

// Store is one directory of objects.
type Store struct{}

// Open opens the store in dir.
func Open(dir string, o Options) (*Store, error) { return nil, errTodo }

// Close closes the store.
func (s *Store) Close() error { return errTodo }

// Get returns the object named d.
func (s *Store) Get(ctx context.Context, d tree.Digest) ([]byte, error) { return nil, errTodo }

// Put stores b.
func (s *Store) Put(ctx context.Context, b []byte) (tree.Digest, error) {
	return tree.Digest{}, errTodo
}

// Has reports whether the store holds d.
func (s *Store) Has(d tree.Digest) bool { return false }

// Sync makes everything put before durable.
func (s *Store) Sync(ctx context.Context) error { return errTodo }

// Blob is an object opened for reading.
type Blob struct{}

// OpenBlob opens d for reading.
func (s *Store) OpenBlob(d tree.Digest) (Blob, error) { return Blob{}, errTodo }

// Size returns the object's size in bytes.
func (b Blob) Size() int64 { return 0 }

// ReadAt reads as io.ReaderAt does.
func (b Blob) ReadAt(p []byte, off int64) (int, error) { return 0, errTodo }

// ReadCached reads what is in the page cache, without blocking.
func (b Blob) ReadCached(p []byte, off int64) (n int, ok bool) { return 0, false }

// Close lets go of the object.
func (b Blob) Close() error { return nil }

// Hold keeps Collect from deleting anything until release is called.
func (s *Store) Hold() (release func()) { return func() {} }

// Collected is what Collect did.
type Collected struct {
	Objects   int64 // deleted
	Bytes     int64 // of them
	Freed     int64 // bytes of disk given back
	Compacted int   // packs rewritten
}

// Collect deletes every object that mark does not name.
func (s *Store) Collect(ctx context.Context, mark func(ctx context.Context, live func(tree.Digest) bool) error) (Collected, error) {
	return Collected{}, errTodo
}

// Report is what Verify found.
type Report struct {
	Objects int64         // read and hashed
	Bytes   int64         // of them
	Bad     []tree.Digest // found damaged, and quarantined
}

// Verify reads and hashes every object.
func (s *Store) Verify(ctx context.Context, progress func(done, total int64)) (Report, error) {
	return Report{}, errTodo
}

// Stats are the store's figures.
type Stats struct {
	Objects    int64 // objects held
	Bytes      int64 // their sizes
	Packs      int   // pack files
	LargeFiles int   // objects that are files of their own
	Disk       int64 // bytes that packs and files take
	Free       int64 // bytes free on the store's file system
}

// Stats returns the store's figures.
func (s *Store) Stats() Stats { return Stats{} }
