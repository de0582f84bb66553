package volume_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/exporter/volume"
	"github.com/nfs-fleet/nfs-fleet/exporter/volume/volumetest"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// noise returns n bytes that are not zero.
func noise(seed uint64, n int) string {
	r := rand.New(rand.NewPCG(seed, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.IntN(255) + 1)
	}
	return string(b)
}

// sparse is a file of several chunks with holes at its beginning, inside and at its end, and the bytes that it has.
func sparse() (f volumetest.File, content string) {
	extents := []volumetest.Extent{
		{Hole: 70_000}, {Data: noise(1, tree.ChunkSize+5000)}, {Hole: 1}, {Data: noise(2, 3)}, {Hole: 100_000},
		{Data: noise(3, 2*tree.ChunkSize)}, {Hole: 9},
	}
	var b strings.Builder
	for _, x := range extents {
		b.WriteString(x.Data)
		b.Write(make([]byte, x.Hole))
	}
	// An Extent's data comes before its hole; here every extent has one of them.
	return volumetest.File{Entry: tree.Entry{Name: "sparse"}, Extents: extents}, b.String()
}

// readsOf returns stretches of a file of size bytes that are worth reading.
func readsOf(r *rand.Rand, size int) [][2]int {
	reads := [][2]int{{0, 0}, {0, 1}, {0, size}, {0, size + 1}, {size - 1, 1}, {size - 1, 2}, {size, 1}, {size + 1, 10}, {size / 2, 0}}
	for range 50 {
		reads = append(reads, [2]int{r.IntN(size + 1), r.IntN(size/3 + 2)})
	}
	return reads
}

func TestRead(t *testing.T) {
	big, bigContent := sparse()
	small := noise(4, 10_000)
	s := volumetest.New(t, big, file("small", small))
	v, r := s.Volume, rand.New(rand.NewPCG(1, 2))
	for name, content := range map[string]string{"small": small, "sparse": bigContent} {
		n := s.Node(name)
		if n.Size() != uint64(len(content)) {
			t.Fatalf("%s: size %d, want %d", name, n.Size(), len(content))
		}
		for _, read := range readsOf(r, len(content)) {
			off, want := read[0], ""
			if off < len(content) {
				want = content[off:min(off+read[1], len(content))]
			}
			wantEOF := off+len(want) >= len(content)
			p := []byte(strings.Repeat("?", read[1])) // what a pooled buffer had before
			count, eof, err := v.Read(t.Context(), n, p, uint64(off))
			if err != nil || eof != wantEOF || string(p[:count]) != want {
				t.Fatalf("%s: read %d at %d: %d bytes, %v, %v; want %d, %v", name, read[1], off, count, eof, err, len(want), wantEOF)
			}
			p = []byte(strings.Repeat("?", read[1]))
			count, eof, ok := v.ReadCached(n, p, uint64(off))
			if !ok || eof != wantEOF || string(p[:count]) != want {
				t.Fatalf("%s: cached read %d at %d: %d bytes, %v, %v; want %d, %v", name, read[1], off, count, eof, ok, len(want), wantEOF)
			}
		}
		if count, eof, err := v.Read(t.Context(), n, make([]byte, 5), 1<<64-1); count != 0 || !eof || err != nil {
			t.Errorf("%s: read at the end of all numbers: %d, %v, %v", name, count, eof, err)
		}
	}
}

func TestReadWhatHasNoBytes(t *testing.T) {
	s := volumetest.New(t, file("empty", ""), file("d/f", "x"),
		volumetest.File{Entry: tree.Entry{Name: "link", Type: tree.Symlink, Target: "x"}},
		volumetest.File{Entry: tree.Entry{Name: "hole"}, Extents: []volumetest.Extent{{Hole: 10 << 30}}})
	p := []byte("?????")
	if count, eof, ok := s.Volume.ReadCached(s.Node("empty"), p, 0); count != 0 || !eof || !ok {
		t.Errorf("empty: %d, %v, %v", count, eof, ok)
	}
	for _, name := range []string{"d", "link"} {
		if _, _, ok := s.Volume.ReadCached(s.Node(name), p, 0); ok {
			t.Errorf("%s is read", name)
		}
		if _, _, err := s.Volume.Read(t.Context(), s.Node(name), p, 0); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	n := s.Node("hole")
	for _, off := range []uint64{0, 5 << 30, 10<<30 - 5} {
		p := []byte("?????")
		count, eof, err := s.Volume.Read(t.Context(), n, p, off)
		if string(p[:count]) != "\x00\x00\x00\x00\x00" || eof != (off == 10<<30-5) || err != nil {
			t.Errorf("hole at %d: %q, %v, %v", off, p[:count], eof, err)
		}
	}
	if all, _ := s.Store.Opened(); all != 0 {
		t.Errorf("%d blobs opened for no bytes", all)
	}
}

// ReadCached must not wait: what is not open, or not in memory, is left to Read.
func TestReadCachedLeavesTheRest(t *testing.T) {
	big, content := sparse()
	s := volumetest.New(t, big, file("small", "abc"))
	v, small, n := s.Volume, s.Node("small"), s.Node("sparse")
	p := make([]byte, 1000)
	if _, _, ok := v.ReadCached(small, p, 0); ok {
		t.Error("read what was never opened")
	}
	if all, _ := s.Store.Opened(); all != 0 {
		t.Errorf("opened %d", all)
	}
	if _, _, err := v.Read(t.Context(), small, p, 0); err != nil {
		t.Fatal(err)
	}
	if count, eof, ok := v.ReadCached(small, p, 1); string(p[:count]) != "bc" || !eof || !ok {
		t.Errorf("%q, %v, %v", p[:count], eof, ok)
	}
	s.Store.Cold.Store(true)
	if _, _, ok := v.ReadCached(small, p, 0); ok {
		t.Error("read what was not in memory")
	}
	s.Store.Cold.Store(false)

	// Of a list of chunks each is opened for itself.
	first, second := uint64(70_000), uint64(70_000+tree.ChunkSize)
	if _, _, err := v.Read(t.Context(), n, p, first); err != nil {
		t.Fatal(err)
	}
	if count, _, ok := v.ReadCached(n, p, first+1); !ok || string(p[:count]) != content[first+1:first+1+1000] {
		t.Error("cannot read the chunk that is open")
	}
	if _, _, ok := v.ReadCached(n, p, second-1); ok {
		t.Error("read across into a chunk that is not open")
	}
	if count, _, ok := v.ReadCached(n, p, 0); !ok || string(p[:count]) != strings.Repeat("\x00", 1000) {
		t.Error("cannot read a hole")
	}
}

// openCached is a Store that can open without waiting.
type openCached struct {
	*volumetest.Store
	asked int
}

func (s *openCached) OpenCached(d tree.Digest) (volume.Blob, bool) {
	s.asked++
	b, err := s.OpenBlob(d)
	return b, err == nil && !s.Cold.Load()
}

func TestReadCachedOpensWhatTakesNoWaiting(t *testing.T) {
	big, content := sparse()
	s := volumetest.New(t, big, file("small", "abc"))
	store := &openCached{Store: s.Store}
	v := volume.New(volumetest.FSID, store, zerolog.Nop())
	if err := v.Flip(t.Context(), s.Head()); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 100)
	for range 3 {
		if count, eof, ok := v.ReadCached(s.Node("small"), p, 0); string(p[:count]) != "abc" || !eof || !ok {
			t.Errorf("%q, %v, %v", p[:count], eof, ok)
		}
	}
	if store.asked != 1 {
		t.Errorf("opened %d times", store.asked)
	}
	n := s.Node("sparse")
	if _, _, ok := v.ReadCached(n, p, 1<<20); ok {
		t.Error("a list of chunks was loaded without waiting")
	}
	if _, _, err := v.Read(t.Context(), n, p, 0); err != nil {
		t.Fatal(err)
	}
	if count, _, ok := v.ReadCached(n, p, 1<<20); !ok || string(p[:count]) != content[1<<20:1<<20+100] {
		t.Error("a chunk was not opened")
	}
}

func TestReadErrors(t *testing.T) {
	s := volumetest.New(t, file("a", "abc"), file("b", "efg"))
	v, a := s.Volume, s.Node("a")
	p := make([]byte, 3)
	rot := errors.New("rot")
	fail := func(tree.Digest) error { return rot }
	s.Store.Fail.Store(&fail)
	if _, _, err := v.Read(t.Context(), a, p, 0); !errors.Is(err, rot) {
		t.Errorf("open: %v", err)
	}
	s.Store.Fail.Store(nil)
	if _, _, err := v.Read(t.Context(), a, p, 0); err != nil {
		t.Fatal(err)
	}
	s.Store.Fail.Store(&fail)
	if _, _, err := v.Read(t.Context(), a, p, 0); !errors.Is(err, rot) {
		t.Errorf("read: %v", err)
	}
	if _, open := s.Store.Opened(); open != 0 {
		t.Errorf("%d blobs are open after an error", open)
	}
	s.Store.Fail.Store(nil)
	if _, _, err := v.Read(t.Context(), a, p, 0); err != nil || string(p) != "abc" {
		t.Errorf("after it was mended: %q, %v", p, err)
	}
	b := s.Node("b")
	s.Store.Delete(tree.Sum([]byte("efg")))
	if _, _, err := v.Read(t.Context(), b, p, 0); !errors.Is(err, tree.ErrMissing) {
		t.Errorf("missing: %v", err)
	}
	ended, end := context.WithCancelCause(t.Context())
	end(rot)
	if _, _, err := v.Read(ended, b, p, 0); !errors.Is(err, rot) {
		t.Errorf("ended: %v", err)
	}
}

// shortened is a Store whose blobs are not what their digests say.
type shortened struct{ *volumetest.Store }

func (s shortened) OpenBlob(tree.Digest) (volume.Blob, error) {
	d, err := s.Put(context.Background(), []byte("ab"))
	if err != nil {
		return nil, err
	}
	return s.Store.OpenBlob(d)
}

func TestReadOfShortContent(t *testing.T) {
	s := volumetest.New(t, file("a", "abc"))
	v := volume.New(volumetest.FSID, shortened{s.Store}, zerolog.Nop())
	if _, _, err := v.Read(t.Context(), s.Node("a"), make([]byte, 3), 0); !errors.Is(err, tree.ErrCorrupt) {
		t.Errorf("%v", err)
	}
	if _, open := s.Store.Opened(); open != 0 {
		t.Errorf("%d blobs are open", open)
	}
}

// relisted is a Store whose chunk lists are another's.
type relisted struct {
	*volumetest.Store
	from tree.Digest
	to   []byte
}

func (s relisted) Get(ctx context.Context, d tree.Digest) ([]byte, error) {
	if d == s.from {
		return s.to, nil
	}
	return s.Store.Get(ctx, d)
}

func TestReadOfBadChunkLists(t *testing.T) {
	big, content := sparse()
	s := volumetest.New(t, big)
	e, err := tree.Lookup(t.Context(), s.Store, s.Head().Root, "sparse")
	if err != nil {
		t.Fatal(err)
	}
	chunk := tree.Sum([]byte(content[70_000 : 70_000+tree.ChunkSize]))
	size := uint64(len(content))
	for name, to := range map[string][]byte{
		"not one":     []byte("not a list"),
		"too short":   tree.EncodeChunks([]tree.Extent{{Length: size - 1}}),
		"too long":    tree.EncodeChunks([]tree.Extent{{Length: size + 1}}),
		"wrong chunk": tree.EncodeChunks([]tree.Extent{{Length: 5, Digest: chunk}, {Length: size - 5}}),
	} {
		v := volume.New(volumetest.FSID, relisted{s.Store, e.Content.Digest, to}, zerolog.Nop())
		if _, _, err := v.Read(t.Context(), s.Node("sparse"), make([]byte, 10), 0); !errors.Is(err, tree.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s.Store.Delete(chunk)
	if _, _, err := s.Volume.Read(t.Context(), s.Node("sparse"), make([]byte, 10), 70_000); !errors.Is(err, tree.ErrMissing) {
		t.Errorf("missing chunk: %v", err)
	}
	if count, _, err := s.Volume.Read(t.Context(), s.Node("sparse"), make([]byte, 10), 70_000+tree.ChunkSize); count != 10 || err != nil {
		t.Errorf("the chunk after a missing one: %d, %v", count, err)
	}
	s.Store.Delete(e.Content.Digest)
	if err := s.Volume.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Volume.Read(t.Context(), s.Node("sparse"), make([]byte, 10), 0); !errors.Is(err, tree.ErrMissing) {
		t.Errorf("missing list: %v", err)
	}
}

// However many files are read, by however many at once, only so many stay open, and each is closed once (volumetest panics
// otherwise); and none is closed under a reader.
func TestContentsAreBounded(t *testing.T) {
	const files, bound = 10_000, 4096
	var all []volumetest.File
	for i := range files {
		all = append(all, file(fmt.Sprintf("d%d/f%d", i%100, i), fmt.Sprintf("content of %d", i)))
	}
	s := volumetest.New(t, all...)
	state := s.Volume.State()
	var readers sync.WaitGroup
	for w := range 4 {
		readers.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 0))
			p := make([]byte, 100)
			for range 2 * files {
				f := &all[r.IntN(files)]
				n, _ := volumetest.Find(state, f.Name)
				count, _, ok := s.Volume.ReadCached(n, p, 0)
				if !ok {
					var err error
					if count, _, err = s.Volume.Read(context.Background(), n, p, 0); err != nil {
						t.Error(err)
						return
					}
				}
				if string(p[:count]) != f.Data {
					t.Errorf("%s: %q", f.Name, p[:count])
					return
				}
			}
		})
	}
	readers.Wait()
	if opened, open := s.Store.Opened(); open > bound || open < bound/2 {
		t.Errorf("%d of %d blobs are still open", open, opened)
	}
	if err := s.Volume.Close(); err != nil {
		t.Fatal(err)
	}
	if _, open := s.Store.Opened(); open != 0 {
		t.Errorf("%d blobs are open after Close", open)
	}
}

// What is forgotten is closed, so that the store can free its space.
func TestForgetCloses(t *testing.T) {
	s := volumetest.New(t, file("a", "1"), file("b", "2"))
	p := make([]byte, 1)
	for _, name := range []string{"a", "b"} {
		if _, _, err := s.Volume.Read(t.Context(), s.Node(name), p, 0); err != nil {
			t.Fatal(err)
		}
	}
	b := s.Handle("b")
	s.Publish(file("a", "1"))
	if n, err := s.Volume.State().Resolve(b); err != nil {
		t.Fatal(err)
	} else if _, _, ok := s.Volume.ReadCached(n, p, 0); !ok || p[0] != '2' {
		t.Error("a departed file is closed")
	}
	if err := s.Volume.Forget(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if _, open := s.Store.Opened(); open != 1 {
		t.Errorf("%d blobs are open, want a's", open)
	}
}

// What is open may turn bad and be mended in the store: no reader is failed by the blob from before.
func TestReadOpensAnewWhatWasMended(t *testing.T) {
	big, content := sparse()
	s := volumetest.New(t, file("a", "abc"), big)
	for name, at := range map[string]int{"a": 0, "sparse": 70_000} {
		want := "abc"
		if name == "sparse" {
			want = content[at : at+3]
		}
		n, p := s.Node(name), make([]byte, 3)
		if _, _, err := s.Volume.Read(t.Context(), n, p, uint64(at)); err != nil {
			t.Fatal(err)
		}
		once := true
		fail := func(tree.Digest) error {
			if !once {
				return nil
			}
			once = false
			return errors.New("quarantined since")
		}
		s.Store.Fail.Store(&fail)
		clear(p)
		if _, _, err := s.Volume.Read(t.Context(), n, p, uint64(at)); err != nil || string(p) != want {
			t.Errorf("%s: %q, %v", name, p, err)
		}
		s.Store.Fail.Store(nil)
	}
}
