package volume

import (
	"context"
	"fmt"
	"hash/maphash"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// builder makes a State out of the one before. It modifies nothing of that one; when it fails it is thrown away.
//
// An ino is gone when an entry that had it is, and no other entry has taken it: an entry with several names says in every
// name's record how many there are, so that when one goes, the pages of the others are made anew, and settle takes the ino
// to one of those.
type builder struct {
	ctx  context.Context
	objs objects
	old  *State // nil for the first
	gen  tree.Generation
	fsid uint64
	seed maphash.Seed

	inos  *inoEdit
	pages *pageEdit
	left  []leaver
	stats buildStats
}

// leaver is an entry of the old State that the new one does not have at its place.
type leaver struct {
	node Node
	at   location
}

// buildStats counts what a builder has done.
type buildStats struct{ pages, entries, gone int }

// build makes the State of g out of old, which may be nil.
func build(ctx context.Context, s Store, fsid uint64, seed maphash.Seed, old *State, g tree.Generation) (*State, buildStats, error) {
	b := &builder{ctx: ctx, objs: objectsOf(s), old: old, gen: g, fsid: fsid, seed: seed}
	if old == nil {
		b.inos, b.pages = inoTable{}.edit(), pageTable{}.edit()
		old = &State{}
	} else {
		b.inos, b.pages = old.inos.edit(), old.pages.edit()
	}
	if g.Number > maxBorn {
		return nil, b.stats, fmt.Errorf("generation %d: a handle has no room for it", g.Number)
	}
	next := &State{fsid: fsid, gen: g, seed: seed, root: old.root, gone: old.gone}
	if old.gen.Root == g.Root {
		next.inos, next.pages = old.inos, old.pages
		return next, b.stats, nil
	}
	root, err := tree.LoadRoot(ctx, b.objs, g.Root)
	if err != nil {
		return nil, b.stats, err
	}
	if root.Type != tree.Directory {
		return nil, b.stats, fmt.Errorf("root %s has type %d: %w", g.Root, root.Type, tree.ErrCorrupt)
	}
	root.Name, root.Slot = "", 1
	w := pageWork{b: b, dir: root.Ino, was: &old.root}
	if next.root, err = w.write(dirPage{}, []tree.Entry{root}); err != nil {
		return nil, b.stats, err
	}
	next.gone = b.settle()
	next.inos, next.pages = b.inos.done(), b.pages.done()
	return next, b.stats, nil
}

// directory makes the directory that is the directory object digest out of old, which may be nil: another version of it.
func (b *builder) directory(old *dir, ino, parent uint64, digest tree.Digest) (*dir, error) {
	if old != nil && old.digest == digest && old.parent == parent {
		return old, nil
	}
	if err := b.ctx.Err(); err != nil {
		return nil, context.Cause(b.ctx)
	}
	obj, err := tree.LoadDirectory(b.ctx, b.objs, digest)
	if err != nil {
		return nil, err
	}
	if obj.NextSlot > maxSlot {
		return nil, fmt.Errorf("directory with ino %d: %d slots are more than can be kept", ino, obj.NextSlot)
	}
	d := &dir{parent: parent, digest: digest, live: int(obj.Entries)}
	if len(obj.Pages) > 0 {
		d.pages = make([]dirPage, 0, len(obj.Pages))
	}
	var was []dirPage
	if old != nil {
		was, d.names = old.pages, old.names
	}
	w := pageWork{b: b, dir: ino}
	for i := range obj.Pages {
		ref := &obj.Pages[i]
		for len(was) > 0 && was[0].number < ref.Number {
			w.drop(&was[0])
			was = was[1:]
		}
		w.was = &dirPage{}
		if len(was) > 0 && was[0].number == ref.Number {
			w.was, was = &was[0], was[1:]
		}
		p, err := w.page(obj, i)
		if err != nil {
			return nil, err
		}
		d.pages = append(d.pages, p)
	}
	for i := range was {
		w.drop(&was[i])
	}
	if len(w.gone)+len(w.come) > 0 {
		d.names = d.names.update(w.gone, w.come, d.live)
	}
	return d, nil
}

// pageWork makes the pages of one directory, and collects which names go and come.
type pageWork struct {
	b          *builder
	dir        uint64   // the directory's ino
	was        *dirPage // what the next page is made out of; its page is nil when there is none
	gone, come []uint64 // for names.update
}

// page makes the page obj.Pages[i].
func (w *pageWork) page(obj *tree.DirObject, i int) (dirPage, error) {
	ref := &obj.Pages[i]
	if w.was.page != nil && w.was.digest == ref.Digest && !ref.Digest.IsZero() {
		return *w.was, nil
	}
	entries, err := obj.Page(w.b.ctx, w.b.objs, i)
	if err != nil {
		return dirPage{}, err
	}
	if len(entries) == 0 {
		return dirPage{}, fmt.Errorf("page %d of the directory with ino %d is empty: %w", ref.Number, w.dir, tree.ErrCorrupt)
	}
	return w.write(dirPage{number: ref.Number, digest: ref.Digest}, entries)
}

// write fills in p, the page that has entries.
func (w *pageWork) write(p dirPage, entries []tree.Entry) (dirPage, error) {
	b, old, next := w.b, w.was.page, 0 // next: of the entries of old
	if p.id = w.was.id; old == nil {
		p.id = b.pages.number()
	}
	first := p.number*tree.PageSlots + 1
	if entries[0].Slot < first || entries[len(entries)-1].Slot >= first+tree.PageSlots {
		return p, fmt.Errorf("directory with ino %d: slots beyond page %d: %w", w.dir, p.number, tree.ErrCorrupt)
	}
	writer := newPageWriter(b.fsid, first, entries)
	for i := range entries {
		e := &entries[i]
		if err := b.check(e); err != nil {
			return p, err
		}
		place := uint32(e.Slot - first)
		for ; old != nil && next < old.n && recordPlace(old.record(next)) < place; next++ {
			w.leave(w.was, next)
		}
		var before []byte // the old record, if this is the same inode
		named := false    // whether the name was there
		if old != nil && next < old.n && recordPlace(old.record(next)) == place {
			before, named = w.replace(next, e)
			next++
		}
		if before == nil || e.Type != tree.Directory && recordLinks(before) != 1 {
			b.inos.set(e.Ino, locate(p.id, place))
		}
		if !named {
			w.come = append(w.come, w.entry(e.Name, e.Slot))
		}
		sub, err := w.subdirectory(before, e)
		if err != nil {
			return p, err
		}
		writer.add(e, sub)
	}
	for ; old != nil && next < old.n; next++ {
		w.leave(w.was, next)
	}
	p.page = writer.done()
	b.pages.set(p.id, p.page)
	b.stats.pages++
	b.stats.entries += len(entries)
	return p, nil
}
