package volume

import (
	"sync"
	"sync/atomic"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// contents is a bounded cache of opened contents, by ino: an ino's bytes never change. Readers take no lock.
type contents struct {
	store  Store
	cached CachedOpener // the store, when it is one; else nil
	healer Healer       // the same
	// wanted reports whether an ino's content may stay open; asked after it was put into the cache.
	wanted func(ino uint64) bool
	sets   [contentSets]contentSet
}

// The cache is sets of ways, so that an eviction looks at a few entries only. At most contentSets * contentWays blobs are
// held open beyond those being read.
const (
	contentSets = 512
	contentWays = 8
)

type contentSet struct {
	mu   sync.Mutex // guards hand, and is held to store to ways
	hand int        // where the search for what to evict goes on
	ways [contentWays]atomic.Pointer[opened]
}

// opened is a file's blob or list of extents (part 0), or the blob of its extent part-1.
type opened struct {
	ino  uint64
	part uint32

	blob   Blob        // nil for a list
	digest tree.Digest // of the blob
	list   *extents    // nil for a blob

	refs atomic.Int32 // one for the cache, one for each reader; never rises again from 0, when blob is closed
	used atomic.Bool  // since the hand last passed
}

func newContents(s Store, wanted func(ino uint64) bool) *contents {
	c := &contents{store: s, wanted: wanted}
	c.cached, _ = s.(CachedOpener)
	c.healer, _ = s.(Healer)
	return c
}

// set returns where an ino's part would be.
func (c *contents) set(ino uint64, part uint32) *contentSet {
	// The multiplier spreads neighbours: files of a directory, chunks of a file.
	h := (ino + uint64(part)*0x1000_0001) * 0x9e37_79b9_7f4a_7c15
	return &c.sets[h>>32%contentSets]
}

// acquire returns what is open, for the caller to release; nil when it is not.
func (c *contents) acquire(ino uint64, part uint32) *opened {
	s := c.set(ino, part)
	for i := range s.ways {
		if o := s.ways[i].Load(); o != nil && o.ino == ino && o.part == part && o.hold() {
			if !o.used.Load() {
				o.used.Store(true)
			}
			return o
		}
	}
	return nil
}

// hold adds a reader; ok is false when it was too late.
func (o *opened) hold() (ok bool) {
	for {
		n := o.refs.Load()
		if n == 0 {
			return false
		}
		if o.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// release takes a reader away.
func (o *opened) release() {
	if o.refs.Add(-1) == 0 && o.blob != nil {
		_ = o.blob.Close() // it was only read from
	}
}

// add puts o into the cache and returns it, or what another goroutine has added meanwhile, for the caller to release.
func (c *contents) add(o *opened) *opened {
	o.refs.Store(2)
	s := c.set(o.ino, o.part)
	s.mu.Lock()
	if other := c.acquire(o.ino, o.part); other != nil {
		s.mu.Unlock()
		o.refs.Store(1)
		o.release()
		return other
	}
	i := s.victim()
	old := s.ways[i].Swap(o)
	s.mu.Unlock()
	if old != nil {
		old.release()
	}
	if !c.wanted(o.ino) {
		c.remove(o) // whoever dropped it may have come by before it was there
	}
	return o
}

// victim returns the way that is to be used next. The caller holds mu.
func (s *contentSet) victim() int {
	for i := range s.ways {
		if s.ways[i].Load() == nil {
			return i
		}
	}
	for {
		i := s.hand
		s.hand = (s.hand + 1) % contentWays
		if !s.ways[i].Load().used.Swap(false) {
			return i
		}
	}
}

// remove takes o out of the cache. The caller still has to release it.
func (c *contents) remove(o *opened) {
	s := c.set(o.ino, o.part)
	for i := range s.ways {
		s.mu.Lock()
		found := s.ways[i].CompareAndSwap(o, nil)
		s.mu.Unlock()
		if found {
			o.release()
		}
	}
}

// dropIf takes the contents of those inos out of the cache of which drop says so.
func (c *contents) dropIf(drop func(ino uint64) bool) {
	for i := range c.sets {
		s := &c.sets[i]
		for j := range s.ways {
			if o := s.ways[j].Load(); o != nil && drop(o.ino) {
				c.remove(o)
			}
		}
	}
}
