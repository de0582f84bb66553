package tree

import (
	"cmp"
	"context"
	"fmt"
	"slices"
)

// file is a file that has, or had, several names. Its numbers, links and ctime are decided when all names are known.
type file struct {
	entry Entry // wanted; decide completes it. Name and Slot are those of any of its names
	names uint32
	prevs []*Entry // what its names were before, directories excepted; in the pages of nodes that wait
	exact bool     // see Observed.exact

	replaces bool // some name was there before, directories included
	ctime    Time // the latest of those
}

// sighting counts the names of a previous file with several.
type sighting struct {
	entry Entry // any of them
	names uint32
}

// sight notes a previous entry whose name is listed, or gone.
func (m *merger) sight(before *Entry) {
	if before.Links < 2 {
		return
	}
	s := m.seen[before.Ino]
	if s == nil {
		s = &sighting{entry: *before}
		m.seen[before.Ino] = s
	}
	s.names++
}

// fileOf returns the file that a listed name belongs to, with the name added to it.
func (m *merger) fileOf(o *Observed, e Entry, before *Entry) *file {
	f := m.byLink[o.Link]
	if f == nil || o.Link == (LinkID{}) {
		if o.exact { // what a pinned file keeps
			inherit(&e, &o.Entry)
			e.Links = o.Links
		}
		f = &file{entry: e, exact: o.exact}
		m.files = append(m.files, f)
		if o.Link != (LinkID{}) {
			m.byLink[o.Link] = f
		}
	}
	f.names++
	if before != nil && (!f.replaces || f.ctime.Less(before.Ctime)) {
		f.replaces, f.ctime = true, before.Ctime
	}
	if before != nil && before.Type != Directory {
		f.prevs = append(f.prevs, before)
	}
	return f
}

// decide gives every file its numbers. Those that have names in directories that nobody listed come first, for they have
// no choice; then the ones with the most names, so that a name that leaves them is what gets a new ino.
func (m *merger) decide(ctx context.Context) error {
	var rest []*file
	for _, f := range m.files {
		pinned, err := m.pinned(ctx, f)
		if err != nil {
			return err
		}
		if pinned {
			m.claimed[f.entry.Ino] = true
		} else {
			rest = append(rest, f)
		}
	}
	slices.SortStableFunc(rest, func(a, b *file) int { return cmp.Compare(b.names, a.names) })
	for _, f := range rest {
		if err := m.number(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

// pinned reports whether f has names in directories that both trees share. Then the file is in both, with the same
// attributes and as many names: some were listed, and as many have left the previous tree.
func (m *merger) pinned(ctx context.Context, f *file) (bool, error) {
	if !f.exact || f.entry.Links <= f.names {
		return false, nil
	}
	s, err := m.sighted(ctx, &f.entry)
	if err != nil || s == nil {
		return false, err
	}
	e := f.entry
	e.Name, e.Slot = s.entry.Name, s.entry.Slot
	return e == s.entry && s.names == f.names, nil
}

// number decides a file that is not pinned: the ino of the first of its names whose file it still is, or a new one.
func (m *merger) number(ctx context.Context, f *file) error {
	e := &f.entry
	e.Links = f.names
	var base *Entry
	for _, before := range f.prevs {
		free, err := m.free(ctx, before)
		if err != nil {
			return err
		}
		if free && sameFile(e, before) {
			base = before
			break
		}
	}
	changed := true
	if base != nil {
		inherit(e, base)
		m.claimed[e.Ino] = true
		e.Name, e.Slot = base.Name, base.Slot
		changed = *e != *base
	} else if err := m.allot(e, nil); err != nil {
		return err
	}
	if f.replaces && (changed || e.Ctime.Less(f.ctime)) {
		e.Ctime = m.after(f.ctime)
	}
	return nil
}

// free reports whether the ino of a previous entry can be a file's: no other has it, and no name that was not listed.
func (m *merger) free(ctx context.Context, before *Entry) (bool, error) {
	if before.Links < 2 {
		return true, nil
	}
	if m.claimed[before.Ino] {
		return false, nil
	}
	s, err := m.sighted(ctx, before)
	return err == nil && s != nil && s.names >= before.Links, err
}

// sighted returns what is known of the previous names of an entry's ino, nil for nothing. When some are still wanting it
// looks for them in the directories that are gone.
func (m *merger) sighted(ctx context.Context, e *Entry) (*sighting, error) {
	for s := m.seen[e.Ino]; (s == nil || s.names < e.Links) && len(m.gone) > 0; s = m.seen[e.Ino] {
		d := m.gone[len(m.gone)-1]
		m.gone = m.gone[:len(m.gone)-1]
		if err := m.sightAll(ctx, d); err != nil {
			return nil, fmt.Errorf("look for links: %w", err)
		}
	}
	return m.seen[e.Ino], nil
}

// sightAll notes the names in a directory that is gone; the directories in it are left for later.
func (m *merger) sightAll(ctx context.Context, d Digest) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	dir, err := LoadDirectory(ctx, m.objs, d)
	if err != nil {
		return err
	}
	for e, err := range dir.All(ctx, m.objs) {
		if err != nil {
			return err
		}
		if e.Type == Directory {
			m.gone = append(m.gone, e.Content.Digest)
		} else {
			m.sight(&e)
		}
	}
	return nil
}
