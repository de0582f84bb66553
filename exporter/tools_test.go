package exporter

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tool runs a program of the system's that has nothing to do with ours; the test is skipped where it is missing.
func tool(t *testing.T, pkg, name string, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if path, err = exec.LookPath(filepath.Join("/usr/sbin", name)); err != nil {
			t.Skipf("%s is not installed (Debian: %s)", name, pkg)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	return string(out), err
}

func TestLibnfs(t *testing.T) {
	_, addr := serve(t, Config{}, Export{Name: "www", Volume: www(t).Volume, Rules: Rules{Insecure: true}})
	port := addr.(*net.TCPAddr).Port
	url := func(path string) string {
		return fmt.Sprintf("nfs://127.0.0.1%s?nfsport=%d&mountport=%d&version=3", path, port, port)
	}
	out, err := tool(t, "libnfs-utils", "nfs-ls", "-R", url("/www"))
	if err != nil {
		t.Fatalf("nfs-ls: %v\n%s", err, out)
	}
	for _, want := range []string{"hello.txt", "dir/deep/file", "dir/link", "odd\nname \xff", "300000"} {
		if !strings.Contains(out, want) {
			t.Errorf("nfs-ls does not list %q:\n%s", want, out)
		}
	}
	for path, want := range map[string]string{"/www/hello.txt": "hello, world\n", "/www/dir/deep/file": strings.Repeat("0123456789", 30000)} {
		if out, err := tool(t, "libnfs-utils", "nfs-cat", url(path)); err != nil || out != want {
			t.Errorf("nfs-cat %s: %v, %d bytes, want %d", path, err, len(out), len(want))
		}
	}
	if out, err := tool(t, "libnfs-utils", "nfs-cat", url("/www/absent")); err == nil {
		t.Errorf("nfs-cat of what is not there: %q", out)
	}
}

// ownNetwork moves the test into a network of its own, where every port is free: port 111 too.
func ownNetwork(t *testing.T) {
	t.Helper()
	// the thread is given up with the goroutine, and the network with it
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		if errors.Is(err, os.ErrPermission) {
			t.Skipf("a network namespace of its own: %v (needs root)", err)
		}
		t.Fatal(err)
	}
	if out, err := tool(t, "iproute2", "ip", "link", "set", "lo", "up"); err != nil {
		t.Skipf("ip link set lo up: %v: %s", err, out)
	}
}

func TestShowmountAndRpcinfo(t *testing.T) {
	ownNetwork(t)
	kept := new(ledger)
	s, addr := serve(t, Config{Mounts: kept},
		Export{Name: "www", Volume: www(t).Volume, Rules: Rules{Insecure: true}},
		Export{Name: "far", Volume: withFSID(t, 78).Volume, Rules: Rules{Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}})
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp111, err := net.Listen("tcp", ":111")
	if err != nil {
		t.Fatal(err)
	}
	udp111, err := net.ListenPacket("udp", ":111")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- s.ServeMount(ctx, udp) }()
	go func() { done <- s.ServePortmap(ctx, tcp111, udp111, Services(addr, udp.LocalAddr())...) }()
	defer func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}()
	kept.Mounted("www", "/www/dir", netip.MustParseAddr("192.0.2.55"), "")
	for _, c := range []struct {
		pkg  string
		cmd  []string
		want []string
	}{
		{"nfs-common", []string{"showmount", "-e", "127.0.0.1"}, []string{"/far 192.0.2.0/24", "/www (everyone)"}},
		{"nfs-common", []string{"showmount", "-a", "127.0.0.1"}, []string{"192.0.2.55:/www/dir"}},
		{"nfs-common", []string{"showmount", "-d", "127.0.0.1"}, []string{"/www/dir"}},
		{"rpcbind", []string{"rpcinfo", "-p", "127.0.0.1"}, []string{"100003    3   tcp", "100005    3   udp", "100000    2   udp"}},
		{"rpcbind", []string{"rpcinfo", "127.0.0.1"}, []string{"127.0.0.1."}},
		{"rpcbind", []string{"rpcinfo", "-s", "127.0.0.1"}, []string{"nfs"}},
		{"rpcbind", []string{"rpcinfo", "-t", "127.0.0.1", "100003"}, []string{"program 100003 version 3 ready and waiting"}},
		{"rpcbind", []string{"rpcinfo", "-T", "tcp", "127.0.0.1", "100005", "3"}, []string{"program 100005 version 3 ready and waiting"}},
		{"rpcbind", []string{"rpcinfo", "-u", "127.0.0.1", "100005", "3"}, []string{"program 100005 version 3 ready and waiting"}},
		{"libnfs-utils", []string{"nfs-ls", "nfs://127.0.0.1/www"}, []string{"hello.txt"}}, // finds both ports by itself
	} {
		out, err := tool(t, c.pkg, c.cmd[0], c.cmd[1:]...)
		if err != nil {
			t.Errorf("%s: %v\n%s", strings.Join(c.cmd, " "), err, out)
		}
		squeezed := strings.Join(strings.Fields(out), " ")
		for _, want := range c.want {
			if !strings.Contains(squeezed, strings.Join(strings.Fields(want), " ")) {
				t.Errorf("%s does not say %q:\n%s", strings.Join(c.cmd, " "), want, out)
			}
		}
	}
}
