package store

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// elsewhere lets s get objects from another store.
func elsewhere(s, from *Store) *atomic.Int64 {
	asked := new(atomic.Int64)
	s.SetHeal(func(ctx context.Context, d tree.Digest) error {
		asked.Add(1)
		b, err := from.Get(ctx, d)
		if err == nil {
			_, err = s.Put(ctx, b)
		}
		return err
	})
	return asked
}

// What is missing or damaged comes from elsewhere, is whole and durable then, and is asked for once.
func TestHeal(t *testing.T) {
	other := openStore(t, t.TempDir(), small)
	f, dir := new(faults), t.TempDir()
	s := openDisk(t, dir, small, f.disk())
	asked := elsewhere(s, other)
	for i, size := range []int{300, 5000} {
		b, missing := object(i, size), object(i+10, size)
		mustPut(t, other, b)
		mustPut(t, other, missing)
		mustPut(t, s, b)
		mustSync(t, s)
		if err := s.Heal(t.Context(), tree.Sum(b)); err != nil || asked.Swap(0) != 0 {
			t.Errorf("Heal of what is well: %v", err)
		}
		rotOnDisk(t, s, tree.Sum(b), 100)
		for _, b := range [][]byte{b, missing} {
			if err := s.Heal(t.Context(), tree.Sum(b)); err != nil || asked.Swap(0) != 1 {
				t.Fatalf("Heal: %v", err)
			}
			mustHold(t, s, b)
			mustHold(t, openStore(t, copyStore(t, dir), small), b)
		}

		// A sector that cannot be read.
		blob := sealed(t, s, b)
		name := "large"
		if blob.e.pack != 0 {
			name = packName(blob.e.pack)
		}
		f.set("read", unix.EIO, name)
		s.SetHeal(func(ctx context.Context, d tree.Digest) error {
			f.heal(t)
			_, err := s.Put(ctx, b)
			return err
		})
		if err := s.Heal(t.Context(), tree.Sum(b)); err != nil {
			t.Errorf("Heal of what cannot be read: %v", err)
		}
		mustHold(t, s, b)
		if again := sealed(t, s, b); again.file == blob.file && again.e.place == blob.e.place {
			t.Error("it is still in its unreadable place")
		}
		asked = elsewhere(s, other)
	}
	got, err := Healed{s}.Get(t.Context(), mustPut(t, other, object(77, 50)))
	if err != nil || !bytes.Equal(got, object(77, 50)) {
		t.Errorf("Healed.Get: %v", err)
	}
	if _, err := (Healed{s}).Get(t.Context(), tree.Sum([]byte("nowhere"))); !errors.Is(err, tree.ErrMissing) {
		t.Errorf("Healed.Get of what is nowhere: %v", err)
	}
}

func TestHealWithoutHelp(t *testing.T) {
	s := openStore(t, t.TempDir(), small)
	if err := s.Heal(t.Context(), tree.Sum([]byte("x"))); !errors.Is(err, tree.ErrMissing) {
		t.Errorf("missing: %v", err)
	}
	// With nobody to give another copy, one that cannot be read now is better than none.
	f := new(faults)
	s = openDisk(t, t.TempDir(), small, f.disk())
	d := mustPut(t, s, object(1, 300))
	f.set("read", unix.EIO, "")
	if err := s.Heal(t.Context(), d); !errors.Is(err, unix.EIO) {
		t.Errorf("unreadable: %v", err)
	}
	f.heal(t)
	mustHold(t, s, object(1, 300))
}

// Whoever asks for the same object waits for the same attempt, and a failed one is not repeated for each of them.
func TestHealingIsShared(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, dir, small)
		d, down := tree.Sum([]byte("x")), errors.New("nobody answers")
		var asked atomic.Int64
		s.SetHeal(func(context.Context, tree.Digest) error {
			asked.Add(1)
			time.Sleep(time.Second)
			return down
		})
		ask := func() {
			t.Helper()
			var readers sync.WaitGroup
			for range 20 {
				readers.Go(func() {
					if err := s.Heal(t.Context(), d); !errors.Is(err, down) {
						t.Errorf("Heal: %v", err)
					}
				})
			}
			readers.Wait()
		}
		ask()
		ask()
		if n := asked.Load(); n != 1 {
			t.Errorf("asked %d times", n)
		}
		time.Sleep(healRest)
		ask()
		if n := asked.Load(); n != 2 {
			t.Errorf("asked %d times, a while later", n)
		}

		// One who cannot wait leaves; the attempt goes on.
		time.Sleep(healRest)
		cause := errors.New("enough")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Millisecond, cause)
		defer cancel()
		if err := s.Heal(ctx, d); !errors.Is(err, cause) {
			t.Errorf("Heal with little time: %v", err)
		}
		time.Sleep(2 * time.Second)
		if n := asked.Load(); n != 3 {
			t.Errorf("asked %d times", n)
		}

		// Not more than a few at a time, and closing ends them.
		s.SetHeal(func(ctx context.Context, _ tree.Digest) error {
			asked.Add(1)
			<-ctx.Done()
			return ctx.Err()
		})
		asked.Store(0)
		var readers sync.WaitGroup
		for i := range 3 * healers {
			readers.Go(func() {
				if s.Heal(t.Context(), digestOf(i)) == nil {
					t.Error("healed by nobody")
				}
			})
		}
		synctest.Wait()
		if n := asked.Load(); n != healers {
			t.Errorf("%d objects are being fetched", n)
		}
		s.Close()
		readers.Wait()
		if err := s.Heal(t.Context(), d); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}
