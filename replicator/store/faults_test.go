package store

import (
	"testing"

	"golang.org/x/sys/unix"
)

// dropCache makes the kernel forget the pages of a synced blob's file.
func dropCache(t *testing.T, b Blob) {
	t.Helper()
	if err := unix.Fadvise(b.file.fd, 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
}
