package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// quarantine takes the damaged object b, of which the bytes in read could be read, out of the store, and keeps it aside.
// It is forgotten only when that is durable: a disk that takes nothing is worse off than one object. The caller calls
// reindex for a pack.
func (s *Store) quarantine(b Blob, read []byte) error {
	var err error
	if b.e.pack == 0 {
		err = s.quarantineFile(b)
	} else {
		err = s.quarantineRecord(b, read)
	}
	if err != nil {
		return fmt.Errorf("quarantine object %s: %w", b.e.digest, full(err))
	}
	s.seals.load(b.span(0, max(b.Size(), 1))) // who has it open hashes it, and finds the same
	if err := s.trimQuarantine(); err != nil {
		s.log.Warn().Err(err).Msg("the quarantine grows beyond its bounds")
	}
	return nil
}

// The quarantine has no more than so many files and bytes: a disk that fails fills it.
const (
	quarantineFiles = 1000
	quarantineBytes = 256 << 20
)

// trimQuarantine removes the oldest files of the quarantine as long as it is beyond its bounds.
func (s *Store) trimQuarantine() error {
	dir := filepath.Join(s.dir, "quarantine")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var files []os.FileInfo
	bytes := int64(0)
	for _, e := range entries {
		if info, err := e.Info(); err == nil { // else somebody has tidied up
			files = append(files, info)
			bytes += info.Size()
		}
	}
	slices.SortFunc(files, func(a, b os.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	for len(files) > 1 && (len(files) > quarantineFiles || bytes > quarantineBytes) {
		err = errors.Join(err, s.disk.remove(filepath.Join(dir, files[0].Name())))
		bytes -= files[0].Size()
		files = files[1:]
	}
	return err
}

func (s *Store) quarantineRecord(b Blob, read []byte) error {
	dir := filepath.Join(s.dir, "quarantine")
	path := filepath.Join(dir, fmt.Sprintf("%s-%08x-%d", b.e.digest, b.e.pack, b.e.off))
	err := s.disk.replace(path, s.tmp(), read)
	if err == nil {
		err = s.disk.syncDir(dir)
	}
	if err == nil {
		s.forget(b.e.digest, b.e.place)
	}
	return err
}

// quarantineFile moves the file of a large object, if it is still the one in its place.
func (s *Store) quarantineFile(b Blob) error {
	l, d := &s.large, b.e.digest
	l.placing.Lock()
	defer l.placing.Unlock()
	l.mu.RLock()
	p := l.pending[d]
	l.mu.RUnlock()
	from := l.path(d, b.e.size)
	if p != nil {
		from = p.tmp
	}
	if !b.file.same(from) {
		return nil // it was done, and perhaps the object was put again
	}
	dir := filepath.Join(s.dir, "quarantine")
	err := s.disk.rename(from, filepath.Join(dir, d.String()))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	b.file.blocks.bad.Store(true)
	if p != nil {
		s.settle(d, p, true)
	} else if s.index.remove(&d, b.e.place) {
		l.leave(b.e.size)
	}
	l.drop(d)
	return errors.Join(s.disk.syncDir(dir), s.disk.syncDir(l.dir))
}
