package volumetest

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"

	"github.com/nfs-fleet/nfs-fleet/exporter/volume"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Store is a volume.Store in memory that can be made to behave as a disk does. It is safe for concurrent use.
type Store struct {
	*tree.Memory

	// Cold makes every ReadCached say that it would block.
	Cold atomic.Bool
	// Fail, when it returns an error, is what reading or opening an object ends with.
	Fail atomic.Pointer[func(tree.Digest) error]

	opens, closes atomic.Int64
}

// NewStore returns an empty Store.
func NewStore() *Store { return &Store{Memory: tree.NewMemory()} }

// OpenBlob opens an object.
func (s *Store) OpenBlob(d tree.Digest) (volume.Blob, error) {
	b, err := s.Get(context.Background(), d)
	if err == nil {
		err = s.failure(d)
	}
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	s.opens.Add(1)
	return &blob{Reader: *bytes.NewReader(b), bytes: b, digest: d, store: s}, nil
}

// Opened returns how many blobs have been opened and how many of them are open now.
func (s *Store) Opened() (all, open int64) { return s.opens.Load(), s.opens.Load() - s.closes.Load() }

func (s *Store) failure(d tree.Digest) error {
	if fail := s.Fail.Load(); fail != nil {
		return (*fail)(d)
	}
	return nil
}

type blob struct {
	bytes.Reader
	bytes  []byte
	digest tree.Digest
	store  *Store
	closed atomic.Bool
}

func (b *blob) Size() int64 { return int64(len(b.bytes)) }

func (b *blob) ReadAt(p []byte, off int64) (int, error) {
	if b.closed.Load() {
		panic("volumetest: read of a closed blob")
	}
	if err := b.store.failure(b.digest); err != nil {
		return 0, err
	}
	return b.Reader.ReadAt(p, off)
}

func (b *blob) ReadCached(p []byte, off int64) (int, bool) {
	if b.closed.Load() {
		panic("volumetest: read of a closed blob")
	}
	if b.store.Cold.Load() || b.store.Fail.Load() != nil || off >= int64(len(b.bytes)) {
		return 0, false
	}
	return copy(p, b.bytes[off:]), true
}

func (b *blob) Close() error {
	if b.closed.Swap(true) {
		panic("volumetest: blob closed twice")
	}
	b.store.closes.Add(1)
	return nil
}
