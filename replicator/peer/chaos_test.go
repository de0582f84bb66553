package peer

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// TestOneHonestMasterIsEnough: among masters that do whatever a request's lot says, one does what it should, and that is
// the one that is preferred last.
func TestOneHonestMasterIsEnough(t *testing.T) {
	from := openStore(t, store.Options{})
	f := zoo()
	for i := range 6 {
		f[fmt.Sprintf("large%02d", i)] = noise(uint64(i), 1<<20+i*300_000)
	}
	head := publish(t, from, tree.Merged{}, f)
	f["flat/00017"], f["large03"], f["new/one"] = []byte("changed"), noise(99, 2<<20), []byte("one")
	next := publish(t, from, head, f)
	nothing := openStore(t, store.Options{})
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t)
			for i := range 3 {
				n.add(fmt.Sprint("bad", i), from, erratic(rand.New(rand.NewPCG(seed, uint64(i))), Server(nothing)))
			}
			n.add("honest", from, nil)
			to := openStore(t, store.Options{})
			fetcher := n.fetcher(to)
			if err := fetcher.Fetch(t.Context(), head.Root, tree.Digest{}, "bad0", nil); err != nil {
				t.Fatal(err)
			}
			if err := fetcher.Fetch(t.Context(), next.Root, head.Root, "bad1", nil); err != nil {
				t.Fatal(err)
			}
			mustBeWhole(t, to, head.Root)
			mustBeWhole(t, to, next.Root)
		})
	}
}

// erratic does something else with each request.
func erratic(random *rand.Rand, empty http.Handler) spoiler {
	var mu sync.Mutex
	draw := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return random.IntN(n)
	}
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		at := draw(400_000) // where something happens to the answer
		sent := 0
		through := func(fn func(p []byte, i int) int) {
			next.ServeHTTP(filter{w, func(_ http.ResponseWriter, p []byte) int {
				i := at - sent
				if sent += len(p); i >= 0 && i < len(p) {
					return fn(p, i)
				}
				return -1
			}}, r)
		}
		switch draw(7) {
		case 0:
			http.Error(w, "no", http.StatusServiceUnavailable)
		case 1:
			http.Error(w, "no", http.StatusInternalServerError)
		case 2:
			panic(http.ErrAbortHandler)
		case 3:
			empty.ServeHTTP(w, r)
		case 4:
			through(func(_ []byte, i int) int { return i })
		case 5:
			through(func(p []byte, i int) int { p[i] ^= byte(1 + at%255); return -1 })
		default:
			next.ServeHTTP(w, r)
		}
	}
}
