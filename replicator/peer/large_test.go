package peer

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// longNames is a directory whose object is larger than what is sent in a stream.
func longNames() files {
	f := make(files)
	for i := range tree.PageSlots + 10 {
		f[fmt.Sprintf("dir/%s%05d", strings.Repeat("n", 250), i)] = fmt.Append(nil, i)
	}
	return f
}

// TestLargeDirectory: an object that names others, and is fetched by itself because a master says so.
func TestLargeDirectory(t *testing.T) {
	n := newNetwork(t)
	from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
	head := publish(t, from, tree.Merged{}, longNames())
	n.add("a", from, nil)
	if err := n.fetcher(to).Fetch(t.Context(), head.Root, tree.Digest{}, "a", nil); err != nil {
		t.Fatal(err)
	}
	mustBeWhole(t, to, head.Root)
}

// TestFalseSizes: a master announces large objects of sizes that they do not have, or that are not large at all.
func TestFalseSizes(t *testing.T) {
	for name, lie := range map[string]func(h head) head{
		"larger":  func(h head) head { h.n += 1000; return h },
		"huge":    func(h head) head { h.n = store.MaxObject; return h },
		"smaller": func(h head) head { h.n = largeObject; return h },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t)
			from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
			f := longNames()
			f["large"] = noise(1, 3<<20)
			published := publish(t, from, tree.Merged{}, f)
			n.add("liar", from, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				next.ServeHTTP(filter{w, func(_ http.ResponseWriter, p []byte) int {
					if len(p) == 2*recordHeader && p[0] == recordLarge {
						h, _, err := parseHead(p)
						if err != nil {
							t.Error(err)
						}
						h = lie(h)
						copy(p, appendHead(nil, h.kind, h.n))
					}
					return -1
				}}, r)
			})
			f2 := n.fetcher(to)
			if err := f2.Fetch(t.Context(), published.Root, tree.Digest{}, "liar", nil); err != nil {
				t.Error(err) // the size that counts is that of the answer to a GET
			}
			mustBeWhole(t, to, published.Root)
		})
	}
}

// TestSmallAnnouncedAsLarge: the tree knows how many bytes a blob has.
func TestSmallAnnouncedAsLarge(t *testing.T) {
	n := newNetwork(t)
	from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
	content := noise(1, 1000)
	published := publish(t, from, tree.Merged{}, files{"small": content})
	n.add("liar", from, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(filter{w, func(w http.ResponseWriter, p []byte) int {
			if bytes.Contains(p, content) {
				_, _ = w.Write(appendHead(appendHead(nil, recordLarge, 50<<20), recordEnd, 1))
				return written
			}
			return -1
		}}, r)
	})
	f := n.fetcher(to)
	if err := f.Fetch(t.Context(), published.Root, tree.Digest{}, "liar", nil); !errors.Is(err, ErrUnreachable) || !errors.Is(err, errProtocol) {
		t.Errorf("got %v", err)
	}
	n.add("true", from, nil)
	if err := f.Fetch(t.Context(), published.Root, tree.Digest{}, "liar", nil); err != nil {
		t.Fatal(err)
	}
	mustBeWhole(t, to, published.Root)
}

// TestManyLarge: more of them than may be in memory at a time.
func TestManyLarge(t *testing.T) {
	n := newNetwork(t)
	from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
	f := files{"huge": bytes.Repeat(noise(1, 1<<20), 50)}
	for i := range 25 {
		f[fmt.Sprint(i)] = noise(uint64(i), 4<<20)
	}
	head := publish(t, from, tree.Merged{}, f)
	n.add("a", from, nil)
	n.add("b", from, nil)
	if err := n.fetcher(to).Fetch(t.Context(), head.Root, tree.Digest{}, "a", nil); err != nil {
		t.Fatal(err)
	}
	mustBeWhole(t, to, head.Root)
}
