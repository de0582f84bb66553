package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

const (
	healers     = 16               // objects that are being fetched at a time
	healTimeout = 30 * time.Second // for one of them
	// healRest is how long an object that could not be healed is not asked for again: readers ask over and over.
	healRest = 5 * time.Second
	// healFailures is how many of those are remembered.
	healFailures = 4096
)

// healing brings lost objects back from elsewhere, each once at a time.
type healing struct {
	mu     sync.Mutex // guards what follows
	fetch  func(ctx context.Context, d tree.Digest) error
	under  map[tree.Digest]*cure    // those under way
	failed map[tree.Digest]*failure // those given up lately
	slots  chan struct{}
	stop   context.CancelFunc // ends all that is under way
	life   context.Context
	gone   sync.WaitGroup
}

// cure is one object being healed, for all who wait for it.
type cure struct {
	done chan struct{}
	err  error
}

// failure is why an object could not be healed, and until when that is believed.
type failure struct {
	until time.Time
	err   error
}

func (h *healing) init() {
	h.under, h.failed = make(map[tree.Digest]*cure), make(map[tree.Digest]*failure)
	h.slots = make(chan struct{}, healers)
	h.life, h.stop = context.WithCancel(context.Background())
}

// SetHeal says how an object that is missing or damaged is brought back: fetch puts it into the store, or says why it
// cannot. It is called for up to 16 objects at a time, for each of them once at a time; its context lasts 30 s. nil, which
// is what a Store begins with, means that nothing is.
func (s *Store) SetHeal(fetch func(ctx context.Context, d tree.Digest) error) {
	s.heal.mu.Lock()
	defer s.heal.mu.Unlock()
	s.heal.fetch = fetch
	clear(s.heal.failed)
}

// Heal brings the object d back, by what SetHeal was given, when the store is without it or has it damaged. It returns nil
// when the store has d whole, and else wraps what fetching ended with, or tree.ErrMissing when there is nothing to fetch
// by. Callers share one attempt, which goes on when ctx ends; after one that failed there is no other for 5 s.
func (s *Store) Heal(ctx context.Context, d tree.Digest) error {
	if err := s.usable(ctx); err != nil {
		return fmt.Errorf("heal: %w", err)
	}
	c, err := s.heal.join(s, d)
	if err != nil {
		return fmt.Errorf("heal object %s: %w", d, err)
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		return fmt.Errorf("heal object %s: %w", d, context.Cause(ctx))
	}
	if c.err != nil {
		return fmt.Errorf("heal object %s: %w", d, c.err)
	}
	return nil
}

// join returns the attempt at d that is under way, a new one if there is none.
func (h *healing) join(s *Store, d tree.Digest) (*cure, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.under[d]; c != nil {
		return c, nil
	}
	if f := h.failed[d]; f != nil && time.Now().Before(f.until) {
		return nil, f.err
	}
	delete(h.failed, d)
	if h.life.Err() != nil {
		return nil, ErrClosed
	}
	c := &cure{done: make(chan struct{})}
	h.under[d] = c
	fetch := h.fetch
	h.gone.Go(func() {
		c.err = s.cure(d, fetch)
		h.settle(d, c)
	})
	return c, nil
}

// settle ends an attempt.
func (h *healing) settle(d tree.Digest, c *cure) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.under, d)
	close(c.done)
	if c.err == nil || h.life.Err() != nil {
		return
	}
	if len(h.failed) >= healFailures {
		clear(h.failed)
	}
	h.failed[d] = &failure{time.Now().Add(healRest), c.err}
}

// cure makes the store have d whole.
func (s *Store) cure(d tree.Digest, fetch func(ctx context.Context, d tree.Digest) error) error {
	h := &s.heal
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	case <-h.life.Done():
		return ErrClosed
	}
	ctx, cancel := context.WithTimeout(h.life, healTimeout)
	defer cancel()
	_, err := s.Get(ctx, d) // what is damaged is quarantined by this
	if err == nil || fetch == nil {
		return err
	}
	if !errors.Is(err, tree.ErrMissing) && !errors.Is(err, tree.ErrCorrupt) {
		if err := s.abandon(d, err); err != nil {
			return err
		}
	}
	if err := fetch(ctx, d); err != nil {
		return err
	}
	if err := s.Sync(ctx); err != nil {
		return err
	}
	if _, err := s.Get(ctx, d); err != nil {
		return err
	}
	s.log.Info().Str("event", "healed").Stringer("object", d).Msg("an object was lost, and brought back from another master")
	return nil
}

// abandon quarantines the object d, which could not be read because of err, when that says that the disk has lost it.
func (s *Store) abandon(d tree.Digest, err error) error {
	if !errors.Is(err, unix.EIO) {
		return err
	}
	p, b, again := s.read(d, nil)
	defer b.Close()
	if again == nil || b.file == nil {
		return nil // somebody was faster
	}
	if moved := s.quarantine(b, p); moved != nil {
		return errors.Join(err, moved)
	}
	s.log.Error().Err(err).Str("event", "quarantined").Stringer("object", d).Msg("an object cannot be read from the disk")
	s.reindex(b.e.pack)
	return nil
}

// close ends what is under way and waits for it.
func (h *healing) close() {
	h.mu.Lock()
	h.stop()
	h.mu.Unlock()
	h.gone.Wait()
}

// Healed is a Store whose Get brings back what is missing or damaged before it gives up.
type Healed struct{ *Store }

// Get is Store.Get after a Heal, if one is needed.
func (h Healed) Get(ctx context.Context, d tree.Digest) ([]byte, error) {
	b, err := h.Store.Get(ctx, d)
	if err == nil || !errors.Is(err, tree.ErrMissing) && !errors.Is(err, tree.ErrCorrupt) {
		return b, err
	}
	if healed := h.Heal(ctx, d); healed != nil {
		return nil, errors.Join(err, healed)
	}
	return h.Store.Get(ctx, d)
}
