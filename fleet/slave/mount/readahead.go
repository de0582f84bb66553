package mount

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/mounts"
)

// Readahead says how far the kernel is to read ahead of a program that reads a file from front to back. Its own choice for NFS is
// 128 KiB, whatever rsize= says, so that no READ asks for more.
type Readahead struct {
	how   readaheadHow
	bytes uint64
}

type readaheadHow int

const (
	readaheadAuto   readaheadHow = iota // readaheadReads times rsize, if that is more than there is
	readaheadKernel                     // whatever there is
	readaheadBytes
)

// readaheadReads is how many READs of full size the kernel may have under way for one reader unless told otherwise. Linux had
// 15 before 5.4; but it is also what a page fault of a mapped file reads, so it is not made larger than streaming needs.
const readaheadReads = 4

// maxReadahead bounds what can be asked for.
const maxReadahead = 1 << 30

// parseReadahead reads a size such as 4M; 0 and "default" leave it to the kernel.
func parseReadahead(text string) (Readahead, error) {
	if text == "0" || text == "default" {
		return Readahead{how: readaheadKernel}, nil
	}
	digits, unit := text, uint64(1)
	if n := len(text); n > 0 {
		switch text[n-1] {
		case 'k', 'K':
			digits, unit = text[:n-1], 1<<10
		case 'm', 'M':
			digits, unit = text[:n-1], 1<<20
		}
	}
	n, err := strconv.ParseUint(digits, 10, 31)
	if err != nil || n > maxReadahead/unit || n*unit < 4096 {
		return Readahead{}, errors.New("want a size such as 4M or 512K, up to 1024M, or default")
	}
	return Readahead{how: readaheadBytes, bytes: n * unit}, nil
}

// kib returns what is to be set for a mount that has present KiB; ok is false when nothing is. Mounts of one shard share the
// value: who names none takes nothing away from who has.
func (r Readahead) kib(present, rsize uint64) (kib uint64, ok bool) {
	switch r.how {
	case readaheadBytes:
		kib = r.bytes >> 10
		return kib, kib != present
	case readaheadAuto:
		kib = min(rsize, maxReadahead/readaheadReads) * readaheadReads >> 10
		return kib, kib > present
	}
	return 0, false
}

// apply sets what is wanted for a mount, in sysfs below root, and returns what there is afterwards, in KiB. The mount itself is
// not touched: its master may be lost.
func (r Readahead) apply(root string, m mounts.Mount) (kib uint64, err error) {
	path := filepath.Join(root, "class/bdi", m.Device, "read_ahead_kb")
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("readahead: %w", err)
	}
	present, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("readahead: %s: %w", path, err)
	}
	kib, ok := r.kib(present, m.ReadSize)
	if !ok {
		return present, nil
	}
	if err := os.WriteFile(path, []byte(strconv.FormatUint(min(kib, math.MaxInt32), 10)), 0); err != nil {
		return present, fmt.Errorf("readahead: %w", err)
	}
	return kib, nil
}

// readahead sets it for what was just mounted. A mount is of use without: what fails is said, when somebody wanted it.
func (r Request) readahead(dir string) {
	want := r.Options.Readahead
	if want.how == readaheadKernel {
		return
	}
	table, err := mounts.Table()
	if err == nil {
		if m, ok := mounts.Topmost(table, dir); ok {
			var kib uint64
			if kib, err = want.apply("/sys", m); err == nil {
				r.say("readahead: %d KiB, READs of %d KiB at most", kib, m.ReadSize>>10)
				return
			}
		} else {
			err = fmt.Errorf("readahead: nothing of a fleet is mounted at %s any more", dir)
		}
	}
	if want.how == readaheadBytes && r.Warn != nil {
		r.Warn(err.Error())
		return
	}
	r.say("%v", err)
}

// say tells whoever wants to know what is done.
func (r Request) say(format string, args ...any) {
	if r.Say != nil {
		r.Say(fmt.Sprintf(format, args...))
	}
}
