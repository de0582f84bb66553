package volume_test

import (
	"context"
	"testing"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/exporter/volume"
	"github.com/nfs-fleet/nfs-fleet/exporter/volume/volumetest"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// slow is a Store that takes its time to open an object.
type slow struct {
	*volumetest.Store
	opening, open chan struct{}
}

func (s slow) OpenBlob(d tree.Digest) (volume.Blob, error) {
	s.opening <- struct{}{}
	<-s.open
	return s.Store.OpenBlob(d)
}

// What is opened while its ino is forgotten, or the volume closed, is not left open for ever.
func TestOpenedTooLate(t *testing.T) {
	for what, end := range map[string]func(ctx context.Context, v *volume.Volume, next tree.Generation) error{
		"forgotten": func(ctx context.Context, v *volume.Volume, next tree.Generation) error {
			if err := v.Flip(ctx, next); err != nil {
				return err
			}
			return v.Forget(ctx, next.Number)
		},
		"closed": func(_ context.Context, v *volume.Volume, _ tree.Generation) error { return v.Close() },
	} {
		t.Run(what, func(t *testing.T) {
			s := volumetest.New(t, file("a", "abc"))
			store := slow{s.Store, make(chan struct{}), make(chan struct{})}
			v := volume.New(volumetest.FSID, store, zerolog.Nop())
			if err := v.Flip(t.Context(), s.Head()); err != nil {
				t.Fatal(err)
			}
			n, _ := v.State().Lookup(v.State().Root(), []byte("a"))
			got := make(chan error)
			p := make([]byte, 3)
			go func() {
				_, _, err := v.Read(t.Context(), n, p, 0)
				got <- err
			}()
			<-store.opening
			if err := end(t.Context(), v, s.Publish()); err != nil {
				t.Fatal(err)
			}
			close(store.open)
			if err := <-got; err != nil || string(p) != "abc" {
				t.Errorf("%q, %v", p, err)
			}
			if _, open := s.Store.Opened(); open != 0 {
				t.Errorf("%d blobs are open", open)
			}
		})
	}
}
