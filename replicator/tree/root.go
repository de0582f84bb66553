package tree

import (
	"context"
	"errors"
)

// EncodeRoot encodes the root object of a tree whose root directory is e, with an empty name and slot 0.
func EncodeRoot(e Entry) []byte { return nil }

// DecodeRoot decodes a root object.
func DecodeRoot(b []byte) (Entry, error) { return Entry{}, errors.ErrUnsupported }

// LoadRoot gets and decodes the root object named root.
func LoadRoot(ctx context.Context, objs Objects, root Digest) (Entry, error) {
	return Entry{}, errors.ErrUnsupported
}
