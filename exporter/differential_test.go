package exporter_test

import (
	"context"
	"flag"
	"io/fs"
	"math"
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
	{"READ of a directory", "go-nfs answers ACCES to all that cannot be opened; ISDIR is RFC 1813's word for it (section 2.6), and Linux's server's", func(e *tree.Entry, s, _ *seen) {
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
		put := w.list()
		g := s.Publish(put...)
		s.Store.Cold.Store(g.Number%2 == 0) // the one time from memory, the other from the disk
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
		comparePut(t, put, ours)
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
			t.Errorf("%q:\n  we:     %v\n  oracle: %v", p, got, want)
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

// comparePut holds ours against what was put in, so that a mistake in making the generation does not go unseen because both
// servers show it.
func comparePut(t *testing.T, put []volumetest.File, ours *walker) {
	t.Helper()
	files := make(map[string]volumetest.File)
	for _, f := range put {
		if f.Name == "." {
			f.Name = ""
		}
		files[f.Name] = f
	}
	if len(ours.seen) != len(files) {
		t.Errorf("we show %d names, %d were put in", len(ours.seen), len(files))
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
			t.Errorf("%q: %#v was put in, we show %v", p, f.Entry, got)
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
			want.Nlink, want.Ctime = 0, got.Ctime // that it lost its name may show in ctime, or not
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
