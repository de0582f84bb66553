package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// checkpointBytes is how much of the active pack may be in no index file: what a start after a crash has to scan.
const checkpointBytes = 64 << 20

// batchBytes is how much is written to a pack at a time.
const batchBytes = 1 << 20

// Put stores b, of at most MaxObject bytes, and returns its digest; storing what is there already costs a hash. The
// object is readable at once, and durable after the next Sync. An error leaves the store as it was; a full disk wraps
// ErrFull. Put does not keep b.
func (s *Store) Put(ctx context.Context, b []byte) (tree.Digest, error) {
	if err := s.usable(ctx); err != nil {
		return tree.Digest{}, fmt.Errorf("put: %w", err)
	}
	if len(b) > MaxObject {
		return tree.Digest{}, fmt.Errorf("put: object of %d bytes, at most %d are allowed", len(b), MaxObject)
	}
	one := [1]Hashed{{tree.Sum(b), b}}
	if err := s.put(ctx, one[:]); err != nil {
		return tree.Digest{}, fmt.Errorf("put: %w", full(err))
	}
	return one[0].Digest, nil
}

// Hashed is an object and its digest.
type Hashed struct {
	Digest tree.Digest
	Bytes  []byte
}

// PutHashed is Put of several objects at once. The caller has hashed them: that the digests are those of the bytes is
// believed, until they next come from the disk. After an error some of them are stored.
func (s *Store) PutHashed(ctx context.Context, objects []Hashed) error {
	if err := s.usable(ctx); err != nil {
		return fmt.Errorf("put: %w", err)
	}
	for _, o := range objects {
		if len(o.Bytes) > MaxObject {
			return fmt.Errorf("put: object of %d bytes, at most %d are allowed", len(o.Bytes), MaxObject)
		}
	}
	if err := s.put(ctx, objects); err != nil {
		return fmt.Errorf("put: %w", full(err))
	}
	return nil
}

// put stores what is not there yet.
func (s *Store) put(ctx context.Context, objects []Hashed) error {
	small, bytes := 0, int64(0)
	for i := range objects {
		o := &objects[i]
		switch {
		case s.index.touch(&o.Digest):
		case len(o.Bytes) < s.o.LargeSize:
			small++
			bytes += int64(len(o.Bytes))
		default:
			if err := s.usable(ctx); err != nil {
				return err
			}
			if err := s.room.take(int64(len(o.Bytes))); err != nil {
				return err
			}
			if err := s.putLarge(o.Digest, o.Bytes); err != nil {
				return err
			}
		}
	}
	if small == 0 {
		return nil
	}
	if err := s.room.take(bytes); err != nil {
		return err
	}
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	for len(objects) > 0 {
		n, err := s.appendSome(objects)
		if err != nil {
			return err
		}
		objects = objects[n:]
	}
	return nil
}

// appendSome appends the small ones of the first n objects, which is as many as are written at a time, to the active pack,
// unless they are there already: another Put of the same bytes may have been first. writeMu is held.
func (s *Store) appendSome(objects []Hashed) (n int, err error) {
	if s.closed.Load() {
		return 0, ErrClosed
	}
	a, err := s.appendable()
	if err != nil {
		return 0, err
	}
	off := a.size.Load()
	s.scratch, s.appended = s.scratch[:0], s.appended[:0]
	for n < len(objects) && len(s.scratch) < batchBytes {
		o := &objects[n]
		n++
		if len(o.Bytes) >= s.o.LargeSize || s.index.touch(&o.Digest) {
			continue
		}
		r := record{digest: o.Digest, off: uint32(off + int64(len(s.scratch))), size: uint32(len(o.Bytes))}
		s.scratch = append(appendRecordHeader(s.scratch, a.id, r), o.Bytes...)
		s.appended = append(s.appended, sealedRecord{r, 0})
	}
	if len(s.appended) == 0 {
		return n, nil
	}
	s.breakTail(a, off)
	for i := range s.appended {
		r := &s.appended[i]
		r.seal = s.seals.now(s.ends(r.in(a)))
	}
	if err := s.disk.writeAt(a.file.f, s.scratch, off); err != nil {
		// The next record takes the same place. Cutting off what was written is for the disk's sake only.
		_ = s.disk.truncate(a.file.f, off)
		return 0, err
	}
	a.size.Store(off + int64(len(s.scratch)))
	for _, r := range s.appended {
		s.enter(a, r.record, r.seal) // twice in a batch: the second is dead
	}
	return n, nil
}

// sealedRecord is a record with the seal for the bytes that are being written.
type sealedRecord struct {
	record
	seal uint32
}

// breakTail breaks the seals of the page before off, unless the page cache has it: to append to it, the kernel must get it
// from the disk, with the end of the object before. writeMu is held.
func (s *Store) breakTail(a *pack, off int64) {
	if off&(1<<s.pageShift-1) == 0 {
		return
	}
	sp := s.page(a.id, off)
	joined := s.seals.enter(sp)
	if a.file.preadCached(s.tail[:], off-1) == 1 {
		s.seals.leave(sp, joined)
	} else {
		s.seals.missed(sp, joined)
	}
}

// appendable returns the active pack, a new one if there is none or it has its size. writeMu is held.
func (s *Store) appendable() (*pack, error) {
	if a := s.active; a != nil {
		if a.size.Load() < s.o.PackSize {
			return a, nil
		}
		if err := s.syncActive(); err != nil {
			return nil, err
		}
		s.checkpoint(a, true)
		s.active = nil
	}
	id, err := s.newID()
	if err != nil {
		return nil, err
	}
	f, err := s.disk.create(s.pathOf(id))
	if err != nil {
		return nil, err
	}
	if err := s.disk.writeAt(f, appendPackHeader(nil, id), 0); err != nil {
		return nil, errors.Join(err, f.Close(), s.disk.remove(s.pathOf(id)))
	}
	s.active = &pack{id: id, file: newFile(f, s.disk)}
	s.active.size.Store(packHeader)
	s.setPack(id, s.active)
	return s.active, nil
}

// syncActive makes the active pack durable. writeMu is held.
func (s *Store) syncActive() error {
	a := s.active
	if a == nil || a.synced == a.size.Load() {
		return nil
	}
	err := s.disk.sync(a.file.f)
	if err == nil && !a.linked {
		err = s.disk.syncDir(s.dir + "/packs")
	}
	if err != nil {
		s.abandonTail(a)
		return s.fail(err)
	}
	a.linked, a.synced = true, a.size.Load()
	return nil
}

// abandonTail forgets what was appended to the active pack since it was last durable. After a failed fsync the kernel
// takes the pages for clean and a second fsync succeeds without having written them, so nothing is to be hoped for: those
// objects must be put again, and into another pack. writeMu is held.
func (s *Store) abandonTail(a *pack) {
	for _, r := range s.gatherOne(a.id) {
		if r.end() > a.synced {
			s.forget(r.digest, r.in(a))
		}
	}
	a.synced = max(a.synced, packHeader)
	a.size.Store(a.synced)
	s.checkpoint(a, true)
	s.active = nil
}

// fail remembers that objects were lost to a failed sync, so that everyone who holds the store hears of it: the objects
// of one may be lost in the Sync of another.
func (s *Store) fail(err error) error {
	s.holdMu.Lock()
	defer s.holdMu.Unlock()
	s.failed = err
	return err
}

// Sync makes every object durable that was put before. After an error the objects put since the Sync before are lost,
// and are reported missing. Whoever puts objects and counts on them together takes a Hold first: then a Sync of somebody
// else that fails makes this one fail too, until all holds are released.
func (s *Store) Sync(ctx context.Context) error {
	if err := s.usable(ctx); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	s.writeMu.Lock()
	err := s.syncActive()
	if a := s.active; err == nil && a != nil && a.synced-a.covered >= checkpointBytes {
		s.checkpoint(a, false)
	}
	s.writeMu.Unlock()
	err = errors.Join(err, s.syncLarge())
	s.holdMu.Lock()
	if err == nil {
		err = s.failed
	}
	if s.holds == 0 {
		s.failed = nil
	}
	s.holdMu.Unlock()
	if err != nil {
		return fmt.Errorf("sync: %w", full(err))
	}
	return nil
}
