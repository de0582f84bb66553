package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

const (
	pendingFiles = 256       // large objects that may wait for a Sync; one more makes one
	pendingBytes = 512 << 20 // and their bytes
	syncWorkers  = 8         // fsyncs at a time
	aroundLeast  = 1 << 20   // bytes of an object that is worth a write of its own past the page cache
)

// large is the objects that are files of their own: those open, and those not yet durable. A file comes to its place in
// dir only after its bytes are durable.
type large struct {
	dir   string
	disk  *disk
	max   int // files that the cache keeps open
	count atomic.Int64
	bytes atomic.Int64

	placing sync.Mutex // guards what dir holds; held while a batch is made durable

	mu      sync.RWMutex // guards what follows; never held during I/O
	open    map[tree.Digest]*file
	ring    []tree.Digest // the keys of open, for the clock hand
	hand    int
	drops   uint64 // counts drop, so that a file opened before one is not cached after it
	pending map[tree.Digest]*pendingFile
	waiting int64                   // bytes of pending
	checked map[tree.Digest]*blocks // of the files in their place, open or not; not of all
}

// pendingFile is a large object that a Sync has yet to make durable and bring to its place.
type pendingFile struct {
	*file // held
	tmp   string
	size  uint32
}

func (l *large) init(dir string, max int, k *disk) {
	l.dir, l.max, l.disk, l.checked = dir, max, k, make(map[tree.Digest]*blocks)
	l.open, l.pending = make(map[tree.Digest]*file), make(map[tree.Digest]*pendingFile)
}

func (l *large) path(d tree.Digest, size uint32) string {
	return filepath.Join(l.dir, largeName(d, size))
}

// list returns the large objects on disk.
func (l *large) list() ([]record, error) {
	names, err := readNames(l.dir)
	if err != nil {
		return nil, err
	}
	found := make([]record, 0, len(names))
	for _, name := range names {
		if r, ok := parseLargeName(name); ok {
			found = append(found, r)
		}
	}
	return found, nil
}

// cached returns the file of d, held for the caller, if the cache has it, and how many drops there were.
func (l *large) cached(d tree.Digest) (*file, uint64) {
	l.mu.RLock()
	f, drops := l.open[d], l.drops
	ok := f != nil && f.acquire()
	l.mu.RUnlock()
	if !ok {
		return nil, drops
	}
	if !f.used.Load() {
		f.used.Store(true)
	}
	return f, drops
}

// get returns the file of d, held for the caller. It opens the file only when the cache does not have it.
func (l *large) get(d tree.Digest, size uint32) (*file, error) {
	f, drops := l.cached(d)
	if f != nil {
		return f, nil
	}
	if f := l.adopt(d, nil, drops); f != nil {
		return f, nil
	}
	o, err := l.disk.open(l.path(d, size), os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	return l.adopt(d, newCounted(o, l.disk), drops), nil
}

// adopt returns the file of d, held for the caller: the cache's, or that of an object not yet durable, or opened, which
// may be nil. It puts the file into the cache unless something was dropped since drops was read.
func (l *large) adopt(d tree.Digest, opened *file, drops uint64) *file {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f := l.open[d]; f != nil && f.acquire() {
		if opened != nil {
			_ = opened.release()
		}
		return f
	}
	if p := l.pending[d]; opened == nil && p != nil && p.acquire() {
		opened = p.file
	}
	if opened != nil && opened.blocks == nil {
		opened.blocks = l.blocksOf(d)
	}
	if opened == nil || l.drops != drops {
		return opened
	}
	opened.refs.Add(1) // the cache's; the caller holds it already
	l.makeRoom()
	l.open[d] = opened
	l.ring = append(l.ring, d)
	return opened
}

// makeRoom lets the cache let go of a file that was not read since the hand last came by. l.mu is held.
func (l *large) makeRoom() {
	for len(l.open) >= l.max {
		l.hand %= len(l.ring)
		f, known := l.open[l.ring[l.hand]]
		if known && f.used.Swap(false) {
			l.hand++
			continue
		}
		if known {
			delete(l.open, l.ring[l.hand])
			_ = f.release()
		}
		last := len(l.ring) - 1
		l.ring[l.hand] = l.ring[last]
		l.ring = l.ring[:last]
	}
}

// drop makes the cache let go of d.
func (l *large) drop(d tree.Digest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drops++
	f := l.open[d]
	if f == nil {
		return
	}
	delete(l.open, d)
	_ = f.release()
	for i, other := range l.ring {
		if other == d {
			last := len(l.ring) - 1
			l.ring[i] = l.ring[last]
			l.ring = l.ring[:last]
			return
		}
	}
}

func (l *large) closeAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.open {
		_ = f.release()
	}
	clear(l.open)
	l.ring = nil
}

// putLarge writes b to a file of its own, which stays in tmp until a Sync.
func (s *Store) putLarge(d tree.Digest, b []byte) error {
	tmp := s.tmp()
	o, err := s.disk.create(tmp)
	if err != nil {
		return err
	}
	f := newCounted(o, s.disk)
	f.blocks = newBlocks(d)
	sums := f.blocks.sum(&s.seals, b)
	if err := s.writeLarge(f, b); err != nil {
		return errors.Join(err, f.release(), s.disk.remove(tmp))
	}
	f.blocks.sums.Store(&sums)

	l := &s.large
	l.mu.Lock()
	added := !s.closed.Load() && s.index.insert(&d, place{size: uint32(len(b))}, 0)
	kept := added && l.pending[d] == nil // else the file of an object just collected, which is as good
	if kept {
		l.keepBlocks(d, f.blocks) // what was known is of another file
		l.pending[d] = &pendingFile{f, tmp, uint32(len(b))}
		l.waiting += int64(len(b))
	}
	if added {
		l.count.Add(1)
		l.bytes.Add(int64(len(b)))
	}
	enough := len(l.pending) >= pendingFiles || l.waiting >= pendingBytes
	l.mu.Unlock()
	if !kept {
		err = errors.Join(f.release(), s.disk.remove(tmp))
		if s.closed.Load() {
			err = ErrClosed
		}
		return err
	}
	if enough {
		return s.syncLarge()
	}
	return nil
}

// writeLarge writes the content of a new file. What comes in bulk goes past the page cache: it would drive out what is
// being read, and most of it is not read soon.
func (s *Store) writeLarge(f *file, b []byte) error {
	l := &s.large
	l.mu.RLock()
	bulk := l.waiting >= s.o.Bulk && len(b) >= aroundLeast
	l.mu.RUnlock()
	if !bulk {
		err := s.disk.writeAt(f.f, b, 0)
		// Only a hint, for the fsync to find less to do.
		_ = unix.SyncFileRange(f.fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE)
		return err
	}
	around, err := s.disk.writeAround(f.f, b)
	f.blocks.around.Store(around)
	return err
}

// syncLarge makes the large objects durable that wait for it. Those that cannot be are forgotten.
func (s *Store) syncLarge() error {
	l := &s.large
	l.placing.Lock()
	defer l.placing.Unlock()
	l.mu.RLock()
	batch := make(map[tree.Digest]*pendingFile, len(l.pending))
	for d, p := range l.pending {
		batch[d] = p
	}
	l.mu.RUnlock()
	if len(batch) == 0 {
		return nil
	}
	var g errgroup.Group
	g.SetLimit(syncWorkers)
	for d, p := range batch {
		g.Go(func() error {
			if err := l.disk.sync(p.f); err != nil {
				return err
			}
			return l.disk.rename(p.tmp, l.path(d, p.size))
		})
	}
	err := g.Wait()
	if err == nil {
		err = l.disk.syncDir(l.dir)
	}
	for d, p := range batch {
		s.settle(d, p, err != nil)
		if err != nil {
			l.drop(d)
			_ = os.Remove(p.tmp)
			_ = os.Remove(l.path(d, p.size))
		}
	}
	if err != nil {
		return s.fail(err)
	}
	return nil
}

// settle takes p off the list of what waits, and its object out of the index if it is lost. Both happen at once, so that
// a Put meanwhile does not count on a file that goes.
func (s *Store) settle(d tree.Digest, p *pendingFile, lost bool) {
	l := &s.large
	l.mu.Lock()
	defer l.mu.Unlock()
	if lost && s.index.remove(&d, place{size: p.size}) {
		l.leave(p.size)
	}
	delete(l.pending, d)
	l.waiting -= int64(p.size)
	_ = p.release()
}

// leave accounts for a large object that is no more.
func (l *large) leave(size uint32) {
	l.count.Add(-1)
	l.bytes.Add(-int64(size))
}

// removeLarge deletes the files of large objects that the index has forgotten. One that was put again meanwhile stays.
func (s *Store) removeLarge(ctx context.Context, gone []record, c *Collected) error {
	l := &s.large
	var failed error
	for i, r := range gone {
		if err := s.usable(ctx); err != nil {
			s.leftovers = append(s.leftovers, gone[i:]...)
			return errors.Join(failed, err)
		}
		freed, err := s.unlinkLarge(r)
		if err != nil {
			s.leftovers = append(s.leftovers, r)
			failed = fmt.Errorf("remove large object %s: %w", r.digest, err)
		}
		c.Freed += freed
		l.drop(r.digest)
	}
	return failed
}

// unlinkLarge deletes the file of a large object that the index has forgotten, and returns the bytes that it had.
func (s *Store) unlinkLarge(r record) (freed int64, err error) {
	l := &s.large
	l.placing.Lock()
	defer l.placing.Unlock()
	l.mu.RLock()
	p := l.pending[r.digest]
	_, again := s.index.lookup(&r.digest)
	l.mu.RUnlock()
	if again {
		l.leave(r.size) // it was counted twice
		return 0, nil
	}
	if p != nil {
		s.settle(r.digest, p, false)
		l.leave(r.size)
		return int64(r.size), s.disk.remove(p.tmp)
	}
	if err := s.disk.remove(l.path(r.digest, r.size)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	l.leave(r.size)
	return int64(r.size), nil
}

// vanished makes the index forget a large object whose file somebody took away, and reports whether it did.
func (s *Store) vanished(d tree.Digest, at place) bool {
	l := &s.large
	l.placing.Lock()
	defer l.placing.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pending[d] != nil {
		return false
	}
	if _, err := os.Lstat(l.path(d, at.size)); !errors.Is(err, os.ErrNotExist) || !s.index.remove(&d, at) {
		return false
	}
	l.leave(at.size)
	return true
}
