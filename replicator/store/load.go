package store

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// loaded is a pack as load found it.
type loaded struct {
	*pack
	sealed  bool
	records []record
}

// load fills the index from the directory: from index files as far as they reach, from the packs themselves beyond.
func (s *Store) load() error {
	if err := s.emptyTmp(); err != nil {
		return err
	}
	ids, err := s.packIDs()
	if err != nil {
		return err
	}
	// A killed process may have left names behind that are not durable; what is found here must count from here on.
	for _, dir := range []string{"packs", "large", ".", ".."} {
		if err := s.disk.syncDir(filepath.Join(s.dir, dir)); err != nil {
			return err
		}
	}
	var packs []loaded
	objects := 0
	for _, id := range ids {
		p, err := s.loadPack(id)
		if err != nil {
			return err
		}
		packs, objects = append(packs, p), objects+len(p.records)
	}
	larges, err := s.large.list()
	if err != nil {
		return err
	}
	s.index.reserve(objects + len(larges))
	for _, l := range larges {
		if s.index.insert(&l.digest, place{size: l.size}, 0) {
			s.large.count.Add(1)
			s.large.bytes.Add(int64(l.size))
		}
	}
	for i, p := range packs {
		s.setPack(p.id, p.pack)
		for _, r := range p.records {
			s.enter(p.pack, r, 0)
		}
		switch {
		case p.sealed && p.covered <= p.synced:
		case !p.sealed && i == len(packs)-1:
			s.active = p.pack
		default:
			s.checkpoint(p.pack, true)
		}
	}
	if a := s.active; a != nil && a.synced-a.covered >= checkpointBytes {
		s.checkpoint(a, false)
	}
	return nil
}

func (s *Store) emptyTmp() error {
	dir := filepath.Join(s.dir, "tmp")
	names, err := readNames(dir)
	for _, name := range names {
		err = errors.Join(err, os.Remove(filepath.Join(dir, name)))
	}
	return err
}

func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(-1)
	return names, errors.Join(err, f.Close())
}

// packIDs returns the numbers of the packs on disk, ascending. It sees to it that none is used again, and deletes index
// files without a pack: a later pack must not find them.
func (s *Store) packIDs() ([]uint32, error) {
	names, err := readNames(filepath.Join(s.dir, "packs"))
	if err != nil {
		return nil, err
	}
	var ids, indexes []uint32
	for _, name := range names {
		number, _, _ := strings.Cut(name, ".")
		n, err := strconv.ParseUint(number, 16, 32)
		id := uint32(n)
		switch {
		case err != nil || id == 0 || id > maxPackID:
			continue
		case name == packName(id):
			ids = append(ids, id)
		case name == indexName(id):
			indexes = append(indexes, id)
		default:
			continue
		}
		s.nextID = max(s.nextID, id+1)
	}
	slices.Sort(ids)
	for _, id := range indexes {
		if _, ok := slices.BinarySearch(ids, id); !ok {
			if err := s.disk.remove(s.indexPathOf(id)); err != nil {
				return nil, err
			}
		}
	}
	return ids, nil
}

// loadPack opens a pack and learns what is in it. The end of an unsealed one is scanned, cut after its last good record,
// and made durable: what a crashed process wrote but did not sync counts from here on.
func (s *Store) loadPack(id uint32) (loaded, error) {
	f, err := s.disk.open(s.pathOf(id), os.O_RDWR)
	if err != nil {
		return loaded{}, err
	}
	info, err := f.Stat()
	if err != nil {
		return loaded{}, errors.Join(err, f.Close())
	}
	p := loaded{pack: &pack{id: id, file: newFile(f, s.disk), linked: true}}
	size := info.Size()
	x, ok, err := s.disk.readPackIndex(s.indexPathOf(id), id)
	if err != nil {
		s.log.Warn().Err(err).Str("pack", packName(id)).Msg("pack index cannot be used: scanning the pack")
	}
	if ok && x.covered > size {
		s.log.Error().Str("pack", packName(id)).Int64("want", x.covered).Int64("have", size).
			Msg("pack is shorter than it was: objects at its end are lost")
		x.records = slices.DeleteFunc(x.records, func(r record) bool { return r.end() > size })
	}
	if ok {
		p.records, p.sealed, p.covered = x.records, x.sealed || x.covered > size, x.covered
		p.size.Store(min(x.covered, size))
	} else {
		p.size.Store(packHeader)
	}
	if !p.sealed {
		if err := s.loadTail(&p, size); err != nil {
			return loaded{}, fmt.Errorf("pack %s: %w", packName(id), errors.Join(err, f.Close()))
		}
	}
	p.synced = p.size.Load()
	return p, nil
}

func (s *Store) loadTail(p *loaded, size int64) error {
	f := p.file.f
	t, err := scanPack(f, p.id, p.size.Load(), size)
	if err != nil {
		return err
	}
	if t.damaged > 0 {
		s.log.Error().Str("pack", packName(p.id)).Int64("bytes", t.damaged).Msg("damaged records in pack")
	}
	if size < packHeader { // a crash between its creation and its first record
		if err := s.disk.writeAt(f, appendPackHeader(nil, p.id), 0); err != nil {
			return full(err)
		}
	}
	if size > t.end {
		s.log.Info().Str("pack", packName(p.id)).Int64("bytes", size-t.end).Msg("cut off an unfinished write")
		if err := s.disk.truncate(f, t.end); err != nil {
			return err
		}
	}
	p.records = append(p.records, t.records...)
	p.size.Store(t.end)
	if len(t.records) == 0 && size == t.end {
		return nil
	}
	return s.disk.sync(f)
}

// largeName is the name of a large object's file: a listing tells all that the index needs.
func largeName(d tree.Digest, size uint32) string { return fmt.Sprintf("%s-%d", d, size) }

// parseLargeName is the inverse of largeName.
func parseLargeName(name string) (r record, ok bool) {
	hex, digits, _ := strings.Cut(name, "-")
	size, err := strconv.ParseUint(digits, 10, 32)
	if err != nil || size > MaxObject || r.digest.UnmarshalText([]byte(hex)) != nil {
		return record{}, false
	}
	r.size = uint32(size)
	return r, largeName(r.digest, r.size) == name
}

// gather returns the living records of the packs for which want is true, each in the order of offsets.
func (s *Store) gather(want func(id uint32) bool) map[uint32][]record {
	found := make(map[uint32][]record)
	s.index.each(func(d *tree.Digest, p place) {
		if want(p.pack) {
			found[p.pack] = append(found[p.pack], record{*d, p.off, p.size})
		}
	})
	for _, records := range found {
		slices.SortFunc(records, func(a, b record) int { return cmp.Compare(a.off, b.off) })
	}
	return found
}

func (s *Store) gatherOne(id uint32) []record {
	return s.gather(func(i uint32) bool { return i == id })[id]
}

// checkpoint writes the index file of p as far as p is durable. That fails without harm: a scan makes up for it.
// writeMu is held when p is the active pack.
func (s *Store) checkpoint(p *pack, sealed bool) {
	s.indexFiles.Lock()
	defer s.indexFiles.Unlock()
	if s.pack(p.id) != p {
		return // it was compacted
	}
	x := packIndex{id: p.id, sealed: sealed, covered: p.synced}
	for _, r := range s.gatherOne(p.id) {
		if r.end() <= p.synced {
			x.records = append(x.records, r)
		}
	}
	if err := s.disk.replace(s.indexPathOf(p.id), s.tmp(), x.encode()); err != nil {
		s.log.Warn().Err(err).Str("pack", packName(p.id)).Msg("pack index not written: the next start scans the pack")
		return
	}
	p.covered = p.synced
}

// reindex writes the index file of pack id again, because an object left it; once for all that left meanwhile.
func (s *Store) reindex(id uint32) {
	p := s.pack(id)
	if p == nil {
		return
	}
	p.stale.Store(true)
	s.reindexing.Lock()
	defer s.reindexing.Unlock()
	if !p.stale.Swap(false) {
		return
	}
	s.writeMu.Lock()
	if s.active == p {
		s.checkpoint(p, false)
		p = nil
	}
	s.writeMu.Unlock()
	if p != nil {
		s.checkpoint(p, true)
	}
}
