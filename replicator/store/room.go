package store

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	maxReserve = 256 << 20
	// roomStep is how many bytes are put between two looks at the file system.
	roomStep = 8 << 20
)

// room keeps Put from taking the last bytes of a file system. What shares it with the store (an etcd, a ledger) fails
// in worse ways than a publish does.
type room struct {
	dir     string
	reserve int64 // 0: by the size of the file system
	statfs  func(string, *unix.Statfs_t) error

	mu   sync.Mutex // guards left
	left int64      // bytes that may be put before the next look
}

// take says that n bytes are about to be written. ErrFull: they would not leave the reserve.
func (r *room) take(n int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left >= n {
		r.left -= n
		return nil
	}
	var fs unix.Statfs_t
	if err := r.statfs(r.dir, &fs); err != nil {
		return nil // the write itself will tell
	}
	reserve := r.reserve
	if reserve == 0 {
		reserve = min(int64(fs.Blocks)*fs.Bsize/20, maxReserve)
	}
	free := int64(fs.Bavail) * fs.Bsize
	if free-n < reserve {
		return fmt.Errorf("%w: %w: %d MiB are free on the file system of %s, and %d MiB are left to others: make room or move the data directory",
			ErrFull, unix.ENOSPC, free>>20, r.dir, reserve>>20)
	}
	r.left = min(roomStep, free-n-reserve)
	return nil
}
