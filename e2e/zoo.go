package e2e

import (
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Zoo is a tree with one of everything that Linux allows in a directory. What NFSv3 or a comparison by rsync cannot show as
// it is stands in places of its own, which the tests look at separately.
type Zoo struct {
	Root string
	// Far holds files whose times NFSv3 cannot carry; they are clamped.
	Far map[string]time.Time
	// Crowd is a directory of CrowdSize entries.
	Crowd     string
	CrowdSize int
	// Sparse is a file of SparseSize bytes, nearly all holes; SparseData says what stands where.
	Sparse     string
	SparseSize int64
	SparseData map[int64]string
	// Deep is a path of 60 directories, with a file at its end.
	Deep string
	// Names are the odd ones, in the directory "names".
	Names []string
}

// NewZoo fills root, an empty directory. Devices need root.
func NewZoo(t testing.TB, root string) *Zoo {
	t.Helper()
	z := &Zoo{
		Root: root, Crowd: "crowd", CrowdSize: 100_000, Sparse: "far/sparse", SparseSize: 10 << 30,
		Deep: strings.Repeat("down/", 60) + "bottom",
		Far: map[string]time.Time{
			"far/1901": time.Unix(-1<<31, 0), "far/1969": time.Unix(-1, 500_000_000),
			"far/2106": time.Unix(1<<32, 0), "far/2446": time.Unix(15_000_000_000, 0),
		},
	}
	for _, build := range []func() error{z.plain, z.odd, z.special, z.linked, z.depths, z.farTimes, z.holes, z.crowd} {
		if err := build(); err != nil {
			t.Fatalf("build the zoo: %v", err)
		}
	}
	return z
}

func (z *Zoo) path(p string) string { return filepath.Join(z.Root, p) }

// write makes a file, and its directory when that is missing.
func (z *Zoo) write(path, content string, mode os.FileMode) error {
	full := z.path(path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(full, []byte(content), 0o600); err != nil {
		return err
	}
	return os.Chmod(full, mode)
}

// plain: sizes around every boundary that the product has, modes, owners, empty directories.
func (z *Zoo) plain() error {
	random := rand.New(rand.NewSource(1))
	for _, size := range []int{0, 1, 4095, 4096, 4097, 256<<10 - 1, 256 << 10, 1 << 20, 4<<20 - 1, 4 << 20, 4<<20 + 1, 9<<20 + 7} {
		b := make([]byte, size)
		random.Read(b)
		if err := z.write(fmt.Sprintf("plain/size-%d", size), string(b), 0o644); err != nil {
			return err
		}
	}
	for _, mode := range []os.FileMode{0, 0o400, 0o755, 0o777, 0o755 | os.ModeSetuid, 0o755 | os.ModeSetgid, 0o644 | os.ModeSticky} {
		if err := z.write(fmt.Sprintf("plain/mode-%o", uint32(mode)), "mode", mode); err != nil {
			return err
		}
	}
	for i, owner := range [][2]int{{0, 1}, {1000, 100}, {65534, 65534}, {1 << 30, 1<<31 + 5}} {
		name := fmt.Sprintf("plain/owner-%d", i)
		if err := z.write(name, "owned", 0o644); err != nil {
			return err
		}
		if err := os.Lchown(z.path(name), owner[0], owner[1]); err != nil {
			return err
		}
	}
	return errors.Join(os.MkdirAll(z.path("plain/empty"), 0o755), os.MkdirAll(z.path("plain/closed"), 0o700))
}

// odd: names of every length at the limit, and every byte that a name may hold.
func (z *Zoo) odd() error {
	z.Names = []string{
		strings.Repeat("n", 255), strings.Repeat("ü", 127) + "x", "new\nline", "tab\t", " ", "-rf", "*", "\\", "'\"",
		"...", "..x", ".hidden", "\x01", "\x7f", "\xff\xfe not UTF-8", "\xc0\xaf", "ünï", "uni", "a:b", "%00", "CON", "trailing.", "café", "cafe\u0301",
	}
	for b := 1; b < 256; b++ {
		if b != '/' {
			z.Names = append(z.Names, "byte-"+string([]byte{byte(b)}))
		}
	}
	for _, n := range z.Names {
		if err := z.write("names/"+n, "named "+n, 0o644); err != nil {
			return err
		}
	}
	return z.write("names.d/\xff\n/inside", "inside", 0o644)
}

// special: what is neither file nor directory.
func (z *Zoo) special() error {
	dir := z.path("special")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, n := range []struct {
		name string
		mode uint32
		dev  int
	}{
		{"fifo", unix.S_IFIFO | 0o644, 0}, {"socket", unix.S_IFSOCK | 0o755, 0},
		{"null", unix.S_IFCHR | 0o666, int(unix.Mkdev(1, 3))}, {"block", unix.S_IFBLK | 0o660, int(unix.Mkdev(7, 200))},
		{"large", unix.S_IFCHR | 0o600, int(unix.Mkdev(511, 70000))},
	} {
		if err := unix.Mknod(filepath.Join(dir, n.name), n.mode, n.dev); err != nil {
			return fmt.Errorf("mknod %s: %w", n.name, err)
		}
	}
	var errs []error
	for name, target := range map[string]string{
		"absolute": "/etc/hostname", "dangling": "no/where", "up": "../plain", "self": "self",
		"long": strings.Repeat("x/", 2000), "odd\xff": "to\n\xfe",
	} {
		errs = append(errs, os.Symlink(target, filepath.Join(dir, name)))
	}
	return errors.Join(errs...)
}

// linked: several names of one file, in one directory and across two.
func (z *Zoo) linked() error {
	if err := z.write("links/one", "three names", 0o644); err != nil {
		return err
	}
	return errors.Join(
		os.MkdirAll(z.path("links/sub"), 0o755),
		os.Link(z.path("links/one"), z.path("links/two")),
		os.Link(z.path("links/one"), z.path("links/sub/three")),
	)
}

func (z *Zoo) depths() error { return z.write(z.Deep, "the bottom", 0o644) }

func (z *Zoo) farTimes() error {
	for name, at := range z.Far {
		if err := z.write(name, name, 0o644); err != nil {
			return err
		}
		// Not os.Chtimes: it counts nanoseconds from 1970, and those end in 2262.
		ts := unix.Timespec{Sec: at.Unix(), Nsec: int64(at.Nanosecond())}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, z.path(name), []unix.Timespec{ts, ts}, 0); err != nil {
			return err
		}
	}
	return nil
}

// holes: a file that begins and ends with a hole, with data inside chunks and across their borders.
func (z *Zoo) holes() error {
	z.SparseData = map[int64]string{
		4096:             "first data",
		4<<20 - 3:        "across a chunk's border",
		5 << 30:          strings.Repeat("in the middle ", 1000),
		z.SparseSize - 9: "the end\x00\x00",
	}
	if err := z.write(z.Sparse, "", 0o644); err != nil {
		return err
	}
	f, err := os.OpenFile(z.path(z.Sparse), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for off, data := range z.SparseData {
		if _, err := io.NewOffsetWriter(f, off).Write([]byte(data)); err != nil {
			return err
		}
	}
	return f.Truncate(z.SparseSize)
}

// crowd: many names in one directory; a few have content, so that not all are one object.
func (z *Zoo) crowd() error {
	dir := z.path(z.Crowd)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for i := range z.CrowdSize {
		path := filepath.Join(dir, fmt.Sprintf("one-of-many-%06d", i))
		fd, err := syscall.Open(path, syscall.O_CREAT|syscall.O_WRONLY|syscall.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		if i%1000 == 0 {
			_, err = syscall.Write(fd, []byte(path))
		}
		if err := errors.Join(err, syscall.Close(fd)); err != nil {
			return err
		}
	}
	return nil
}
