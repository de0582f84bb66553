package console

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

func TestUploaderSendsWhatIsMissing(t *testing.T) {
	f := newFake()
	c, _, _ := serve(t, f)
	f.objects[tree.Sum([]byte("there"))] = []byte("there")
	u, err := NewUploader(t.Context(), c, "www")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 { // the same objects from several goroutines are sent once
		wg.Go(func() {
			for _, o := range []string{"there", "new 1", "new 2"} {
				if d, err := u.Put(t.Context(), []byte(o)); err != nil || d != tree.Sum([]byte(o)) {
					t.Error(d, err)
				}
			}
		})
	}
	wg.Wait()
	sent, err := u.Flush(t.Context())
	if err != nil || sent != (Sent{2, 10}) || len(f.objects) != 3 {
		t.Errorf("%+v, %d objects there, %v", sent, len(f.objects), err)
	}
	if again, err := u.Flush(t.Context()); err != nil || again != sent {
		t.Errorf("flushed twice: %+v, %v", again, err)
	}
	if !u.Has(tree.Sum([]byte("there"))) || u.Has(tree.Sum([]byte("never"))) {
		t.Error("Has")
	}
	if _, err := u.Get(t.Context(), tree.Sum([]byte("new 1"))); !errors.Is(err, tree.ErrMissing) {
		t.Errorf("get: %v", err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := u.End(cancelled); err != nil || f.last() != "end www "+u.ID() {
		t.Errorf("end: %v, asked %q", err, f.last())
	}
}

// Large trees go in batches, not in memory.
func TestUploaderSendsInBatches(t *testing.T) {
	f := newFake()
	u, err := NewUploader(t.Context(), f, "www")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if _, err := u.Put(t.Context(), []byte(strings.Repeat(fmt.Sprint(i), batchBytes/4))); err != nil {
			t.Fatal(err)
		}
	}
	if len(f.objects) != 4 || u.size != batchBytes/4 {
		t.Errorf("%d objects sent, %d bytes kept", len(f.objects), u.size)
	}
	for i := range batchObjects {
		if _, err := u.Put(t.Context(), fmt.Appendf(nil, "small %d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if len(f.objects) != 4+batchObjects || len(u.pending) != 1 {
		t.Errorf("%d objects sent, %d kept", len(f.objects), len(u.pending))
	}
}

func TestUploaderStaysFailed(t *testing.T) {
	f := newFake()
	u, err := NewUploader(t.Context(), f, "www")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Put(t.Context(), []byte("x")); err != nil {
		t.Fatal(err)
	}
	f.fail = ErrNoLeader
	if _, err := u.Flush(t.Context()); !errors.Is(err, ErrNoLeader) {
		t.Errorf("flush: %v", err)
	}
	f.fail = nil
	if _, err := u.Put(t.Context(), []byte("y")); !errors.Is(err, ErrNoLeader) {
		t.Errorf("put after a failure: %v", err)
	}
	if _, err := u.Flush(t.Context()); !errors.Is(err, ErrNoLeader) {
		t.Errorf("flush after a failure: %v", err)
	}
	f.fail = ErrNotFound
	if _, err := NewUploader(t.Context(), f, "www"); !errors.Is(err, ErrNotFound) {
		t.Errorf("begin: %v", err)
	}
}
