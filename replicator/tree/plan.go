package tree

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// node is a directory of the new tree between its listing and its writing.
type node struct {
	path  string
	entry Entry      // wanted; with its numbers
	prev  *Entry     // the previous directory at this path, or nil
	dir   *DirObject // of prev; empty when there is none
	pages [][]Entry  // decoded pages of dir; nil when not read. build overwrites them
	edits []edit
	next  uint64 // next slot
	waits bool   // some edit waits for the second pass
}

// edit is one difference between a directory and what it was.
type edit struct {
	page, index int   // where the previous entry is in node.pages; page is -1 for a new name
	entry       Entry // what is wanted; file or child, when set, say the rest at the end
	file        *file
	child       *node
	gone        bool
	was, now    totals // of the subtree, when the previous entry and the new one are directories
}

// totals are what a subtree adds to the directories above it.
type totals struct{ files, bytes uint64 }

func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

// plan lists a directory, and all that is to be listed in it, and finds what differs from prev. entry has its numbers.
func (m *merger) plan(ctx context.Context, path string, depth int, entry Entry, prev *Entry) (*node, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("%q…: more than %d directories deep", path[:min(len(path), 80)], maxDepth)
	}
	n := &node{path: path, entry: entry, prev: prev, dir: &DirObject{NextSlot: 1}}
	if prev != nil {
		inherit(&n.entry, prev)
		dir, err := LoadDirectory(ctx, m.objs, prev.Content.Digest)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", path, err)
		}
		n.dir = dir
	}
	n.next, n.pages = n.dir.NextSlot, make([][]Entry, len(n.dir.Pages))
	var given *Entry
	if prev != nil { // a copy: the Lister may keep it, and ours is overwritten
		e := *prev
		given = &e
	}
	l, err := m.lister.List(ctx, path, given)
	if err != nil {
		return nil, fmt.Errorf("list %q: %w", path, err)
	}
	w, err := m.match(ctx, n, &l)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", path, err)
	}
	for i, at := range w.order {
		o := &l.Names[at]
		e, err := m.want(ctx, n, o, w.found[i], depth)
		if err != nil {
			if o.Type != Directory {
				err = fmt.Errorf("%q: %w", join(path, o.Name), err)
			}
			return nil, err
		}
		if e == nil {
			continue
		}
		if e.page < 0 && n.next > MaxSlot {
			return nil, fmt.Errorf("%q has used up its %d slots", path, uint64(MaxSlot))
		}
		n.add(*e)
	}
	return n, nil
}

// add adds an edit; a new name gets its slot.
func (n *node) add(e edit) {
	if e.page < 0 {
		e.entry.Slot = n.next
		n.next++
	}
	n.waits = n.waits || e.file != nil || e.child != nil
	n.edits = append(n.edits, e)
}

// place is where an entry is among a node's pages.
type place struct{ page, index int }

// matched is a Listing held against the previous entries: the indexes of its names in the order of the names, and where
// each has its previous entry.
type matched struct {
	order []int
	found []place
}

// match finds the previous entries of the listed names and adds an edit for each name that is gone.
func (m *merger) match(ctx context.Context, n *node, l *Listing) (matched, error) {
	w := matched{make([]int, len(l.Names)), make([]place, len(l.Names))}
	for i := range w.order {
		w.order[i], w.found[i].page = i, -1
	}
	slices.SortFunc(w.order, func(a, b int) int { return strings.Compare(l.Names[a].Name, l.Names[b].Name) })
	index := make(map[string]int, len(l.Names)+len(l.Gone)) // of a name in order; -1: gone
	for _, name := range l.Gone {
		index[name] = -1
	}
	for i, at := range w.order {
		name := l.Names[at].Name
		if err := checkName(name); err != nil {
			return w, err
		}
		if _, twice := index[name]; twice {
			return w, fmt.Errorf("name %q listed twice", name)
		}
		index[name] = i
	}
	return w, m.scan(ctx, n, l.Complete, index, w.found)
}

// scan looks for the names of index in the pages of n. It reads as few of them as it can tell.
func (m *merger) scan(ctx context.Context, n *node, complete bool, index map[string]int, found []place) error {
	const few = 8 // names that are cheaper to look for in a page's bytes than a page is to decode
	var names []string
	if !complete && len(index) <= few {
		for name := range index {
			names = append(names, name)
		}
	}
	left := len(index)
	for p := range n.dir.Pages {
		if left == 0 && !complete {
			return nil
		}
		var err error
		if names != nil {
			n.pages[p], err = n.dir.pageWith(ctx, m.objs, p, names)
		} else {
			n.pages[p], err = n.dir.Page(ctx, m.objs, p)
		}
		if err != nil {
			return err
		}
		for i := range n.pages[p] {
			e := &n.pages[p][i]
			if err := m.known(e); err != nil {
				return err
			}
			at, listed := index[e.Name]
			switch {
			case listed && at >= 0:
				found[at] = place{p, i}
				left--
			case listed || complete:
				left--
				if err := m.remove(ctx, n, place{p, i}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// known refuses to go on when the previous tree has an ino that would be allotted again.
func (m *merger) known(before *Entry) error {
	if before.Ino >= max(m.opts.NextIno, 1) || before.Born >= m.opts.Generation {
		return fmt.Errorf("%q has ino %d born %d; generation %d would go on at ino %d", before.Name, before.Ino, before.Born, m.opts.Generation, m.opts.NextIno)
	}
	return nil
}

// remove adds the edit for an entry that is gone.
func (m *merger) remove(ctx context.Context, n *node, at place) error {
	e := edit{page: at.page, index: at.index, gone: true}
	var err error
	if e.was, err = m.leave(ctx, &n.pages[at.page][at.index]); err == nil {
		n.add(e)
	}
	return err
}

// leave notes that a previous entry has left its name, and returns what it added to the directories above when it was a
// directory.
func (m *merger) leave(ctx context.Context, before *Entry) (totals, error) {
	if before.Type != Directory {
		m.sight(before)
		return totals{}, nil
	}
	dir, err := LoadDirectory(ctx, m.objs, before.Content.Digest)
	if err != nil {
		return totals{}, fmt.Errorf("%q: %w", before.Name, err)
	}
	m.gone = append(m.gone, before.Content.Digest)
	return totals{dir.Files, dir.Bytes}, nil
}

// want returns the edit that makes a name what o says, or nil when it is that already.
func (m *merger) want(ctx context.Context, n *node, o *Observed, at place, depth int) (*edit, error) {
	var before *Entry
	if at.page >= 0 {
		before = &n.pages[at.page][at.index]
	}
	ed := edit{page: at.page, index: at.index}
	if o.Keep {
		if before == nil {
			m.dropped = append(m.dropped, join(n.path, o.Name))
			return nil, nil
		}
		if before.Type == Directory {
			return nil, nil
		}
		o = kept(before)
	}
	var err error
	if ed.entry, err = wanted(o); err != nil {
		return nil, fmt.Errorf("%q: %w", o.Name, err)
	}
	if before != nil {
		ed.entry.Slot = before.Slot
		if before.Type != Directory || o.Type != Directory {
			if ed.was, err = m.leave(ctx, before); err != nil {
				return nil, err
			}
		}
	}
	if o.Type == Directory {
		return m.wantDirectory(ctx, n, o, ed, before, depth)
	}
	return m.wantFile(o, ed, before)
}

// kept returns the observation that a name is as it was. Names that were one file before are still.
func kept(before *Entry) *Observed {
	const dev = 1<<64 - 1 // no file system's: Linux has 32 bits of them
	o := &Observed{Entry: *before}
	if before.Links > 1 {
		o.Link = LinkID{dev, before.Ino}
	}
	return o
}

func (m *merger) wantFile(o *Observed, ed edit, before *Entry) (*edit, error) {
	was := before
	if was != nil && was.Type == Directory {
		was = nil
	}
	if o.Link != (LinkID{}) || was != nil && was.Links > 1 {
		ed.file = m.fileOf(o, ed.entry, before)
		return changed(ed), nil
	}
	if was == nil || !sameFile(&ed.entry, was) {
		err := m.allot(&ed.entry, before)
		return changed(ed), err
	}
	inherit(&ed.entry, was)
	if ed.entry == *was {
		return nil, nil
	}
	ed.entry.Ctime = m.after(was.Ctime)
	return changed(ed), nil
}

// changed puts an edit on the heap. In the rest of wantFile it is not: most files of a full scan are what they were.
func changed(ed edit) *edit { return &ed }

func (m *merger) wantDirectory(ctx context.Context, n *node, o *Observed, ed edit, before *Entry, depth int) (*edit, error) {
	was := before
	if was != nil && was.Type != Directory {
		was = nil
	}
	if was != nil && !o.Descend {
		e := &ed.entry
		inherit(e, was)
		e.Links, e.Size, e.Used, e.Content = was.Links, was.Size, was.Used, was.Content
		if *e == *was {
			return nil, nil
		}
		e.Ctime = m.after(was.Ctime)
		return &ed, nil
	}
	if was == nil {
		if err := m.allot(&ed.entry, before); err != nil {
			return nil, err
		}
	}
	child, err := m.plan(ctx, join(n.path, o.Name), depth+1, ed.entry, was)
	if err != nil {
		return nil, err
	}
	if was != nil {
		ed.was = totals{child.dir.Files, child.dir.Bytes}
	}
	if child.waits {
		ed.child = child
		return &ed, nil
	}
	b, err := m.build(ctx, child)
	if err != nil {
		return nil, err
	}
	ed.entry, ed.now = b.entry, b.totals
	if was != nil && ed.entry == *was {
		return nil, nil
	}
	return &ed, nil
}
