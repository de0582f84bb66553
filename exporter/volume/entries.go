package volume

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"slices"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// check says what is wrong with an entry that no publish of this generation or an earlier one can have made.
func (b *builder) check(e *tree.Entry) error {
	var what string
	switch {
	case e.Ino == 0 || e.Ino > maxIno || b.gen.NextIno > 0 && e.Ino >= b.gen.NextIno:
		what = "has an ino that was never allotted"
	case e.Born > b.gen.Number:
		what = fmt.Sprintf("was born in generation %d", e.Born)
	case e.Type < tree.Regular || e.Type > tree.FIFO || (e.Type == tree.Directory) != (e.Content.Form == tree.Dir):
		what = fmt.Sprintf("has type %d and content of form %d", e.Type, e.Content.Form)
	case len(e.Name) > 255 || len(e.Target) > maxTarget:
		what = "has too long a name or target"
	default:
		return nil
	}
	return fmt.Errorf("entry %q with ino %d in generation %d %s: %w", e.Name, e.Ino, b.gen.Number, what, tree.ErrCorrupt)
}

// entry returns what the directory's index has of a name.
func (w *pageWork) entry(name string, slot uint64) uint64 {
	return nameEntry(maphash.String(w.b.seed, name), slot)
}

// replace takes note that e is where entry i of the old page was. It returns the old record when that was the same inode,
// and whether it had the same name.
func (w *pageWork) replace(i int, e *tree.Entry) (before []byte, named bool) {
	old := w.was.page
	r := old.record(i)
	if named = string(old.name(i)) == e.Name; !named {
		// No publish does this: slots are not issued again. Two histories in one store would.
		w.unname(w.was, i)
	}
	if recordIno(r) == e.Ino && recordType(r) == e.Type {
		return r, named
	}
	w.b.leave(w.was, i)
	return nil, named
}

// subdirectory makes the directory that e is, if it is one, out of what it was: before is its old record, nil for none.
func (w *pageWork) subdirectory(before []byte, e *tree.Entry) (*dir, error) {
	if e.Type != tree.Directory {
		return nil, nil
	}
	var was *dir
	if before != nil {
		was = w.was.dir(before)
	}
	return w.b.directory(was, e.Ino, w.dir, e.Content.Digest)
}

// leave takes note that the name of an old page's entry i is no more, nor what is below it.
func (w *pageWork) leave(p *dirPage, i int) {
	w.unname(p, i)
	w.b.leave(p, i)
}

// unname takes the name of an old page's entry i out of the directory's index.
func (w *pageWork) unname(p *dirPage, i int) {
	slot := p.first + uint64(recordPlace(p.record(i)))
	w.gone = append(w.gone, nameEntry(maphash.Bytes(w.b.seed, p.name(i)), slot))
}

// drop takes note that an old page is no more.
func (w *pageWork) drop(p *dirPage) {
	for i := range p.n {
		w.leave(p, i)
	}
	w.b.pages.drop(p.id)
}

// leave takes note that an old page's entry i is no more, nor what is below it.
func (b *builder) leave(p *dirPage, i int) {
	r := p.record(i)
	b.left = append(b.left, leaver{node: Node{p: p.page, i: i}, at: locate(p.id, recordPlace(r))})
	d := p.dir(r)
	if d == nil {
		return
	}
	for i := range d.pages {
		below := &d.pages[i]
		for j := range below.n {
			b.leave(below, j)
		}
		b.pages.drop(below.id)
	}
}

// settle keeps the inos that are in the tree no more, and returns what is kept now.
func (b *builder) settle() []departed {
	var gone []Node
	for _, l := range b.left {
		if ino := l.node.Ino(); b.inos.get(ino) == l.at && !b.has(l.at, ino) {
			gone = append(gone, l.node)
		}
	}
	b.stats.gone = len(gone)
	var kept []departed
	if b.old != nil {
		kept = slices.Clip(b.old.gone)
	}
	for nodes := range slices.Chunk(gone, tree.PageSlots) {
		d := departed{generation: b.gen.Number, id: b.pages.number()}
		p := departedPage(nodes)
		b.pages.set(d.id, p)
		for i := range p.n {
			b.inos.set(recordIno(p.record(i)), locate(d.id, uint32(i)))
		}
		kept = append(kept, d)
	}
	return kept
}

// has says whether an ino is at a location now.
func (b *builder) has(at location, ino uint64) bool {
	p := b.pages.next.get(at.page())
	if p == nil {
		return false
	}
	i, ok := p.find(at.place())
	return ok && recordIno(p.record(i)) == ino
}

// departedPage makes a page of what has left the tree: without names, without links, and directories without entries.
func departedPage(nodes []Node) *page {
	size := len(nodes) * recSize
	for _, n := range nodes {
		size += len(n.Target())
	}
	p := &page{buf: make([]byte, len(nodes)*recSize, size), first: 1, n: len(nodes), dirs: []*dir{nil}}
	for i, n := range nodes {
		r := p.record(i)
		copy(r, n.record())
		binary.BigEndian.PutUint32(r[attrNlink:], 0)
		binary.BigEndian.PutUint16(r[recPlace:], uint16(i))
		binary.BigEndian.PutUint32(r[recName:], uint32(len(p.buf)))
		r[recNameLen] = 0
		if n.Type() == tree.Directory {
			binary.BigEndian.PutUint32(r[recDigest:], 0)
		}
		p.buf = append(p.buf, n.Target()...)
	}
	return p
}

// forget makes a State like s without what left the tree at or before generation before; s itself when there is nothing.
func (s *State) forget(before uint64) *State {
	keep := 0
	for keep < len(s.gone) && s.gone[keep].generation <= before {
		keep++
	}
	if keep == 0 {
		return s
	}
	next := *s
	next.gone = slices.Clone(s.gone[keep:])
	inos, pages := s.inos.edit(), s.pages.edit()
	for _, d := range s.gone[:keep] {
		p := s.pages.get(d.id)
		for i := range p.n {
			if ino := recordIno(p.record(i)); inos.get(ino) == locate(d.id, uint32(i)) {
				inos.set(ino, 0)
			}
		}
		pages.drop(d.id)
	}
	next.inos, next.pages = inos.done(), pages.done()
	return &next
}
