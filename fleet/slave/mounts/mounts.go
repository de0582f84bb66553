// Package mounts reads which of this host's NFS mounts are a fleet's, without touching a file below any of them: it asks the
// kernel's table of mounts, /proc/self/mountinfo, and is woken by it when the table changes.
//
// A mount is told by what it was mounted as, a SRV name, which no other NFS mount has: the kernel keeps the name beside
// the address that it connects to. So the table alone says, after any crash, what this host mounts and through which port.
package mounts

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/poll"
)

// Mount is an NFS mount by SRV name, as the kernel has it.
type Mount struct {
	ID   int    // of the mount; not given again while it lasts
	Name string // the SRV name, in lower case and without a final dot
	Path string // what of it: /shard, or a directory below
	Dir  string // where
	Addr netip.AddrPort
	// Device is what st_dev says of its files, MAJOR:MINOR; mounts of one shard share it.
	Device string
	// ReadSize is the most that a READ asks for, as kernel and master have agreed; 0: the kernel does not say.
	ReadSize uint64
}

// Shard returns the first element of the path.
func (m Mount) Shard() string {
	shard, _, _ := strings.Cut(strings.TrimPrefix(m.Path, "/"), "/")
	return shard
}

// Prefix is how the SRV names of NFS begin.
const Prefix = "_nfs._tcp."

// Table returns the mounts that this process sees, in the order in which they were made.
func Table() ([]Mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	defer f.Close()
	return read(f)
}

// read reads a table of mounts.
func read(r io.Reader) ([]Mount, error) {
	infos, err := mountinfo.GetMountsFromReader(r, func(i *mountinfo.Info) (skip, stop bool) {
		return i.FSType != "nfs" || !strings.HasPrefix(strings.ToLower(i.Source), Prefix), false
	})
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	out := make([]Mount, 0, len(infos))
	for _, i := range infos {
		name, path, _ := strings.Cut(i.Source, ":")
		m := Mount{ID: i.ID, Name: Canonical(name), Path: path, Dir: i.Mountpoint, Device: fmt.Sprintf("%d:%d", i.Major, i.Minor)}
		for option := range strings.SplitSeq(i.VFSOptions, ",") {
			switch key, value, _ := strings.Cut(option, "="); key {
			case "addr":
				addr, err := netip.ParseAddr(value)
				if err == nil {
					m.Addr = netip.AddrPortFrom(addr, m.Addr.Port())
				}
			case "port":
				if port, err := strconv.ParseUint(value, 10, 16); err == nil {
					m.Addr = netip.AddrPortFrom(m.Addr.Addr(), uint16(port))
				}
			case "rsize":
				if size, err := strconv.ParseUint(value, 10, 32); err == nil {
					m.ReadSize = size
				}
			}
		}
		out = append(out, m)
	}
	return out, nil
}

// Canonical returns a SRV name as it is compared.
func Canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// Topmost returns the mount that one sees at dir; ok is false when it is none of a fleet's.
func Topmost(table []Mount, dir string) (m Mount, ok bool) {
	for _, c := range table {
		if c.Dir == dir {
			m, ok = c, true // later ones lie on top
		}
	}
	return m, ok
}

// Same says whether two tables list the same mounts, in any order.
func Same(a, b []Mount) bool {
	order := func(t []Mount) []Mount {
		return slices.SortedFunc(slices.Values(t), func(x, y Mount) int { return cmp.Compare(x.ID, y.ID) })
	}
	return slices.Equal(order(a), order(b))
}

// Watch calls changed once at the beginning and whenever something was mounted or unmounted, until ctx ends.
func Watch(ctx context.Context, changed func([]Mount)) error {
	// A plain descriptor: os.Open gives it to Go's own poller, which takes the changes away from ours.
	fd, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("watch mounts: %w", err)
	}
	f := os.NewFile(uintptr(fd), "/proc/self/mountinfo")
	defer f.Close()
	p, err := poll.New(f.Fd(), unix.POLLPRI)
	if err != nil {
		return fmt.Errorf("watch mounts: %w", err)
	}
	defer p.Close() //nolint:errcheck // nothing is lost
	for {
		// The kernel has taken note of what was seen last before it is read: a change meanwhile ends the next wait.
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("watch mounts: %w", err)
		}
		table, err := read(f)
		if err != nil {
			return err
		}
		changed(table)
		switch err := p.Wait(ctx); {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("watch mounts: %w", err)
		}
	}
}
