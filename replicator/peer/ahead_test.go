package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// blobs are announcements of objects.
func blobs(objects ...[]byte) (parts []tree.Part) {
	for _, b := range objects {
		parts = append(parts, tree.Part{Digest: tree.Sum(b), Form: tree.Blob, Size: uint64(len(b))})
	}
	return parts
}

// What is announced is fetched while more is being stored, and is durable in the end; the fetch of the tree asks for next
// to nothing then.
func TestAhead(t *testing.T) {
	n := newNetwork(t)
	from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
	a := n.add("a", from, nil)
	n.add("b", openStore(t, store.Options{}), nil) // has nothing, and is not asked
	fetcher := n.fetcher(to)
	feed, done := make(chan []tree.Part), make(chan error, 1)
	var last Progress
	go func() { done <- fetcher.Ahead(t.Context(), "a", feed, func(p Progress) { last = p }) }()
	first := [][]byte{noise(1, 100), noise(2, 3<<20), noise(3, 70_000)}
	for _, b := range first {
		mustPut(t, from, b)
	}
	feed <- blobs(first...)
	feed <- nil // a sign of life
	for deadline := time.Now().Add(20 * time.Second); !slices.Equal(held(to, blobs(first...)), []bool{true, true, true}); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("what was announced does not come before the end")
		}
	}
	f := zoo()
	m := publish(t, from, tree.Merged{}, f)
	var all []tree.Part
	for d := range digests(t, from, m.Root) {
		b, err := from.Get(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, blobs(b)...)
	}
	for part := range slices.Chunk(all, 100) {
		feed <- part
	}
	feed <- blobs([]byte("announced, and collected before anybody asked"))
	close(feed)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if int(last.Objects) != len(all)+len(first) || last.Pending != 0 {
		t.Errorf("progress %+v, want %d objects", last, len(all)+len(first))
	}
	asked := a.asked.Load()
	if err := fetcher.Fetch(t.Context(), m.Root, tree.Digest{}, "a", nil); err != nil {
		t.Fatal(err)
	}
	mustBeWhole(t, to, m.Root)
	if more := a.asked.Load() - asked; more > 0 {
		t.Errorf("%d objects were asked for again", more)
	}
}

func held(s *store.Store, parts []tree.Part) (have []bool) {
	for i := range parts {
		have = append(have, s.Has(parts[i].Digest))
	}
	return have
}

// A master that announces more than the disk and the network can follow has to wait.
func TestAheadIsBounded(t *testing.T) {
	n := newNetwork(t)
	from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
	release := make(chan struct{})
	n.add("a", from, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		<-release
		next.ServeHTTP(w, r)
	})
	feed, done := make(chan []tree.Part), make(chan error, 1)
	go func() { done <- n.fetcher(to).Ahead(t.Context(), "a", feed, nil) }()
	var object int
	take := func() bool {
		var parts []tree.Part
		for range 1000 {
			object++
			b := fmt.Append(nil, object)
			mustPut(t, from, b)
			parts = append(parts, blobs(b)...)
		}
		select {
		case feed <- parts:
			return true
		case <-time.After(300 * time.Millisecond):
			return false
		}
	}
	for take() {
		if object > 10*aheadBacklog {
			t.Fatalf("%d objects wait", object)
		}
	}
	close(release)
	close(feed)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if object < aheadBacklog || !to.Has(tree.Sum([]byte("1"))) {
		t.Errorf("%d objects were taken in", object)
	}
}

// A master that is gone, or lies, ends the fetching ahead with an error; nothing false is stored.
func TestAheadFails(t *testing.T) {
	for name, spoil := range map[string]func(w http.ResponseWriter, r *http.Request, next http.Handler){
		"is gone": func(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) },
		"lies": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			_, _ = w.Write(appendHead(append(appendHead(nil, recordFound, 5), "wrong"...), recordEnd, 1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t)
			to := openStore(t, store.Options{})
			n.add("a", openStore(t, store.Options{}), spoil)
			feed := make(chan []tree.Part, 1)
			feed <- blobs([]byte("right"))
			close(feed)
			if err := n.fetcher(to).Ahead(t.Context(), "a", feed, nil); !errors.Is(err, ErrUnreachable) {
				t.Errorf("%v, want ErrUnreachable", err)
			}
			if to.Has(tree.Sum([]byte("wrong"))) || to.Has(tree.Sum([]byte("right"))) {
				t.Error("something was stored")
			}
		})
	}
}

// Whoever announces and does not come back is not waited for when the context ends.
func TestAheadEndsWithItsContext(t *testing.T) {
	n := newNetwork(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.fetcher(openStore(t, store.Options{})).Ahead(ctx, "a", make(chan []tree.Part), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want Canceled", err)
	}
}

func TestAnnounced(t *testing.T) {
	first, second := blobs([]byte("a"), nil, []byte("ccc")), blobs(bytes.Repeat([]byte("x"), 5000))
	stream := AppendAnnounced(AppendAnnounced(AppendAnnounced(nil, first), nil), second)
	whole := AppendAnnouncedAll(slices.Clone(stream))
	for name, in := range map[string]io.Reader{
		"at once": bytes.NewReader(whole), "byte by byte": iotest.OneByteReader(bytes.NewReader(whole)), "by halves": iotest.HalfReader(bytes.NewReader(whole)),
	} {
		got, err := readAnnounced(in)
		if err != nil || !slices.Equal(got, slices.Concat(first, second)) {
			t.Errorf("%s: %d of %d, %v", name, len(got), len(first)+len(second), err)
		}
	}
	for cut := range stream {
		if _, err := readAnnounced(bytes.NewReader(stream[:cut])); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut off after %d bytes: %v", cut, err)
		}
	}
	var zero tree.Digest
	for name, bad := range map[string]tree.Part{"unknown mark": {Digest: zero, Size: 2}, "too large": {Digest: tree.Sum(nil), Size: store.MaxObject + 1}} {
		if _, err := readAnnounced(bytes.NewReader(AppendAnnounced(nil, []tree.Part{bad}))); !errors.Is(err, errProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// readAnnounced reads a stream to its end.
func readAnnounced(r io.Reader) (all []tree.Part, err error) {
	for a := NewAnnounced(r); ; {
		parts, err := a.Next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, parts...)
	}
}

func FuzzAnnounced(f *testing.F) {
	f.Add(AppendAnnouncedAll(AppendAnnounced(AppendAnnounced(nil, nil), blobs([]byte("a"), []byte("b")))))
	f.Add([]byte(strings.Repeat("x", 80)))
	f.Fuzz(func(t *testing.T, b []byte) {
		parts, err := readAnnounced(bytes.NewReader(b))
		if len(parts) > len(b)/aheadRecord {
			t.Fatalf("%d objects in %d bytes", len(parts), len(b))
		}
		for _, p := range parts {
			if p.Digest.IsZero() || p.Size > store.MaxObject || p.Form != tree.Blob {
				t.Fatalf("%+v", p)
			}
		}
		if err == nil && len(b) < aheadRecord {
			t.Fatal("an end where none is")
		}
	})
}
