package store

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRoomLeavesTheReserve(t *testing.T) {
	looks := 0
	free := int64(100 << 20)
	r := &room{dir: "/x", statfs: func(_ string, fs *unix.Statfs_t) error {
		looks++
		fs.Bsize, fs.Blocks, fs.Bavail = 4096, 1<<30/4096, uint64(free/4096)
		return nil
	}}
	put := int64(0)
	var err error
	for ; err == nil; err = r.take(64 << 10) {
		put += 64 << 10
		free -= 64 << 10
	}
	reserve := int64(1<<30) / 20
	if !errors.Is(err, ErrFull) {
		t.Fatalf("%v, want ErrFull", err)
	}
	if free < reserve-(1<<20) || free > reserve+roomStep {
		t.Errorf("%d MiB are left, want about the reserve of %d MiB", free>>20, reserve>>20)
	}
	if looks > int(put/roomStep)+20 {
		t.Errorf("looked at the file system %d times for %d MiB", looks, put>>20)
	}
	free = 1 << 30
	if err := r.take(1 << 20); err != nil {
		t.Errorf("there is room again: %v", err)
	}
}

func TestRoomThatCannotBeAskedForIsNotRefused(t *testing.T) {
	r := &room{dir: "/x", statfs: func(string, *unix.Statfs_t) error { return unix.EIO }}
	if err := r.take(1); err != nil {
		t.Error(err)
	}
}
