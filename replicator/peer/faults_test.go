package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

type spoiler = func(w http.ResponseWriter, r *http.Request, next http.Handler)

// filter is a ResponseWriter whose bytes go through fn; fn returns how many of them it lets pass before the connection
// is cut, -1 for all, or written when it has passed them on itself.
type filter struct {
	http.ResponseWriter
	fn func(w http.ResponseWriter, p []byte) int
}

const written = -2

func (f filter) Write(p []byte) (int, error) {
	p = bytes.Clone(p)
	n := f.fn(f.ResponseWriter, p)
	if n == written {
		return len(p), nil
	}
	if n >= 0 {
		_, _ = f.ResponseWriter.Write(p[:min(n, len(p))])
		_ = http.NewResponseController(f.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return f.ResponseWriter.Write(p)
}

func (f filter) Unwrap() http.ResponseWriter { return f.ResponseWriter }

// flipping flips a bit of what a master sends, beyond the first header.
func flipping(w http.ResponseWriter, r *http.Request, next http.Handler) {
	next.ServeHTTP(filter{w, func(_ http.ResponseWriter, p []byte) int {
		if len(p) > 2*recordHeader {
			p[len(p)/2] ^= 4
		}
		return -1
	}}, r)
}

func TestWrongBytesComeFromAnotherMaster(t *testing.T) {
	n := newNetwork(t)
	from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
	head := publish(t, from, tree.Merged{}, zoo())
	liar := n.add("liar", from, flipping)
	n.add("true", from, nil)
	f := n.fetcher(to)
	if err := f.Fetch(t.Context(), head.Root, tree.Digest{}, "liar", nil); err != nil {
		t.Fatal(err)
	}
	mustBeWhole(t, to, head.Root)
	if f.shunnedUntil("liar").Before(time.Now()) {
		t.Error("the liar is not shunned")
	}
	if n := liar.requests.Load(); n > 8 {
		t.Errorf("the liar was asked %d times", n)
	}
}

func TestOnlyWrongBytes(t *testing.T) {
	n := newNetwork(t)
	from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
	head := publish(t, from, tree.Merged{}, zoo())
	n.add("liar", from, flipping)
	err := n.fetcher(to).Fetch(t.Context(), head.Root, tree.Digest{}, "liar", nil)
	if !errors.Is(err, ErrUnreachable) || errors.Is(err, tree.ErrMissing) || !errors.Is(err, errWrong) {
		t.Errorf("got %v", err)
	}
}

// TestRottenObject: the peer has one object that has rotted. It is told, quarantines it, and gives the rest.
func TestRottenObject(t *testing.T) {
	n := newNetwork(t)
	from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
	f := zoo()
	head := publish(t, from, tree.Merged{}, f)
	rotten := tree.Sum(f["dirs/007/file"])
	n.add("a", from, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(filter{w, func(_ http.ResponseWriter, p []byte) int {
			if i := bytes.Index(p, f["dirs/007/file"]); i >= 0 {
				p[i] ^= 1
			}
			return -1
		}}, r)
	})
	fetcher := n.fetcher(to)
	if err := fetcher.Fetch(t.Context(), head.Root, tree.Digest{}, "a", nil); !errors.Is(err, ErrUnreachable) {
		t.Fatalf("got %v", err)
	}
	n.add("b", from, nil)
	if err := fetcher.Fetch(t.Context(), head.Root, tree.Digest{}, "a", nil); err != nil {
		t.Fatal(err)
	}
	mustBeWhole(t, to, head.Root)
	if !to.Has(rotten) {
		t.Error("the object did not come")
	}
}

func TestMissingEverywhere(t *testing.T) {
	n := newNetwork(t)
	from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
	head := publish(t, from, tree.Merged{}, zoo())
	n.add("a", openStore(t, store.Options{}), nil)
	n.add("b", openStore(t, store.Options{}), nil)
	f := n.fetcher(to)
	if err := f.Fetch(t.Context(), head.Root, tree.Digest{}, "a", nil); !errors.Is(err, tree.ErrMissing) || errors.Is(err, ErrUnreachable) {
		t.Errorf("missing everywhere: %v", err)
	}
	for name, spoil := range map[string]spoiler{
		"refuses": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { http.NotFound(w, nil) },
		"dies":    func(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) },
		"babbles": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { fmt.Fprint(w, "hello") },
	} {
		t.Run(name, func(t *testing.T) {
			n.masters["b"].spoil = spoil
			err := n.fetcher(to).Fetch(t.Context(), head.Root, tree.Digest{}, "a", nil)
			if !errors.Is(err, ErrUnreachable) || errors.Is(err, tree.ErrMissing) {
				t.Errorf("one of them %s: %v", name, err)
			}
		})
	}
	delete(n.masters, "b")
	delete(n.masters, "a")
	if err := f.Fetch(t.Context(), head.Root, tree.Digest{}, "a", nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("nobody alive: %v", err)
	}
}

// TestResumedElsewhere: the first master always dies 1 MiB into a large object; the second one is only asked for the
// rest.
func TestResumedElsewhere(t *testing.T) {
	n := newNetwork(t)
	from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
	head := publish(t, from, tree.Merged{}, files{"large": noise(5, 4<<20)})
	var ranges sync.Map
	spoilAt := func(limit int, name string) spoiler {
		return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			sent := 0
			if r.Method == http.MethodGet {
				ranges.Store(name+" "+r.Header.Get("Range"), true)
			}
			next.ServeHTTP(filter{w, func(_ http.ResponseWriter, p []byte) int {
				if sent += len(p); r.Method == http.MethodGet && sent > limit {
					return limit - (sent - len(p))
				}
				return -1
			}}, r)
		}
	}
	n.add("a", from, spoilAt(1<<20, "a"))
	n.add("b", from, spoilAt(1<<30, "b"))
	if err := n.fetcher(to).Fetch(t.Context(), head.Root, tree.Digest{}, "a", nil); err != nil {
		t.Fatal(err)
	}
	mustBeWhole(t, to, head.Root)
	resumed := false
	ranges.Range(func(k, _ any) bool {
		resumed = resumed || strings.HasPrefix(k.(string), "b bytes=1")
		t.Log(k)
		return true
	})
	if !resumed {
		t.Error("b was not asked for the rest")
	}
}

// TestMixedWrong: what comes of two masters is wrong in the end, and nobody can say whose fault it is.
func TestMixedWrong(t *testing.T) {
	n := newNetwork(t)
	from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
	head := publish(t, from, tree.Merged{}, files{"large": noise(5, 4<<20)})
	n.add("a", from, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		sent := 0
		next.ServeHTTP(filter{w, func(_ http.ResponseWriter, p []byte) int {
			if sent += len(p); r.Method == http.MethodGet && sent > 1<<20 {
				p[0] ^= 1
				return 100
			}
			return -1
		}}, r)
	})
	n.add("b", from, nil)
	if err := n.fetcher(to).Fetch(t.Context(), head.Root, tree.Digest{}, "a", nil); err != nil {
		t.Fatal(err)
	}
	mustBeWhole(t, to, head.Root)
}

func TestFullDisk(t *testing.T) {
	n := newNetwork(t)
	from, to := openStore(t, store.Options{}), openStore(t, store.Options{Reserve: 1 << 60})
	head := publish(t, from, tree.Merged{}, zoo())
	n.add("a", from, nil)
	if err := n.fetcher(to).Fetch(t.Context(), head.Root, tree.Digest{}, "a", nil); !errors.Is(err, store.ErrFull) {
		t.Errorf("got %v", err)
	}
}

// TestGoesOnAfterAFailure: what has come before a fetch fails is not asked for again.
func TestGoesOnAfterAFailure(t *testing.T) {
	n := newNetwork(t)
	from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
	head := publish(t, from, tree.Merged{}, zoo())
	ctx, cancel := context.WithCancel(t.Context())
	var sent atomic.Int64
	m := n.add("a", from, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(filter{w, func(_ http.ResponseWriter, p []byte) int {
			if sent.Add(int64(len(p))) > 5<<20 {
				cancel()
			}
			return -1
		}}, r)
	})
	f := n.fetcher(to)
	if err := f.Fetch(ctx, head.Root, tree.Digest{}, "a", nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	before := to.Stats().Objects
	m.asked.Store(0)
	if err := f.Fetch(t.Context(), head.Root, tree.Digest{}, "a", nil); err != nil {
		t.Fatal(err)
	}
	mustBeWhole(t, to, head.Root)
	want := to.Stats().Objects - before
	if asked := m.asked.Load(); asked > want+want/10+10 {
		t.Errorf("%d objects were here, %d came then, and %d were asked for", before, want, asked)
	}
}

func TestTwoMastersShareTheLoad(t *testing.T) {
	n := newNetwork(t)
	from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
	f := make(files)
	for i := range 1500 {
		f[fmt.Sprintf("%04d", i)] = noise(uint64(i), 16<<10)
	}
	for i := range 10 {
		f[fmt.Sprintf("large%d", i)] = noise(uint64(i), 2<<20)
	}
	head := publish(t, from, tree.Merged{}, f)
	counts := make(map[string]*atomic.Int64)
	for _, name := range []string{"a", "b"} {
		sent := &atomic.Int64{}
		counts[name] = sent
		n.add(name, from, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			next.ServeHTTP(filter{w, func(_ http.ResponseWriter, p []byte) int { sent.Add(int64(len(p))); return -1 }}, r)
		})
	}
	if err := n.fetcher(to).Fetch(t.Context(), head.Root, tree.Digest{}, "a", nil); err != nil {
		t.Fatal(err)
	}
	mustBeWhole(t, to, head.Root)
	a, b := counts["a"].Load(), counts["b"].Load()
	if sum := a + b; a < sum/6 || b < sum/6 || sum > 46<<20 {
		t.Errorf("%d bytes of one, %d of the other", a, b)
	}
}

// TestOthersHaveSome: each master has another half, and the preferred one only the root.
func TestOthersHaveSome(t *testing.T) {
	n := newNetwork(t)
	from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
	head := publish(t, from, tree.Merged{}, zoo())
	half := [2]*store.Store{openStore(t, store.Options{}), openStore(t, store.Options{})}
	i := 0
	for d := range digests(t, from, head.Root) {
		b, err := from.Get(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		mustPut(t, half[i%2], b)
		i++
	}
	n.add("a", openStore(t, store.Options{}), nil)
	n.add("b", half[0], nil)
	n.add("c", half[1], nil)
	if err := n.fetcher(to).Fetch(t.Context(), head.Root, tree.Digest{}, "a", nil); err != nil {
		t.Fatal(err)
	}
	mustBeWhole(t, to, head.Root)
}

// TestBusyMaster: one that is busy is asked again, and not given up.
func TestBusyMaster(t *testing.T) {
	n := newNetwork(t)
	from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
	head := publish(t, from, tree.Merged{}, files{"a": []byte("a")})
	var times atomic.Int64
	n.add("a", from, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if times.Add(1) < 8 {
			http.Error(w, "busy", http.StatusServiceUnavailable)
			return
		}
		next.ServeHTTP(w, r)
	})
	if err := n.fetcher(to).Fetch(t.Context(), head.Root, tree.Digest{}, "a", nil); err != nil {
		t.Fatal(err)
	}
	mustBeWhole(t, to, head.Root)
}
