package tree

import (
	"context"
	"fmt"
	"sync"
)

// Objects is where encoded objects are kept. Implementations are safe for concurrent use.
type Objects interface {
	// Get returns an object's bytes, which the caller must not modify; it wraps ErrMissing when there is no such object.
	Get(ctx context.Context, d Digest) ([]byte, error)
	// Put keeps a copy of b and returns its digest. Putting the same bytes again is cheap and harmless.
	Put(ctx context.Context, b []byte) (Digest, error)
}

// Memory is an Objects in memory, for tests and for uploads. It is safe for concurrent use.
type Memory struct {
	mu      sync.RWMutex // guards objects
	objects map[Digest][]byte
}

// NewMemory returns an empty Memory.
func NewMemory() *Memory { return &Memory{objects: make(map[Digest][]byte)} }

// Get returns the object named d. The caller must not modify it.
func (m *Memory) Get(_ context.Context, d Digest) ([]byte, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	b, ok := m.objects[d]
	if !ok {
		return nil, fmt.Errorf("object %s: %w", d, ErrMissing)
	}
	return b, nil
}

// Put keeps a copy of b and returns its digest.
func (m *Memory) Put(_ context.Context, b []byte) (Digest, error) {
	d := Sum(b)
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objects[d]; !ok {
		m.objects[d] = append([]byte{}, b...)
	}
	return d, nil
}

// Len returns the number of objects.
func (m *Memory) Len() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return len(m.objects)
}

// Has reports whether the object named d is there.
func (m *Memory) Has(d Digest) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	_, ok := m.objects[d]
	return ok
}

// Delete forgets the object named d.
func (m *Memory) Delete(d Digest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, d)
}
