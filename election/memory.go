package election

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"
)

// Memory is what etcd is to an election, inside one process and without I/O: for tests of what is built on Election.
// All elections made from one Memory see each other. It runs on Go's clock, so testing/synctest controls its leases.
// It is safe for concurrent use.
type Memory struct {
	mu        sync.Mutex // guards everything below
	rev       int64
	keys      map[string]kv
	leases    map[int64]*memoryLease
	log       []kv // every change, by mod
	compacted int64
	wake      chan struct{} // closed at each change
	cut       map[string]bool
}

type memoryLease struct {
	ttl    time.Duration
	expire *time.Timer
}

// NewMemory returns an empty Memory.
func NewMemory() *Memory {
	return &Memory{rev: 1, keys: map[string]kv{}, leases: map[int64]*memoryLease{}, wake: make(chan struct{}), cut: map[string]bool{}}
}

// New returns an election on m. Config.Client is not used, and the TTL may be as short as a test likes.
func (m *Memory) New(c Config) (Election, error) {
	if c.TTL == 0 {
		c.TTL = DefaultTTL
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return newLoop(c, &memoryBackend{m, c.Prefix, c.Master}, monotonicClock), nil
}

// Cut makes the named master's requests go unanswered, or be answered again.
func (m *Memory) Cut(master string, cut bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cut[master] = cut
	m.notify()
}

// Get returns the value of a key and its CreateRevision, 0 if there is none.
func (m *Memory) Get(key string) (value []byte, created int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.keys[key].value, m.keys[key].create
}

// Put sets a key without a lease, as an administrator may.
func (m *Memory) Put(key string, value []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rev++
	m.put(key, value, 0)
	m.notify()
}

// Delete deletes a key.
func (m *Memory) Delete(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rev++
	m.remove(key)
	m.notify()
}

// Revoke ends a lease and deletes its keys. It reports false if there is no such lease.
func (m *Memory) Revoke(id int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	l, ok := m.leases[id]
	if !ok {
		return false
	}
	l.expire.Stop()
	delete(m.leases, id)
	m.rev++
	for key, k := range m.keys {
		if k.lease == id {
			m.remove(key)
		}
	}
	m.notify()
	return true
}

// put, remove and notify are called with m.mu held and m.rev at the revision of the change.
func (m *Memory) put(key string, value []byte, lease int64) {
	k := kv{key, value, m.rev, m.rev, lease}
	if old, ok := m.keys[key]; ok {
		k.create = old.create
	}
	m.keys[key] = k
	m.log = append(m.log, k)
}

func (m *Memory) remove(key string) {
	if _, ok := m.keys[key]; ok {
		delete(m.keys, key)
		m.log = append(m.log, kv{key: key, mod: m.rev})
	}
}

func (m *Memory) notify() {
	close(m.wake)
	m.wake = make(chan struct{})
}

// memoryBackend is one master's way to a Memory.
type memoryBackend struct {
	m      *Memory
	prefix string
	master string
}

func (b *memoryBackend) tries() int            { return 1 }
func (b *memoryBackend) close(context.Context) {}

// enter waits while the master is cut off and returns with m.mu held.
func (b *memoryBackend) enter(ctx context.Context) error {
	for {
		b.m.mu.Lock()
		if !b.m.cut[b.master] {
			return nil
		}
		wake := b.m.wake
		b.m.mu.Unlock()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-wake:
		}
	}
}

func (b *memoryBackend) grant(ctx context.Context, ttl time.Duration) (int64, time.Duration, error) {
	if err := b.enter(ctx); err != nil {
		return 0, 0, err
	}
	defer b.m.mu.Unlock()
	b.m.rev++
	id := b.m.rev
	b.m.leases[id] = &memoryLease{ttl, time.AfterFunc(ttl, func() { b.m.Revoke(id) })}
	return id, ttl, nil
}

func (b *memoryBackend) renew(ctx context.Context, id int64) (time.Duration, error) {
	if err := b.enter(ctx); err != nil {
		return 0, err
	}
	defer b.m.mu.Unlock()
	l, ok := b.m.leases[id]
	if !ok {
		return 0, errGone
	}
	l.expire.Reset(l.ttl)
	return l.ttl, nil
}

func (b *memoryBackend) revoke(ctx context.Context, id int64) error {
	if err := b.enter(ctx); err != nil {
		return err
	}
	b.m.mu.Unlock()
	if !b.m.Revoke(id) {
		return errGone
	}
	return nil
}

func (b *memoryBackend) read(ctx context.Context, _ int64, _ int) (snapshot, error) {
	if err := b.enter(ctx); err != nil {
		return snapshot{}, err
	}
	defer b.m.mu.Unlock()
	s := snapshot{rev: b.m.rev}
	for key, k := range b.m.keys {
		if strings.HasPrefix(key, keysPrefix(b.prefix)) {
			s.kvs = append(s.kvs, k)
		}
	}
	return s, nil
}

func (b *memoryBackend) write(ctx context.Context, w write) (written, error) {
	for _, id := range w.revoke {
		if err := b.revoke(ctx, id); err != nil && !errors.Is(err, errGone) {
			return written{}, err
		}
	}
	if err := b.enter(ctx); err != nil {
		return written{}, err
	}
	m := b.m
	defer m.mu.Unlock()
	if _, ok := m.leases[w.lease]; !ok {
		return written{}, errors.New("requested lease not found")
	}
	m.rev++
	out := written{rev: m.rev}
	for _, key := range w.claims {
		if m.keys[key].create == 0 {
			m.put(key, w.claim, w.lease)
		}
		out.seats = append(out.seats, m.keys[key])
	}
	for key, mark := range w.marks {
		if m.keys[key].create == mark.epoch {
			m.put(key, mark.value, w.lease)
		}
		if k, ok := m.keys[key]; ok {
			out.seats = append(out.seats, k)
		}
	}
	for key, epoch := range w.releases {
		if m.keys[key].create == epoch {
			m.remove(key)
		}
	}
	for key, value := range w.puts {
		m.put(key, value, w.lease)
	}
	for _, key := range w.deletes {
		if m.keys[key].lease == w.lease {
			m.remove(key)
		}
	}
	m.notify()
	return out, nil
}

func (b *memoryBackend) watch(ctx context.Context, rev int64, each func(changes)) error {
	for {
		if err := b.enter(ctx); err != nil {
			return err
		}
		wake := b.m.wake
		missing := rev <= b.m.compacted
		ch := b.since(rev)
		b.m.mu.Unlock()
		if missing {
			return errors.New("required revision has been compacted")
		}
		if len(ch.kvs) > 0 {
			each(ch)
			rev = ch.rev + 1
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-wake:
		}
	}
}

// since returns the changes from revision rev on. m.mu is held.
func (b *memoryBackend) since(rev int64) changes {
	first, _ := slices.BinarySearchFunc(b.m.log, rev, func(k kv, rev int64) int { return int(k.mod - rev) })
	var ch changes
	for _, k := range b.m.log[first:] {
		if strings.HasPrefix(k.key, keysPrefix(b.prefix)) {
			ch.kvs = append(ch.kvs, k)
			ch.rev = k.mod
		}
	}
	return ch
}
