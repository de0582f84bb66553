package exporter_test

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// seen is all that a client sees at a path.
type seen struct {
	attr   attr
	parent uint64            // fileid of "..", of a directory
	target string            // of a symlink
	sum    [sha256.Size]byte // SHA-256 of a file, or zero when it is too long
	parts  [sha256.Size]byte // of what was read of it here and there
	// the statuses of READ, READLINK and LOOKUP of what is not there
	read, readlink, absent uint32
}

func (s seen) String() string {
	return fmt.Sprintf("%+v parent:%d target:%q sum:%.4x parts:%.4x statuses: %d %d %d",
		s.attr, s.parent, s.target, s.sum, s.parts, s.read, s.readlink, s.absent)
}

// walker walks a server from its root, and finds whether its answers agree with each other.
type walker struct {
	*wireClient
	whole     uint64 // length of the longest file that is read to its end
	ours      bool   // ask for small pieces of listings, and look up every name: dear with go-nfs, which reads and sorts the directory each time
	attrsOnly bool   // nothing but attributes matters

	seen    map[string]seen
	handles map[string]string
}

func (w *walker) run() error {
	w.seen, w.handles = make(map[string]seen), make(map[string]string)
	root, err := w.mount("/www")
	if err != nil {
		return err
	}
	a, err := w.getattr(root)
	if err != nil {
		return err
	}
	return w.visit("", root, root, a)
}

// dice returns numbers that are the same for an object whoever walks, and by whichever of its names.
func dice(a attr) *rand.Rand { return rand.New(rand.NewPCG(*seed, a.FileID)) }

// visit sees what is at p, whose handle and attributes a listing or MOUNT has told, and goes on below.
func (w *walker) visit(p, fh, parent string, a attr) error {
	s := seen{attr: a}
	w.handles[p] = fh
	var below []named
	var err error
	switch {
	case a.Type == uint32(tree.Directory):
		below, err = w.directory(p, fh, parent, &s)
	case w.attrsOnly:
	case a.Type == uint32(tree.Regular) && !spared(a):
		err = w.contents(fh, &s)
	}
	if err == nil && !w.attrsOnly && !spared(a) {
		err = w.wrongly(fh, &s)
	}
	if err != nil {
		return fmt.Errorf("%q: %w", p, err)
	}
	w.seen[p] = s
	for _, e := range below {
		if err := w.visit(path.Join(p, e.name), e.fh, fh, e.attr); err != nil {
			return err
		}
	}
	return nil
}

// spared reports whether an object is not asked for more than its attributes: most of the small files, of which there is
// a crowd.
func spared(a attr) bool {
	return a.Type == uint32(tree.Regular) && a.Size < maxCrowd && a.FileID%16 != 0
}

// wrongly does to an object what is for others, READLINK among it, and keeps the statuses.
func (w *walker) wrongly(fh string, s *seen) error {
	if s.attr.Type != uint32(tree.Regular) {
		piece, err := w.wireClient.read(fh, 0, 100)
		if err != nil {
			return err
		}
		s.read = piece.status
	}
	status, target, a, err := w.wireClient.readlink(fh)
	if err != nil {
		return err
	}
	s.readlink, s.target = status, target
	if status == nfsOK && (a != s.attr || uint64(len(target)) != s.attr.Size) {
		return fmt.Errorf("READLINK: %d bytes, attributes %+v, want %+v", len(target), a, s.attr)
	}
	f, err := w.lookup(fh, "absent")
	if err != nil {
		return err
	}
	s.absent = f.status
	return nil
}

// contents reads a file: all of it unless it is too long, and parts here and there.
func (w *walker) contents(fh string, s *seen) error {
	r, size := dice(s.attr), s.attr.Size
	if size <= w.whole {
		h := sha256.New()
		for at, eof := uint64(0), false; !eof; {
			data, err := w.readExactly(fh, at, largestTransfer>>r.IntN(4), s.attr)
			if err != nil {
				return err
			}
			h.Write(data)
			at += uint64(len(data))
			eof = at >= size
		}
		h.Sum(s.sum[:0])
	}
	offsets := []uint64{size, size + 1, max(size, 3) - 3}
	if size > 4096 {
		offsets = append(offsets, r.Uint64N(size), r.Uint64N(size))
	}
	if size > tree.ChunkSize {
		offsets = append(offsets, tree.ChunkSize-5, tree.ChunkSize, size/2)
	}
	h := sha256.New()
	for _, at := range offsets {
		data, err := w.readExactly(fh, at, 1+r.IntN(50_000), s.attr)
		if err != nil {
			return err
		}
		h.Write(binary.BigEndian.AppendUint64(nil, at))
		h.Write(data)
	}
	h.Sum(s.parts[:0])
	return nil
}

// readExactly reads what there is of count bytes.
func (w *walker) readExactly(fh string, at uint64, count int, a attr) ([]byte, error) {
	got, err := w.wireClient.read(fh, at, uint32(count))
	if err != nil {
		return nil, err
	}
	want := uint64(0)
	if at < a.Size {
		want = min(uint64(count), a.Size-at)
	}
	if got.status != nfsOK || uint64(len(got.data)) != want || got.eof != (at+want >= a.Size) || got.attr != a {
		return nil, fmt.Errorf("READ of %d bytes at %d: status %d, %d bytes, eof %v, attributes %+v; want %d of %d and %+v",
			count, at, got.status, len(got.data), got.eof, got.attr, want, a.Size, a)
	}
	return got.data, nil
}

// directory lists a directory, and asks in every other way for what the listing says.
func (w *walker) directory(p, fh, parent string, s *seen) ([]named, error) {
	r := dice(s.attr)
	all, err := w.listAll(fh, r, true, s.attr)
	if err != nil {
		return nil, err
	}
	s.parent = all[1].fileID
	if all[0].fileID != s.attr.FileID {
		return nil, fmt.Errorf("fileid of %q is %d, want %d", ".", all[0].fileID, s.attr.FileID)
	}
	below := all[2:]
	if w.attrsOnly {
		return below, nil
	}
	names, err := w.listAll(fh, r, false, s.attr)
	if err != nil {
		return nil, err
	}
	if len(names) != len(all) {
		return nil, fmt.Errorf("READDIR has %d names, READDIRPLUS %d", len(names), len(all))
	}
	for i, n := range names {
		if n.fileID != all[i].fileID || n.name != all[i].name || n.cookie != all[i].cookie {
			return nil, fmt.Errorf("READDIR has %q (fileid %d, cookie %d) where READDIRPLUS has %q (%d, %d)",
				n.name, n.fileID, n.cookie, all[i].name, all[i].fileID, all[i].cookie)
		}
	}
	if p != "" {
		below = append(slices.Clone(below), named{name: "..", fileID: s.parent, fh: parent, attr: w.seen[path.Dir("/" + p)[1:]].attr})
	}
	below = append(slices.Clone(below), named{name: ".", fileID: s.attr.FileID, fh: fh, attr: s.attr})
	for _, e := range below {
		if !w.ours && spared(e.attr) {
			continue
		}
		if err := w.agree(fh, e, s.attr); err != nil {
			return nil, fmt.Errorf("%q: %w", e.name, err)
		}
	}
	return all[2:], nil
}

// agree checks that LOOKUP and GETATTR say of a name what the listing does.
func (w *walker) agree(dir string, e named, dirAttr attr) error {
	f, err := w.lookup(dir, e.name)
	if err != nil {
		return err
	}
	if f.status != nfsOK || f.fh != e.fh || f.attr != e.attr || f.dir != dirAttr || f.attr.FileID != e.fileID {
		return fmt.Errorf("LOOKUP says %+v of a directory %+v; the listing %+v of a directory %+v; status %d, handles %x and %x",
			f.attr, f.dir, e.attr, dirAttr, f.status, f.fh, e.fh)
	}
	if spared(e.attr) {
		return nil
	}
	if a, err := w.getattr(e.fh); err != nil || a != e.attr {
		return fmt.Errorf("GETATTR says %+v, %w, the listing %+v", a, err, e.attr)
	}
	return nil
}

// listAll lists a directory with READDIRPLUS or READDIR, by pieces whose sizes are r's.
func (w *walker) listAll(fh string, r *rand.Rand, plus bool, a attr) ([]named, error) {
	var all []named
	known := make(map[string]bool)
	for cookie, verifier := uint64(0), uint64(0); ; {
		maxcount := uint32(largestTransfer)
		if w.ours {
			maxcount = []uint32{1024, 4096, 65536}[r.IntN(3)]
		}
		dircount := uint32(0)
		if plus {
			dircount = []uint32{maxcount / 8, maxcount / 2, maxcount}[r.IntN(3)]
		}
		p, next, err := w.list(fh, cookie, verifier, dircount, maxcount)
		if err != nil {
			return nil, err
		}
		if p.dir != a || len(p.entries) == 0 && !p.eof {
			return nil, fmt.Errorf("listing after cookie %d: %d entries, attributes %+v, want %+v", cookie, len(p.entries), p.dir, a)
		}
		for _, e := range p.entries {
			if known[e.name] {
				return nil, fmt.Errorf("%q is listed twice", e.name)
			}
			known[e.name] = true
			cookie = e.cookie
		}
		all = append(all, p.entries...)
		if p.eof {
			break
		}
		verifier = next
	}
	if len(all) < 2 || all[0].name != "." || all[1].name != ".." {
		return nil, fmt.Errorf("the listing of %d names does not begin with . and ..", len(all))
	}
	return all, nil
}
