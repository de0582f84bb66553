package volume_test

import (
	"context"
	"errors"
	"testing"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/exporter/volume"
	"github.com/nfs-fleet/nfs-fleet/exporter/volume/volumetest"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// mended is a Store that can get lost objects from elsewhere.
type mended struct {
	*volumetest.Store
	elsewhere map[tree.Digest][]byte
	asked     []tree.Digest
}

func (m *mended) Heal(ctx context.Context, d tree.Digest) error {
	m.asked = append(m.asked, d)
	b, ok := m.elsewhere[d]
	if !ok {
		return tree.ErrMissing
	}
	_, err := m.Put(ctx, b)
	return err
}

// lose takes an object out of the store.
func (m *mended) lose(t *testing.T, d tree.Digest) {
	b, err := m.Get(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	m.elsewhere[d] = b
	m.Delete(d)
}

// Whatever a Read lacks, content, a list of chunks or a chunk, is named, and brought back by Heal.
func TestLostContentIsBroughtBack(t *testing.T) {
	big, content := sparse()
	s := volumetest.New(t, file("a", "abc"), big)
	m := &mended{Store: s.Store, elsewhere: map[tree.Digest][]byte{}}
	v := volume.New(volumetest.FSID, m, zerolog.Nop())
	if err := v.Flip(t.Context(), s.Head()); err != nil {
		t.Fatal(err)
	}
	node := func(name string) volume.Node {
		n, ok := v.State().Lookup(v.State().Root(), []byte(name))
		if !ok {
			t.Fatal(name)
		}
		return n
	}
	m.lose(t, tree.Sum([]byte("abc")))
	p := make([]byte, 3)
	read := func(name string) error {
		_, _, err := v.Read(t.Context(), node(name), p, 0)
		return err
	}
	err := read("a")
	if !errors.Is(err, tree.ErrMissing) {
		t.Fatalf("Read: %v", err)
	}
	if err := v.Heal(t.Context(), err); err != nil {
		t.Fatalf("Heal: %v", err)
	}
	if err := read("a"); err != nil || string(p) != "abc" {
		t.Errorf("after that: %q, %v", p, err)
	}
	if len(m.asked) != 1 || m.asked[0] != tree.Sum([]byte("abc")) {
		t.Errorf("asked for %v", m.asked)
	}

	var all []tree.Digest
	err = tree.Reach(t.Context(), s.Store, s.Head().Root, once(), func(d tree.Digest, f tree.Form, _ uint64) error {
		if f != tree.Dir {
			all = append(all, d)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		m.lose(t, d)
	}
	p = make([]byte, len(content))
	heals := 0
	for err = read(big.Name); err != nil && heals < 100; err = read(big.Name) {
		if err := v.Heal(t.Context(), err); err != nil {
			t.Fatal(err)
		}
		heals++
	}
	if err != nil || string(p) != content || heals < 2 {
		t.Errorf("a file in chunks, after %d heals: %v", heals, err)
	}
	p, m.asked = p[:3], m.asked[:1]

	other := errors.New("another reason")
	if err := v.Heal(t.Context(), other); !errors.Is(err, other) || len(m.asked) != 1 {
		t.Errorf("Heal of what is not lost: %v", err)
	}
	unmended := volume.New(1, s.Store, zerolog.Nop())
	if err := unmended.Heal(t.Context(), &volume.LostError{Err: other}); !errors.Is(err, other) {
		t.Errorf("Heal without a Healer: %v", err)
	}
	gone := &volume.LostError{Digest: tree.Sum([]byte("nowhere")), Err: other}
	if err := v.Heal(t.Context(), gone); !errors.Is(err, tree.ErrMissing) || !errors.Is(err, other) {
		t.Errorf("Heal of what is nowhere: %v", err)
	}
}

// A generation whose directory objects are lost is built all the same.
func TestLostDirectoriesAreBroughtBack(t *testing.T) {
	s := volumetest.New(t, file("a", "abc"), file("sub/b", "efg"))
	m := &mended{Store: s.Store, elsewhere: map[tree.Digest][]byte{}}
	var lost []tree.Digest
	err := tree.Reach(t.Context(), s.Store, s.Head().Root, once(), func(d tree.Digest, f tree.Form, _ uint64) error {
		if f != tree.Blob {
			lost = append(lost, d)
		}
		return nil
	})
	if err != nil || len(lost) < 2 {
		t.Fatalf("%d lost, %v", len(lost), err)
	}
	for _, d := range lost {
		m.lose(t, d)
	}
	v := volume.New(volumetest.FSID, m, zerolog.Nop())
	if err := v.Flip(t.Context(), s.Head()); err != nil || len(m.asked) != len(lost) {
		t.Fatalf("Flip: %v, asked %d times for %d", err, len(m.asked), len(lost))
	}
	m.lose(t, s.Head().Root)
	clear(m.elsewhere)
	v = volume.New(volumetest.FSID, m, zerolog.Nop())
	if err := v.Flip(t.Context(), s.Head()); !errors.Is(err, tree.ErrMissing) {
		t.Errorf("Flip to what is nowhere: %v", err)
	}
}

// once returns a func that says which digests it was asked for before.
func once() func(tree.Digest) bool {
	seen := make(map[tree.Digest]bool)
	return func(d tree.Digest) bool {
		was := seen[d]
		seen[d] = true
		return was
	}
}
