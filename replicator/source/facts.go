package source

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// fact is what is known about an inode's content. A zero check fits no file: the inode is known, its content is not.
type fact struct {
	check   check
	content tree.Content
	used    uint64
}

// factSize is the length of a stored fact: check, form, digest, used.
const factSize = 16 + 1 + 32 + 8

// factBatch is how many facts are gathered before they are written.
const factBatch = 20_000

var (
	factBucket    = []byte("facts.v1")    // dev, ino (8 bytes each, big endian) → fact
	summaryBucket = []byte("summary.v1")  // one record
	summaryKey    = []byte("last commit") // → summary
)

// summary is what the last committed scan found: estimates for the next one's progress, and what tells a source that
// was emptied from one that was unmounted.
type summary struct{ Dev, Ino, Files, Bytes uint64 }

// facts keeps fingerprints by inode, in a bbolt file or, without one, in memory. Safe for concurrent use.
type facts struct {
	db *bbolt.DB // nil: memory

	mu     sync.Mutex // guards what follows
	memory map[tree.LinkID]fact
	fresh  map[tree.LinkID]fact // not in db yet
	last   summary
}

// openFacts opens or creates the file. One that cannot be read is replaced: it holds nothing that the source does not.
func openFacts(path string) (*facts, error) {
	f := &facts{memory: map[tree.LinkID]fact{}, fresh: map[tree.LinkID]fact{}}
	if path == "" {
		return f, nil
	}
	db, err := openBolt(path)
	if err != nil && !errors.Is(err, berrors.ErrTimeout) && !errors.Is(err, os.ErrPermission) {
		if err = os.Remove(path); err == nil || errors.Is(err, os.ErrNotExist) {
			db, err = openBolt(path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open fingerprints %s: %w", path, err)
	}
	f.db = db
	return f, db.View(func(tx *bbolt.Tx) error {
		f.last.decode(tx.Bucket(summaryBucket).Get(summaryKey))
		return nil
	})
}

func openBolt(path string) (db *bbolt.DB, err error) {
	defer func() { // bbolt panics on pages that make no sense
		if p := recover(); p != nil {
			err = fmt.Errorf("damaged: %v", p)
		}
	}()
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return nil, err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(factBucket)
		_, err2 := tx.CreateBucketIfNotExists(summaryBucket)
		return errors.Join(err, err2)
	})
	if err != nil {
		db.Close()
		return nil, err
	}
	return db, nil
}

func (f *facts) close() error {
	if f.db == nil {
		return nil
	}
	return errors.Join(f.flush(), f.db.Close())
}

// get returns what is known about an inode.
func (f *facts) get(id tree.LinkID) (fact, bool) {
	var v fact
	var ok bool
	f.each(1, func(int) tree.LinkID { return id }, func(_ int, found fact) { v, ok = found, true })
	return v, ok
}

// each calls found with what is known about the inodes that id returns for 0 to n-1; a zero id is none.
func (f *facts) each(n int, id func(int) tree.LinkID, found func(int, fact)) {
	var unwritten []int
	f.mu.Lock()
	for i := range n {
		v, ok := f.fresh[id(i)]
		if !ok && f.db == nil {
			v, ok = f.memory[id(i)]
		}
		if ok {
			found(i, v)
		} else if f.db != nil && id(i) != (tree.LinkID{}) {
			unwritten = append(unwritten, i)
		}
	}
	f.mu.Unlock()
	if len(unwritten) == 0 {
		return
	}
	// An error means that nothing is known: reading the files again is the answer to that.
	_ = f.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(factBucket)
		var key [16]byte
		for _, i := range unwritten {
			if v, ok := decodeFact(b.Get(appendKey(key[:0], id(i)))); ok {
				found(i, v)
			}
		}
		return nil
	})
}

// put remembers a fact; it is durable after flush.
func (f *facts) put(id tree.LinkID, v fact) error {
	f.mu.Lock()
	if f.db == nil {
		f.memory[id] = v
		f.mu.Unlock()
		return nil
	}
	f.fresh[id] = v
	full := len(f.fresh) >= factBatch
	f.mu.Unlock()
	if full {
		return f.flush()
	}
	return nil
}

// flush writes what was put, in key order, so that pages fill up.
func (f *facts) flush() error {
	f.mu.Lock()
	defer f.mu.Unlock() // held while writing: get must find a fact in one place or the other
	if f.db == nil || len(f.fresh) == 0 {
		return nil
	}
	keys := make([][]byte, 0, len(f.fresh))
	for id := range f.fresh {
		keys = append(keys, factKey(id))
	}
	slices.SortFunc(keys, bytes.Compare)
	err := f.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(factBucket)
		b.FillPercent = 0.9
		for _, k := range keys {
			if err := b.Put(k, f.fresh[factID(k)].encode()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write fingerprints: %w", err)
	}
	clear(f.fresh)
	return nil
}

// commit writes everything with the summary of a committed scan. seen, when not nil, is every inode that a full scan
// met: when the rest has become a burden it is dropped.
func (f *facts) commit(s summary, seen []tree.LinkID) error {
	if err := f.flush(); err != nil {
		return err
	}
	f.mu.Lock()
	f.last = s
	f.mu.Unlock()
	if f.db == nil {
		return nil
	}
	err := f.db.Update(func(tx *bbolt.Tx) error {
		return errors.Join(tx.Bucket(summaryBucket).Put(summaryKey, s.encode()), sweep(tx.Bucket(factBucket), seen))
	})
	if err != nil {
		return fmt.Errorf("write fingerprints: %w", err)
	}
	if seen != nil {
		f.unmap()
	}
	return nil
}

// unmap takes the file's pages out of this process's memory, which a full scan has all looked at: they would count as
// resident until the next one. They stay mapped, and come back from the system's cache one by one. A system that does
// not do it does no harm.
func (f *facts) unmap() {
	_ = f.db.View(func(tx *bbolt.Tx) error { // while a transaction is open the mapping stays where it is
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, f.db.Info().Data, uintptr(tx.Size()), unix.MADV_DONTNEED)
		return nil
	})
}

// sweep drops facts about inodes that a full scan did not meet, once they are more than a fifth.
func sweep(b *bbolt.Bucket, seen []tree.LinkID) error {
	if seen == nil || b.Stats().KeyN <= len(seen)+len(seen)/4+1024 {
		return nil
	}
	live := make(map[tree.LinkID]struct{}, len(seen))
	for _, id := range seen {
		live[id] = struct{}{}
	}
	var dead [][]byte
	err := b.ForEach(func(k, _ []byte) error {
		if _, ok := live[factID(k)]; !ok {
			dead = append(dead, bytes.Clone(k))
		}
		return nil
	})
	for _, k := range dead {
		err = errors.Join(err, b.Delete(k))
	}
	return err
}

func (f *facts) summary() summary {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

func factKey(id tree.LinkID) []byte { return appendKey(make([]byte, 0, 16), id) }

func appendKey(b []byte, id tree.LinkID) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, id.Dev), id.Ino)
}

func factID(k []byte) tree.LinkID {
	if len(k) != 16 {
		return tree.LinkID{}
	}
	return tree.LinkID{Dev: binary.BigEndian.Uint64(k), Ino: binary.BigEndian.Uint64(k[8:])}
}

func (v fact) encode() []byte {
	b := append(make([]byte, 0, factSize), v.check[:]...)
	b = append(b, byte(v.content.Form))
	b = append(b, v.content.Digest[:]...)
	return binary.BigEndian.AppendUint64(b, v.used)
}

// decodeFact is strict: anything that encode did not write is no fact.
func decodeFact(b []byte) (v fact, ok bool) {
	if len(b) != factSize {
		return fact{}, false
	}
	copy(v.check[:], b)
	v.content.Form = tree.Form(b[16])
	copy(v.content.Digest[:], b[17:])
	v.used = binary.BigEndian.Uint64(b[49:])
	switch v.content.Form {
	case tree.NoContent:
		ok = v.content.Digest.IsZero()
	case tree.Blob, tree.Chunks:
		ok = !v.content.Digest.IsZero()
	}
	if !ok {
		return fact{}, false
	}
	return v, true
}

func (s summary) encode() []byte {
	var b []byte
	for _, v := range [...]uint64{s.Dev, s.Ino, s.Files, s.Bytes} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return b
}

func (s *summary) decode(b []byte) {
	if len(b) != 32 {
		return
	}
	for i, p := range [...]*uint64{&s.Dev, &s.Ino, &s.Files, &s.Bytes} {
		*p = binary.BigEndian.Uint64(b[8*i:])
	}
}
