// Package wire is what a test and the first process of its slave say to each other: net/rpc over a serial line. Strings are
// bytes, as file names are; nothing here assumes UTF-8.
//
// Errors of the slave's kernel are answers, not RPC failures: they travel as Errno, so that a test can tell ESTALE from EIO.
package wire

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"syscall"
	"time"
)

// Ready is what the slave writes once its end of the line is set up; the test sends nothing before.
const Ready = "slave ready\n"

// Setup makes the slave's network.
type Setup struct {
	Address string // with prefix length
}

// Command is a program to run to its end.
type Command struct {
	Args  []string
	Limit time.Duration // killed after this long
}

// Result is what a program left. Code is its exit code, -1 when it was killed.
type Result struct {
	Code           int
	Stdout, Stderr []byte
}

// Attr is what lstat says of a file.
type Attr struct {
	Ino, Nlink, Rdev    uint64
	Mode, UID, GID      uint32 // Mode as in st_mode: type and permission bits
	Size, Blocks        int64
	Atime, Mtime, Ctime syscall.Timespec
}

// AttrOf takes the attributes out of a FileInfo.
func AttrOf(info os.FileInfo) Attr {
	st := info.Sys().(*syscall.Stat_t)
	return Attr{
		Ino: st.Ino, Nlink: uint64(st.Nlink), Rdev: st.Rdev,
		Mode: st.Mode, UID: st.Uid, GID: st.Gid,
		Size: st.Size, Blocks: st.Blocks,
		Atime: st.Atim, Mtime: st.Mtim, Ctime: st.Ctim,
	}
}

// Stat is the answer about a name or an open file.
type Stat struct {
	Errno syscall.Errno
	Attr  Attr
}

// Opened is an open file on the slave.
type Opened struct {
	Errno  syscall.Errno
	Handle int
	Attr   Attr
}

// ReadAt reads from an open file.
type ReadAt struct {
	Handle int
	Offset int64
	Length int
}

// Data is what a read or readlink returned.
type Data struct {
	Errno syscall.Errno
	Data  []byte
}

// Names is a directory's content in the order in which the kernel returned it, without "." and "..".
type Names struct {
	Errno syscall.Errno
	Names []string
}

// Loop reads a file from beginning to end again and again, opening it each time, until it is collected.
type Loop struct {
	Path string
	Keep bool // open once, and read the open file again and again
}

// Report is what a loop saw. A read is one pass over the file.
type Report struct {
	Reads   int
	Longest time.Duration  // the longest single pass
	Sums    map[string]int // SHA-256 of a pass → how often
	Inos    map[uint64]int // inode number of a pass → how often
	Errors  []string       // at most 20
	Failed  int            // passes that ended in an error
}

// Errno takes the kernel's word out of an error; EIO stands for what has none.
func Errno(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	for e := err; e != nil; {
		if errno, ok := e.(syscall.Errno); ok {
			return errno
		}
		u, ok := e.(interface{ Unwrap() error })
		if !ok {
			break
		}
		e = u.Unwrap()
	}
	return syscall.EIO
}

// Listing asks for one digest over a whole tree: what both sides of a comparison must agree on.
type Listing struct {
	Root     string
	Contents bool     // the bytes of regular files too
	Skip     []string // paths below Root that are left out, with what is in them
}

// Summary is a tree's digest.
type Summary struct {
	Entries int
	Bytes   int64
	Sum     string
	Error   string
}

// Summarize walks a tree and digests names, types, modes, owners, sizes, links, modification times, targets and contents.
func Summarize(l Listing) Summary {
	var s Summary
	sum := sha256.New()
	skip := map[string]bool{}
	for _, p := range l.Skip {
		skip[p] = true
	}
	err := walk(l.Root, "", skip, func(path string, info os.FileInfo) error {
		s.Entries++
		return describe(sum, &s, l, path, info)
	})
	if err != nil {
		s.Error = err.Error()
	}
	s.Sum = fmt.Sprintf("%x", sum.Sum(nil))
	return s
}

// walk goes through a tree in the order of its names' bytes; filepath.WalkDir would do, were it not for Skip.
func walk(root, path string, skip map[string]bool, fn func(string, os.FileInfo) error) error {
	info, err := os.Lstat(filepath.Join(root, path))
	if err != nil {
		return err
	}
	if err := fn(path, info); err != nil || !info.IsDir() {
		return err
	}
	dir, err := os.Open(filepath.Join(root, path))
	if err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	dir.Close()
	if err != nil {
		return err
	}
	sort.Strings(names)
	for _, name := range names {
		// Not filepath.Join: it would clean the name.
		child := name
		if path != "" {
			child = path + "/" + name
		}
		if skip[child] {
			continue
		}
		if err := walk(root, child, skip, fn); err != nil {
			return err
		}
	}
	return nil
}

func describe(w io.Writer, s *Summary, l Listing, path string, info os.FileInfo) error {
	a := AttrOf(info)
	size, nlink, rdev := a.Size, a.Nlink, a.Rdev
	if info.IsDir() {
		size, nlink = 0, 0 // a directory's size and links are each file system's own business
	}
	if info.Mode()&os.ModeDevice == 0 {
		rdev = 0
	}
	fmt.Fprintf(w, "%q %o %d %d %d %d %d %d.%09d\n", path, a.Mode, a.UID, a.GID, size, nlink, rdev, a.Mtime.Sec, a.Mtime.Nsec)
	full := filepath.Join(l.Root, path)
	switch {
	case info.Mode()&os.ModeSymlink != 0:
		target, err := os.Readlink(full)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "-> %q\n", target)
	case info.Mode().IsRegular() && l.Contents:
		f, err := os.Open(full)
		if err != nil {
			return err
		}
		defer f.Close()
		n, err := io.Copy(w, f)
		s.Bytes += n
		return err
	}
	return nil
}
