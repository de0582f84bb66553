// Command slaveinit is process 1 of a test's slave: a user-mode-linux kernel whose root is the host's file system, read-only.
// It makes the few mounts that a Linux needs and collects processes that have lost their parent. A child of it, the same
// program, loads the NFS client, and then does what the test says over the serial line /dev/ttyS0 (package wire) until the
// test kills the kernel.
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

// worker is the argument that makes this program do its work instead of being process 1.
const worker = "work"

func main() {
	var err error
	switch {
	case len(os.Args) == 2 && os.Args[1] == worker:
		err = work()
	case os.Getpid() == 1:
		err = first()
	default:
		fmt.Fprintln(os.Stderr, "slaveinit is the first process of a test's virtual machine and does nothing elsewhere")
		os.Exit(2)
	}
	if err != nil {
		fmt.Println("slaveinit:", err)
		os.Exit(1) // the kernel panics for want of a process 1, which ends it
	}
}

// first is process 1: it has the work done by a child, and collects whatever ends without a parent, as every system does.
func first() error {
	os.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
	if err := mounts(); err != nil {
		return err
	}
	child, err := os.StartProcess("/proc/self/exe", []string{"slaveinit", worker}, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		return fmt.Errorf("start the worker: %w", err)
	}
	for {
		pid, err := syscall.Wait4(-1, nil, 0, nil)
		if pid == child.Pid {
			return fmt.Errorf("the worker has ended")
		}
		if err != nil && err != syscall.EINTR {
			return fmt.Errorf("wait for children: %w", err)
		}
	}
}

func work() error {
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
	// What the kernel loads by itself is looked for there, too.
	const loader = "/mnt/.kernel/modprobe"
	if err := os.WriteFile(loader, []byte("#!/bin/sh\nexec modprobe -d "+moduleRoot+" \"$@\"\n"), 0o755); err != nil {
		return fmt.Errorf("make a module loader: %w", err)
	}
	if err := os.WriteFile("/proc/sys/kernel/modprobe", []byte(loader), 0); err != nil {
		return fmt.Errorf("name the module loader: %w", err)
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
