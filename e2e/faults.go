package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/e2e/history"
)

// fault is something that is done to a fleet for a while. The functions are called by the test's own goroutine.
type fault struct {
	what    string
	touches []string        // masters and members of etcd that it does something to: nothing else may be done to them meanwhile
	hits    []history.Fault // whom it hits and how; the times are filled in later
	hold    time.Duration   // between begin and end

	begin, end func()
	after      func() // when every other fault of the round has ended, too; may be nil
}

// silence is what hits a master that may not answer, nor reach etcd, nor take copies.
func silence(m *Master) history.Fault {
	return history.Fault{Master: m.Name, Mute: true, Blind: true, Lame: true}
}

// kills ends the masters' processes and starts them again.
func kills(hold time.Duration, masters ...*Master) fault {
	f := fault{what: fmt.Sprintf("SIGKILL %s, away for %v", names(masters), hold), hold: hold}
	for _, m := range masters {
		f.touches, f.hits = append(f.touches, m.Name), append(f.hits, silence(m))
	}
	f.begin = func() {
		for _, m := range masters {
			m.proc.signal(m.t, syscall.SIGKILL) // all at once: nobody has time to react to the first
		}
		for _, m := range masters {
			m.Kill()
		}
	}
	f.end = func() {
		for _, m := range masters {
			m.Start()
		}
	}
	return f
}

// pauses stops a process in its tracks and lets it go on.
func pauses(hold time.Duration, m *Master) fault {
	return fault{
		what: fmt.Sprintf("SIGSTOP %s for %v", m.Name, hold), hold: hold, touches: []string{m.Name}, hits: []history.Fault{silence(m)},
		begin: func() { m.proc.signal(m.t, syscall.SIGSTOP) },
		end:   func() { m.proc.signal(m.t, syscall.SIGCONT) },
	}
}

// cuts pulls a master's cable.
func cuts(hold time.Duration, m *Master) fault {
	return fault{
		what: fmt.Sprintf("%s cut off for %v", m.Name, hold), hold: hold, touches: []string{m.Name}, hits: []history.Fault{silence(m)},
		begin: func() { m.Host.Cut(m.t) }, end: func() { m.Host.Mend(m.t) },
	}
}

// deafens loses what from sends to each of to, and nothing of what they send.
func deafens(hold time.Duration, what string, from []*Host, to []*Host, m *Master) fault {
	return fault{
		what: fmt.Sprintf("%s lost for %v", what, hold), hold: hold, touches: []string{m.Name}, hits: []history.Fault{silence(m)},
		begin: func() { eachPair(from, to, func(a, b *Host) { a.LoseTo(m.t, b) }) },
		end:   func() { eachPair(from, to, func(a, b *Host) { a.ReachTo(m.t, b) }) },
	}
}

func eachPair(from, to []*Host, fn func(a, b *Host)) {
	for _, a := range from {
		for _, b := range to {
			if a != b {
				fn(a, b)
			}
		}
	}
}

// restarts is a rolling upgrade: each master in turn ends in order and comes back before the next.
func restarts(masters []*Master) fault {
	f := fault{what: "a rolling restart", end: func() {}}
	for _, m := range masters {
		f.touches, f.hits = append(f.touches, m.Name), append(f.hits, silence(m))
	}
	f.begin = func() {
		for _, m := range masters {
			m.Stop()
			m.Start()
			m.WaitReady()
		}
	}
	return f
}

// drains has a master lead nothing for a while. Its readers may be sent away.
func drains(hold time.Duration, m, by *Master) fault {
	return fault{
		what: fmt.Sprintf("%s drained by %s for %v", m.Name, by.Name, hold), hold: hold, touches: []string{m.Name, by.Name},
		hits:  []history.Fault{{Master: m.Name, Mute: true}},
		begin: func() { by.CLI("master", "drain", m.Name) }, // which cannot be done while another fault keeps etcd away
		end:   func() {},
		after: func() {
			eventually(m.t, restLimit, "undrain "+m.Name, func() bool { return by.CLI("master", "undrain", m.Name).Code == 0 })
		},
	}
}

// etcdDies kills members of an external etcd and starts them again. No reader may notice.
func etcdDies(hold time.Duration, masters []*Master, members ...*EtcdMember) fault {
	f := fault{what: fmt.Sprintf("SIGKILL %v, away for %v", memberNames(members), hold), hold: hold, touches: memberNames(members), hits: etcdAway(masters)}
	f.begin = func() {
		for _, e := range members {
			e.Kill()
		}
	}
	f.end = func() {
		for _, e := range members {
			e.Start()
		}
	}
	return f
}

// etcdHangs stops members of an external etcd in their tracks.
func etcdHangs(hold time.Duration, masters []*Master, members ...*EtcdMember) fault {
	signal := func(sig syscall.Signal) func() {
		return func() {
			for _, e := range members {
				e.Signal(sig)
			}
		}
	}
	return fault{
		what: fmt.Sprintf("SIGSTOP %v for %v", memberNames(members), hold), hold: hold, touches: memberNames(members), hits: etcdAway(masters),
		begin: signal(syscall.SIGSTOP), end: signal(syscall.SIGCONT),
	}
}

// etcdAway is what hits the masters when they have no etcd.
func etcdAway(masters []*Master) (hits []history.Fault) {
	for _, m := range masters {
		hits = append(hits, history.Fault{Master: m.Name, Blind: true, Lame: true})
	}
	return hits
}

// fills leaves no byte free where a master keeps its data, which must be a file system of its own.
func fills(hold time.Duration, m *Master) fault {
	filler := filepath.Join(m.DataDir, "..", "filler")
	return fault{
		what: fmt.Sprintf("the disk of %s full for %v", m.Name, hold), hold: hold, touches: []string{m.Name}, hits: []history.Fault{{Master: m.Name, Lame: true}},
		begin: func() {
			if err := fill(filler); !errors.Is(err, syscall.ENOSPC) {
				m.t.Errorf("fill the disk of %s: %v", m.Name, err)
			}
		},
		end: func() {
			if err := os.Remove(filler); err != nil {
				m.t.Errorf("make room for %s: %v", m.Name, err)
			}
		},
	}
}

func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for b := make([]byte, 1<<20); ; {
		if _, err := f.Write(b); err == nil {
			continue
		} else if len(b) == 1 {
			return err
		}
		b = b[:len(b)/2]
	}
}

// rots damages what a master's store holds, on the disk, and has it verified and repaired in the end.
func rots(random *rand.Rand, hold time.Duration, m *Master) fault {
	return fault{
		what: "bits of " + m.Name + " rot", hold: hold, touches: []string{m.Name}, hits: []history.Fault{{Master: m.Name, Lame: true}},
		begin: func() {
			n, err := rot(random, filepath.Join(m.DataDir, "store"), 1+random.Intn(12))
			if err != nil {
				m.t.Errorf("damage the store of %s: %v", m.Name, err)
			}
			m.t.Logf("%d blocks of %s damaged", n, m.Name)
		},
		end: func() {},
		after: func() {
			var last Result
			defer func() {
				if m.t.Failed() {
					m.t.Logf("verify --repair: %v", last)
				}
			}()
			eventually(m.t, restLimit, m.Name+" repairs what is damaged", func() bool {
				last = m.CLI("verify", "--repair")
				return last.Code == 0
			})
		},
	}
}

// rotBlock is the unit of damage: what O_DIRECT can write everywhere.
const rotBlock = 4096

// rot flips a bit in each of up to count blocks of the files below dir, past the page cache, as a disk that rots does. The last
// blocks of a file are spared: somebody may be writing there.
func rot(random *rand.Rand, dir string, count int) (damaged int, err error) {
	type place struct {
		path string
		off  int64
	}
	var places []place
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.Contains(path, "quarantine") {
			return nil // what has just gone is no matter
		}
		info, err := d.Info()
		for off := int64(0); err == nil && off+32*rotBlock <= info.Size(); off += rotBlock {
			places = append(places, place{path, off})
		}
		return nil
	})
	for ; err == nil && damaged < count && len(places) > 0; damaged++ {
		p := places[random.Intn(len(places))]
		if err = rotAt(p.path, p.off, random.Intn(rotBlock)); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	return damaged, err
}

func rotAt(path string, off int64, within int) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 2*rotBlock)
	b = b[rotBlock-int(uintptr(unsafe.Pointer(&b[0]))%rotBlock):][:rotBlock] // O_DIRECT wants it aligned
	if _, err := f.ReadAt(b, off); err != nil {
		return err
	}
	b[within] ^= 1 << (within % 8)
	_, err = f.WriteAt(b, off)
	return err
}

func memberNames(members []*EtcdMember) (all []string) {
	for _, e := range members {
		all = append(all, e.Name)
	}
	return all
}

func names(masters []*Master) string {
	var all []string
	for _, m := range masters {
		all = append(all, m.Name)
	}
	return strings.Join(all, ", ")
}
