package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// MaxObject is the size in bytes of the largest object that Put accepts.
const MaxObject = 64 << 20

// The errors of this package; they come wrapped. A missing object is tree.ErrMissing, a damaged one tree.ErrCorrupt.
var (
	ErrLocked = errors.New("store is in use by another process")
	ErrFull   = errors.New("no space left for the store") // together with the system's ENOSPC or EDQUOT
	ErrHeld   = errors.New("store is held")
	ErrClosed = errors.New("store is closed")
)

// Options are the settings of a Store; the zero value has the defaults.
type Options struct {
	Logger    zerolog.Logger
	PackSize  int64 // bytes after which a pack is sealed and the next begun, at most 2 GiB; default 256 MiB
	LargeSize int   // objects of so many bytes or more are files of their own; default 256 KiB
	MaxOpen   int   // large objects kept open between reads; default 1024
	Bulk      int64 // bytes of large objects that wait for a Sync, from which on more of them go past the page cache; default 16 MiB
	Reserve   int64 // bytes of the file system that Put leaves to others; default a twentieth of it, 256 MiB at most
}

func (o Options) withDefaults() Options {
	if o.PackSize <= 0 {
		o.PackSize = 256 << 20
	}
	if o.Bulk <= 0 {
		o.Bulk = 16 << 20
	}
	o.PackSize = min(o.PackSize, maxPackSize)
	if o.LargeSize <= 0 {
		o.LargeSize = 256 << 10
	}
	if o.MaxOpen <= 0 {
		o.MaxOpen = 1024
	}
	return o
}

// Store is one directory of objects; the package comment says what it promises. It is safe for concurrent use.
type Store struct {
	dir  string
	o    Options
	log  zerolog.Logger
	disk *disk
	lock *os.File // holds the flock
	room room
	heal healing

	index     index
	seals     seals
	pageShift int                     // log2 of what the page cache takes from the disk at the least
	packs     atomic.Pointer[[]*pack] // by id, nil where there is none; replaced whole under packsMu
	large     large
	closed    atomic.Bool
	upkeep    chan struct{} // has room for the one Collect that runs
	leftovers []record      // of that Collect: large files that an earlier one could not delete

	verifying sync.Mutex    // held by the one Verify that runs
	serial    atomic.Uint64 // numbers the files in tmp

	packsMu sync.Mutex // guards the replacing of packs and nextID; a leaf
	nextID  uint32

	writeMu  sync.Mutex     // guards active, its fields, and what follows; held during an fsync of the active pack
	active   *pack          // records are appended here; nil until the next Put needs one
	scratch  []byte         // what is being written, and
	appended []sealedRecord // its records
	tail     [1]byte

	reindexing sync.Mutex // held to write the index files of packs that objects have left
	indexFiles sync.Mutex // guards the index files of packs, and a pack's leaving of the directory

	holdMu     sync.Mutex // guards what follows; held during a sweep of the index
	holds      int
	collecting context.CancelCauseFunc // ends the marking of the collection under way; nil when there is none
	failed     error                   // a sync failed, and those who hold have not all heard of it
}

// Open opens the store in dir, which it makes if need be, and recovers what a crash left. It wraps ErrLocked when
// another process, or this one, has it open.
func Open(dir string, o Options) (*Store, error) { return open(dir, o, &disk{}) }

func open(dir string, o Options, k *disk) (_ *Store, err error) {
	o = o.withDefaults()
	s := &Store{dir: dir, o: o, log: o.Logger, disk: k, upkeep: make(chan struct{}, 1), nextID: 1}
	s.room.dir, s.room.reserve, s.room.statfs = dir, o.Reserve, unix.Statfs
	s.heal.init()
	s.seals.blocks = make([]atomic.Uint64, blockWords) // the system gives memory only for those that are used
	s.packs.Store(&[]*pack{})
	s.pageShift = pageShift(dir)
	s.large.init(filepath.Join(dir, "large"), o.MaxOpen, k)
	for _, sub := range []string{"packs", "large", "quarantine", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o750); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	if s.lock, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o640); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	defer func() {
		if err != nil {
			s.lock.Close()
		}
	}()
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	return s, nil
}

// Close makes everything durable and gives up the directory. Blobs opened before stay readable until they are closed.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.heal.close()
	s.holdMu.Lock()
	if s.collecting != nil {
		s.collecting(ErrClosed)
	}
	s.holdMu.Unlock()
	s.upkeep <- struct{}{} // Collect and Verify see that they must end; nothing of them goes on in the directory
	defer func() { <-s.upkeep }()
	s.verifying.Lock()
	defer s.verifying.Unlock()
	err := s.syncLarge()
	s.writeMu.Lock()
	err = errors.Join(err, s.syncActive())
	if a := s.active; a != nil && a.covered < a.synced {
		s.checkpoint(a, false)
	}
	s.active = nil
	s.packsMu.Lock()
	s.packs.Store(&[]*pack{}) // the files are closed when no Blob needs them
	s.packsMu.Unlock()
	s.writeMu.Unlock()
	s.large.closeAll()
	if err = errors.Join(err, s.lock.Close()); err != nil {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

// usable is what every call asks first.
func (s *Store) usable(ctx context.Context) error {
	if s.closed.Load() {
		return ErrClosed
	}
	return ctx.Err()
}

func (s *Store) pathOf(id uint32) string { return filepath.Join(s.dir, "packs", packName(id)) }

func (s *Store) indexPathOf(id uint32) string { return filepath.Join(s.dir, "packs", indexName(id)) }

// tmp returns a path in tmp that nobody else has.
func (s *Store) tmp() string {
	return filepath.Join(s.dir, "tmp", fmt.Sprintf("%d", s.serial.Add(1)))
}

// pack returns the pack with this number, or nil when it has left.
func (s *Store) pack(id uint32) *pack {
	if packs := *s.packs.Load(); int(id) < len(packs) {
		return packs[id]
	}
	return nil
}

// newID returns a pack number that was never used.
func (s *Store) newID() (uint32, error) {
	s.packsMu.Lock()
	defer s.packsMu.Unlock()
	if s.nextID > maxPackID {
		return 0, errors.New("all pack numbers are used up")
	}
	s.nextID++
	return s.nextID - 1, nil
}

// setPack makes id mean p, nil for none.
func (s *Store) setPack(id uint32, p *pack) {
	s.packsMu.Lock()
	defer s.packsMu.Unlock()
	old := *s.packs.Load()
	packs := make([]*pack, max(len(old), int(id)+1))
	copy(packs, old)
	packs[id] = p
	s.packs.Store(&packs)
}

// enter makes the record r of p known, unless its object is already. seal is 0 when nobody has hashed it.
func (s *Store) enter(p *pack, r record, seal uint32) bool {
	if !s.index.insert(&r.digest, r.in(p), seal) {
		return false
	}
	p.live.Add(recordHeader + int64(r.size))
	return true
}

// forget makes d unknown if it is at at.
func (s *Store) forget(d tree.Digest, at place) bool {
	if !s.index.remove(&d, at) {
		return false
	}
	s.left(at)
	return true
}

// left accounts for an object that is no longer known at at.
func (s *Store) left(at place) {
	if at.pack == 0 {
		return
	}
	if p := s.pack(at.pack); p != nil {
		p.live.Add(-recordHeader - int64(at.size))
	}
}

// Stats are the store's figures.
type Stats struct {
	Objects    int64 // objects held
	Bytes      int64 // the sum of their sizes
	Packs      int   // pack files
	LargeFiles int   // objects that are files of their own
	Disk       int64 // bytes of all packs and large files, dead records included
	Free       int64 // bytes that the file system has left for this process; -1 when it does not say
}

// Stats returns the store's figures as they are now.
func (s *Store) Stats() Stats {
	files, bytes := s.large.count.Load(), s.large.bytes.Load()
	st := Stats{Objects: s.index.objects.Load(), Bytes: s.index.bytes.Load(), LargeFiles: int(files), Disk: bytes, Free: -1}
	for _, p := range *s.packs.Load() {
		if p != nil {
			st.Packs++
			st.Disk += p.size.Load()
		}
	}
	var fs unix.Statfs_t
	if unix.Statfs(s.dir, &fs) == nil {
		st.Free = int64(fs.Bavail) * fs.Bsize
	}
	return st
}
