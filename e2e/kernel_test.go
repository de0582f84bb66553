package e2e

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/e2e/wire"
)

// fixture is one master and one slave that has mounted its shard "www".
type fixture struct {
	*Master
	slave  *Slave
	source string // the shard's source
	mnt    string // where the slave has mounted it
}

// newFixture fills a source, starts a master on it and mounts it.
func newFixture(t *testing.T, mode string, fill func(source string), flags ...string) *fixture {
	t.Helper()
	lan := NewLAN(t)
	f := &fixture{source: t.TempDir()}
	fill(f.source)
	f.Master = NewMaster(t, MasterConfig{Host: lan.Host(t, "m1"), Sources: []string{"www=" + f.source + mode}, Flags: flags})
	f.Start()
	f.slave = lan.Slave(t) // boots while the master publishes
	f.WaitReady()
	f.WaitLeader("www")
	if strings.Contains(mode, "manual") {
		f.Publish("www")
	}
	f.WaitGeneration("www", 1)
	f.mnt = f.slave.Mount(f.Host.Addr+":/www", "www")
	return f
}

// write puts a file into the source, in place.
func (f *fixture) write(t *testing.T, name, content string) {
	t.Helper()
	writeFile(t, filepath.Join(f.source, name), content)
}

// replace puts a file into the source as editors and deployments do: a new file renamed over the old one.
func (f *fixture) replace(t *testing.T, name, content string) {
	t.Helper()
	path := filepath.Join(f.source, name)
	writeFile(t, path+".new", content)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func sha256Hex(s string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s))) }

// sameAsSource compares the mount with the source by rsync, and by a digest that sees nanoseconds too.
func (f *fixture) sameAsSource(t *testing.T, skip ...string) {
	t.Helper()
	var exclude []string
	for _, s := range skip {
		exclude = append(exclude, "--exclude=/"+s)
	}
	f.slave.SameTree(f.source, f.mnt, exclude...)
	here := wire.Summarize(wire.Listing{Root: f.source, Contents: true, Skip: skip})
	there := f.slave.Summarize(wire.Listing{Root: f.mnt, Contents: true, Skip: skip})
	if here != there || here.Error != "" {
		t.Errorf("the source is %+v, the mount %+v", here, there)
	}
}

// Everything that Linux allows in a tree comes out as it went in, before and after a change.
func TestKernelSeesTheSource(t *testing.T) {
	var zoo *Zoo
	f := newFixture(t, "", func(source string) { zoo = NewZoo(t, source) })
	t.Run("the whole tree", func(t *testing.T) { f.sameAsSource(t, "far", zoo.Crowd) })
	t.Run("100,000 entries", func(t *testing.T) { f.crowd(t, zoo) })
	t.Run("a sparse file of 10 GiB", func(t *testing.T) { f.sparse(t, zoo) })
	t.Run("times out of range", func(t *testing.T) { f.clamped(t, zoo) })
	t.Run("names", func(t *testing.T) { f.names(t, zoo) })
	t.Run("a read-only file system", f.readOnly)
	t.Run("ways to mount", f.waysToMount)
	t.Run("after a publish", func(t *testing.T) { f.changes(t, zoo) })
}

func (f *fixture) crowd(t *testing.T, zoo *Zoo) {
	names := f.slave.ReadDir(f.mnt + "/" + zoo.Crowd)
	slices.Sort(names)
	want, err := os.ReadDir(zoo.path(zoo.Crowd)) // sorted
	if err != nil {
		t.Fatal(err)
	}
	if len(names) != len(want) {
		t.Fatalf("%d names, want %d", len(names), len(want))
	}
	for i := range want {
		if names[i] != want[i].Name() {
			t.Fatalf("name %d is %q, want %q", i, names[i], want[i].Name())
		}
	}
	for i := 0; i < len(want); i += 1000 { // those with content
		name := fmt.Sprintf("%s/one-of-many-%06d", zoo.Crowd, i)
		if got, err := f.slave.ReadFile(f.mnt + "/" + name); err != nil || got != zoo.path(name) {
			t.Fatalf("%s holds %q, %v", name, got, err)
		}
	}
}

func (f *fixture) sparse(t *testing.T, zoo *Zoo) {
	var here syscall.Stat_t
	if err := syscall.Lstat(zoo.path(zoo.Sparse), &here); err != nil {
		t.Fatal(err)
	}
	file := f.slave.MustOpen(f.mnt + "/" + zoo.Sparse)
	defer file.Close()
	if file.Attr.Size != zoo.SparseSize {
		t.Errorf("size %d, want %d", file.Attr.Size, zoo.SparseSize)
	}
	if used := file.Attr.Blocks * 512; used > 64<<20 {
		t.Errorf("%d bytes in use: its holes were filled", used)
	}
	for off, want := range zoo.SparseData {
		if got, err := file.Read(off, len(want)); err != nil || got != want {
			t.Errorf("at %d: %q, %v; want %q", off, clip(got), err, clip(want))
		}
	}
	for _, off := range []int64{0, 3 << 30, 5<<30 - 4096, zoo.SparseSize - 100_000} {
		got, err := file.Read(off, 65536)
		if data, begins := zoo.SparseData[off+4096]; begins { // data begins within what was read
			got = got[:4096] + strings.ReplaceAll(got[4096:], data, strings.Repeat("\x00", len(data)))
		}
		if err != nil || len(got) != 65536 || strings.Trim(got, "\x00") != "" {
			t.Errorf("the hole at %d reads as %d bytes, not all zero; %v", off, len(got), err)
		}
	}
	if got, err := file.Read(zoo.SparseSize-4, 100); err != nil || len(got) != 4 {
		t.Errorf("over the end: %d bytes, %v", len(got), err)
	}
}

// clamped: NFSv3 counts unsigned 32-bit seconds.
func (f *fixture) clamped(t *testing.T, zoo *Zoo) {
	for name, at := range zoo.Far {
		want := syscall.Timespec{}
		if at.Unix() > 0 {
			want.Sec = 1<<32 - 1
		}
		got := f.slave.MustLstat(f.mnt + "/" + name).Mtime
		if got.Sec != want.Sec {
			t.Errorf("%s, of %v, shows %d seconds, want %d", name, at, got.Sec, want.Sec)
		}
	}
}

func (f *fixture) names(t *testing.T, zoo *Zoo) {
	got := f.slave.ReadDir(f.mnt + "/names")
	want := slices.Clone(zoo.Names)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("names %q\nwant %q", got, want)
	}
	for _, n := range want {
		if c, err := f.slave.ReadFile(f.mnt + "/names/" + n); err != nil || c != "named "+n {
			t.Errorf("%q holds %q, %v", n, c, err)
		}
	}
	if target := f.slave.Must("readlink", "-n", f.mnt+"/special/odd\xff"); target != "to\n\xfe" {
		t.Errorf("a link's target is %q", target)
	}
}

// readOnly: every way to write is refused by the server when the client was mounted for writing. Opening for writing does not
// get as far as a write: ACCESS has said no, as the kernel's own server does for a read-only export.
func (f *fixture) readOnly(t *testing.T) {
	s := f.slave
	s.Must("mkdir", "-p", "/mnt/rw")
	s.Must("mount", "-t", "nfs", "-o", strings.Replace(mountOptions, ",ro", ",rw", 1), f.Host.Addr+":/www", "/mnt/rw")
	defer s.Must("umount", "/mnt/rw")
	for _, c := range []string{
		"touch /mnt/rw/new", "mkdir /mnt/rw/new", "rm /mnt/rw/plain/size-1", "rmdir /mnt/rw/plain/empty", "chmod 600 /mnt/rw/plain/size-1",
		"mv /mnt/rw/plain/size-1 /mnt/rw/plain/size-2", "ln /mnt/rw/plain/size-1 /mnt/rw/hard", "ln -s x /mnt/rw/soft",
		"mknod /mnt/rw/dev c 1 3", "chown 5 /mnt/rw/plain",
	} {
		if r := s.Run("sh", "-c", "LC_ALL=C "+c); r.Code == 0 || !strings.Contains(r.Stderr, "Read-only file system") {
			t.Errorf("%s: %v", c, r)
		}
	}
	for _, c := range []string{"echo more >>/mnt/rw/plain/size-1", "truncate -s 0 /mnt/rw/plain/size-4096"} {
		if r := s.Run("sh", "-c", "LC_ALL=C "+c); r.Code == 0 || !strings.Contains(r.Stderr, "Permission denied") {
			t.Errorf("%s: %v", c, r)
		}
	}
}

// waysToMount: without a version (the client probes v4 first), a directory inside, twice, a shard that is not there.
func (f *fixture) waysToMount(t *testing.T) {
	s := f.slave
	s.Must("mkdir", "-p", "/mnt/a", "/mnt/b")
	s.Must("mount", "-t", "nfs", "-o", "ro,nolock,tcp,port=2049,mountport=2049,mountproto=tcp", f.Host.Addr+":/www", "/mnt/a")
	if got, err := s.ReadFile("/mnt/a/links/one"); err != nil || got != "three names" {
		t.Errorf("through a mount without a version: %q, %v", got, err)
	}
	s.Must("mount", "-t", "nfs", "-o", mountOptions, f.Host.Addr+":/www/links/sub", "/mnt/b")
	if got, err := s.ReadFile("/mnt/b/three"); err != nil || got != "three names" {
		t.Errorf("through a mount of a directory inside: %q, %v", got, err)
	}
	if r := s.Run("mount", "-t", "nfs", "-o", mountOptions, f.Host.Addr+":/absent", "/mnt/b"); r.Code == 0 || !strings.Contains(r.Stderr, "No such file") {
		t.Errorf("mount of no shard: %v", r)
	}
	s.Must("umount", "/mnt/a", "/mnt/b")
	s.Must("mount", "-t", "nfs", "-o", mountOptions+",nosharecache,nconnect=4", f.Host.Addr+":/www", "/mnt/a")
	if got, err := s.ReadFile("/mnt/a/plain/size-9437191"); err != nil || len(got) != 9437191 {
		t.Errorf("over four connections: %d bytes, %v", len(got), err)
	}
	s.Must("umount", "/mnt/a")
}

// changes alters the tree in every way at once; the watcher publishes it, and the mount shows it without a remount.
func (f *fixture) changes(t *testing.T, zoo *Zoo) {
	before := f.Shard("www").Generation
	kept := f.slave.MustLstat(f.mnt + "/plain/size-4096")
	changed := f.slave.MustLstat(f.mnt + "/plain/size-4097")
	f.write(t, "plain/size-4097", "shorter")
	f.write(t, "new/dir/file", "new")
	for _, err := range []error{
		os.RemoveAll(zoo.path("names.d")),
		os.Rename(zoo.path("plain/size-1"), zoo.path("plain/size-one")),
		os.Chmod(zoo.path("plain/size-0"), 0o600),
		os.Lchown(zoo.path("plain/owner-0"), 7, 8),
		os.Remove(zoo.path("links/two")),
		os.Link(zoo.path("links/one"), zoo.path("new/four")),
		os.Remove(zoo.path("special/null")),
		os.Mkdir(zoo.path("special/null"), 0o755),
		os.Remove(zoo.path(zoo.Crowd + "/one-of-many-050000")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	f.WaitGeneration("www", before+1)
	f.Publish("www") // whatever the watcher has not taken yet
	f.slave.DropCaches()
	f.sameAsSource(t, "far", zoo.Crowd)
	if n := len(f.slave.ReadDir(f.mnt + "/" + zoo.Crowd)); n != zoo.CrowdSize-1 {
		t.Errorf("%d entries after one was removed, want %d", n, zoo.CrowdSize-1)
	}
	if got := f.slave.MustLstat(f.mnt + "/plain/size-4096"); got.Ino != kept.Ino {
		t.Errorf("a file that did not change had inode %d and has %d", kept.Ino, got.Ino)
	}
	if got := f.slave.MustLstat(f.mnt + "/plain/size-4097"); got.Ino == changed.Ino || got.Ctime == changed.Ctime {
		t.Errorf("a file with new bytes kept its inode %d or its ctime %v", got.Ino, got.Ctime)
	}
}

// small fills a source with a little of this and that.
func small(t *testing.T) func(source string) {
	return func(source string) {
		for i := range 40 {
			writeFile(t, filepath.Join(source, fmt.Sprintf("d%d/f%d", i%5, i)), noise(int64(i), 3000*i))
		}
		writeFile(t, filepath.Join(source, "big"), noise(99, 9<<20))
		writeFile(t, filepath.Join(source, "old"), "old content")
	}
}

// inodes maps every path of a tree on the slave to its inode number.
func (f *fixture) inodes() string {
	f.slave.t.Helper()
	return f.slave.Must("sh", "-c", "find "+f.mnt+" -printf '%i %p\\n' | sort -k2")
}

// A master that goes away and comes back is the same to a client: no ESTALE, no remount, the same inode numbers, an open
// file goes on where it was.
func TestRestartUnderOpenFiles(t *testing.T) {
	f := newFixture(t, "", small(t))
	for _, c := range []struct {
		name string
		down func()
	}{
		{"SIGTERM", func() {
			if took := f.Stop(); took > 5*time.Second {
				t.Errorf("SIGTERM took %v", took)
			}
		}},
		{"SIGKILL", f.Kill},
	} {
		t.Run(c.name, func(t *testing.T) {
			fsid, generation := f.Shard("www").FSID, f.Shard("www").Generation
			before := f.inodes()
			open := f.slave.MustOpen(f.mnt + "/big")
			first, err := open.Read(0, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			loop := f.slave.Loop(wire.Loop{Path: f.mnt + "/big"})
			held := f.slave.Loop(wire.Loop{Path: f.mnt + "/d1/f36", Keep: true})
			c.down()
			f.Start()
			f.WaitReady()
			f.slave.DropCaches()
			again, err := open.Read(0, 1<<20)
			if err != nil || again != first {
				t.Errorf("an open file reads otherwise after the restart: %v", err)
			}
			if rest, err := open.Read(1<<20, 9<<20); err != nil || first+rest != noise(99, 9<<20) {
				t.Errorf("the rest of an open file is wrong after the restart: %v", err)
			}
			if a, err := open.Stat(); err != nil || a.Ino != open.Attr.Ino || a.Ctime != open.Attr.Ctime {
				t.Errorf("an open file was %+v and is %+v, %v", open.Attr, a, err)
			}
			open.Close()
			checkLoop(t, "a file read again and again", loop(), noise(99, 9<<20))
			checkLoop(t, "a file held open", held(), noise(36, 3000*36))
			if after := f.inodes(); after != before {
				t.Errorf("inode numbers before:\n%s\nafter:\n%s", clip(before), clip(after))
			}
			f.sameAsSource(t)
			if s := f.Shard("www"); s.FSID != fsid || s.Generation != generation {
				t.Errorf("fsid %v and generation %d became %v and %d", fsid, generation, s.FSID, s.Generation)
			}
		})
	}
}

// checkLoop demands that a reader saw no error, and nothing but these contents.
func checkLoop(t *testing.T, what string, r wire.Report, contents ...string) {
	t.Helper()
	if r.Failed > 0 || r.Reads == 0 {
		t.Errorf("%s: %d of %d reads failed: %q", what, r.Failed, r.Reads, r.Errors)
	}
	for sum, n := range r.Sums {
		if !slices.ContainsFunc(contents, func(c string) bool { return sum == sha256Hex(c) }) {
			t.Errorf("%s: %d reads gave bytes that were never published", what, n)
		}
	}
	t.Logf("%s: %d reads, longest %v, %d versions", what, r.Reads, r.Longest, len(r.Sums))
}

// A file that is replaced keeps its old bytes for who has it open, to the end and across a restart of the master; who opens
// it anew sees the new ones.
func TestReplacedUnderOpenFiles(t *testing.T) {
	f := newFixture(t, ",mode=manual", small(t))
	oldBig, newBig := noise(99, 9<<20), noise(100, 7<<20)
	big := f.slave.MustOpen(f.mnt + "/big")
	old := f.slave.MustOpen(f.mnt + "/old")
	gone := f.slave.MustOpen(f.mnt + "/d1/f6")
	if got, err := big.Read(0, 4096); err != nil || got != oldBig[:4096] {
		t.Fatalf("before the publish: %v", err)
	}
	reader := f.slave.Loop(wire.Loop{Path: f.mnt + "/d2/f7"})
	inode := f.slave.MustLstat(f.mnt + "/d2/f7").Ino

	f.replace(t, "big", newBig)
	f.write(t, "old", "new content, longer than before") // in place
	f.write(t, "d2/f7", noise(7777, 100_000))
	if err := os.Remove(filepath.Join(f.source, "d1/f6")); err != nil {
		t.Fatal(err)
	}
	if g := f.Publish("www"); g.Number != 2 || !g.Changed {
		t.Fatalf("published %+v", g)
	}
	check := func(when string) {
		t.Helper()
		f.slave.DropCaches()
		for _, c := range []struct {
			file *File
			want string
		}{{big, oldBig}, {old, "old content"}, {gone, noise(6, 3000*6)}} {
			got, err := c.file.Read(0, len(c.want)+4096)
			if err != nil || got != c.want {
				t.Errorf("%s, %s that was open reads %d bytes, %v; want its old %d", when, c.file.path, len(got), err, len(c.want))
			}
			if a, err := c.file.Stat(); err != nil || a.Size != int64(len(c.want)) || a.Ino != c.file.Attr.Ino {
				t.Errorf("%s, %s that was open is now %+v, %v; was %+v", when, c.file.path, a, err, c.file.Attr)
			}
		}
		for name, want := range map[string]string{"big": newBig, "old": "new content, longer than before"} {
			if got, err := f.slave.ReadFile(f.mnt + "/" + name); err != nil || got != want {
				t.Errorf("%s, a new open of %s reads %d bytes, %v; want the new %d", when, name, len(got), err, len(want))
			}
		}
		if _, err := f.slave.Open(f.mnt + "/d1/f6"); !errors.Is(err, syscall.ENOENT) {
			t.Errorf("%s, a removed file opens: %v", when, err)
		}
	}
	check("after the publish")
	if now := f.slave.MustOpen(f.mnt + "/d2/f7"); now.Attr.Ino == inode {
		t.Errorf("new bytes under the old inode number %d", inode)
	}
	checkLoop(t, "a file replaced under a reader", reader(), noise(7, 21000), noise(7777, 100_000))
	f.Kill()
	f.Start()
	f.WaitReady()
	check("after a restart")
	f.sameAsSource(t)
}

// Files that change while they are published are stored as they were before or after, never in between; and readers under
// constant publishing see whole versions only.
func TestReadersUnderConstantPublishing(t *testing.T) {
	f := newFixture(t, ",mode=manual", small(t))
	contents := []string{noise(99, 9<<20)}
	loop := f.slave.Loop(wire.Loop{Path: f.mnt + "/big"})
	loopSmall := f.slave.Loop(wire.Loop{Path: f.mnt + "/old"})
	smalls := []string{"old content"}
	for i := range 15 {
		contents = append(contents, noise(int64(1000+i), 1<<20+i*300_000))
		smalls = append(smalls, strings.Repeat(fmt.Sprintf("version %d\n", i), 1+i*10))
		f.replace(t, "big", contents[len(contents)-1])
		f.replace(t, "old", smalls[len(smalls)-1])
		if g := f.Publish("www"); g.Number != uint64(i+2) {
			t.Fatalf("publish %d made generation %d", i, g.Number)
		}
	}
	checkLoop(t, "a large file", loop(), contents...)
	checkLoop(t, "a small file", loopSmall(), smalls...)
	f.slave.DropCaches()
	f.sameAsSource(t)
}
