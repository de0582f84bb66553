package tree

import (
	"context"
	"fmt"
)

// FromTree returns a Lister that wants exactly the tree root (for a rollback, or what was uploaded), and that tree's root
// entry, for MergeOptions.Root. current is the tree that it will be merged onto. Merging costs what differs between the
// two: what is the same object in both is neither listed nor read.
func FromTree(objs Objects, root, current Digest) (Lister, Entry, error) {
	e, err := LoadRoot(context.Background(), objs, root)
	if err != nil {
		return nil, Entry{}, fmt.Errorf("tree %s: %w", root, err)
	}
	return &treeLister{objs: objs, same: root == current, dirs: map[string]Digest{".": e.Content.Digest}}, e, nil
}

// treeLister lists a tree that exists. It is used by one Merge, from one goroutine.
type treeLister struct {
	objs Objects
	same bool
	dirs map[string]Digest // directories that have been listed by name, and whose inside Merge will ask for
}

// List lists the entries that differ from the previous directory's, or all when there was none.
func (t *treeLister) List(ctx context.Context, dir string, prev *Entry) (Listing, error) {
	d, ok := t.dirs[dir]
	switch {
	case !ok:
		return Listing{}, fmt.Errorf("directory %q was not offered: %w", dir, ErrNotFound)
	case t.same || prev != nil && prev.Content.Digest == d:
		return Listing{}, nil
	}
	delete(t.dirs, dir)
	var before *DirObject
	if prev != nil {
		var err error
		if before, err = LoadDirectory(ctx, t.objs, prev.Content.Digest); err != nil {
			return Listing{}, err
		}
	}
	after, err := LoadDirectory(ctx, t.objs, d)
	if err != nil {
		return Listing{}, err
	}
	pairs, err := compare(ctx, t.objs, before, after)
	if err != nil {
		return Listing{}, err
	}
	l := Listing{Complete: prev == nil}
	for i := range pairs {
		p := &pairs[i]
		if p.b == nil {
			l.Gone = append(l.Gone, p.a.Name)
			continue
		}
		l.Names = append(l.Names, t.observe(dir, p))
	}
	return l, nil
}

// observe returns what Merge is told of a name, and remembers it when Merge will ask for its inside.
func (t *treeLister) observe(dir string, p *pair) Observed {
	o := Observed{Entry: *p.b, exact: true}
	if o.Type != Directory {
		if o.Links > 1 {
			o.Link = LinkID{Ino: o.Ino}
		}
		return o
	}
	o.Descend = p.a == nil || p.a.Type != Directory || p.a.Content != o.Content
	if o.Descend {
		t.dirs[join(dir, o.Name)] = o.Content.Digest
	}
	return o
}
