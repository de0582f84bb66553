package tree

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// Change is one difference between two trees: Old is nil for what was added, New for what was removed.
type Change struct {
	Path     string // from the root, without a leading slash; "." is the root itself
	Old, New *Entry
}

// Diff calls fn for every path at which tree b differs from tree a, which may be zero: a directory before what is in it,
// names in byte order. What is inside a directory that was added or removed counts path by path. An entry that differs
// in its slot alone, and a directory that differs only in what is inside, are no difference. An error of fn ends it and
// is returned as it is.
func Diff(ctx context.Context, objs Objects, a, b Digest, fn func(Change) error) error {
	if a == b {
		return nil
	}
	d := differ{objs, fn}
	var before *Entry
	if !a.IsZero() {
		e, err := LoadRoot(ctx, objs, a)
		if err != nil {
			return fmt.Errorf("diff: %w", err)
		}
		before = &e
	}
	after, err := LoadRoot(ctx, objs, b)
	if err != nil {
		return fmt.Errorf("diff: %w", err)
	}
	return d.entry(ctx, ".", 0, before, &after)
}

type differ struct {
	objs Objects
	fn   func(Change) error
}

// entry reports what differs at a path and below. Not both of a and b are nil.
func (d *differ) entry(ctx context.Context, path string, depth int, a, b *Entry) error {
	if a == nil || b == nil || visible(*a) != visible(*b) {
		if err := d.fn(Change{path, a, b}); err != nil {
			return err
		}
	}
	if a != nil && b != nil && a.Type == Directory && a.Content == b.Content {
		return nil
	}
	before, err := d.load(ctx, a)
	if err != nil {
		return fmt.Errorf("diff %q: %w", path, err)
	}
	after, err := d.load(ctx, b)
	if err != nil {
		return fmt.Errorf("diff %q: %w", path, err)
	}
	if before == nil && after == nil {
		return nil
	}
	if depth > maxDepth {
		return fmt.Errorf("diff: %q…: more than %d directories deep: %w", path[:min(len(path), 80)], maxDepth, ErrCorrupt)
	}
	pairs, err := compare(ctx, d.objs, before, after)
	if err != nil {
		return fmt.Errorf("diff %q: %w", path, err)
	}
	for i := range pairs {
		if err := d.entry(ctx, join(path, pairs[i].name()), depth+1, pairs[i].a, pairs[i].b); err != nil {
			return err
		}
	}
	return nil
}

// load returns the directory object of e, nil when it is no directory.
func (d *differ) load(ctx context.Context, e *Entry) (*DirObject, error) {
	if e == nil || e.Type != Directory {
		return nil, nil
	}
	return LoadDirectory(ctx, d.objs, e.Content.Digest)
}

// visible returns what a client can see of an entry, at its own path.
func visible(e Entry) Entry {
	e.Slot = 0
	if e.Type == Directory {
		e.Content = Content{}
	}
	return e
}

// pair is a name with its entries in two directories, one of which may be nil.
type pair struct{ a, b *Entry }

func (p pair) name() string {
	if p.a != nil {
		return p.a.Name
	}
	return p.b.Name
}

// compare returns the names whose entries differ between two directories, nil being an empty one, in byte order. It
// reads only the pages that differ.
func compare(ctx context.Context, objs Objects, a, b *DirObject) ([]pair, error) {
	var none DirObject
	if a == nil {
		a = &none
	}
	if b == nil {
		b = &none
	}
	var olds, news []*Entry
	for i, j := 0, 0; i < len(a.Pages) || j < len(b.Pages); {
		var old, fresh []Entry
		inA := i < len(a.Pages) && (j >= len(b.Pages) || a.Pages[i].Number <= b.Pages[j].Number)
		inB := j < len(b.Pages) && (i >= len(a.Pages) || b.Pages[j].Number <= a.Pages[i].Number)
		same := inA && inB && a.Pages[i].Digest == b.Pages[j].Digest && !a.Pages[i].Digest.IsZero()
		var err error
		if inA && !same {
			old, err = a.Page(ctx, objs, i)
		}
		if inB && !same && err == nil {
			fresh, err = b.Page(ctx, objs, j)
		}
		if err != nil {
			return nil, err
		}
		olds, news = differing(olds, news, old, fresh)
		if inA {
			i++
		}
		if inB {
			j++
		}
	}
	return pairUp(olds, news), nil
}

// differing appends the entries of two pages, in slot order, that are not the same in both.
func differing(olds, news []*Entry, old, fresh []Entry) ([]*Entry, []*Entry) {
	i, j := 0, 0
	for i < len(old) && j < len(fresh) {
		a, b := &old[i], &fresh[j]
		if a.Slot <= b.Slot {
			i++
		}
		if b.Slot <= a.Slot {
			j++
		}
		switch {
		case a.Slot < b.Slot:
			olds = append(olds, a)
		case b.Slot < a.Slot:
			news = append(news, b)
		case *a != *b:
			olds, news = append(olds, a), append(news, b)
		}
	}
	for ; i < len(old); i++ {
		olds = append(olds, &old[i])
	}
	for ; j < len(fresh); j++ {
		news = append(news, &fresh[j])
	}
	return olds, news
}

// pairUp sorts both lists by name and joins them.
func pairUp(olds, news []*Entry) []pair {
	byName := func(a, b *Entry) int { return strings.Compare(a.Name, b.Name) }
	slices.SortFunc(olds, byName)
	slices.SortFunc(news, byName)
	pairs := make([]pair, 0, max(len(olds), len(news)))
	for len(olds) > 0 || len(news) > 0 {
		var p pair
		order := 0
		switch {
		case len(olds) == 0:
			order = 1
		case len(news) == 0:
			order = -1
		default:
			order = byName(olds[0], news[0])
		}
		if order <= 0 {
			p.a, olds = olds[0], olds[1:]
		}
		if order >= 0 {
			p.b, news = news[0], news[1:]
		}
		pairs = append(pairs, p)
	}
	return pairs
}

// Renumbered reports that nothing has changed but what nfs-fleet itself allots (ino, tag, birth, ctime) and what follows
// from that: a directory's size and link count. People who ask what has changed do not mean this.
func (c Change) Renumbered() bool {
	if c.Old == nil || c.New == nil {
		return false
	}
	a, b := *c.Old, *c.New
	a.Ino, a.Tag, a.Born, a.Ctime, a.Slot = b.Ino, b.Tag, b.Born, b.Ctime, b.Slot
	if a.Type == Directory && b.Type == Directory {
		a.Size, a.Used, a.Links, a.Content = b.Size, b.Used, b.Links, b.Content
	}
	return a == b
}
