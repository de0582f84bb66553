package volume

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Store is where a Volume finds directory objects, chunk lists and the bytes of files. It is safe for concurrent use. Its
// errors are passed on, wrapped.
type Store interface {
	// Get returns a whole object, which the Volume does not modify.
	Get(ctx context.Context, d tree.Digest) ([]byte, error)
	// OpenBlob opens an object to read parts of it. It may block.
	OpenBlob(d tree.Digest) (Blob, error)
}

// CachedOpener is what a Store may be besides: it opens an object without blocking, when it can. With it, the first
// ReadCached of a file can do without Read.
type CachedOpener interface {
	OpenCached(d tree.Digest) (b Blob, ok bool)
}

// Blob is an opened object. It is safe for concurrent use, and readable until Close, even when the object is deleted
// meanwhile; one that fails all the same is opened anew, once. The Volume closes each once, when nobody reads it.
type Blob interface {
	// Size returns the object's length in bytes.
	Size() int64
	// ReadAt reads as io.ReaderAt does.
	ReadAt(p []byte, off int64) (int, error)
	// ReadCached reads what can be read without blocking; ok is false when that is nothing.
	ReadCached(p []byte, off int64) (n int, ok bool)
	// Close lets go of the object.
	Close() error
}

// Volume serves the generations of one shard, one at a time. It is safe for concurrent use.
type Volume struct {
	fsid     uint64
	store    Store
	log      zerolog.Logger
	seed     maphash.Seed
	contents *contents

	state  atomic.Pointer[State]
	closed atomic.Bool

	building sync.Mutex // held to make the next State, from loading the present one to swapping; before waiting
	waiting  sync.Mutex // guards swapped
	swapped  chan struct{}
}

// New returns a Volume for the shard with this fsid. It serves nothing before the first Flip or Restore.
func New(fsid uint64, s Store, log zerolog.Logger) *Volume {
	v := &Volume{fsid: fsid, store: s, log: log, seed: maphash.MakeSeed(), swapped: make(chan struct{})}
	v.contents = newContents(s, v.keeps)
	return v
}

// FSID returns the shard's fsid.
func (v *Volume) FSID() uint64 { return v.fsid }

// State returns what is served now; nil before the first Flip or Restore. One call is answered from one State.
func (v *Volume) State() *State { return v.state.Load() }

// Flip serves g from now on. Its cost is that of the difference between g and what is served; readers wait for nothing.
// The inos that g does not have any more stay readable. After an error everything is as before: wraps the Store's error,
// tree.ErrCorrupt when g cannot be served, or says that g is earlier than what is served. Generations that were missed may
// be left out, at the price that what lived only in those is not readable here.
func (v *Volume) Flip(ctx context.Context, g tree.Generation) error {
	v.building.Lock()
	defer v.building.Unlock()
	old := v.state.Load()
	if old != nil {
		switch {
		case g.Number < old.gen.Number, g.Number == old.gen.Number && g.Root != old.gen.Root:
			return fmt.Errorf("flip to generation %d (root %s): generation %d (root %s) is served already",
				g.Number, g.Root, old.gen.Number, old.gen.Root)
		case g.Number == old.gen.Number:
			return nil
		}
	}
	next, err := v.build(ctx, old, g)
	if err != nil {
		return err
	}
	v.swap(next)
	return nil
}

// Restore serves the last of the retained generations, which are in ascending order, and keeps what left the tree since
// the first of them: the state that a Flip to each of them would have led to. A generation before the last that cannot be
// read is left out, with a warning in the log.
func (v *Volume) Restore(ctx context.Context, retained []tree.Generation) error {
	v.building.Lock()
	defer v.building.Unlock()
	if len(retained) == 0 {
		return errors.New("restore: no generation")
	}
	var s *State
	for i, g := range retained {
		if s != nil && g.Number <= s.gen.Number {
			return fmt.Errorf("restore: generation %d comes after %d", g.Number, s.gen.Number)
		}
		next, err := v.build(ctx, s, g)
		switch {
		case err == nil:
			s = next
		case i == len(retained)-1 || ctx.Err() != nil:
			return err
		default:
			v.log.Warn().Err(err).Uint64("generation", g.Number).Msg("cannot restore an earlier generation: files open since then may turn stale")
		}
	}
	v.swap(s)
	return nil
}

// build makes the next State and logs what it took.
func (v *Volume) build(ctx context.Context, old *State, g tree.Generation) (*State, error) {
	start := time.Now()
	next, did, err := build(ctx, v.store, v.fsid, v.seed, old, g)
	if err != nil {
		return nil, fmt.Errorf("build generation %d: %w", g.Number, err)
	}
	v.log.Debug().Uint64("generation", g.Number).Int("pages", did.pages).Int("entries", did.entries).Int("gone", did.gone).
		Int64("took_ms", time.Since(start).Milliseconds()).Msg("generation built")
	return next, nil
}

// Forget lets go of what left the tree with generation before or earlier: generations less than before are past retention.
// Handles of those inos are stale from now on.
func (v *Volume) Forget(ctx context.Context, before uint64) error {
	v.building.Lock()
	defer v.building.Unlock()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("forget: %w", context.Cause(ctx))
	}
	old := v.state.Load()
	if old == nil {
		return nil
	}
	next := old.forget(before)
	if next == old {
		return nil
	}
	v.swap(next)
	v.contents.dropIf(func(ino uint64) bool { return next.inos.get(ino) == 0 })
	return nil
}

// swap serves next. The caller holds building.
func (v *Volume) swap(next *State) {
	v.state.Store(next)
	v.waiting.Lock()
	defer v.waiting.Unlock()
	close(v.swapped)
	v.swapped = make(chan struct{})
}

// Await returns the State served now if its generation is generation or later, or else waits for one that is. Its error is
// the cause of ctx's end.
func (v *Volume) Await(ctx context.Context, generation uint64) (*State, error) {
	for {
		v.waiting.Lock()
		swapped := v.swapped
		v.waiting.Unlock()
		if s := v.state.Load(); s != nil && s.gen.Number >= generation {
			return s, nil
		}
		select {
		case <-swapped:
		case <-ctx.Done():
			return nil, fmt.Errorf("await generation %d: %w", generation, context.Cause(ctx))
		}
	}
}

// keeps reports whether the content of an ino may stay open after a read.
func (v *Volume) keeps(ino uint64) bool {
	s := v.state.Load()
	return !v.closed.Load() && s != nil && s.inos.get(ino) != 0
}

// Close closes the contents that are kept open. The Volume stays usable, but keeps none open any more; it is for when its
// shard is served no more.
func (v *Volume) Close() error {
	v.closed.Store(true)
	v.contents.dropIf(func(uint64) bool { return true })
	return nil
}
