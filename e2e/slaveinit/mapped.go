package main

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/e2e/known"
	"github.com/nfs-fleet/nfs-fleet/e2e/wire"
)

// mappings are files that are mapped into memory, by number.
type mappings struct {
	mu  sync.Mutex // guards all
	all map[int]mapping
}

type mapping struct {
	file *os.File
	mem  []byte
}

// Map maps a file into memory, reads nothing of it, and returns the mapping's number. It stays for ever.
func (s *Slave) Map(path string, number *int) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map %s: %w", path, err)
	}
	if err := unix.Madvise(mem, unix.MADV_RANDOM); err != nil { // no page that nobody asked for
		return fmt.Errorf("map %s: %w", path, err)
	}
	s.mappings.mu.Lock()
	defer s.mappings.mu.Unlock()
	*number = len(s.mappings.all) + 1
	s.mappings.all[*number] = mapping{f, mem}
	return nil
}

// CheckMapped faults blocks of a mapping in, past what memory had of them, and returns the version that they are of.
func (s *Slave) CheckMapped(a wire.Mapped, version *uint64) error {
	s.mappings.mu.Lock()
	m, ok := s.mappings.all[a.Number]
	s.mappings.mu.Unlock()
	if !ok {
		return fmt.Errorf("no mapping %d", a.Number)
	}
	part := m.mem[a.From*known.Size : a.To*known.Size]
	if err := unix.Madvise(part, unix.MADV_DONTNEED); err != nil {
		return fmt.Errorf("forget mapped pages: %w", err)
	}
	if err := unix.Fadvise(int(m.file.Fd()), int64(a.From)*known.Size, int64(len(part)), unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("forget cached pages: %w", err)
	}
	v, err := known.Check(part, a.Name, int64(a.From))
	*version = v
	return err
}
