package mount

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/control"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/mounts"
)

func TestWhatTheKernelMeans(t *testing.T) {
	s := Spec{Name: "_nfs._tcp.x", Path: "/www", text: "_nfs._tcp.x:/www"}
	route := control.Route{Addr: netip.MustParseAddrPort("127.0.0.1:300"), Master: "m1"}
	for errno, words := range map[syscall.Errno]string{
		syscall.ENOENT: "m1 has no directory /www", syscall.EACCES: "does not let this host in", syscall.ENODEV: "no NFS client",
		syscall.EPROTONOSUPPORT: "nfsv3", syscall.ENOTDIR: "not a directory", syscall.EBUSY: "in use", syscall.EINVAL: "options",
		syscall.ETIMEDOUT: "does not answer", syscall.EPERM: "root", syscall.ESTALE: "deleted", syscall.ENOMEM: "refuses",
	} {
		err := explain(errno, s, "/srv/www", route)
		if !errors.Is(err, ErrFailed) || !errors.Is(err, errno) || !strings.Contains(err.Error(), words) || !strings.Contains(err.Error(), "/srv/www") {
			t.Errorf("%v: %v", errno, err)
		}
	}
}

func TestDirectory(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(root+"/dir", 0o755), os.WriteFile(root+"/file", nil, 0o600),
		os.Symlink("dir", root+"/link"), os.Symlink("gone", root+"/dangling")); err != nil {
		t.Fatal(err)
	}
	// What is mounted is not asked: here it is not even there.
	table := []mounts.Mount{{Name: "_nfs._tcp.x", Path: "/www", Dir: root + "/hung"}, {Name: "_nfs._tcp.x", Path: "/www", Dir: root + "/dir/m"}}
	for dir, want := range map[string]string{"/dir": "/dir", "/link": "/dir", "/dir/../dir/": "/dir", "/hung": "/hung"} {
		if got, err := directory(table, root+dir); err != nil || got != root+want {
			t.Errorf("%s: %s, %v", dir, got, err)
		}
	}
	for dir, words := range map[string]string{"/absent": "does not exist", "/file": "not a directory", "/file/x": "not a directory", "/dangling": "does not exist"} {
		if _, err := directory(table, root+dir); err == nil || !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if err := os.Symlink("dir/m", root+"/to"); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{"/hung": "/hung", "/link/m": "/dir/m", "/to": "/dir/m", "/dir/x/../m": "/dir/m"} {
		if got, err := mountPoint(table, root+dir); err != nil || got != root+want {
			t.Errorf("unmount %s: %s, %v", dir, got, err)
		}
	}
	if _, err := mountPoint(table, root+"/dir"); !errors.Is(err, ErrUnmount) || !strings.Contains(err.Error(), "nothing of a fleet") {
		t.Errorf("unmount what is not mounted: %v", err)
	}
}

// Without an agent one is started, once; when that fails the command says so.
func TestAnAgentIsStarted(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	starts := 0
	r := Request{Spec: Spec{Name: "_nfs._tcp.x", Path: "/www"}, Agent: control.NewClient(socket)}
	if _, err := r.route(t.Context()); !errors.Is(err, control.ErrNoAgent) || !strings.Contains(err.Error(), socket) {
		t.Errorf("no agent: %v", err)
	}
	r.Start = func(context.Context) error { starts++; return errors.New("no such program") }
	if _, err := r.route(t.Context()); !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), "no such program") || starts != 1 {
		t.Errorf("an agent that does not start: %v, %d starts", err, starts)
	}
}

// A program that is no agent is noticed when it ends, not when time is up.
func TestAnAgentThatEndsAtOnce(t *testing.T) {
	l := Launcher{Agent: control.NewClient(filepath.Join(t.TempDir(), "agent.sock")), Program: "/bin/false"}
	if err := l.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("%v", err)
	}
	l.Program = "/bin/true"
	if err := l.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "says nothing") {
		t.Errorf("%v", err)
	}
	l.Program = "/no/such/program"
	if err := l.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "program") {
		t.Errorf("%v", err)
	}
}
