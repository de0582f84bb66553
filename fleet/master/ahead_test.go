package master

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/election/etcdtest"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
	"github.com/nfs-fleet/nfs-fleet/replicator"
	"github.com/nfs-fleet/nfs-fleet/replicator/peer"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// announcing returns the side of a leader whose peer m2 answers with a handler.
func announcing(t *testing.T, handler http.HandlerFunc) peers {
	t.Helper()
	server := httptest.NewTLSServer(handler)
	t.Cleanup(server.Close)
	l := newLinks(nil)
	l.addresses["m2"], l.clients["m2"] = server.Listener.Addr().String(), server.Client()
	return peers{&Master{links: l}}
}

// What a leader announces arrives whole and at once, with signs of life in between, and its end is told from being cut off.
func TestAnnounce(t *testing.T) {
	var parts []tree.Part
	for i := range 3000 {
		parts = append(parts, tree.Part{Digest: tree.Sum(fmt.Append(nil, i)), Form: tree.Blob, Size: uint64(i)})
	}
	beats, got := make(chan struct{}, 1), make(chan []tree.Part, len(parts))
	p := announcing(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != shardPath("www", "ahead") || r.FormValue("era") != "2" || r.FormValue("epoch") != "77" {
			t.Errorf("asked for %s", r.URL)
		}
		for in := peer.NewAnnounced(r.Body); ; {
			part, err := in.Next()
			switch {
			case errors.Is(err, io.EOF):
				close(got)
				if n, err := io.Copy(io.Discard, r.Body); n > 0 || err != nil {
					t.Errorf("%d bytes behind the end, %v", n, err)
				}
				newLineWriter(w).end(nothing{}, nil)
				return
			case err != nil:
				t.Error(err)
				return
			case len(part) == 0:
				beats <- struct{}{}
			default:
				got <- part
			}
		}
	})
	feed, done := make(chan []tree.Part), make(chan error, 1)
	go func() { done <- p.Announce(t.Context(), "m2", "www", 2, 77, feed) }()
	feed <- parts[:1]
	first := <-got // before anything else is announced
	<-beats
	for part := range slices.Chunk(parts[1:], 64) {
		feed <- part
	}
	close(feed)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	all := first
	for part := range got {
		all = append(all, part...)
	}
	if !slices.Equal(all, parts) {
		t.Errorf("%d announcements of %d arrive", len(all), len(parts))
	}
}

// Whoever refuses is not announced to; an announcer that is stopped says so by breaking off.
func TestAnnounceEnds(t *testing.T) {
	feed := make(chan []tree.Part)
	p := announcing(t, func(w http.ResponseWriter, _ *http.Request) {
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		newLineWriter(w).end(nil, replicator.ErrOlderEpoch)
	})
	if err := p.Announce(t.Context(), "m2", "www", 0, 1, feed); !errors.Is(err, replicator.ErrOlderEpoch) {
		t.Errorf("refused: %v", err)
	}
	heard := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	p = announcing(t, func(_ http.ResponseWriter, r *http.Request) {
		in := peer.NewAnnounced(r.Body)
		_, _ = in.Next()
		cancel()
		_, err := in.Next()
		heard <- err
	})
	go func() { feed <- []tree.Part{{Digest: tree.Sum(nil)}} }()
	if err := p.Announce(ctx, "m2", "www", 0, 1, feed); !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: %v", err)
	}
	if err := <-heard; err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the other side takes it for the end: %v", err)
	}
}

// logged is a log whose lines about fetching ahead are waited for. Lines about panics are errors.
type logged struct {
	t     *testing.T
	lines chan string
}

func (l logged) Write(line []byte) (int, error) {
	if strings.Contains(string(line), "fetched ahead") {
		l.lines <- string(line)
	}
	if strings.Contains(string(line), "panic") {
		l.t.Errorf("%s", line)
	}
	return len(line), nil
}

// Two masters of a fleet: the second fetches a publish of many files while the first one reads its source.
func TestFetchedAhead(t *testing.T) {
	server := etcdtest.New(t)
	first, second := testConfig(t), testConfig(t)
	second.Name, second.Sources = "m2", map[string]SourceConfig{}
	for _, c := range []*Config{&first, &second} {
		c.Fleet, c.Etcd = "ahead", Default().Etcd
		c.Etcd.Endpoints = []string{server.URL()}
	}
	m1 := start(t, first)
	m1.until("m1 leading", func(s console.Status) bool {
		return len(s.Shards) == 1 && s.Shards[0].Leader == "m1" && s.Shards[0].Generation == 1
	})
	log := logged{t, make(chan string, 10)}
	startLogged(t, second, zerolog.New(log))
	m1.until("two masters serving the first generation", inStep(2, 1))
	more := filepath.Join(t.TempDir(), "more")
	if err := os.Mkdir(more, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range 3000 {
		write(t, more, fmt.Sprint(i), fmt.Sprint("file ", i))
	}
	if err := os.Rename(more, filepath.Join(first.Sources["www"].Dir, "more")); err != nil {
		t.Fatal(err)
	}
	m1.until("two masters serving the second generation", inStep(2, 2))
	select {
	case line := <-log.lines:
		var got struct {
			Objects int
			Error   string
		}
		// Not all: what an attempt that failed has stored is not announced again.
		if err := json.Unmarshal([]byte(line), &got); err != nil || got.Objects < 500 || got.Error != "" {
			t.Errorf("%v: %s", err, line)
		}
	case <-time.After(patience):
		t.Error("nothing was fetched ahead")
	}
}
