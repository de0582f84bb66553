package tree

import (
	"context"
	"errors"
)

// ErrNotFound is wrapped by Lookup when the tree has no such path.
var ErrNotFound = errors.New("no such file or directory")

// Change is one difference between two trees: Old is nil for what was added, New for what was removed.
type Change struct {
	Path     string // from the root, without a leading slash; "." is the root itself
	Old, New *Entry
}

// Diff calls fn for every path at which tree b differs from tree a, which may be zero, in an order that is the same each
// time. Slots alone are no difference. An error of fn ends it and is returned.
func Diff(ctx context.Context, objs Objects, a, b Digest, fn func(Change) error) error {
	return errors.ErrUnsupported
}

// Reach calls fn for every object that the tree root needs, each object before those it names: its digest, its form (Dir
// for root, directory and page objects, Chunks for chunk lists, Blob for content) and its size in bytes. It skips an
// object, and what only that one names, when seen says true. An error of fn ends it and is returned.
func Reach(ctx context.Context, objs Objects, root Digest, seen func(Digest) bool, fn func(d Digest, f Form, size uint64) error) error {
	return errors.ErrUnsupported
}

// Lookup returns the entry at path, relative to the root and slash-separated; "." or "" is the root directory.
func Lookup(ctx context.Context, objs Objects, root Digest, path string) (Entry, error) {
	return Entry{}, errors.ErrUnsupported
}
