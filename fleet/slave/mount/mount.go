// Package mount mounts a shard by its SRV name with the kernel's own NFSv3 client, and unmounts it.
//
// The agent says which address to mount (package control) and is started when none runs. The kernel is called directly, by
// mount(2): mount.nfs need not be there. It is told the SRV name as the source, so that df, findmnt and /proc/mounts show it,
// and an address to go with it.
//
// Every mount is ro, hard, nolock, nosuid, nodev, of NFS version 3 over TCP, with a short attribute cache.
package mount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/control"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/mounts"
)

// What mounting and unmounting fail with, besides the agent's errors.
var (
	ErrUsage   = errors.New("usage")
	ErrNotRoot = errors.New("only root can mount and unmount")
	ErrMounted = errors.New("already mounted")
	ErrFailed  = errors.New("mount failed")
	ErrUnmount = errors.New("unmount failed")
)

// Request is a mount to be made.
type Request struct {
	Spec    Spec
	Dir     string
	Options Options
	Agent   *control.Client
	// Start starts an agent when none runs, and returns when it answers.
	Start func(ctx context.Context) error
	// Fake does everything but the mount.
	Fake bool
	// Say is told, for people, what is done. nil: nobody wants to know.
	Say func(text string)
	// Warn is told what was asked for and could not be done, while the mount is of use. nil: nobody wants to know.
	Warn func(text string)
}

// Do mounts.
func Do(ctx context.Context, r Request) error {
	if os.Geteuid() != 0 {
		return ErrNotRoot
	}
	table, err := mounts.Table()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFailed, err)
	}
	dir, err := directory(table, r.Dir)
	if err != nil {
		return err
	}
	if m, ok := mounts.Topmost(table, dir); ok {
		if err := occupied(m, r.Spec); err != nil {
			return err
		}
		return r.again(ctx, dir)
	}
	route, err := r.route(ctx, dir)
	if err != nil {
		return err
	}
	mounted := false
	defer func() {
		if !mounted {
			r.release(ctx, dir)
		}
	}()
	flags, data, err := r.Options.Kernel(route.Addr)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	r.say("%s reads from %s at %s; mount options: %s", r.Spec, route.Master, route.Addr, data)
	if r.Fake {
		mounted = true // somebody else may mount it, as in another mount namespace
		return nil
	}
	// A mount that a lost master delays must not keep the command from being interrupted: the kernel's call ends with it.
	done := make(chan error, 1)
	go func() { done <- unix.Mount(r.Spec.String(), dir, "nfs", flags, data) }()
	select {
	case err = <-done:
	case <-ctx.Done():
		return fmt.Errorf("mount %s: %w", r.Spec, context.Cause(ctx))
	}
	if err != nil {
		return explain(err, r.Spec, dir, route)
	}
	mounted = true
	r.readahead(dir)
	return nil
}

// occupied says why nothing can be mounted over a mount of a fleet, unless it is the same: then it is nil.
func occupied(m mounts.Mount, s Spec) error {
	if m.Name == s.Name && filepath.Clean(m.Path) == s.Path {
		return nil
	}
	return fmt.Errorf("%w: %s:%s is at %s, and would be hidden: unmount it first, or mount %s at another directory",
		ErrMounted, m.Name, m.Path, m.Dir, s)
}

// release tells the agent that the mount came to nothing, also when the command was interrupted. An agent that does not hear it
// notices by itself, after some time.
func (r Request) release(ctx context.Context, dir string) {
	if err := r.Agent.Release(context.WithoutCancel(ctx), r.want(dir)); err != nil {
		r.say("the agent keeps what it has made ready for some minutes: %v", err)
	}
}

// want is what the agent is asked for.
func (r Request) want(dir string) control.Want {
	w := r.Options.Want(r.Spec)
	w.Dir = dir
	return w
}

// again is for what is mounted already. Nothing is mounted, but whoever asks may do so because reading hangs: an agent is started
// if none runs, and told again by what to find masters if it finds none, or if that is said.
func (r Request) again(ctx context.Context, dir string) error {
	mounted := fmt.Errorf("%w: %s at %s", ErrMounted, r.Spec, dir)
	status, err := r.Agent.Status(ctx)
	noAgent := errors.Is(err, control.ErrNoAgent)
	lost := slices.ContainsFunc(status.Mounts, func(m control.Mount) bool { return m.Dir == dir && m.State == control.Searching })
	switch {
	case err != nil && !noAgent:
		return fmt.Errorf("%w: %w", mounted, err)
	case err == nil && !lost && len(r.Options.DNS) == 0 && len(r.Options.Masters) == 0:
		return mounted
	}
	route, err := r.route(ctx, dir)
	switch {
	case err == nil && !lost && !noAgent:
		return mounted
	case err != nil:
		return fmt.Errorf("%w: %w", mounted, err)
	case noAgent:
		return fmt.Errorf("%w: its agent did not run, and does now: it reads from %s", mounted, route.Master)
	}
	return fmt.Errorf("%w: it reads from %s now", mounted, route.Master)
}

// route asks the agent for the address to mount, and starts one when there is none.
func (r Request) route(ctx context.Context, dir string) (control.Route, error) {
	route, err := r.Agent.Route(ctx, r.want(dir))
	if !errors.Is(err, control.ErrNoAgent) || r.Start == nil {
		return route, err
	}
	r.say("no agent runs: starting one")
	if err := r.Start(ctx); err != nil {
		return route, fmt.Errorf("%w: cannot start the agent: %w", ErrFailed, err)
	}
	return r.Agent.Route(ctx, r.want(dir))
}

// directory returns the directory to mount at, absolute and without symbolic links. What is mounted there already is not
// asked: its master may be lost.
func directory(table []mounts.Mount, dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrFailed, err)
	}
	if _, ok := mounts.Topmost(table, abs); ok {
		return abs, nil
	}
	real, err := filepath.EvalSymlinks(abs)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%w: directory %s does not exist", ErrFailed, dir)
	case errors.Is(err, syscall.ENOTDIR):
		return "", fmt.Errorf("%w: %s is not a directory", ErrFailed, dir)
	case err != nil:
		return "", fmt.Errorf("%w: %w", ErrFailed, err)
	}
	if _, ok := mounts.Topmost(table, real); ok {
		return real, nil
	}
	info, err := os.Stat(real)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrFailed, err)
	}
	if !info.IsDir() {
		return "", fmt.Errorf("%w: %s is not a directory", ErrFailed, dir)
	}
	return real, nil
}

// explain says in plain words what the kernel's error means.
func explain(err error, s Spec, dir string, route control.Route) error {
	return fmt.Errorf("%w: %s at %s: %s (%w)", ErrFailed, s, dir, meaning(err, s, route.Master, route.Addr), err)
}

// meaning translates an error of mount(2).
func meaning(err error, s Spec, master string, addr netip.AddrPort) string {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return "the kernel refuses"
	}
	switch errno {
	case syscall.ENOENT:
		return fmt.Sprintf("master %s has no directory %s, or no such shard", master, s.Path)
	case syscall.EACCES:
		return fmt.Sprintf("master %s does not let this host in: see the shard's networks", master)
	case syscall.EPERM:
		return "the kernel does not allow it: are you root, and not in a container without CAP_SYS_ADMIN?"
	case syscall.ENODEV:
		return "this kernel has no NFS client: load or install its module nfs"
	case syscall.EPROTONOSUPPORT, syscall.EPFNOSUPPORT:
		return "this kernel's NFS client does not speak version 3: load or install its module nfsv3"
	case syscall.ENOTDIR:
		return fmt.Sprintf("%s on master %s is not a directory", s.Path, master)
	case syscall.EBUSY:
		return "the directory is in use, or the same is mounted there already"
	case syscall.EINVAL:
		return "the kernel does not take the options: see the kernel's log"
	case syscall.ETIMEDOUT, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EIO:
		return fmt.Sprintf("master %s, through %s, does not answer", master, addr)
	case syscall.ESTALE:
		return fmt.Sprintf("master %s does not know its own directory: its shard was just deleted", master)
	}
	return "the kernel refuses"
}

// Undo unmounts a mount of a fleet. Lazily it succeeds also while files are open: the last one to be closed ends the mount.
func Undo(dir string, lazy bool) error {
	if os.Geteuid() != 0 {
		return ErrNotRoot
	}
	table, err := mounts.Table()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnmount, err)
	}
	at, err := mountPoint(table, dir)
	if err != nil {
		return err
	}
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	switch err := unix.Unmount(at, flags); {
	case errors.Is(err, syscall.EBUSY):
		return fmt.Errorf("%w: %s is in use; --lazy unmounts it as soon as it no longer is", ErrUnmount, dir)
	case err != nil:
		return fmt.Errorf("%w: %s: %w", ErrUnmount, dir, err)
	}
	return nil
}

// mountPoint finds the mount at dir without touching it: only the way to it may have symbolic links.
func mountPoint(table []mounts.Mount, dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrUnmount, err)
	}
	if _, ok := mounts.Topmost(table, abs); ok {
		return abs, nil
	}
	if parent, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
		at := filepath.Join(parent, filepath.Base(abs))
		if _, ok := mounts.Topmost(table, at); ok {
			return at, nil
		}
		if to, err := os.Readlink(at); err == nil {
			if !filepath.IsAbs(to) {
				to = filepath.Join(parent, to)
			}
			if _, ok := mounts.Topmost(table, filepath.Clean(to)); ok {
				return filepath.Clean(to), nil
			}
		}
	}
	return "", fmt.Errorf("%w: nothing of a fleet is mounted at %s", ErrUnmount, dir)
}
