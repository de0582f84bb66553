package exporter_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"flag"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"path"
	"slices"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/nfs-fleet/nfs-fleet/exporter"
	"github.com/nfs-fleet/nfs-fleet/exporter/volume/volumetest"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// The differential test: the same generation through go-nfs's server, over a filesystem that reads the generation's objects
// by itself, and through ours, walked by one client. All that a client can see must be equal, except for what [deviations]
// says of go-nfs.

var seed = flag.Uint64("seed", 0, "of the differential test's trees; 0: another each time")

// readWhole says how long a file may be, in bytes, to be read to its end in the walk over each generation; of longer ones
// parts are.
var readWhole = []uint64{16 << 20, 1 << 20}

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

// A deviation is something in which go-nfs v0.0.4 is known to differ. fix makes of what go-nfs showed at an entry what must
// be seen; shadow is what go-nfs showed there with used and ctime in the places of size and mtime.
type deviation struct {
	what, why string
	fix       func(e *tree.Entry, s *seen, shadow *seen)
}

var deviations = []deviation{
	{"fsid", "go-nfs has none: it answers 0 for every filesystem", func(_ *tree.Entry, s, _ *seen) {
		s.attr.FSID = volumetest.FSID
	}},
	{"mode", "go-nfs sends the bits of Go's os.FileMode, which has type, set-id and sticky bits where POSIX has none", func(_ *tree.Entry, s, _ *seen) {
		s.attr.Mode = posixMode(fs.FileMode(s.attr.Mode))
	}},
	{"used", "go-nfs repeats the size: holes count in full", func(_ *tree.Entry, s, shadow *seen) {
		s.attr.Used = shadow.attr.Size
	}},
	{"ctime", "go-nfs repeats the time of modification: a FileInfo has no other", func(_ *tree.Entry, s, shadow *seen) {
		s.attr.Ctime = shadow.attr.Mtime
	}},
	{"time before 1970", "go-nfs lets seconds wrap around; the earliest that NFSv3 can tell is 0", func(e *tree.Entry, s, _ *seen) {
		if e.Mtime.Sec < 0 {
			s.attr.Mtime, s.attr.Atime = stamp{}, stamp{}
		}
	}},
	{"time after 2106", "the same at the other end", func(e *tree.Entry, s, _ *seen) {
		if e.Mtime.Sec > math.MaxUint32 {
			s.attr.Mtime, s.attr.Atime = stamp{math.MaxUint32, 999_999_999}, stamp{math.MaxUint32, 999_999_999}
		}
	}},
	{"fileid of the root's ..", "go-nfs answers 0; RFC 1813, section 3.3.16, has no word on it, and a root's parent is itself", func(_ *tree.Entry, s, _ *seen) {
		if s.attr.Type == uint32(tree.Directory) && s.parent == 0 {
			s.parent = s.attr.FileID
		}
	}},
	{"READ of a directory", "go-nfs answers ACCES to all that cannot be opened; RFC 1813, section 3.3.6, has ISDIR", func(e *tree.Entry, s, _ *seen) {
		if e.Type == tree.Directory && s.read == nfsErrAcces {
			s.read = nfsErrIsDir
		}
	}},
	{"READ of what is no file", "the same; section 3.3.6 has INVAL", func(e *tree.Entry, s, _ *seen) {
		if e.Type != tree.Directory && e.Type != tree.Regular && s.read == nfsErrAcces {
			s.read = nfsErrInval
		}
	}},
}

// What go-nfs does not tell at all is not asked: handles of "." and "..", attributes of "..", ACCESS by mode bits, FSSTAT.
// Its listings are in byte order, ours in slot order, so listings are compared as sets.

func posixMode(m fs.FileMode) uint32 {
	mode := uint32(m.Perm())
	for bit, goBit := range goBits {
		if m&goBit != 0 {
			mode |= bit
		}
	}
	return mode
}

func TestDifferential(t *testing.T) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	t.Logf("go test -run %s -seed=%d", t.Name(), *seed)
	w := newWorld(*seed)
	s := volumetest.NewShard(t)
	server := exporter.New(exporter.Config{Logger: zerolog.Nop()})
	server.SetExports([]exporter.Export{{Name: "www", Volume: s.Volume, Rules: exporter.Rules{Squash: exporter.SquashNone, Insecure: true}}})
	l := listen(t)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	client := dialWire(t, l.Addr()) // one connection, over the flip
	var before *walker
	for _, whole := range readWhole {
		g := s.Publish(w.list()...)
		ours := &walker{wireClient: client, whole: whole, ours: true}
		truth := newTreeFS(t, s.Store, g, sizeAndMtime)
		plain := &walker{wireClient: dialWire(t, serveOracle(t, truth)), whole: whole}
		shadow := &walker{wireClient: dialWire(t, serveOracle(t, newTreeFS(t, s.Store, g, usedAndCtime))), attrsOnly: true}
		var walks errgroup.Group
		for _, walk := range []*walker{ours, plain, shadow} {
			walks.Go(walk.run)
		}
		if err := walks.Wait(); err != nil {
			t.Fatalf("generation %d: %v", g.Number, err)
		}
		t.Logf("generation %d: %d names; %d calls to us, %d and %d to go-nfs", g.Number, len(ours.seen), ours.xid, plain.xid, shadow.xid)
		compare(t, truth, ours, plain, shadow)
		compareWorld(t, w, ours)
		if before != nil {
			checkDeparted(t, before, ours)
		}
		if t.Failed() {
			t.Fatalf("in generation %d", g.Number)
		}
		before = ours
		w.churn()
	}
}

// compare holds ours against the oracle, and the table of deviations against what was needed of it.
func compare(t *testing.T, truth *treeFS, ours, plain, shadow *walker) {
	t.Helper()
	needed := make(map[string]bool)
	differ := 0
	for p, e := range truth.entries {
		want, ok := plain.seen[p]
		other, ok2 := shadow.seen[p]
		if !ok || !ok2 {
			t.Errorf("%q: go-nfs does not show it", p)
			continue
		}
		for _, d := range deviations {
			was := want
			d.fix(&e, &want, &other)
			needed[d.what] = needed[d.what] || was != want
		}
		if got, ok := ours.seen[p]; !ok {
			t.Errorf("%q: we do not show it", p)
		} else if got != want {
			t.Errorf("%q:\n  we:     %+v\n  oracle: %+v", p, got, want)
		} else {
			continue
		}
		if differ++; differ == 10 {
			t.Fatal("and so on")
		}
	}
	if len(ours.seen) != len(truth.entries) || len(plain.seen) != len(truth.entries) {
		t.Errorf("we show %d names, go-nfs %d; there are %d", len(ours.seen), len(plain.seen), len(truth.entries))
	}
	for _, d := range deviations {
		if !needed[d.what] {
			t.Errorf("go-nfs does not deviate in %s: the table is not to say so", d.what)
		}
	}
}

// compareWorld holds ours against what was put in, so that a mistake in making the generation does not go unseen because
// both servers show it.
func compareWorld(t *testing.T, w *world, ours *walker) {
	t.Helper()
	files := make(map[string]volumetest.File)
	for _, f := range w.list() {
		files[f.Name] = f
	}
	if len(ours.seen) != len(files)+1 {
		t.Errorf("we show %d names, %d were put in", len(ours.seen)-1, len(files))
	}
	links := make(map[string]uint32)
	for p, f := range files {
		if f.Link != "" {
			p = f.Link
		}
		links[p]++
	}
	for p, f := range files {
		got, main := ours.seen[p], p
		if f.Link != "" {
			main = f.Link
			f = files[main]
			if got != ours.seen[main] {
				t.Errorf("%q and %q are one file, and differ", p, main)
			}
		}
		if got.attr.Type != uint32(f.Type) || f.Mode != 0 && got.attr.Mode != f.Mode || got.attr.UID != f.UID || got.attr.GID != f.GID || got.target != f.Target {
			t.Errorf("%q: %+v was put in, we show %+v", p, f.Entry, got)
		}
		if f.Type != tree.Directory && got.attr.Nlink != links[main] {
			t.Errorf("%q: %d links, want %d", p, got.attr.Nlink, links[main])
		}
		if sum, size := sum(f, ours.whole); f.Type == tree.Regular && !spared(got.attr) && (got.sum != sum || got.attr.Size != size) {
			t.Errorf("%q: other bytes than those put in: %d, want %d", p, got.attr.Size, size)
		}
	}
}

// checkDeparted asks the later generation for what the earlier one showed, by the handles of then: a file's bytes are the
// same for ever, and what has left the tree has no name any more.
func checkDeparted(t *testing.T, before, now *walker) {
	t.Helper()
	present := make(map[uint64]attr)
	for _, s := range now.seen {
		present[s.attr.FileID] = s.attr
	}
	w := &walker{wireClient: now.wireClient, whole: before.whole}
	gone := 0
	for p, was := range before.seen {
		fh := before.handles[p]
		got, err := w.getattr(fh)
		if err != nil {
			t.Fatalf("%q of the generation before: %v", p, err)
		}
		want, ok := present[was.attr.FileID]
		if !ok {
			gone++
			want = was.attr
			want.Nlink, want.Ctime = 0, got.Ctime
		}
		if got != want {
			t.Errorf("%q of the generation before:\n  we:  %+v\n  want %+v", p, got, want)
		}
		if was.attr.Type != uint32(tree.Regular) || ok || spared(was.attr) {
			continue
		}
		again := seen{attr: got}
		if err := w.contents(fh, &again); err != nil {
			t.Fatalf("%q of the generation before: %v", p, err)
		}
		if again.sum != was.sum || again.parts != was.parts {
			t.Errorf("%q of the generation before has other bytes", p)
		}
	}
	if gone < 100 {
		t.Errorf("only %d files have left the tree", gone)
	}
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
	return a.Type == uint32(tree.Regular) && a.Size < maxCrowd && a.FileID%8 != 0
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
			return nil, fmt.Errorf("READDIR has %+v where READDIRPLUS has %+v", n, all[i])
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
		return fmt.Errorf("LOOKUP says %+v, the listing %+v, of a directory %+v", f, e, dirAttr)
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
		return nil, fmt.Errorf("the listing does not begin with . and .., but with %+v", all[:min(2, len(all))])
	}
	return all, nil
}
