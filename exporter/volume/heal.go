package volume

import (
	"context"
	"errors"
	"fmt"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Healer is what a Store may be besides: it brings back an object that it has lost.
type Healer interface {
	// Heal returns nil when the object is there, whole. Otherwise its error says why it cannot be.
	Heal(ctx context.Context, d tree.Digest) error
}

// LostError is what Read ends with when the Store could not give it an object. It wraps the Store's error.
type LostError struct {
	Digest tree.Digest
	Err    error
}

// Error implements error.
func (e *LostError) Error() string { return fmt.Sprintf("object %s: %v", e.Digest, e.Err) }

// Unwrap returns the Store's error.
func (e *LostError) Unwrap() error { return e.Err }

// Heal has the Store bring back the object for want of which a Read has failed with err. It returns nil when it is worth
// reading again; otherwise err, and why it is not.
func (v *Volume) Heal(ctx context.Context, err error) error {
	var lost *LostError
	h := v.contents.healer
	if h == nil || !errors.As(err, &lost) {
		return err
	}
	if healed := h.Heal(ctx, lost.Digest); healed != nil {
		return fmt.Errorf("%w; and %w", err, healed)
	}
	return nil
}

// objects is a Store as replicator/tree wants it. What it has lost it brings back.
type objects struct {
	Store
	healer Healer // may be nil
}

func objectsOf(s Store) objects {
	h, _ := s.(Healer)
	return objects{s, h}
}

// Get implements tree.Objects.
func (o objects) Get(ctx context.Context, d tree.Digest) ([]byte, error) {
	b, err := o.Store.Get(ctx, d)
	if err == nil || o.healer == nil || ctx.Err() != nil {
		return b, err
	}
	if healed := o.healer.Heal(ctx, d); healed != nil {
		return nil, fmt.Errorf("%w; and %w", err, healed)
	}
	return o.Store.Get(ctx, d)
}

// Put implements tree.Objects.
func (objects) Put(context.Context, []byte) (tree.Digest, error) {
	return tree.Digest{}, fmt.Errorf("put: %w", errors.ErrUnsupported)
}
