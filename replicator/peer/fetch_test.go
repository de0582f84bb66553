package peer

import (
	"fmt"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// zoo is a source with a bit of everything: nested directories, equal files, empty ones, a paged directory, a file of
// several chunks, a file of one large object.
func zoo() files {
	f := files{"empty": nil, "large": noise(1, 3<<20), "chunked": noise(2, 9<<20), "a/b/c/d/deep": []byte("deep"), "same1": []byte("same"), "x/same2": []byte("same")}
	for i := range 300 {
		f[fmt.Sprintf("dirs/%03d/file", i)] = noise(uint64(1000+i), 10+i*7)
	}
	for i := range 5000 {
		f[fmt.Sprintf("flat/%05d", i)] = fmt.Appendf(nil, "file %d", i)
	}
	return f
}

func TestFetch(t *testing.T) {
	n := newNetwork(t)
	from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
	f := zoo()
	first := publish(t, from, tree.Merged{}, f)
	a := n.add("a", from, nil)
	fetcher := n.fetcher(to)
	var last Progress
	if err := fetcher.Fetch(t.Context(), first.Root, tree.Digest{}, "a", func(p Progress) { last = p }); err != nil {
		t.Fatal(err)
	}
	mustBeWhole(t, to, first.Root)
	want := len(digests(t, from, first.Root))
	if last.Objects != int64(want) || last.Pending != 0 {
		t.Errorf("progress %+v, want %d objects", last, want)
	}
	if got := a.requests.Load(); got > 60 {
		t.Errorf("%d requests", got)
	}
	t.Logf("%d objects in %d requests", want, a.requests.Load())

	f["flat/03000"] = []byte("changed")
	second := publish(t, from, first, f)
	a.requests.Store(0)
	a.asked.Store(0)
	if err := fetcher.Fetch(t.Context(), second.Root, first.Root, "a", nil); err != nil {
		t.Fatal(err)
	}
	mustBeWhole(t, to, second.Root)
	if asked := a.asked.Load(); asked != 5 { // root, its directory, flat, its page, the file
		t.Errorf("asked for %d objects", asked)
	}
}
