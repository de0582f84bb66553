package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// zoo is a source with a bit of everything: nested directories, equal files, empty ones, a paged directory, a file of
// several chunks, a file of one large object.
func zoo() files {
	f := files{"empty": nil, "large": noise(1, 3<<20), "chunked": noise(2, 9<<20), "a/b/c/d/deep": []byte("deep"), "same1": []byte("same"), "x/same2": []byte("same")}
	for i := range 60 {
		f[fmt.Sprintf("dirs/%03d/file", i)] = noise(uint64(1000+i), 10+i*7)
	}
	for i := range 4200 { // more than a page
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

// TestHoleBelowWhatIsHere: a directory object that is here says nothing of what is below it.
func TestHoleBelowWhatIsHere(t *testing.T) {
	n := newNetwork(t)
	from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
	head := publish(t, from, tree.Merged{}, zoo())
	lost := 0
	for d, form := range digests(t, from, head.Root) {
		if form == tree.Blob && d[0] < 8 || d == tree.Sum([]byte("deep")) {
			lost++
			continue
		}
		b, err := from.Get(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		mustPut(t, to, b)
	}
	a := n.add("a", from, nil)
	if err := n.fetcher(to).Fetch(t.Context(), head.Root, tree.Digest{}, "a", nil); err != nil {
		t.Fatal(err)
	}
	mustBeWhole(t, to, head.Root)
	if asked := a.asked.Load(); asked != int64(lost) {
		t.Errorf("asked for %d objects, %d were missing", asked, lost)
	}
	a.asked.Store(0)
	if err := n.fetcher(to).Fetch(t.Context(), head.Root, tree.Digest{}, "a", nil); err != nil || a.asked.Load() != 0 {
		t.Errorf("asked for %d objects of a tree that is here, %v", a.asked.Load(), err)
	}
}

// TestFetchIsDurable: what a fetch brought is there after the store was opened again.
func TestFetchIsDurable(t *testing.T) {
	n := newNetwork(t)
	from := openStore(t, store.Options{})
	head := publish(t, from, tree.Merged{}, zoo())
	n.add("a", from, nil)
	dir := t.TempDir()
	to, err := store.Open(dir, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.fetcher(to).Fetch(t.Context(), head.Root, tree.Digest{}, "a", nil); err != nil {
		t.Fatal(err)
	}
	to.Close()
	if to, err = store.Open(dir, store.Options{}); err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	mustBeWhole(t, to, head.Root)
}

// TestHoldsTheStore: no collection takes away what a fetch counts on.
func TestHoldsTheStore(t *testing.T) {
	n := newNetwork(t)
	from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
	head := publish(t, from, tree.Merged{}, zoo())
	collect := func() error {
		_, err := to.Collect(t.Context(), func(context.Context, func(tree.Digest) bool) error { return nil })
		return err
	}
	held := make(chan error, 1)
	var once sync.Once
	n.add("a", from, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		once.Do(func() { held <- collect() })
		next.ServeHTTP(w, r)
	})
	if err := n.fetcher(to).Fetch(t.Context(), head.Root, tree.Digest{}, "a", nil); err != nil {
		t.Fatal(err)
	}
	if err := <-held; !errors.Is(err, store.ErrHeld) {
		t.Errorf("a collection meanwhile: %v", err)
	}
	if err := collect(); err != nil {
		t.Errorf("a collection afterwards: %v", err)
	}
}

// TestCallersShareAFetch: two who want the same tree get it for one, also when the first of them goes away.
func TestCallersShareAFetch(t *testing.T) {
	n := newNetwork(t)
	from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
	head := publish(t, from, tree.Merged{}, zoo())
	begun, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	a := n.add("a", from, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		once.Do(func() { close(begun); <-goOn })
		next.ServeHTTP(w, r)
	})
	f := n.fetcher(to)
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- f.Fetch(ctx, head.Root, tree.Digest{}, "a", nil) }()
	<-begun
	var told Progress
	go func() {
		second <- f.Fetch(t.Context(), head.Root, tree.Digest{}, "a", func(p Progress) { told = p })
	}()
	for f.waiting(head.Root) != 2 {
		runtime.Gosched()
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the first: %v", err)
	}
	close(goOn)
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	mustBeWhole(t, to, head.Root)
	if want := len(digests(t, from, head.Root)); a.asked.Load() != int64(want) || told.Objects != int64(want) {
		t.Errorf("asked for %d objects, told of %d, want %d", a.asked.Load(), told.Objects, want)
	}
	if f.waiting(head.Root) != 0 {
		t.Error("the fetch is not forgotten")
	}
}

func (f *Fetcher) waiting(root tree.Digest) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl := f.flights[root]
	if fl == nil {
		return 0
	}
	fl.mu.Lock()
	defer fl.mu.Unlock()
	return len(fl.waiters)
}

// TestGivenUpFetchEnds: the last caller to go ends a fetch, and nothing of it goes on.
func TestGivenUpFetchEnds(t *testing.T) {
	n := newNetwork(t)
	from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
	head := publish(t, from, tree.Merged{}, zoo())
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("why")
	n.add("a", from, func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
		_, _ = io.Copy(io.Discard, r.Body)
		cancel(why)
		<-r.Context().Done()
	})
	f := n.fetcher(to)
	if err := f.Fetch(ctx, head.Root, tree.Digest{}, "a", nil); !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
	if _, err := to.Collect(t.Context(), func(context.Context, func(tree.Digest) bool) error { return nil }); err != nil {
		t.Errorf("the store is held still: %v", err)
	}
}

func TestObjects(t *testing.T) {
	n := newNetwork(t)
	one, two, to := openStore(t, store.Options{}), openStore(t, store.Options{}), openStore(t, store.Options{})
	want := []tree.Digest{
		mustPut(t, one, []byte("in one")), mustPut(t, two, []byte("in the other")), mustPut(t, one, noise(1, 5<<20)),
		mustPut(t, to, []byte("here already")), mustPut(t, two, nil),
	}
	none := []tree.Digest{tree.Sum([]byte("nowhere")), tree.Sum([]byte("nowhere either"))}
	n.add("a", one, nil)
	n.add("b", two, nil)
	f := n.fetcher(to)
	missing, err := f.Objects(t.Context(), slices.Concat(want, none, want[:1]))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range want {
		if _, err := to.Get(t.Context(), d); err != nil {
			t.Error(err)
		}
	}
	sort := func(d []tree.Digest) []tree.Digest {
		return slices.SortedFunc(slices.Values(d), func(a, b tree.Digest) int { return bytes.Compare(a[:], b[:]) })
	}
	if !slices.Equal(sort(missing), sort(none)) {
		t.Errorf("missing %v, want %v", missing, none)
	}
	// One master does not answer: nobody can say that an object is missing, but the others come.
	n.masters["b"].spoil = func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { panic(http.ErrAbortHandler) }
	more := mustPut(t, one, []byte("more"))
	missing, err = f.Objects(t.Context(), []tree.Digest{none[0], more})
	if !errors.Is(err, ErrUnreachable) || len(missing) != 0 || !to.Has(more) {
		t.Errorf("missing %v, %v", missing, err)
	}
	if missing, err := f.Objects(t.Context(), nil); err != nil || len(missing) != 0 {
		t.Errorf("nothing: %v, %v", missing, err)
	}
}

// TestTreeThatIsNone: its objects are what their names say, but no tree.
func TestTreeThatIsNone(t *testing.T) {
	n := newNetwork(t)
	from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
	d := mustPut(t, from, []byte("no root"))
	n.add("a", from, nil)
	if err := n.fetcher(to).Fetch(t.Context(), d, tree.Digest{}, "a", nil); !errors.Is(err, tree.ErrCorrupt) || errors.Is(err, ErrUnreachable) {
		t.Errorf("got %v", err)
	}
}
