// Package exporttest builds small volumes for the tests of the packages that answer calls from them. Everything in them
// is as a test says or derived from it: the same items give the same handles and bytes every time.
package exporttest

import (
	"bytes"
	"context"
	"errors"
	"path"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/exporter/volume"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Item is one name in a volume. Directories on the way to it that are no items themselves are made, mode 0755.
type Item struct {
	Path       string // "dir/name"; "." is the root
	tree.Entry        // Type 0 is a regular file; Mode 0 is 0644, or 0755 for a directory; sizes are derived
	Data       []byte // of a regular file
	Link       uint64 // the same number other than 0: the same file
}

// Volume is a volume of items, with the switches a test needs.
type Volume struct {
	*volume.Volume
	Cold   atomic.Bool // nothing is in the page cache
	Broken atomic.Bool // reads fail
	// Mend is what is done about a read that failed; nil: nothing.
	Mend   atomic.Pointer[func(context.Context, tree.Digest) error]
	objs   *tree.Memory
	blobs  sync.Map // of tree.Digest: *blob, so that opening one again allocates nothing
	last   tree.Merged
	number uint64
}

// ErrBroken is what a read of a Broken volume fails with.
var ErrBroken = errors.New("broken on purpose")

// Epoch is the time of all that an item gives no time.
var Epoch = tree.Time{Sec: 1_700_000_000, Nsec: 123_456_789}

// New returns a volume that serves items as generation 1, or, without items, nothing yet.
func New(t testing.TB, fsid uint64, items ...Item) *Volume {
	t.Helper()
	v := &Volume{objs: tree.NewMemory()}
	v.Volume = volume.New(fsid, v, zerolog.Nop())
	if len(items) > 0 {
		v.Publish(t, items...)
	}
	return v
}

// Publish makes items the next generation and serves it.
func (v *Volume) Publish(t testing.TB, items ...Item) {
	t.Helper()
	ctx := context.Background()
	v.number++
	l := v.list(t, items)
	tags := v.number << 32
	merged, err := tree.Merge(ctx, v.objs, v.last.Root, l, tree.MergeOptions{Generation: v.number, NextIno: v.last.NextIno, Now: Epoch,
		Tag: func() uint64 { tags++; return tags * 0x9e3779b97f4a7c15 }, Root: l.root})
	if err != nil {
		t.Fatalf("merge: %v", err)
	}
	v.last = merged
	g := tree.Generation{Number: v.number, Root: merged.Root, Files: merged.Files, Bytes: merged.Bytes, NextIno: merged.NextIno}
	if err := v.Flip(ctx, g); err != nil {
		t.Fatalf("flip: %v", err)
	}
}

// listing is a tree.Lister of items.
type listing struct {
	root tree.Observed
	dirs map[string][]tree.Observed
}

func (l *listing) List(_ context.Context, dir string, _ *tree.Entry) (tree.Listing, error) {
	return tree.Listing{Complete: true, Names: l.dirs[dir]}, nil
}

func (v *Volume) list(t testing.TB, items []Item) *listing {
	l := &listing{root: observe(Item{Entry: tree.Entry{Type: tree.Directory}}), dirs: make(map[string][]tree.Observed)}
	known := map[string]bool{".": true}
	for _, it := range items {
		known[it.Path] = true
	}
	var add func(it Item)
	add = func(it Item) {
		if up := path.Dir(it.Path); !known[up] {
			known[up] = true
			add(Item{Path: up, Entry: tree.Entry{Type: tree.Directory}})
		}
		o := observe(it)
		if n := len(it.Data); n > 0 {
			d, err := v.objs.Put(t.Context(), it.Data)
			if err != nil {
				t.Fatal(err)
			}
			o.Content = tree.Content{Form: tree.Blob, Digest: d}
			o.Size, o.Used = uint64(n), uint64(n)
		}
		l.dirs[path.Dir(it.Path)] = append(l.dirs[path.Dir(it.Path)], o)
	}
	for _, it := range items {
		if it.Path == "." {
			l.root = observe(it)
			continue
		}
		add(it)
	}
	return l
}

// observe fills in what an item leaves out.
func observe(it Item) tree.Observed {
	o := tree.Observed{Entry: it.Entry, Link: tree.LinkID{Ino: it.Link}, Descend: true}
	o.Name = path.Base(it.Path)
	if o.Type == 0 {
		o.Type = tree.Regular
	}
	if o.Mode == 0 {
		o.Mode = 0o644
		if o.Type == tree.Directory {
			o.Mode = 0o755
		}
	}
	if o.Mtime == (tree.Time{}) {
		o.Mtime = Epoch
	}
	if o.Type == tree.Symlink {
		o.Size = uint64(len(o.Target))
	}
	return o
}

// Heal implements volume.Healer.
func (v *Volume) Heal(ctx context.Context, d tree.Digest) error {
	if mend := v.Mend.Load(); mend != nil {
		return (*mend)(ctx, d)
	}
	return ErrBroken
}

// Get implements volume.Store.
func (v *Volume) Get(ctx context.Context, d tree.Digest) ([]byte, error) { return v.objs.Get(ctx, d) }

// OpenBlob implements volume.Store.
func (v *Volume) OpenBlob(d tree.Digest) (volume.Blob, error) {
	if b, ok := v.blobs.Load(d); ok {
		return b.(*blob), nil
	}
	b, err := v.objs.Get(context.Background(), d)
	if err != nil {
		return nil, err
	}
	opened, _ := v.blobs.LoadOrStore(d, &blob{v, b})
	return opened.(*blob), nil
}

// OpenCached implements volume.CachedOpener.
func (v *Volume) OpenCached(d tree.Digest) (volume.Blob, bool) {
	if v.Cold.Load() {
		return nil, false
	}
	b, err := v.OpenBlob(d)
	return b, err == nil
}

type blob struct {
	v *Volume
	b []byte
}

func (b *blob) Size() int64  { return int64(len(b.b)) }
func (b *blob) Close() error { return nil }

func (b *blob) ReadAt(p []byte, off int64) (int, error) {
	if b.v.Broken.Load() {
		return 0, ErrBroken
	}
	return bytes.NewReader(b.b).ReadAt(p, off)
}

// Lendable implements volume.Lender.
func (b *blob) Lendable(off, n int64) bool { return !b.v.Cold.Load() && !b.v.Broken.Load() }

// Lend implements volume.Lender: little at a time.
func (b *blob) Lend(off, n int64, use func(mem []byte)) (int, bool) {
	if !b.Lendable(off, n) {
		return 0, false
	}
	p := b.b[off:min(off+n, off+100_000, b.Size())]
	use(p)
	return len(p), true
}

func (b *blob) ReadCached(p []byte, off int64) (int, bool) {
	if b.v.Cold.Load() || b.v.Broken.Load() {
		return 0, false
	}
	return copy(p, b.b[min(off, b.Size()):]), true
}
