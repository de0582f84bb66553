package replicator

import (
	"context"
	"fmt"
	"sync"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// fetchMeter adds up what several fetches have brought. Safe for concurrent use.
type fetchMeter struct {
	mu         sync.Mutex // guards the rest
	done, last Fetched
}

// set tells how far the present fetch is.
func (m *fetchMeter) set(f Fetched) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = f
}

// next begins with another fetch.
func (m *fetchMeter) next() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done.Objects += m.last.Objects
	m.done.Bytes += m.last.Bytes
	m.last = Fetched{}
}

func (m *fetchMeter) sum() Fetched {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Fetched{m.done.Objects + m.last.Objects, m.done.Bytes + m.last.Bytes}
}

// alone is Peers where there are none: everything has to be here.
type alone struct{}

func (alone) Others() []string { return nil }

func (alone) Fetch(context.Context, tree.Digest, tree.Digest, string, func(Fetched)) error {
	return nil
}

func (alone) Hold(_ context.Context, master, _ string, _ tree.Generation, _ func()) error {
	return fmt.Errorf("master %s: %w", master, ErrDeclined)
}

func (alone) Announce(context.Context, string, string, int, int64, <-chan []tree.Part) error {
	return nil
}

func (alone) FetchAhead(context.Context, string, <-chan []tree.Part, func(Fetched)) error { return nil }

func (alone) Offer(context.Context, string, Offer) (Result, error) { return Result{}, ErrNoTerm }
