package volume_test

import (
	"encoding/binary"
	"math"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/exporter/volume/volumetest"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// fattr3 is the structure of RFC 1813, section 2.3.5, in its order; encoding/binary reads it as XDR has it, for none of its
// fields needs padding.
type fattr3 struct {
	Type, Mode, Nlink, UID, GID uint32
	Size, Used                  uint64
	Rdev                        struct{ Major, Minor uint32 }
	FSID, FileID                uint64
	Atime, Mtime, Ctime         nfstime3
}

type nfstime3 struct{ Seconds, Nseconds uint32 }

func decodeAttr(t testing.TB, b []byte) (a fattr3) {
	t.Helper()
	if n, err := binary.Decode(b, binary.BigEndian, &a); err != nil || n != len(b) || n != 84 {
		t.Fatalf("attributes of %d bytes, %d read: %v", len(b), n, err)
	}
	return a
}

// wantAttr says what NFSv3 must tell of an entry.
func wantAttr(e tree.Entry) fattr3 {
	clamp := func(t tree.Time) nfstime3 {
		if t.Sec < 0 {
			return nfstime3{}
		}
		if t.Sec > math.MaxUint32 {
			return nfstime3{math.MaxUint32, 999_999_999}
		}
		return nfstime3{uint32(t.Sec), t.Nsec}
	}
	a := fattr3{
		Type: uint32(e.Type), Mode: e.Mode, Nlink: e.Links, UID: e.UID, GID: e.GID, Size: e.Size, Used: e.Used,
		FSID: volumetest.FSID, FileID: e.Ino, Atime: clamp(e.Mtime), Mtime: clamp(e.Mtime), Ctime: clamp(e.Ctime),
	}
	a.Rdev.Major, a.Rdev.Minor = e.Rdev.Major, e.Rdev.Minor
	return a
}

// zoo is one of everything that NFSv3 can tell of.
func zoo() []volumetest.File {
	entry := func(name string, change func(f *volumetest.File)) volumetest.File {
		f := volumetest.File{Entry: tree.Entry{Name: name, UID: 1000, GID: 100, Mtime: tree.Time{Sec: 1_600_000_000, Nsec: 123_456_789}}}
		change(&f)
		return f
	}
	return []volumetest.File{
		entry(".", func(f *volumetest.File) { f.Type, f.Mode = tree.Directory, 0o1777 }),
		entry("empty", func(*volumetest.File) {}),
		entry("set-uid", func(f *volumetest.File) { f.Mode, f.Data = 0o6755, "#!" }),
		entry("no mode bits but one", func(f *volumetest.File) { f.Mode = 0o001 }),
		entry("the greatest owner", func(f *volumetest.File) { f.UID, f.GID = math.MaxUint32, math.MaxUint32-1 }),
		entry("huge", func(f *volumetest.File) { f.Extents = []volumetest.Extent{{Data: "x"}, {Hole: 1<<62 - 1}} }),
		entry("over 4 GiB", func(f *volumetest.File) { f.Extents = []volumetest.Extent{{Hole: 10 << 30}, {Data: "end"}} }),
		entry("1969", func(f *volumetest.File) { f.Mtime = tree.Time{Sec: -1, Nsec: 999_999_999} }),
		entry("1901", func(f *volumetest.File) { f.Mtime = tree.Time{Sec: math.MinInt32} }),
		entry("1970", func(f *volumetest.File) { f.Mtime = tree.Time{} }),
		entry("2040", func(f *volumetest.File) { f.Mtime = tree.Time{Sec: math.MaxInt32 + 1, Nsec: 1} }),
		entry("2106", func(f *volumetest.File) { f.Mtime = tree.Time{Sec: math.MaxUint32, Nsec: 5} }),
		entry("2106 and a second", func(f *volumetest.File) { f.Mtime = tree.Time{Sec: math.MaxUint32 + 1} }),
		entry("the end of time", func(f *volumetest.File) { f.Mtime = tree.Time{Sec: math.MaxInt64} }),
		entry("block", func(f *volumetest.File) { f.Type, f.Rdev = tree.Block, tree.Device{Major: 8, Minor: 17} }),
		entry("char", func(f *volumetest.File) {
			f.Type, f.Rdev = tree.Char, tree.Device{Major: math.MaxUint32, Minor: 1 << 20}
		}),
		entry("fifo", func(f *volumetest.File) { f.Type = tree.FIFO }),
		entry("socket", func(f *volumetest.File) { f.Type = tree.Socket }),
		entry("symlink", func(f *volumetest.File) { f.Type, f.Mode, f.Target = tree.Symlink, 0o777, "../over there\n" }),
		entry("dir", func(f *volumetest.File) { f.Type, f.Mode = tree.Directory, 0o2750 }),
		entry("dir/sub", func(f *volumetest.File) { f.Type, f.Mode = tree.Directory, 0o700 }),
		entry("linked", func(f *volumetest.File) { f.Data = "twice" }),
		{Entry: tree.Entry{Name: "dir/again"}, Link: "linked"},
	}
}

func TestAttributes(t *testing.T) {
	files := zoo()
	s := volumetest.New(t, files...)
	for i := range files {
		f := &files[i]
		e, err := tree.Lookup(t.Context(), s.Store, s.Head().Root, f.Name)
		if err != nil {
			t.Fatal(err)
		}
		n := s.Node(f.Name)
		if got, want := decodeAttr(t, n.Attr()), wantAttr(e); got != want {
			t.Errorf("%s:\n%+v, want\n%+v", f.Name, got, want)
		}
		if n.Type() != e.Type || n.Mode() != e.Mode || n.UID() != e.UID || n.GID() != e.GID || n.Size() != e.Size || n.Ino() != e.Ino {
			t.Errorf("%s: type %d mode %o owner %d:%d size %d ino %d, want %+v", f.Name, n.Type(), n.Mode(), n.UID(), n.GID(), n.Size(), n.Ino(), e)
		}
		if string(n.Target()) != e.Target {
			t.Errorf("%s: target %q, want %q", f.Name, n.Target(), e.Target)
		}
	}
	// What is asked of the tree's own decoder above, said in numbers once.
	if a := decodeAttr(t, s.Node("set-uid").Attr()); a.Mode != 0o6755 || a.UID != 1000 || a.GID != 100 || a.Type != 1 || a.Nlink != 1 {
		t.Errorf("set-uid: %+v", a)
	}
	if a := decodeAttr(t, s.Node("dir").Attr()); a.Type != 2 || a.Nlink != 3 || a.Mode != 0o2750 {
		t.Errorf("dir: %+v", a)
	}
	if a := decodeAttr(t, s.Node("dir/again").Attr()); a.Nlink != 2 || a.FileID != s.Node("linked").Ino() {
		t.Errorf("dir/again: %+v", a)
	}
	if a := decodeAttr(t, s.Node("huge").Attr()); a.Size != 1<<62 || a.Used != 1 {
		t.Errorf("huge: %+v", a)
	}
	if a := decodeAttr(t, s.Node(".").Attr()); a.Mode != 0o1777 || a.Type != 2 {
		t.Errorf("root: %+v", a)
	}
}
