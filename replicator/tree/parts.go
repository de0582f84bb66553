package tree

import (
	"context"
	"fmt"
)

// Part is an object that a tree needs, and what is at the same place in a base tree. It is how one walks a tree of which
// not everything is here yet: begin with RootPart, and Expand each object that is not a blob once its bytes are there.
type Part struct {
	Digest Digest
	Form   Form   // Dir for root, directory and page objects, Chunks for chunk lists, Blob for content
	Size   uint64 // bytes of a blob; of other objects a guess

	kind  byte   // of the object, as its third byte says; 0 for a blob
	depth uint16 // of the directory that it is, or is in
	base  base
	// Of a page, what its directory says of it.
	number, count, nextSlot uint64
}

// base is the object that a base tree has at the same place; its digest is zero when there is none.
type base struct {
	digest Digest
	inline bool // a directory object, for a page: the counterpart is in it
}

// RootPart returns the root object of the tree root. base is the tree that Expand compares with, zero for none.
func RootPart(root, baseRoot Digest) Part {
	return Part{Digest: root, Form: Dir, Size: 128, kind: kindRoot, base: base{digest: baseRoot}}
}

// Expand calls fn for each object that the object p, whose bytes are b, names and that the base tree does not have at the
// same place. It reads from objs the counterpart of p alone, so its cost follows what has changed; a counterpart that
// cannot be read is taken for none. It wraps ErrCorrupt when b is not what p has to be. An error of fn ends it and is
// returned as it is; b is not kept.
func (p Part) Expand(ctx context.Context, objs Objects, b []byte, fn func(Part) error) error {
	var err error
	x := expansion{ctx, objs, fn}
	switch p.kind {
	case kindRoot:
		err = x.root(&p, b)
	case kindDirectory:
		err = x.directory(&p, b)
	case kindPage:
		err = x.page(&p, b)
	case kindChunks:
		err = x.chunks(&p, b)
	}
	if err == nil {
		return context.Cause(ctx)
	}
	return err
}

type expansion struct {
	ctx  context.Context
	objs Objects
	fn   func(Part) error
}

// counterpart returns the bytes of an object of the base tree, nil when there is none to be read.
func (x *expansion) counterpart(d Digest) []byte {
	if d.IsZero() {
		return nil
	}
	b, err := x.objs.Get(x.ctx, d)
	if err != nil {
		return nil
	}
	return b
}

func (x *expansion) root(p *Part, b []byte) error {
	e, err := DecodeRoot(b)
	if err != nil {
		return fmt.Errorf("object %s: %w", p.Digest, err)
	}
	var before Content
	if old := x.counterpart(p.base.digest); old != nil {
		if was, err := DecodeRoot(old); err == nil {
			before = was.Content
		}
	}
	return x.content(&e, before, 0)
}

// content reports what an entry names, unless the base tree's entry, whose content is before, names it too.
func (x *expansion) content(e *Entry, before Content, depth int) error {
	if e.Content.Form == NoContent || e.Content == before {
		return nil
	}
	p := Part{Digest: e.Content.Digest, Form: e.Content.Form, Size: e.Size, depth: uint16(depth)}
	if before.Form == p.Form && p.Form != Blob {
		p.base.digest = before.Digest
	}
	switch p.Form {
	case Chunks:
		p.kind, p.Size = kindChunks, 16+e.Size/ChunkSize*37
	case Dir:
		const entry, show = 128, 32 // what an entry takes, and what it adds to the size that a directory shows
		p.kind, p.Size = kindDirectory, 64+e.Size/show*entry
		if p.Size > PageSlots*entry { // then it is a list of pages
			p.Size = 64 + e.Size/show/PageSlots*40
		}
		if depth > maxDepth {
			return fmt.Errorf("more than %d directories deep: %w", maxDepth, ErrCorrupt)
		}
	}
	return x.fn(p)
}

func (x *expansion) directory(p *Part, b []byte) error {
	dir, err := DecodeDirectory(b)
	if err != nil {
		return fmt.Errorf("object %s: %w", p.Digest, err)
	}
	was := &DirObject{}
	if old := x.counterpart(p.base.digest); old != nil {
		if d, err := DecodeDirectory(old); err == nil {
			was = d
		}
	}
	j := 0
	for i := range dir.Pages {
		page := &dir.Pages[i]
		for j < len(was.Pages) && was.Pages[j].Number < page.Number {
			j++
		}
		var before *PageRef
		if j < len(was.Pages) && was.Pages[j].Number == page.Number {
			before = &was.Pages[j]
		}
		if page.Digest.IsZero() {
			err = x.entries(page.inline, x.entriesOf(before), int(p.depth))
		} else {
			err = x.pageOf(p, dir, page, before)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// entriesOf returns the entries of a page of the base tree, nil when there is none to be read.
func (x *expansion) entriesOf(before *PageRef) []Entry {
	if before == nil || before.Digest.IsZero() {
		if before == nil {
			return nil
		}
		return before.inline
	}
	return x.decoded(before.Digest)
}

// decoded returns the entries of a page object of the base tree.
func (x *expansion) decoded(d Digest) []Entry {
	old := x.counterpart(d)
	if old == nil {
		return nil
	}
	entries, err := DecodePage(old)
	if err != nil {
		return nil
	}
	return entries
}

// pageOf reports a page object of directory p, unless the base tree's directory has the same one there.
func (x *expansion) pageOf(p *Part, dir *DirObject, page, before *PageRef) error {
	if before != nil && before.Digest == page.Digest {
		return nil
	}
	q := Part{
		Digest: page.Digest, Form: Dir, Size: 16 + page.Count*128, kind: kindPage, depth: p.depth,
		number: page.Number, count: page.Count, nextSlot: dir.NextSlot,
	}
	switch {
	case before == nil:
	case before.Digest.IsZero():
		q.base = base{p.base.digest, true}
	default:
		q.base.digest = before.Digest
	}
	return x.fn(q)
}

func (x *expansion) page(p *Part, b []byte) error {
	dir := DirObject{NextSlot: p.nextSlot, Pages: []PageRef{{Number: p.number, Count: p.count, Digest: p.Digest}}}
	entries, err := dir.decodePage(0, b)
	if err != nil {
		return err
	}
	var before []Entry
	if !p.base.inline {
		before = x.decoded(p.base.digest)
	} else if old := x.counterpart(p.base.digest); old != nil {
		if was, err := DecodeDirectory(old); err == nil && len(was.Pages) > 0 {
			before = was.Pages[0].inline
		}
	}
	return x.entries(entries, before, int(p.depth))
}

// entries reports what the entries of a page name. before are those of the same page in the base tree.
func (x *expansion) entries(entries, before []Entry, depth int) error {
	j := 0
	for i := range entries {
		e := &entries[i]
		for j < len(before) && before[j].Slot < e.Slot {
			j++
		}
		var was Content
		if j < len(before) && before[j].Slot == e.Slot {
			was = before[j].Content
		}
		if err := x.content(e, was, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (x *expansion) chunks(p *Part, b []byte) error {
	extents, err := DecodeChunks(b)
	if err != nil {
		return fmt.Errorf("object %s: %w", p.Digest, err)
	}
	var before []Extent
	if old := x.counterpart(p.base.digest); old != nil {
		if was, err := DecodeChunks(old); err == nil {
			before = was
		}
	}
	for i := range extents {
		e := &extents[i]
		if e.Digest.IsZero() || i < len(before) && before[i] == *e {
			continue
		}
		if err := x.fn(Part{Digest: e.Digest, Form: Blob, Size: e.Length}); err != nil {
			return err
		}
	}
	return nil
}
