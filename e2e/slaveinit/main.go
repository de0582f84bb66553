// Command slaveinit is process 1 of a test's slave: a user-mode-linux kernel whose root is the host's file system, read-only.
// It makes the few mounts that a Linux needs, loads the NFS client, and then does what the test says over the serial line
// /dev/ttyS0 (package wire) until the test kills the kernel.
//
// It writes below /mnt only, which is a tmpfs of the slave's own; the rest of the tree is the host's, as the test sees it.
package main

import (
	"fmt"
	"io"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/e2e/wire"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "slaveinit is the first process of a test's virtual machine and does nothing elsewhere")
		os.Exit(2)
	}
	if err := boot(); err != nil {
		fmt.Println("slaveinit:", err)
		os.Exit(1) // the kernel panics for want of a process 1, which ends it
	}
}

func boot() error {
	os.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
	if err := mounts(); err != nil {
		return err
	}
	if out, err := exec.Command("modprobe", "-d", moduleRoot, "nfsv3").CombinedOutput(); err != nil {
		return fmt.Errorf("load the NFS client: %w: %s", err, out)
	}
	line, err := serial("/dev/ttyS0")
	if err != nil {
		return err
	}
	server := rpc.NewServer()
	if err := server.Register(newSlave()); err != nil {
		return fmt.Errorf("register: %w", err)
	}
	if _, err := io.WriteString(line, wire.Ready); err != nil {
		return fmt.Errorf("greet: %w", err)
	}
	server.ServeConn(line)
	return fmt.Errorf("the test hung up")
}

// moduleRoot holds lib/modules/RELEASE, where modprobe looks. The host's own /lib/modules need not exist.
const moduleRoot = "/mnt/.kernel"

// mounts makes what is not a host's file: the slave's own kernel's views, and a place to write.
func mounts() error {
	var un unix.Utsname
	if err := unix.Uname(&un); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	release := unix.ByteSliceToString(un.Release[:])
	for _, m := range []struct{ target, fstype string }{
		{"/proc", "proc"}, {"/sys", "sysfs"}, {"/dev", "devtmpfs"}, {"/run", "tmpfs"}, {"/mnt", "tmpfs"},
	} {
		err := unix.Mount("none", m.target, m.fstype, 0, "")
		if err != nil && err != syscall.EBUSY { // EBUSY: the kernel has mounted /dev by itself
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	modules := filepath.Join(moduleRoot, "lib/modules")
	if err := os.MkdirAll(modules, 0o755); err != nil {
		return fmt.Errorf("link modules: %w", err)
	}
	if err := os.Symlink(filepath.Join("/usr/lib/uml/modules", release), filepath.Join(modules, release)); err != nil {
		return fmt.Errorf("link modules: %w", err)
	}
	return nil
}

// serial opens a serial line as a plain pipe for bytes.
func serial(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("set up %s: %w", path, err)
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8 | unix.CLOCAL | unix.CREAD
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("set up %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}
