package store

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Get returns the object d, hashed. It wraps tree.ErrMissing when the store does not have d, and tree.ErrCorrupt when what
// it has is not d any more; it is quarantined then, so that putting d again mends the store. The slice is the caller's.
func (s *Store) Get(ctx context.Context, d tree.Digest) ([]byte, error) {
	if err := s.usable(ctx); err != nil {
		return nil, fmt.Errorf("get: %w", err)
	}
	p, b, err := s.read(d, nil)
	if errors.Is(err, tree.ErrCorrupt) && b.file != nil {
		err = b.condemn(p, err)
	}
	if err != nil {
		err = fmt.Errorf("object %s: %w", d, err)
		p = nil
	}
	_ = b.Close() // it was only read
	return p, err
}

// read returns the object d, hashed, in buf if that is long enough, and where it was found, for the caller to close.
// Together with an error it returns the bytes that could be read.
func (s *Store) read(d tree.Digest, buf []byte) ([]byte, Blob, error) {
	b, err := s.OpenBlob(d)
	if err != nil {
		return nil, b, err
	}
	buf = slices.Grow(buf[:0], int(b.Size()))[:b.Size()]
	n, err := b.readWhole(buf)
	return buf[:n], b, err
}

// Has reports whether the store holds d, without looking at its bytes.
func (s *Store) Has(d tree.Digest) bool {
	_, ok := s.index.lookup(&d)
	return ok && !s.closed.Load()
}
