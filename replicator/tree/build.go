package tree

import (
	"context"
	"fmt"
)

// built is a directory that has been written.
type built struct {
	entry Entry
	totals
}

// build writes a directory: the pages that its edits touch, and the directory object. When nothing has changed it writes
// nothing and returns the previous entry.
func (m *merger) build(ctx context.Context, n *node) (built, error) {
	dir := *n.dir
	dir.NextSlot = n.next
	dirty := make([]bool, len(n.pages))
	var added []Entry
	touched, renumbered := n.prev == nil, false
	for i := range n.edits {
		ed := &n.edits[i]
		if err := m.resolve(ctx, ed); err != nil {
			return built{}, err
		}
		var before *Entry
		if ed.page >= 0 {
			before = &n.pages[ed.page][ed.index]
		}
		if before != nil && !ed.gone && ed.entry == *before {
			continue
		}
		touched = true
		renumbered = renumbered || before == nil || ed.gone || before.Ino != ed.entry.Ino
		dir.count(ed, before)
		switch {
		case before == nil:
			added = append(added, ed.entry)
		case ed.gone:
			*before, dirty[ed.page] = Entry{}, true
		default:
			*before, dirty[ed.page] = ed.entry, true
		}
	}
	b := built{n.entry, totals{dir.Files, dir.Bytes}}
	if touched {
		var err error
		if dir.Pages, err = m.repage(ctx, n, dirty, added); err == nil {
			m.buf = appendDirectory(m.buf[:0], &dir)
			b.entry.Content.Digest, err = m.objs.Put(ctx, m.buf)
		}
		if err != nil {
			return built{}, fmt.Errorf("write directory %q: %w", n.path, err)
		}
	} else {
		b.entry.Content = n.prev.Content
	}
	m.finish(&b.entry, &dir, n.prev, renumbered)
	*n = node{} // what it was built from is not needed again
	return b, nil
}

// finish fills in what a directory's entry says of its inside, and its ctime.
func (m *merger) finish(e *Entry, dir *DirObject, prev *Entry, renumbered bool) {
	const unit, name = 4096, 32 // a directory's size is only for show: what its names might take on a disk
	e.Content.Form = Dir
	e.Links = uint32(min(2+dir.Subdirs, 1<<32-1))
	e.Size = max((dir.Entries*name+unit-1)/unit, 1) * unit
	e.Used = e.Size
	if prev == nil {
		return
	}
	same := *e
	same.Content = prev.Content // what changed further below is no change of this directory
	if renumbered || same != *prev {
		e.Ctime = m.after(prev.Ctime)
	}
}

// resolve completes an edit that had to wait.
func (m *merger) resolve(ctx context.Context, ed *edit) error {
	switch {
	case ed.file != nil:
		name, slot := ed.entry.Name, ed.entry.Slot
		ed.entry = ed.file.entry
		ed.entry.Name, ed.entry.Slot = name, slot
	case ed.child != nil:
		slot := ed.entry.Slot
		b, err := m.build(ctx, ed.child)
		if err != nil {
			return err
		}
		ed.entry, ed.now, ed.child = b.entry, b.totals, nil
		ed.entry.Slot = slot
	}
	return nil
}

// count brings the header of a directory from one entry of a name to the next.
func (dir *DirObject) count(ed *edit, before *Entry) {
	if before != nil {
		was := ed.was
		if before.Type == Directory {
			dir.Subdirs--
		} else {
			was = totals{1, before.Size}
		}
		dir.Entries, dir.Files, dir.Bytes = dir.Entries-1, dir.Files-was.files, dir.Bytes-was.bytes
	}
	if !ed.gone {
		now := ed.now
		if ed.entry.Type == Directory {
			dir.Subdirs++
		} else {
			now = totals{1, ed.entry.Size}
		}
		dir.Entries, dir.Files, dir.Bytes = dir.Entries+1, dir.Files+now.files, dir.Bytes+now.bytes
	}
}

// repage writes the pages that have changed and returns all of them. added are the entries of new names, in slot order
// behind all others; a removed entry has no type.
func (m *merger) repage(ctx context.Context, n *node, dirty []bool, added []Entry) ([]PageRef, error) {
	w := pageWriter{m: m, inline: n.next <= PageSlots+1}
	for i, ref := range n.dir.Pages {
		fresh := countIn(added, ref.Number)
		moves := ref.Digest.IsZero() && !w.inline
		if !dirty[i] && fresh == 0 && !moves {
			w.pages = append(w.pages, ref)
			continue
		}
		entries := n.pages[i]
		if entries == nil {
			var err error
			if entries, err = n.dir.Page(ctx, m.objs, i); err != nil {
				return nil, err
			}
		}
		live := make([]Entry, 0, len(entries)+fresh)
		for j := range entries {
			if entries[j].Type != 0 {
				live = append(live, entries[j])
			}
		}
		live, added = append(live, added[:fresh]...), added[fresh:]
		if err := w.write(ctx, ref.Number, live); err != nil {
			return nil, err
		}
	}
	for len(added) > 0 {
		number := pageOf(added[0].Slot)
		fresh := countIn(added, number)
		if err := w.write(ctx, number, added[:fresh]); err != nil {
			return nil, err
		}
		added = added[fresh:]
	}
	return w.pages, nil
}

// countIn returns how many of entries, from the first, are in page number.
func countIn(entries []Entry, number uint64) int {
	n := 0
	for n < len(entries) && pageOf(entries[n].Slot) == number {
		n++
	}
	return n
}

// pageWriter collects the pages of a directory.
type pageWriter struct {
	m      *merger
	inline bool
	pages  []PageRef
}

func (w *pageWriter) write(ctx context.Context, number uint64, entries []Entry) error {
	if len(entries) == 0 {
		return nil
	}
	ref := PageRef{Number: number, Count: uint64(len(entries))}
	if w.inline {
		ref.inline = entries
	} else {
		w.m.buf = appendPage(w.m.buf[:0], number, entries)
		var err error
		if ref.Digest, err = w.m.objs.Put(ctx, w.m.buf); err != nil {
			return fmt.Errorf("put page %d: %w", number, err)
		}
	}
	w.pages = append(w.pages, ref)
	return nil
}
