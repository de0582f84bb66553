package peer

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

func openStore(t testing.TB, o store.Options) *store.Store {
	t.Helper()
	s, err := store.Open(t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

var static = sync.OnceValue(func() []byte {
	b := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
})

// noise returns size bytes that depend on seed alone.
func noise(seed uint64, size int) []byte {
	b := make([]byte, 0, size+8)
	for part := uint64(0); len(b) < size; part++ {
		b = binary.LittleEndian.AppendUint64(b, seed<<32|part)
		b = append(b, static()[:min(len(static()), max(0, size-len(b)))]...)
	}
	return b[:size]
}

// files is a source: contents by slash-separated path.
type files map[string][]byte

// lister lists files for a Merge, and puts their contents.
type lister struct {
	t     testing.TB
	s     *store.Store
	files files
}

func (l lister) List(_ context.Context, dir string, _ *tree.Entry) (tree.Listing, error) {
	out := tree.Listing{Complete: true}
	dirs := make(map[string]bool)
	for path, content := range l.files {
		rest := path
		if dir != "." {
			var ok bool
			if rest, ok = strings.CutPrefix(path, dir+"/"); !ok {
				continue
			}
		}
		name, _, deeper := strings.Cut(rest, "/")
		o := tree.Observed{Entry: tree.Entry{Name: name, Mode: 0o644, Mtime: tree.Time{Sec: 1}}}
		if deeper {
			if dirs[name] {
				continue
			}
			dirs[name] = true
			o.Type, o.Mode, o.Descend = tree.Directory, 0o755, true
		} else {
			o.Type, o.Size, o.Used = tree.Regular, uint64(len(content)), uint64(len(content))
			o.Content = l.content(content)
		}
		out.Names = append(out.Names, o)
	}
	slices.SortFunc(out.Names, func(a, b tree.Observed) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func (l lister) content(b []byte) tree.Content {
	switch {
	case len(b) == 0:
		return tree.Content{}
	case len(b) <= tree.ChunkSize:
		return tree.Content{Form: tree.Blob, Digest: mustPut(l.t, l.s, b)}
	}
	var x []tree.Extent
	for part := range slices.Chunk(b, tree.ChunkSize) {
		x = append(x, tree.Extent{Length: uint64(len(part)), Digest: mustPut(l.t, l.s, part)})
	}
	return tree.Content{Form: tree.Chunks, Digest: mustPut(l.t, l.s, tree.EncodeChunks(x))}
}

func mustPut(t testing.TB, s *store.Store, b []byte) tree.Digest {
	t.Helper()
	d, err := s.Put(context.Background(), b)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// publish puts the tree of these files, on top of a previous one, and returns its root.
func publish(t testing.TB, s *store.Store, previous tree.Merged, f files) tree.Merged {
	t.Helper()
	m, err := tree.Merge(context.Background(), s, previous.Root, lister{t, s, f}, tree.MergeOptions{
		Generation: previous.Entry.Born + previous.NextIno + 1, NextIno: max(previous.NextIno, 1), Now: tree.Time{Sec: 100},
		Tag:  func() uint64 { return 7 },
		Root: tree.Observed{Entry: tree.Entry{Type: tree.Directory, Mode: 0o755}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	return m
}

// digests returns all objects of a tree.
func digests(t testing.TB, s *store.Store, root tree.Digest) map[tree.Digest]tree.Form {
	t.Helper()
	all := make(map[tree.Digest]tree.Form)
	seen := func(d tree.Digest) bool { _, ok := all[d]; return ok }
	err := tree.Reach(context.Background(), s, root, seen, func(d tree.Digest, f tree.Form, _ uint64) error {
		all[d] = f
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// mustBeWhole checks that a store has every object of a tree, unharmed.
func mustBeWhole(t testing.TB, s *store.Store, root tree.Digest) {
	t.Helper()
	for d := range digests(t, s, root) {
		if _, err := s.Get(context.Background(), d); err != nil {
			t.Errorf("tree %s: %v", root, err)
		}
	}
}

// master is a peer in a test: a server over a store, with a handler in front that may spoil things.
type master struct {
	store    *store.Store
	server   *httptest.Server
	requests atomic.Int64
	asked    atomic.Int64 // digests
	spoil    func(w http.ResponseWriter, r *http.Request, next http.Handler)
}

// network is masters by name.
type network struct {
	t       testing.TB
	mu      sync.Mutex
	masters map[string]*master
	client  *http.Client
}

func newNetwork(t testing.TB) *network {
	n := &network{t: t, masters: make(map[string]*master)}
	return n
}

func (n *network) add(name string, s *store.Store, spoil func(w http.ResponseWriter, r *http.Request, next http.Handler)) *master {
	m := &master{store: s, spoil: spoil}
	next := Server(s)
	m.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.requests.Add(1)
		m.asked.Add(max(r.ContentLength, 32) / 32)
		if m.spoil != nil {
			m.spoil(w, r, next)
			return
		}
		next.ServeHTTP(w, r)
	}))
	m.server.Config.ErrorLog = nil
	m.server.StartTLS()
	n.t.Cleanup(func() { m.server.CloseClientConnections(); m.server.Close() })
	if n.client == nil {
		c := m.server.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
		tr := NewTransport(c)
		n.client = &http.Client{Transport: tr}
		n.t.Cleanup(tr.CloseIdleConnections)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.masters[name] = m
	return m
}

func (n *network) names() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var names []string
	for name := range n.masters {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (n *network) dial(name string) (*http.Client, string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := n.masters[name]
	if m == nil {
		return nil, "", fmt.Errorf("no master %q", name)
	}
	return n.client, m.server.URL, nil
}

func (n *network) fetcher(s *store.Store) *Fetcher {
	log := zerolog.New(zerolog.NewTestWriter(n.t))
	if _, bench := n.t.(*testing.B); bench {
		log = zerolog.Nop()
	}
	return NewFetcher(Config{Store: s, Client: n.dial, Masters: n.names, Logger: log})
}
