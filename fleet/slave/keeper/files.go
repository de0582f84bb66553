package keeper

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/fdstore"
)

// envKept is how a keeper tells its files to the program that it becomes: NAME=DESCRIPTOR, with colons between.
const envKept = "NFS_FLEET_KEPT"

// held is a file with a name.
type held struct {
	name string
	fd   int
}

// files are what a keeper holds. They are bare descriptors: nothing here reads or polls them.
type files struct {
	most int
	all  []held
}

// kept returns the files that the environment names, and clears it.
func kept(most int) *files {
	f := &files{most: most}
	for _, h := range parseKept(os.Getenv(envKept)) {
		if _, err := unix.FcntlInt(uintptr(h.fd), unix.F_SETFD, unix.FD_CLOEXEC); err == nil {
			f.all = append(f.all, h)
		}
	}
	os.Unsetenv(envKept) //nolint:errcheck // fails for malformed keys only
	return f
}

func parseKept(s string) []held {
	var out []held
	for item := range strings.SplitSeq(s, ":") {
		name, number, _ := strings.Cut(item, "=")
		fd, err := strconv.Atoi(number)
		if err == nil && fd > 2 && fdstore.ValidName(name) == nil {
			out = append(out, held{name, fd})
		}
	}
	return out
}

// add takes a descriptor over.
func (f *files) add(name string, fd int) error {
	if err := fdstore.ValidName(name); err != nil {
		return err
	}
	if strings.Contains(name, "=") {
		return fmt.Errorf("name %q has a '='", name)
	}
	if len(f.all) >= f.most {
		return fmt.Errorf("%s: %d files are held already", name, len(f.all))
	}
	f.all = append(f.all, held{name, fd})
	return nil
}

// drop closes the files of a name.
func (f *files) drop(name string) {
	f.all = slices.DeleteFunc(f.all, func(h held) bool {
		if h.name != name {
			return false
		}
		unix.Close(h.fd) //nolint:errcheck // nothing is lost
		return true
	})
}

func (f *files) list() (fds []int, names []string) {
	for _, h := range f.all {
		fds, names = append(fds, h.fd), append(names, h.name)
	}
	return fds, names
}

// pass makes the files survive an exec and returns env with their names; undo is for an exec that failed.
func (f *files) pass(env []string) (with []string, undo func()) {
	items := make([]string, len(f.all))
	for i, h := range f.all {
		items[i] = h.name + "=" + strconv.Itoa(h.fd)
	}
	set := func(flags int) {
		for _, h := range f.all {
			unix.FcntlInt(uintptr(h.fd), unix.F_SETFD, flags) //nolint:errcheck // the descriptor is open
		}
	}
	set(0)
	return append(env, envKept+"="+strings.Join(items, ":")), func() { set(unix.FD_CLOEXEC) }
}

func (f *files) close() {
	for _, h := range f.all {
		unix.Close(h.fd) //nolint:errcheck // nothing is lost
	}
	f.all = nil
}

// duplicate returns another descriptor of the same file, for a child.
func duplicate(fd int) (*os.File, error) {
	d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("duplicate a file: %w", err)
	}
	f := os.NewFile(uintptr(d), "held")
	if f == nil {
		return nil, errors.New("duplicate a file: no such descriptor")
	}
	return f, nil
}

// pace says how long to wait before a worker is started again.
type pace struct {
	failures int
}

// Bounds of pace.
const (
	longRun  = 10 * time.Second // a worker that ran so long did not fail at once
	waitStep = 50 * time.Millisecond
	waitMost = time.Second
)

// next returns the wait after a worker that ran for so long: none after a long run, then more and more.
func (p *pace) next(ran time.Duration) time.Duration {
	if ran >= longRun {
		p.failures = 0
	}
	p.failures++
	if p.failures == 1 {
		return 0
	}
	return min(waitStep<<min(p.failures-2, 10), waitMost)
}
