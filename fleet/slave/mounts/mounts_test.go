package mounts

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const table = `22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
90 22 0:50 / /srv/www ro,nosuid,nodev,relatime shared:3 - nfs _nfs._tcp.Web17.slaves.prod.example:/www ro,vers=3,rsize=1048576,port=602,mountaddr=127.0.0.1,mountvers=3,mountport=602,mountproto=tcp,local_lock=all,addr=127.0.0.1
91 22 0:51 / /srv/two\040words ro - nfs _nfs._tcp.prod.example.:/www/sub/dir ro,port=2049,addr=fd00::1
92 22 0:52 / /other ro - nfs filer:/export rw,addr=10.0.0.1
93 22 0:53 / /four ro - nfs4 _nfs._tcp.prod.example:/www rw,addr=10.0.0.1
94 90 0:54 / /srv/www ro - nfs _nfs._tcp.b.example:/x ro,port=603,addr=127.0.0.1
`

func TestMountsAreToldByTheirNames(t *testing.T) {
	got, err := read(strings.NewReader(table))
	want := []Mount{
		{90, "_nfs._tcp.web17.slaves.prod.example", "/www", "/srv/www", netip.MustParseAddrPort("127.0.0.1:602"), "0:50", 1 << 20},
		{91, "_nfs._tcp.prod.example", "/www/sub/dir", "/srv/two words", netip.MustParseAddrPort("[fd00::1]:2049"), "0:51", 0},
		{94, "_nfs._tcp.b.example", "/x", "/srv/www", netip.MustParseAddrPort("127.0.0.1:603"), "0:54", 0},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if s := got[1].Shard(); s != "www" {
		t.Errorf("shard %q", s)
	}
	if m, ok := Topmost(got, "/srv/www"); !ok || m.ID != 94 {
		t.Errorf("%+v, %v is on top", m, ok)
	}
	if _, ok := Topmost(got, "/srv"); ok {
		t.Error("something is mounted at /srv")
	}
	if !Same(got, []Mount{got[2], got[0], got[1]}) || Same(got, got[:2]) {
		t.Error("tables are not told apart")
	}
}

// What is no table is an error, and never a panic.
func FuzzRead(f *testing.F) {
	f.Add(table)
	f.Add("90 22 0:50 / /srv ro - nfs _nfs._tcp.x: port=99999999,addr=,addr=x\n")
	f.Fuzz(func(_ *testing.T, s string) {
		read(strings.NewReader(s)) //nolint:errcheck // either is fine
	})
}

// watching says that the process is the child that TestWatch starts in a mount namespace of its own.
const watching = "MOUNTS_TEST_WATCH"

func TestWatch(t *testing.T) {
	if os.Getenv(watching) != "" {
		watchForReal(t)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if out, err := exec.Command("unshare", "-m", "true").CombinedOutput(); err != nil {
		t.Skipf("no mount namespace: %v: %s", err, out)
	}
	cmd := exec.Command("unshare", "-m", os.Args[0], "-test.run=^TestWatch$", "-test.v")
	cmd.Env = append(os.Environ(), watching+"="+t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func watchForReal(t *testing.T) {
	dir := filepath.Join(os.Getenv(watching), "m")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	seen := make(chan struct{}, 16)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Watch(ctx, func([]Mount) { seen <- struct{}{} }) }()
	wait := func(what string) {
		t.Helper()
		select {
		case <-seen:
		case err := <-done:
			t.Fatalf("%s: Watch ended: %v", what, err)
		case <-time.After(10 * time.Second):
			t.Fatalf("%s is not noticed", what)
		}
	}
	wait("the beginning")
	for _, args := range [][]string{{"mount", "-t", "tmpfs", "none", dir}, {"umount", dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("%q: %v: %s", args, err, out)
		}
		wait(args[0])
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
