// Package fdstore keeps open files across the end of a process: whoever started it holds them, and hands them to the next one.
//
// It is the file descriptor store of systemd (sd_notify(3), sd_listen_fds(3)): a message FDSTORE=1 with the descriptor, over
// the socket that NOTIFY_SOCKET names, gives one away; the next start finds all of them from descriptor 3 on, with their
// names in LISTEN_FDNAMES. Package keeper is the other side for machines without systemd.
package fdstore

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// firstFD is the first descriptor that is handed on.
const firstFD = 3

// The environment by which a process and whoever started it know each other.
const (
	envSocket = "NOTIFY_SOCKET"
	envPID    = "LISTEN_PID"
	envFDs    = "LISTEN_FDS"
	envNames  = "LISTEN_FDNAMES"
)

// Supervised says whether whoever started this process can be told something.
func Supervised() bool { return os.Getenv(envSocket) != "" }

// Store is the way to whoever started this process. The zero value is of a process that nobody supervises: what it is told is
// lost. It is safe for concurrent use.
type Store struct {
	socket string
}

// File is an open file that was handed on. It is closed on exec.
type File struct {
	Name string
	*os.File
}

// Inherit takes over what the environment tells: the way to the supervisor and the open files. The environment is cleared
// of it, so that no child takes itself for this process; so it is called once, early.
func Inherit() (Store, []File) {
	s := Store{socket: os.Getenv(envSocket)}
	files := inherited(os.Getenv(envPID), os.Getenv(envFDs), os.Getenv(envNames), os.Getpid())
	for _, key := range []string{envSocket, envPID, envFDs, envNames} {
		os.Unsetenv(key) //nolint:errcheck // fails for malformed keys only
	}
	out := make([]File, len(files))
	for i, name := range files {
		syscall.CloseOnExec(firstFD + i)
		out[i] = File{name, os.NewFile(uintptr(firstFD+i), name)}
	}
	return s, out
}

// inherited returns the names of the descriptors from firstFD on. Without a process id they are meant for whoever has the
// variables; with one, for that process alone.
func inherited(pid, count, names string, self int) []string {
	if pid != "" && pid != strconv.Itoa(self) {
		return nil
	}
	n, err := strconv.Atoi(count)
	if err != nil || n <= 0 || n > 1024 {
		return nil
	}
	out := make([]string, n)
	copy(out, strings.SplitN(names, ":", n+1))
	return out
}

// Environment is what a supervisor adds to a process's environment, besides the descriptors themselves, which are those from
// the third on in the order of the names.
func Environment(socket string, names []string) []string {
	return []string{envSocket + "=" + socket, envFDs + "=" + strconv.Itoa(len(names)), envNames + "=" + strings.Join(names, ":")}
}

// ValidName reports what is wrong with a name of a file: systemd takes at most 255 printable ASCII bytes without a colon.
func ValidName(name string) error {
	if name == "" || len(name) > 255 {
		return fmt.Errorf("a name of %d bytes: want 1 to 255", len(name))
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c > '~' || c == ':' {
			return fmt.Errorf("name %q has a %q", name, c)
		}
	}
	return nil
}

// Notify tells the supervisor assignments such as READY=1, one a line.
func (s Store) Notify(lines ...string) error { return s.send(strings.Join(lines, "\n"), -1) }

// Keep gives the supervisor a file under a name, until Drop. It stays open here, too.
func (s Store) Keep(name string, f syscall.Conn) error {
	if err := ValidName(name); err != nil {
		return fmt.Errorf("hand %s on: %w", name, err)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("hand %s on: %w", name, err)
	}
	var sent error
	// FDPOLL=0: it is not for the supervisor to find it broken and close it.
	err = raw.Control(func(fd uintptr) { sent = s.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, int(fd)) })
	if err = errors.Join(err, sent); err != nil {
		return fmt.Errorf("hand %s on: %w", name, err)
	}
	return nil
}

// Drop makes the supervisor close the files of a name.
func (s Store) Drop(name string) error {
	if err := ValidName(name); err != nil {
		return err
	}
	return s.Notify("FDSTOREREMOVE=1", "FDNAME="+name)
}

func (s Store) send(text string, fd int) error {
	if s.socket == "" {
		return nil
	}
	// A plain socket: package net does not send descriptors over a connected one of this kind.
	from, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	defer unix.Close(from) //nolint:errcheck // what was sent is sent
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	if err := unix.Sendmsg(from, []byte(text), rights, &unix.SockaddrUnix{Name: s.socket}, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	return nil
}
