package source

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// errNoStat: the file system is not one that OpenRoot or a wrapper of it made.
var errNoStat = errors.New("the file system tells no Unix attributes")

func statOf(info os.FileInfo) (*syscall.Stat_t, error) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, errNoStat
	}
	return st, nil
}

// entryOf turns what lstat told into an entry without content or target.
func entryOf(info os.FileInfo) (tree.Entry, error) {
	st, err := statOf(info)
	if err != nil {
		return tree.Entry{}, err
	}
	e := tree.Entry{
		Name: info.Name(), Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid,
		Links: uint32(min(uint64(st.Nlink), 1<<32-1)),
		Mtime: timeOf(st.Mtim),
	}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		e.Type, e.Size, e.Used = tree.Regular, uint64(st.Size), uint64(st.Size)
	case syscall.S_IFDIR:
		e.Type = tree.Directory
	case syscall.S_IFLNK:
		e.Type = tree.Symlink
	case syscall.S_IFIFO:
		e.Type = tree.FIFO
	case syscall.S_IFSOCK:
		e.Type = tree.Socket
	case syscall.S_IFBLK, syscall.S_IFCHR:
		e.Type = tree.Block
		if st.Mode&syscall.S_IFMT == syscall.S_IFCHR {
			e.Type = tree.Char
		}
		e.Rdev = tree.Device{Major: unix.Major(uint64(st.Rdev)), Minor: unix.Minor(uint64(st.Rdev))}
	default:
		return e, fmt.Errorf("unknown file type %o", st.Mode&syscall.S_IFMT)
	}
	return e, nil
}

func timeOf(t syscall.Timespec) tree.Time {
	return tree.Time{Sec: int64(t.Sec), Nsec: uint32(t.Nsec)}
}

func linkOf(st *syscall.Stat_t) tree.LinkID {
	return tree.LinkID{Dev: uint64(st.Dev), Ino: st.Ino}
}

// linked returns the id of a file with several names, else the zero id.
func linked(st *syscall.Stat_t) tree.LinkID {
	if st.Nlink < 2 || st.Mode&syscall.S_IFMT == syscall.S_IFDIR {
		return tree.LinkID{}
	}
	return linkOf(st)
}

// same reports whether two looks at a file saw the same file, unchanged. ctime moves with every change of the content
// or the attributes, and nobody can set it back.
func same(a, b *syscall.Stat_t) bool {
	return linkOf(a) == linkOf(b) && a.Mode == b.Mode && a.Size == b.Size && a.Mtim == b.Mtim && a.Ctim == b.Ctim
}

// check condenses everything that a fingerprint compares, beyond the inode that it is kept under.
type check [16]byte

func checkOf(st *syscall.Stat_t) check {
	var b [40]byte
	for i, v := range [...]int64{st.Size, int64(st.Mtim.Sec), int64(st.Mtim.Nsec), int64(st.Ctim.Sec), int64(st.Ctim.Nsec)} {
		binary.BigEndian.PutUint64(b[8*i:], uint64(v))
	}
	sum := sha256.Sum256(b[:])
	return check(sum[:16])
}

// tick is longer than any kernel's clock tick: two changes less than a tick apart can carry the same ctime.
const tick = 20 * time.Millisecond

// settle returns how long to wait until the file has been at rest for quiet, and until a change that comes later must show
// in the ctime. A ctime without nanoseconds comes from a file system that counts in whole seconds, or in two.
func settle(st *syscall.Stat_t, quiet time.Duration, now time.Time) time.Duration {
	rest := max(tick, quiet)
	if st.Ctim.Nsec == 0 {
		rest = max(2*time.Second+tick, quiet)
	}
	age := now.Sub(time.Unix(int64(st.Ctim.Sec), int64(st.Ctim.Nsec)))
	if age < 0 || age >= rest { // a clock ahead of ours is not one to wait for
		return 0
	}
	return rest - age
}

// vanished: the name was there a moment ago, or the directory above it has been replaced.
func vanished(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}
