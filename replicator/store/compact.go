package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// compaction copies what lives in some packs into one new pack. The old ones go only after the new one is durable with
// its index file; a crash in between leaves objects twice, and the next Open counts one of each as dead.
type compaction struct {
	s       *Store
	id      uint32
	f       *os.File
	buf     []byte   // appended to the new pack, and not yet written
	written int64    // bytes before buf
	records []record // of the new pack
	from    []place  // where each was
}

func (c *compaction) end() int64 { return c.written + int64(len(c.buf)) }

// compact replaces sealed packs by one that holds what lives in them.
func (s *Store) compact(ctx context.Context, packs []*pack, done *Collected) (err error) {
	if len(packs) == 0 {
		return nil
	}
	id, err := s.newID()
	if err != nil {
		return fmt.Errorf("compact: %w", err)
	}
	tmp := s.tmp()
	f, err := s.disk.create(tmp)
	if err != nil {
		return fmt.Errorf("compact: %w", err)
	}
	c := compaction{s: s, id: id, f: f}
	c.buf = appendPackHeader(nil, c.id)
	ids := make(map[uint32]bool)
	for _, p := range packs {
		ids[p.id] = true
	}
	living := s.gather(func(id uint32) bool { return ids[id] })
	var copied []*pack
	for _, p := range packs {
		if err = c.copyPack(ctx, p, living[p.id]); errors.Is(err, errUnreadable) {
			s.log.Error().Err(err).Str("pack", packName(p.id)).Msg("pack not compacted")
			continue
		}
		if err != nil {
			break
		}
		copied = append(copied, p)
	}
	var fresh *pack
	if err == nil || errors.Is(err, errUnreadable) {
		fresh, err = c.finish(tmp)
	}
	if fresh == nil {
		_, _ = f.Close(), os.Remove(tmp)
	} else {
		done.Freed -= fresh.size.Load()
	}
	if err != nil {
		return fmt.Errorf("compact: %w", err)
	}
	for _, p := range copied {
		err = errors.Join(err, s.removePack(p, done))
	}
	return err
}

var errUnreadable = errors.New("unreadable record")

// copyPack appends the living records of p. When one of them cannot be read, it takes back those before it.
func (c *compaction) copyPack(ctx context.Context, p *pack, living []record) error {
	start, count := c.end(), len(c.records)
	var buf []byte
	for _, r := range living {
		if err := c.s.usable(ctx); err != nil {
			return err
		}
		b, blob, err := c.s.read(r.digest, buf)
		buf = b
		switch {
		case errors.Is(err, tree.ErrMissing) || err == nil && blob.e.place != r.in(p):
			continue // gone meanwhile
		case errors.Is(err, tree.ErrCorrupt):
			if err := c.s.quarantine(blob, b); err != nil {
				return err
			}
			continue
		case err != nil:
			c.records, c.from = c.records[:count], c.from[:count]
			c.written, c.buf = min(c.written, start), c.buf[:max(0, start-c.written)]
			return fmt.Errorf("%w: %w", errUnreadable, err)
		}
		n := record{digest: r.digest, off: uint32(c.end()), size: r.size}
		c.buf = append(appendRecordHeader(c.buf, c.id, n), b...)
		c.records, c.from = append(c.records, n), append(c.from, r.in(p))
		if len(c.buf) >= 1<<20 {
			if err := c.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *compaction) flush() error {
	err := c.s.disk.writeAt(c.f, c.buf, c.written)
	if err == nil {
		c.written, c.buf = c.end(), c.buf[:0]
	}
	return err
}

// finish makes the new pack durable and brings it into use. There is none when nothing was copied.
func (c *compaction) finish(tmp string) (*pack, error) {
	if len(c.records) == 0 {
		return nil, nil
	}
	s := c.s
	if err := c.flush(); err != nil {
		return nil, err
	}
	if err := s.disk.truncate(c.f, c.written); err != nil {
		return nil, err
	}
	if err := s.disk.sync(c.f); err != nil {
		return nil, err
	}
	x := packIndex{id: c.id, sealed: true, covered: c.written, records: c.records}
	if err := s.disk.replace(s.indexPathOf(c.id), s.tmp(), x.encode()); err != nil {
		return nil, err
	}
	err := s.disk.rename(tmp, s.pathOf(c.id))
	if err == nil {
		err = s.disk.syncDir(filepath.Join(s.dir, "packs"))
	}
	if err != nil {
		_, _ = os.Rename(s.pathOf(c.id), tmp), os.Remove(s.indexPathOf(c.id))
		return nil, err
	}
	p := &pack{id: c.id, file: newFile(c.f, s.disk), synced: c.written, covered: c.written, linked: true}
	p.size.Store(c.written)
	s.setPack(c.id, p)
	for i, r := range c.records {
		// Counted first: whoever forgets the object right after the move counts it off.
		p.live.Add(recordHeader + int64(r.size))
		if s.index.move(&r.digest, c.from[i], r.in(p)) {
			s.left(c.from[i])
		} else {
			p.live.Add(-recordHeader - int64(r.size))
		}
	}
	return p, nil
}

// removePack deletes a pack if nothing lives in it. Its file is closed when no Blob needs it.
func (s *Store) removePack(p *pack, done *Collected) error {
	s.indexFiles.Lock()
	defer s.indexFiles.Unlock()
	if p.live.Load() != 0 || s.pack(p.id) != p {
		return nil
	}
	// The pack goes first: an index file without its pack is of no consequence.
	if err := s.disk.remove(s.pathOf(p.id)); err != nil {
		return fmt.Errorf("remove pack: %w", err)
	}
	done.Compacted++
	done.Freed += p.size.Load()
	s.setPack(p.id, nil)
	if err := s.disk.remove(s.indexPathOf(p.id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove pack index: %w", err)
	}
	return nil
}
