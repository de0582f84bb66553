package volume_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/exporter/volume"
	"github.com/nfs-fleet/nfs-fleet/exporter/volume/volumetest"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// file is a regular file in the wanted tree.
func file(name, data string) volumetest.File {
	return volumetest.File{Entry: tree.Entry{Name: name}, Data: data}
}

func TestHandleRoundTrip(t *testing.T) {
	s := volumetest.New(t, file("a", "1"), file("d/b", "2"))
	for _, name := range []string{".", "a", "d", "d/b"} {
		n := s.Node(name)
		fh := n.AppendHandle([]byte("before"))
		if !bytes.HasPrefix(fh, []byte("before")) || len(fh) != len("before")+volume.HandleSize {
			t.Fatalf("%s: handle %x", name, fh)
		}
		fh = fh[len("before"):]
		got, err := s.Volume.State().Resolve(fh)
		if err != nil || got.Ino() != n.Ino() || !bytes.Equal(got.Attr(), n.Attr()) {
			t.Errorf("%s: resolved to ino %d, %v; want %d", name, got.Ino(), err, n.Ino())
		}
		if fsid, born, ok := volume.ParseHandle(fh); fsid != s.Volume.FSID() || born != 1 || !ok {
			t.Errorf("%s: parsed as fsid %x, born %d, %v", name, fsid, born, ok)
		}
	}
}

// A handle is written down by kernels and read by other masters, of other versions: its bytes are for ever.
func TestHandleLayout(t *testing.T) {
	s := volumetest.New(t)
	s.Publish(file("a", "1"))
	e, err := tree.Lookup(t.Context(), s.Store, s.Head().Root, "a")
	if err != nil {
		t.Fatal(err)
	}
	var want []byte
	want = append(want, 1, 0, 0, 0, 0, byte(e.Born))
	want = append(want, 0, 0, 0, 0, 0, byte(e.Ino))
	want = binary.BigEndian.AppendUint64(want, volumetest.FSID)
	want = binary.BigEndian.AppendUint64(want, e.Tag)
	if e.Born != 2 || e.Ino < 2 || e.Ino > 255 {
		t.Fatalf("born %d, ino %d", e.Born, e.Ino)
	}
	if got := s.Handle("a"); !bytes.Equal(got, want) {
		t.Errorf("handle\n%x, want\n%x", got, want)
	}
}

func TestResolveRefuses(t *testing.T) {
	s := volumetest.New(t, file("a", "1"), file("b", "2"))
	s.Publish(file("a", "1"))
	good := s.Handle("a")
	state := s.Volume.State()
	change := func(f func(fh []byte)) []byte {
		fh := bytes.Clone(good)
		f(fh)
		return fh
	}
	cases := []struct {
		name string
		fh   []byte
		want error
	}{
		{"nothing", nil, volume.ErrBadHandle},
		{"too short", good[:27], volume.ErrBadHandle},
		{"too long", append(bytes.Clone(good), 0), volume.ErrBadHandle},
		{"zeros", make([]byte, volume.HandleSize), volume.ErrBadHandle},
		{"version 0", change(func(fh []byte) { fh[0] = 0 }), volume.ErrBadHandle},
		{"version 2", change(func(fh []byte) { fh[0] = 2 }), volume.ErrBadHandle},
		{"another shard's", change(func(fh []byte) { fh[12] ^= 1 }), volume.ErrBadHandle},
		{"another tag", change(func(fh []byte) { fh[27] ^= 1 }), volume.ErrBadHandle},
		{"another tag at its front", change(func(fh []byte) { fh[20] ^= 0x80 }), volume.ErrBadHandle},
		{"born earlier", change(func(fh []byte) { fh[5] = 0 }), volume.ErrBadHandle},
		{"born in the present", change(func(fh []byte) { fh[5] = 2 }), volume.ErrBadHandle},
		{"born in the next", change(func(fh []byte) { fh[5] = 3 }), volume.ErrFuture},
		{"born in the last there can be", change(func(fh []byte) { copy(fh[1:], "\xff\xff\xff\xff\xff") }), volume.ErrFuture},
		{"ino 0", change(func(fh []byte) { copy(fh[6:], make([]byte, 6)) }), volume.ErrBadHandle},
		{"ino never allotted", change(func(fh []byte) { fh[11] = byte(s.Head().NextIno) }), volume.ErrBadHandle},
		{"the greatest ino", change(func(fh []byte) { copy(fh[6:], "\xff\xff\xff\xff\xff\xff") }), volume.ErrBadHandle},
	}
	for _, c := range cases {
		if _, err := state.Resolve(c.fh); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

func TestResolveStale(t *testing.T) {
	s := volumetest.New(t, file("a", "1"), file("b", "2"), file("d/c", "3"))
	a, b, c, d := s.Handle("a"), s.Handle("b"), s.Handle("d/c"), s.Handle("d")
	s.Publish(file("a", "1"), file("b", "two"))
	s.Publish(file("a", "1"))
	two := s.Volume.State()
	forget := func(before uint64) {
		t.Helper()
		if err := s.Volume.Forget(t.Context(), before); err != nil {
			t.Fatal(err)
		}
	}
	resolve := func(what string, fh []byte, want error) {
		t.Helper()
		if _, err := s.Volume.State().Resolve(fh); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	for _, fh := range [][]byte{a, b, c, d} {
		resolve("retained", fh, nil)
	}
	forget(1) // generation 1 is retained
	resolve("b of generation 1", b, nil)
	forget(2)
	resolve("a", a, nil)
	resolve("b of generation 1", b, volume.ErrStale)
	resolve("d/c of generation 1", c, volume.ErrStale)
	resolve("d of generation 1", d, volume.ErrStale)
	if s.Volume.State().Generation() != 3 {
		t.Errorf("generation %d after forgetting", s.Volume.State().Generation())
	}
	if _, err := two.Resolve(b); err != nil {
		t.Errorf("a state obtained before: %v", err)
	}
	forget(100)
	resolve("a", a, nil)
	s.Publish(file("a", "1"), file("b", "2"))
	resolve("b of generation 1, after b came again", b, volume.ErrStale)
}

func FuzzResolve(f *testing.F) {
	s := volumetest.New(f, file("a", "1"), file("b", "2"), file("d/c", "3"))
	handles := [][]byte{s.Handle("."), s.Handle("a"), s.Handle("b"), s.Handle("d"), s.Handle("d/c")}
	s.Publish(file("a", "1"), file("b", "two"))
	handles = append(handles, s.Handle("."), s.Handle("b"))
	if err := s.Volume.Forget(context.Background(), 2); err != nil {
		f.Fatal(err)
	}
	s.Publish(file("a", "1"))
	state := s.Volume.State()
	good := make(map[string]bool)
	for _, fh := range handles {
		f.Add(fh)
		if _, err := state.Resolve(fh); err == nil {
			good[string(fh)] = true
		}
	}
	if len(good) != 3 { // the root, a, and b of generation 2
		f.Fatalf("%d good handles", len(good))
	}
	f.Fuzz(func(t *testing.T, fh []byte) {
		n, err := state.Resolve(fh)
		switch {
		case err == nil && !good[string(fh)]:
			t.Fatalf("%x was never given, and is ino %d", fh, n.Ino())
		case err == nil && !bytes.Equal(n.AppendHandle(nil), fh):
			t.Fatalf("%x is ino %d with handle %x", fh, n.Ino(), n.AppendHandle(nil))
		case err != nil && err != volume.ErrBadHandle && err != volume.ErrStale && err != volume.ErrFuture: //nolint:errorlint // as they are
			t.Fatal(err)
		}
	})
}
