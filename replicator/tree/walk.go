package tree

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// ErrNotFound is wrapped by Lookup when the tree has no such path.
var ErrNotFound = errors.New("no such file or directory")

// Lookup returns the entry at path, relative to the root and slash-separated; "." or "" is the root directory.
func Lookup(ctx context.Context, objs Objects, root Digest, path string) (Entry, error) {
	e, err := LoadRoot(ctx, objs, root)
	if err != nil {
		return Entry{}, fmt.Errorf("look up %q: %w", path, err)
	}
	if path == "" || path == "." {
		return e, nil
	}
	for name := range strings.SplitSeq(path, "/") {
		if e.Type != Directory || checkName(name) != nil {
			return Entry{}, fmt.Errorf("look up %q: %w", path, ErrNotFound)
		}
		dir, err := LoadDirectory(ctx, objs, e.Content.Digest)
		if err != nil {
			return Entry{}, fmt.Errorf("look up %q: %w", path, err)
		}
		var ok bool
		if e, ok, err = dir.find(ctx, objs, name); err != nil {
			return Entry{}, fmt.Errorf("look up %q: %w", path, err)
		} else if !ok {
			return Entry{}, fmt.Errorf("look up %q: %w", path, ErrNotFound)
		}
	}
	return e, nil
}

// Reach calls fn for every object that the tree root needs, each before those it names: its digest, its form (Dir for
// root, directory and page objects, Chunks for chunk lists, Blob for content) and its size in bytes. Content is not
// read. It asks seen once for each mention of an object, and skips the object and what is below when seen says true; a
// nil seen never does. An error of fn ends it and is returned as it is.
func Reach(ctx context.Context, objs Objects, root Digest, seen func(Digest) bool, fn func(d Digest, f Form, size uint64) error) error {
	if seen == nil {
		seen = func(Digest) bool { return false }
	}
	r := reacher{objs, seen, fn}
	b, err := r.visit(ctx, root, Dir)
	if b == nil || err != nil {
		return err
	}
	e, err := DecodeRoot(b)
	if err != nil {
		return fmt.Errorf("reach: object %s: %w", root, err)
	}
	return r.content(ctx, &e, 0)
}

type reacher struct {
	objs Objects
	seen func(Digest) bool
	fn   func(Digest, Form, uint64) error
}

// visit reports an object that must be read, and returns its bytes, nil when it has been seen.
func (r *reacher) visit(ctx context.Context, d Digest, f Form) ([]byte, error) {
	if r.seen(d) {
		return nil, nil
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	b, err := r.objs.Get(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("reach: %w", err)
	}
	return b, r.fn(d, f, uint64(len(b)))
}

// blob reports an object that is content.
func (r *reacher) blob(d Digest, size uint64) error {
	if r.seen(d) {
		return nil
	}
	return r.fn(d, Blob, size)
}

func (r *reacher) content(ctx context.Context, e *Entry, depth int) error {
	switch d := e.Content.Digest; e.Content.Form {
	case Blob:
		return r.blob(d, e.Size)
	case Chunks:
		b, err := r.visit(ctx, d, Chunks)
		if b == nil || err != nil {
			return err
		}
		return r.chunks(d, b)
	case Dir:
		if depth > maxDepth {
			return fmt.Errorf("reach: more than %d directories deep: %w", maxDepth, ErrCorrupt)
		}
		b, err := r.visit(ctx, d, Dir)
		if b == nil || err != nil {
			return err
		}
		return r.directory(ctx, d, b, depth)
	}
	return nil
}

func (r *reacher) chunks(d Digest, b []byte) error {
	extents, err := DecodeChunks(b)
	if err != nil {
		return fmt.Errorf("reach: object %s: %w", d, err)
	}
	for i := range extents {
		if extents[i].Digest.IsZero() {
			continue
		}
		if err := r.blob(extents[i].Digest, extents[i].Length); err != nil {
			return err
		}
	}
	return nil
}

func (r *reacher) directory(ctx context.Context, d Digest, b []byte, depth int) error {
	dir, err := DecodeDirectory(b)
	if err != nil {
		return fmt.Errorf("reach: object %s: %w", d, err)
	}
	for i := range dir.Pages {
		entries := dir.Pages[i].inline
		if page := dir.Pages[i].Digest; !page.IsZero() {
			b, err := r.visit(ctx, page, Dir)
			if err != nil {
				return err
			}
			if b == nil {
				continue
			}
			if entries, err = dir.decodePage(i, b); err != nil {
				return fmt.Errorf("reach: %w", err)
			}
		}
		for j := range entries {
			if err := r.content(ctx, &entries[j], depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}
