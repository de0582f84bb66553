package volume

import (
	"context"
	"errors"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Store is where a Volume finds objects and the bytes of files.
type Store interface {
	Get(ctx context.Context, d tree.Digest) ([]byte, error)
	OpenBlob(d tree.Digest) (Blob, error)
}

// Blob is an opened content.
type Blob interface {
	Size() int64
	ReadAt(p []byte, off int64) (int, error)
	ReadCached(p []byte, off int64) (n int, ok bool)
	Close() error
}

// Volume serves the generations of one shard.
type Volume struct{}

// New returns a Volume that serves nothing yet.
func New(fsid uint64, s Store, log zerolog.Logger) *Volume { return &Volume{} }

// FSID returns the shard's fsid.
func (v *Volume) FSID() uint64 { return 0 }

// Flip serves g from now on.
func (v *Volume) Flip(ctx context.Context, g tree.Generation) error { return errors.ErrUnsupported }

// Restore serves the last of the retained generations.
func (v *Volume) Restore(ctx context.Context, retained []tree.Generation) error {
	return errors.ErrUnsupported
}

// Forget lets go of what left the tree at or before generation before.
func (v *Volume) Forget(ctx context.Context, before uint64) error { return errors.ErrUnsupported }

// State returns what is served now, nil before the first Flip.
func (v *Volume) State() *State { return nil }

// Await returns the first State whose generation is generation or later.
func (v *Volume) Await(ctx context.Context, generation uint64) (*State, error) {
	return nil, errors.ErrUnsupported
}

// ReadCached reads what is in memory.
func (v *Volume) ReadCached(n Node, p []byte, off uint64) (count int, eof, ok bool) {
	return 0, false, false
}

// Read reads.
func (v *Volume) Read(ctx context.Context, n Node, p []byte, off uint64) (count int, eof bool, err error) {
	return 0, false, errors.ErrUnsupported
}
