package tree

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"iter"
)

// DirObject is a decoded directory object: what it says of the directory, and where its entries are.
type DirObject struct {
	NextSlot uint64    // the lowest slot not yet allotted in this directory
	Entries  uint64    // names in this directory
	Subdirs  uint64    // of them directories
	Files    uint64    // names in the whole subtree that are not directories
	Bytes    uint64    // sum of their sizes
	Pages    []PageRef // in ascending order of Number; pages without entries are not there
}

// PageRef is one page of a directory: the entries whose slots are Number*PageSlots+1 to (Number+1)*PageSlots.
type PageRef struct {
	Number uint64
	Count  uint64 // entries in the page, 1 to PageSlots
	Digest Digest // of the page object; zero when the entries are in the directory object itself

	inline []Entry // decoded, when Digest is zero
}

// pageOf returns the number of the page that has a slot.
func pageOf(slot uint64) uint64 { return (slot - 1) / PageSlots }

// isInline reports whether the entries are in the directory object itself: no slot beyond the first page was ever
// allotted.
func (dir *DirObject) isInline() bool { return dir.NextSlot <= PageSlots+1 }

// appendDirectory appends a directory object.
func appendDirectory(dst []byte, dir *DirObject) []byte {
	dst = appendMagic(dst, kindDirectory)
	for _, v := range [...]uint64{dir.NextSlot, dir.Entries, dir.Subdirs, dir.Files, dir.Bytes} {
		dst = binary.AppendUvarint(dst, v)
	}
	if dir.isInline() {
		if len(dir.Pages) == 0 {
			return dst
		}
		return appendBlock(dst, 0, dir.Pages[0].inline)
	}
	dst = binary.AppendUvarint(dst, uint64(len(dir.Pages)))
	next := uint64(0)
	for i := range dir.Pages {
		p := &dir.Pages[i]
		dst = binary.AppendUvarint(dst, p.Number-next)
		dst = binary.AppendUvarint(dst, p.Count)
		dst = append(dst, p.Digest[:]...)
		next = p.Number + 1
	}
	return dst
}

// DecodeDirectory decodes a directory object.
func DecodeDirectory(b []byte) (*DirObject, error) {
	c, err := open(b, kindDirectory)
	if err != nil {
		return nil, fmt.Errorf("decode directory: %w", err)
	}
	dir := &DirObject{
		NextSlot: c.atMost(MaxSlot+1, "next slot"), Entries: c.uvarint(), Subdirs: c.uvarint(), Files: c.uvarint(), Bytes: c.uvarint(),
	}
	if dir.NextSlot == 0 || dir.Entries > dir.NextSlot-1 || dir.Subdirs > dir.Entries || dir.Files < dir.Entries-dir.Subdirs ||
		dir.Subdirs == 0 && dir.Files != dir.Entries {
		c.fail("next slot %d, %d entries, %d subdirectories, %d files", dir.NextSlot, dir.Entries, dir.Subdirs, dir.Files)
	}
	if dir.isInline() {
		c.inline(dir)
	} else {
		c.pages(dir)
	}
	if err := c.done(); err != nil {
		return nil, fmt.Errorf("decode directory: %w", err)
	}
	return dir, nil
}

// inline reads the entries that are in the directory object itself.
func (c *cursor) inline(dir *DirObject) {
	if dir.Entries == 0 {
		return
	}
	entries := c.block(0, dir.Entries)
	if c.err != nil {
		return
	}
	var subdirs, size uint64
	for i := range entries {
		if entries[i].Type == Directory {
			subdirs++
		} else {
			size += entries[i].Size
		}
	}
	if last := entries[len(entries)-1].Slot; last >= dir.NextSlot || subdirs != dir.Subdirs || subdirs == 0 && size != dir.Bytes {
		c.fail("header does not agree with the entries")
	}
	dir.Pages = []PageRef{{Count: dir.Entries, inline: entries}}
}

// pages reads the list of pages.
func (c *cursor) pages(dir *DirObject) {
	const minRef = 2 + len(Digest{})
	n := c.uvarint()
	if n > uint64(c.left()/minRef) {
		c.fail("%d pages in %d bytes", n, c.left())
		return
	}
	dir.Pages = make([]PageRef, n)
	next, entries := uint64(0), uint64(0)
	for i := range dir.Pages {
		p := &dir.Pages[i]
		p.Number = next + c.atMost(MaxSlot/PageSlots, "page gap")
		p.Count = c.atMost(PageSlots, "page count")
		c.digest(&p.Digest)
		if p.Count == 0 || p.Number*PageSlots+1 >= dir.NextSlot {
			c.fail("page %d with %d entries", p.Number, p.Count)
			return
		}
		next, entries = p.Number+1, entries+p.Count
	}
	if entries != dir.Entries {
		c.fail("%d entries in pages, want %d", entries, dir.Entries)
	}
}

// LoadDirectory gets and decodes the directory object named d.
func LoadDirectory(ctx context.Context, objs Objects, d Digest) (*DirObject, error) {
	b, err := objs.Get(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("load directory: %w", err)
	}
	dir, err := DecodeDirectory(b)
	if err != nil {
		return nil, fmt.Errorf("object %s: %w", d, err)
	}
	return dir, nil
}

// Page returns the entries of dir.Pages[i] in slot order.
func (dir *DirObject) Page(ctx context.Context, objs Objects, i int) ([]Entry, error) {
	if dir.Pages[i].Digest.IsZero() {
		return dir.Pages[i].inline, nil
	}
	b, err := objs.Get(ctx, dir.Pages[i].Digest)
	if err != nil {
		return nil, fmt.Errorf("load page: %w", err)
	}
	return dir.decodePage(i, b)
}

// decodePage decodes the object of dir.Pages[i] and holds it against what the directory says of it.
func (dir *DirObject) decodePage(i int, b []byte) ([]Entry, error) {
	p := &dir.Pages[i]
	entries, err := DecodePage(b)
	if err != nil {
		return nil, fmt.Errorf("object %s: %w", p.Digest, err)
	}
	last := entries[len(entries)-1].Slot
	if uint64(len(entries)) != p.Count || pageOf(last) != p.Number || last >= dir.NextSlot {
		return nil, fmt.Errorf("object %s: not page %d of %d entries before slot %d: %w", p.Digest, p.Number, p.Count, dir.NextSlot, ErrCorrupt)
	}
	return entries, nil
}

// All yields the directory's entries in slot order. After an error it stops.
func (dir *DirObject) All(ctx context.Context, objs Objects) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for i := range dir.Pages {
			entries, err := dir.Page(ctx, objs, i)
			if err != nil {
				yield(Entry{}, err)
				return
			}
			for j := range entries {
				if !yield(entries[j], nil) {
					return
				}
			}
		}
	}
}

// find returns the entry with a name. Pages in whose bytes the name does not occur are not decoded.
func (dir *DirObject) find(ctx context.Context, objs Objects, name string) (Entry, bool, error) {
	for i := range dir.Pages {
		entries, err := dir.pageWith(ctx, objs, i, []string{name})
		if err != nil {
			return Entry{}, false, err
		}
		for j := range entries {
			if entries[j].Name == name {
				return entries[j], true, nil
			}
		}
	}
	return Entry{}, false, nil
}

// pageWith is Page, or nil when none of the names is in the page. It may return a page that has none of them.
func (dir *DirObject) pageWith(ctx context.Context, objs Objects, i int, names []string) ([]Entry, error) {
	if dir.Pages[i].Digest.IsZero() {
		return dir.Pages[i].inline, nil
	}
	b, err := objs.Get(ctx, dir.Pages[i].Digest)
	if err != nil {
		return nil, fmt.Errorf("load page: %w", err)
	}
	for _, name := range names {
		if bytes.Contains(b, []byte(name)) {
			return dir.decodePage(i, b)
		}
	}
	return nil, nil
}
