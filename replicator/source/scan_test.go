package source

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

func exchange(a, b string) error {
	return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
}

func TestEveryKindOfFileComesOutAsItIs(t *testing.T) {
	r := newRig(t)
	odd := map[string]string{
		"plain":                  "hello",
		"empty":                  "",
		"a/b/c/deep":             "x",
		"new\nline":              "n",
		"\xff\xfe not UTF-8":     "u",
		strings.Repeat("n", 255): "long",
		"exactly":                strings.Repeat("e", tree.ChunkSize),
		"over":                   strings.Repeat("o", tree.ChunkSize+1),
	}
	for name, content := range odd {
		r.write(name, content)
	}
	r.do(os.Chmod(r.path("plain"), 0o755|os.ModeSetuid|os.ModeSticky))
	r.do(os.Chtimes(r.path("plain"), time.Time{}, time.Unix(-5, 123456789)))
	r.do(os.Chtimes(r.path("empty"), time.Time{}, time.Unix(5_000_000_000, 1)))
	r.do(os.Symlink("/nowhere \xff", r.path("link")))
	r.do(syscall.Mkfifo(r.path("fifo"), 0o620))
	r.do(os.Chmod(r.path("fifo"), 0o620))
	sock, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	r.do(err)
	defer syscall.Close(sock)
	r.do(os.Mkdir(r.path("dir"), 0o2750))
	r.do(os.Chmod(r.path("dir"), 0o750|os.ModeSetgid))
	_, sc := r.scan(false)
	if !sc.Full() || len(sc.Warnings()) > 0 {
		t.Fatalf("full %v, warnings %q", sc.Full(), sc.Warnings())
	}
	for name, content := range odd {
		if got := r.content(name); got != content {
			t.Errorf("%q: %d bytes, want %d", name, len(got), len(content))
		}
		if e := r.world[name]; e.Type != tree.Regular || e.Size != uint64(len(content)) || e.Used != e.Size {
			t.Errorf("%q: %+v", name, e)
		}
	}
	if e := r.world["plain"]; e.Mode != 0o5755 || e.Mtime != (tree.Time{Sec: -5, Nsec: 123456789}) || e.Content.Digest != sha256.Sum256([]byte("hello")) {
		t.Errorf("plain: %+v", e)
	}
	if e := r.world["empty"]; e.Mtime != (tree.Time{Sec: 5_000_000_000, Nsec: 1}) || e.Content != (tree.Content{}) {
		t.Errorf("empty: %+v", e)
	}
	if e := r.world["link"]; e.Type != tree.Symlink || e.Target != "/nowhere \xff" {
		t.Errorf("link: %+v", e)
	}
	if e := r.world["fifo"]; e.Type != tree.FIFO || e.Mode != 0o620 {
		t.Errorf("fifo: %+v", e)
	}
	if e := r.world["dir"]; e.Type != tree.Directory || e.Mode != 0o2750 {
		t.Errorf("dir: %+v", e)
	}
	if e := r.world["over"]; e.Content.Form != tree.Chunks {
		t.Errorf("over: %+v", e)
	}
	if top := sc.Root(); top.Type != tree.Directory || top.Name != "" || top.Mode != 0o755 {
		t.Errorf("root: %+v", top)
	}
}

func TestDevicesAndOwners(t *testing.T) {
	needRoot(t)
	r := newRig(t)
	r.do(syscall.Mknod(r.path("null"), syscall.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	r.do(syscall.Mknod(r.path("disk"), syscall.S_IFBLK|0o660, int(unix.Mkdev(259, 70000))))
	r.do(syscall.Mknod(r.path("sock"), syscall.S_IFSOCK|0o600, 0))
	r.write("owned", "x")
	r.do(os.Chown(r.path("owned"), 1234, 4_000_000_000))
	r.scan(false)
	if e := r.world["null"]; e.Type != tree.Char || e.Rdev != (tree.Device{Major: 1, Minor: 3}) {
		t.Errorf("null: %+v", e)
	}
	if e := r.world["disk"]; e.Type != tree.Block || e.Rdev != (tree.Device{Major: 259, Minor: 70000}) {
		t.Errorf("disk: %+v", e)
	}
	if e := r.world["sock"]; e.Type != tree.Socket {
		t.Errorf("sock: %+v", e)
	}
	if e := r.world["owned"]; e.UID != 1234 || e.GID != 4_000_000_000 {
		t.Errorf("owned: %+v", e)
	}
}

func TestASparseFileOf10GiBIsQuick(t *testing.T) {
	var reads count
	r := newRig(t, withFaults(&hooks{read: func(string) { reads.add(1) }}, &counts{}))
	f, err := os.Create(r.path("sparse"))
	r.do(err)
	const size = 10 << 30
	r.do(f.Truncate(size))
	_, err = f.WriteAt([]byte("middle"), 5<<30)
	r.do(err)
	r.do(f.Close())
	r.scan(true)
	if n := reads.Load(); n > 2 {
		t.Errorf("%d chunks were read for 6 bytes", n)
	}
	e := r.world["sparse"]
	if e.Size != size || e.Used == 0 || e.Used > 1<<20 {
		t.Errorf("size %d, used %d", e.Size, e.Used)
	}
	list, err := r.objs.Get(t.Context(), e.Content.Digest)
	r.do(err)
	extents, err := tree.DecodeChunks(list)
	r.do(err)
	var at uint64
	for _, x := range extents {
		if !x.Digest.IsZero() {
			b, err := r.objs.Get(t.Context(), x.Digest)
			r.do(err)
			if at > 5<<30 || at+x.Length < 5<<30 || !strings.Contains(string(b), "middle") {
				t.Errorf("data at %d", at)
			}
		}
		at += x.Length
	}
	if at != size {
		t.Errorf("extents cover %d", at)
	}
}

func TestUnchangedFilesAreNotReadAgain(t *testing.T) {
	var n counts
	state := filepath.Join(t.TempDir(), "state")
	r := newRig(t, withFaults(&hooks{}, &n), func(c *Config) { c.State = state })
	for i := range 50 {
		r.write(fmt.Sprintf("d%d/f%d", i%5, i), fmt.Sprint(i))
	}
	r.scan(true)
	if got := n.opens.Load(); got != 50 {
		t.Fatalf("the first scan opened %d files", got)
	}
	n.opens.Store(0)
	r.write("d1/f1", "other")
	r.scan(true)
	if got := n.opens.Load(); got != 1 {
		t.Fatalf("the second scan opened %d files", got)
	}
	if r.content("d1/f1") != "other" {
		t.Fatal("the change was not seen")
	}
	r.do(r.src.Close())

	// Another process, and a directory that was renamed meanwhile: still nothing to read.
	r.do(os.Rename(r.path("d2"), r.path("renamed")))
	n.opens.Store(0)
	fs, err := OpenRoot(r.dir)
	r.do(err)
	c := r.src.cfg
	c.FS = &faulty{fs, ".", &hooks{}, &n}
	r.src, err = New(c)
	r.do(err)
	r.scan(true)
	if got := n.opens.Load(); got != 0 {
		t.Fatalf("after a restart %d files were opened", got)
	}
	r.wantWorld()
}

func TestARacyFileIsHashedAgain(t *testing.T) {
	var n counts
	r := newRig(t, withFaults(&hooks{}, &n), func(c *Config) { c.Racy = time.Hour })
	r.write("f", "one")
	r.scan(true)
	r.scan(true)
	if got := n.opens.Load(); got != 2 {
		t.Fatalf("a file that changed less than Racy ago was read %d times by 2 scans", got)
	}
}

func TestContentThatTheStoreHasLostIsReadAgain(t *testing.T) {
	r := newRig(t)
	r.write("small", "small")
	r.write("large", strings.Repeat("0123456789abcdef", tree.ChunkSize/16)+"tail")
	r.scan(true)
	r.objs.Delete(tree.Sum([]byte("small")))
	r.objs.Delete(tree.Sum([]byte("tail")))
	r.scan(true)
	if r.content("small") != "small" || !strings.HasSuffix(r.content("large"), "tail") {
		t.Fatal("a fingerprint was believed although its content is gone")
	}
}

func TestAbortKeepsFingerprints(t *testing.T) {
	var n counts
	r := newRig(t, withFaults(&hooks{}, &n))
	r.write("f", "x")
	sc, err := r.src.Scan(t.Context(), false, nil)
	r.do(err)
	_, err = r.world.publish(t.Context(), sc, nil)
	r.do(err)
	sc.Abort()
	if st := r.src.Status(); st.Reason == "" {
		t.Fatal("the next scan need not be full")
	}
	_, sc = r.scan(false)
	if !sc.Full() || n.opens.Load() != 1 {
		t.Fatalf("full %v, %d files read twice", sc.Full(), n.opens.Load()-1)
	}
	sc.Abort() // after Commit: nothing
	r.wantWorld()
}

func TestOneScanAtATime(t *testing.T) {
	r := newRig(t)
	sc, err := r.src.Scan(t.Context(), false, nil)
	r.do(err)
	if _, err := r.src.Scan(t.Context(), false, nil); !errors.Is(err, ErrBusy) {
		t.Fatal(err)
	}
	sc.Abort()
	sc, err = r.src.Scan(t.Context(), false, nil)
	r.do(err)
	r.do(sc.Commit())
}

func TestAFileThatChangesWhileItIsReadIsNeverTorn(t *testing.T) {
	for name, c := range map[string]struct {
		size  int
		times int // how often it changes under the reader
		kept  bool
	}{
		"small, once": {1000, 1, false}, "small, always": {1000, 1 << 30, true},
		"large, once": {tree.ChunkSize * 2, 1, false}, "large, always": {tree.ChunkSize * 2, 1 << 30, true},
	} {
		t.Run(name, func(t *testing.T) {
			var h hooks
			r := newRig(t, withFaults(&h, &counts{}))
			version := func(n int) string { return strings.Repeat(string(rune('a'+n%26)), c.size) }
			r.write("f", version(0))
			r.write("other", "fine")
			r.scan(true)
			n := 1
			r.write("f", version(n))
			h.read = func(path string) {
				if path == "f" && n <= c.times {
					n++
					os.WriteFile(r.path("f"), []byte(version(n)), 0o644)
				}
			}
			var s *Scan
			if c.size <= tree.ChunkSize {
				_, s = r.scan(true)
			} else {
				// Several chunks are read at once: let them change the file one after the other.
				read, turn := h.read, make(chan struct{}, 1)
				h.read = func(path string) { turn <- struct{}{}; read(path); <-turn }
				_, s = r.scan(true)
			}
			want := version(n)
			if c.kept {
				want = version(0)
			}
			got := r.content("f")
			if strings.Count(got, got[:1]) != len(got) {
				t.Fatal("torn")
			}
			if got != want {
				t.Fatalf("published version %c, want %c", got[0], want[0])
			}
			if kept := len(s.Warnings()) > 0; kept != c.kept || kept && !strings.Contains(s.Warnings()[0], `"f"`) {
				t.Fatalf("warnings %q", s.Warnings())
			}
			if dirty := r.src.Status().Dirty > 0; dirty != c.kept {
				t.Fatalf("still dirty: %v", dirty)
			}
			h.read = nil
			r.scan(true)
			r.wantWorld()
		})
	}
}

// A writer that pauses between its pieces, for longer than it takes to read the file, is not done yet.
func TestASlowWriterIsWaitedFor(t *testing.T) {
	const quiet, pace, pieces = 150 * time.Millisecond, 40 * time.Millisecond, 10
	paced(t, func(t *testing.T, d *dates) {
		r := newRig(t, withDates(d), func(c *Config) { c.Quiet, c.MaxWait = quiet, 10*time.Second })
		began := time.Now()
		r.write("f", "piece")
		d.change("f")
		var writer sync.WaitGroup
		defer writer.Wait()
		writer.Go(func() {
			f, err := os.OpenFile(r.path("f"), os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			for range pieces - 1 {
				time.Sleep(pace)
				f.WriteString("piece")
				d.change("f")
			}
		})
		r.scan(true)
		if took, rest := time.Since(began), (pieces-1)*pace+quiet; took < rest || took > rest+tick {
			t.Errorf("the scan took %s; the file was at rest after %s", took, rest)
		}
		if got := r.content("f"); got != strings.Repeat("piece", pieces) {
			t.Errorf("published %d pieces of %d", strings.Count(got, "piece"), pieces)
		}
	})
}

func TestAWriterThatNeverRestsKeepsThePreviousVersion(t *testing.T) {
	paced(t, func(t *testing.T, d *dates) {
		r := newRig(t, withDates(d), func(c *Config) { c.Quiet, c.MaxWait = 100*time.Millisecond, 400*time.Millisecond })
		r.write("f", "whole")
		d.change("f")
		r.scan(true)
		stop, stopped := make(chan struct{}), make(chan struct{})
		write := func() { r.write("f", "half"); d.change("f") }
		write()
		go func() {
			defer close(stopped)
			for tick := time.NewTicker(20 * time.Millisecond); ; {
				select {
				case <-stop:
					tick.Stop()
					return
				case <-tick.C:
					write()
				}
			}
		}()
		_, s := r.scan(true)
		close(stop)
		<-stopped
		if got := r.content("f"); got != "whole" || len(s.Warnings()) != 1 {
			t.Fatalf("published %q with warnings %q", got, s.Warnings())
		}
		r.scan(true)
		if got := r.content("f"); got != "half" {
			t.Fatalf("at rest, but published %q", got)
		}
	})
}

func TestAFileReplacedByAnythingElseUnderTheReader(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	os.WriteFile(secret, []byte("secret"), 0o644)
	for name, replace := range map[string]func(string) error{
		"link out": func(p string) error { return os.Symlink(secret, p) },
		"link in":  func(p string) error { return os.Symlink("other", p) },
		"fifo":     func(p string) error { return syscall.Mkfifo(p, 0o644) },
		"socket":   func(p string) error { return syscall.Mknod(p, syscall.S_IFSOCK|0o644, 0) },
		"dir":      func(p string) error { return os.Mkdir(p, 0o755) },
		"file":     func(p string) error { return os.WriteFile(p, []byte("new content"), 0o600) },
		"nothing":  func(string) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			var h hooks
			r := newRig(t, withFaults(&h, &counts{}))
			r.write("f", "content")
			r.write("other", "other")
			done := false
			h.open = func(path string) error {
				if path == "f" && !done {
					done = true
					os.Remove(r.path("f"))
					return replace(r.path("f"))
				}
				return nil
			}
			r.scan(true)
			r.wantWorld()
		})
	}
}

func TestAFileThatMayNotBeReadStaysAsItWas(t *testing.T) {
	var h hooks
	r := newRig(t, withFaults(&h, &counts{}))
	r.write("f", "old")
	r.scan(true)
	r.write("f", "new")
	r.write("never", "seen")
	h.open = func(path string) error { return &os.PathError{Op: "openat", Path: path, Err: syscall.EACCES} }
	_, sc := r.scan(true)
	if r.content("f") != "old" {
		t.Fatal("not kept")
	}
	if _, ok := r.world["never"]; ok {
		t.Fatal("published without content")
	}
	if w := strings.Join(sc.Warnings(), "; "); !strings.Contains(w, `"f" may not be read`) || !strings.Contains(w, `"never"`) {
		t.Fatalf("warnings %q", w)
	}
}

func TestUnreadableDirectoryIsLeftOutWithAWarning(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may read everything; TestDeniedDirectory covers the decision")
	}
	r := newRig(t)
	r.write("shut/f", "x")
	r.do(os.Chmod(r.path("shut"), 0))
	defer os.Chmod(r.path("shut"), 0o755)
	_, sc := r.scan(true)
	if _, ok := r.world["shut"]; ok || len(sc.Warnings()) != 1 {
		t.Fatalf("%v %q", ok, sc.Warnings())
	}
}

func TestDeniedDirectory(t *testing.T) {
	var h hooks
	r := newRig(t, withFaults(&h, &counts{}))
	r.write("shut/f", "x")
	r.write("open/f", "y")
	r.do(os.Chmod(r.path("shut"), 0o700))
	h.chroot = func(path string) error {
		if path == "shut" {
			return &os.PathError{Op: "openat", Path: path, Err: syscall.EACCES}
		}
		return nil
	}
	sc, err := r.src.Scan(t.Context(), true, nil)
	r.do(err)
	sc.root = false
	r.world, err = r.world.publish(t.Context(), sc, nil)
	r.do(err)
	r.do(sc.Commit())
	if _, ok := r.world["shut"]; ok || len(sc.Warnings()) != 1 || r.content("open/f") != "y" {
		t.Fatalf("%v %q", ok, sc.Warnings())
	}
}

func TestAnIOErrorFailsTheScanByName(t *testing.T) {
	for name, h := range map[string]hooks{
		"file":      {open: failOn("d/f", syscall.EIO)},
		"directory": {readDir: failOn("d", syscall.EIO)},
		"stale":     {chroot: failOn("d", syscall.ESTALE)},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, withFaults(&h, &counts{}))
			r.write("d/f", "x")
			sc, err := r.src.Scan(t.Context(), true, nil)
			r.do(err)
			_, err = r.world.publish(t.Context(), sc, nil)
			sc.Abort()
			if err == nil || !strings.Contains(err.Error(), `"d`) {
				t.Fatalf("error %v", err)
			}
			if st := r.src.Status(); !strings.Contains(st.LastError, `"d`) {
				t.Fatalf("status %+v", st)
			}
		})
	}
}

func failOn(path string, errno syscall.Errno) func(string) error {
	return func(p string) error {
		if p == path {
			return &os.PathError{Op: "open", Path: p, Err: errno}
		}
		return nil
	}
}

func TestAFullStoreFailsTheScan(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EACCES, syscall.ENOENT} {
		r := newRig(t)
		r.write("f", "x")
		r.objs.fail = func() error { return errno }
		sc, err := r.src.Scan(t.Context(), true, nil)
		r.do(err)
		_, err = r.world.publish(t.Context(), sc, nil)
		sc.Abort()
		if !errors.Is(err, errno) {
			t.Fatalf("%v: %v", errno, err)
		}
	}
}

func TestASourceThatIsGoneIsNoEmptyTree(t *testing.T) {
	r := newRig(t)
	r.write("f", "x")
	r.scan(true)
	r.do(os.RemoveAll(r.dir))
	for range 2 {
		if _, err := r.src.Scan(t.Context(), false, nil); !errors.Is(err, ErrVanished) {
			t.Fatalf("a deleted source: %v", err)
		}
	}
	if st := r.src.Status(); !strings.Contains(st.LastError, "vanished") {
		t.Fatalf("status %+v", st)
	}
	r.write("g", "y")
	r.scan(false)
	r.wantWorld()
	if st := r.src.Status(); st.LastError != "" {
		t.Fatalf("status %+v", st)
	}
}

func TestASourceThatIsDeletedDuringTheScan(t *testing.T) {
	var h hooks
	r := newRig(t, withFaults(&h, &counts{}))
	r.write("a/f", "x")
	h.chroot = func(string) error { return os.RemoveAll(r.dir) }
	sc, err := r.src.Scan(t.Context(), true, nil)
	r.do(err)
	_, err = r.world.publish(t.Context(), sc, nil)
	sc.Abort()
	if !errors.Is(err, ErrVanished) {
		t.Fatalf("a half-read source: %v", err)
	}
}

func TestAnUnmountedSourceIsNoEmptyTree(t *testing.T) {
	needRoot(t)
	r := newRig(t)
	under := t.TempDir()
	if err := syscall.Mount("none", r.dir, "tmpfs", 0, ""); err != nil {
		t.Skipf("cannot mount: %v", err)
	}
	mounted := true
	t.Cleanup(func() {
		if mounted {
			syscall.Unmount(r.dir, syscall.MNT_DETACH)
		}
	})
	_ = under
	r.write("f", "x")
	r.scan(true) // re-opens: another directory is there than when the rig began
	r.wantWorld()
	r.do(syscall.Unmount(r.dir, syscall.MNT_DETACH))
	mounted = false
	_, err := r.src.Scan(t.Context(), true, nil)
	if !errors.Is(err, ErrVanished) || !strings.Contains(err.Error(), "mounted") {
		t.Fatalf("an unmounted source: %v", err)
	}
}

func TestAnEmptiedSourceIsAnEmptyTree(t *testing.T) {
	r := newRig(t)
	r.write("d/f", "x")
	r.scan(true)
	r.do(os.RemoveAll(r.path("d")))
	r.scan(true)
	if len(r.world) != 0 {
		t.Fatalf("%v", r.world)
	}
}

func TestAReplacedSourceIsOpenedAnew(t *testing.T) {
	r := newRig(t)
	r.write("f", "old")
	r.scan(true)
	r.do(os.Rename(r.dir, r.dir+".old"))
	t.Cleanup(func() { os.RemoveAll(r.dir + ".old") })
	r.write("g", "new")
	_, sc := r.scan(false)
	if !sc.Full() {
		t.Fatal("not a full scan")
	}
	r.wantWorld()
}

func TestADirectoryThatGoesDuringTheScanStaysForNow(t *testing.T) {
	var h hooks
	r := newRig(t, withFaults(&h, &counts{}))
	r.write("going/f", "x")
	r.write("staying/f", "y")
	r.scan(true)
	h.chroot = func(path string) error {
		if path == "going" {
			return os.RemoveAll(r.path("going"))
		}
		return nil
	}
	r.scan(true)
	if r.content("going/f") != "x" {
		t.Fatal("half of it was published")
	}
	if r.src.Status().Dirty == 0 {
		t.Fatal("not dirty")
	}
	r.scan(true)
	r.wantWorld()
}

func TestHardLinksAreOneFile(t *testing.T) {
	var n counts
	r := newRig(t, withFaults(&hooks{}, &n))
	r.write("a/1", "content")
	r.do(os.MkdirAll(r.path("b"), 0o755))
	r.do(os.Link(r.path("a/1"), r.path("b/2")))
	r.do(os.Link(r.path("a/1"), filepath.Join(t.TempDir(), "outside")))
	r.scan(true)
	one, two := r.world["a/1"], r.world["b/2"]
	if one.Link == (tree.LinkID{}) || one.Link != two.Link || one.Links != 3 || one.Content != two.Content {
		t.Fatalf("%+v\n%+v", one, two)
	}
	if got := n.opens.Load(); got != 1 {
		t.Fatalf("read %d times", got)
	}
}

func TestXattrsAndACLsAreCounted(t *testing.T) {
	r := newRig(t)
	r.write("plain", "x")
	r.write("tagged", "x")
	if err := unix.Setxattr(r.path("tagged"), "user.note", []byte("n"), 0); err != nil {
		t.Skipf("no extended attributes here: %v", err)
	}
	r.write("acl", "x")
	// version 2; user::rw-, user:1:r--, group::r--, mask::r--, other::r--
	acl := []byte{2, 0, 0, 0}
	for _, e := range [][3]uint32{{1, 6, ^uint32(0)}, {2, 4, 1}, {4, 4, ^uint32(0)}, {16, 4, ^uint32(0)}, {32, 4, ^uint32(0)}} {
		acl = append(acl, byte(e[0]), 0, byte(e[1]), 0, byte(e[2]), byte(e[2]>>8), byte(e[2]>>16), byte(e[2]>>24))
	}
	withACL := unix.Setxattr(r.path("acl"), "system.posix_acl_access", acl, 0) == nil
	_, sc := r.scan(true)
	want := Skipped{Xattrs: 1}
	if withACL {
		want.ACLs = 1
	}
	if sc.Skipped() != want {
		t.Fatalf("%+v, want %+v", sc.Skipped(), want)
	}
	if _, sc = r.scan(true); sc.Skipped() != (Skipped{}) {
		t.Fatal("unchanged files are counted again")
	}
}

func TestProgressCountsAndEstimates(t *testing.T) {
	r := newRig(t)
	for i := range 10 {
		r.write(fmt.Sprint("d/", i), "0123456789")
	}
	var last Progress
	report := func(p Progress) { last = p }
	for round := range 2 {
		sc, err := r.src.Scan(t.Context(), true, report)
		r.do(err)
		_, err = r.world.publish(t.Context(), sc, nil)
		r.do(err)
		r.do(sc.Commit())
		if last.Files != 10 || last.Bytes != 100 || last.Path == "" {
			t.Fatalf("round %d: %+v", round, last)
		}
		if want := int64(10 * round); last.TotalFiles != want || last.TotalBytes != 10*want {
			t.Fatalf("round %d: %+v", round, last)
		}
	}
}

func TestWarningsAreBounded(t *testing.T) {
	h := hooks{open: func(path string) error { return &os.PathError{Op: "openat", Path: path, Err: syscall.EACCES} }}
	r := newRig(t, withFaults(&h, &counts{}))
	for i := range maxWarnings + 7 {
		r.write(fmt.Sprint(i), "x")
	}
	_, sc := r.scan(true)
	if w := sc.Warnings(); len(w) != maxWarnings+1 || w[maxWarnings] != "7 more" {
		t.Fatalf("%q", w)
	}
}

func TestACancelledScanEnds(t *testing.T) {
	r := newRig(t)
	r.write("d/f", "x")
	ctx, cancel := context.WithCancel(t.Context())
	sc, err := r.src.Scan(ctx, true, nil)
	r.do(err)
	cancel()
	_, err = r.world.publish(ctx, sc, nil)
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	sc.Abort()
	r.scan(true)
	r.wantWorld()
}

func TestDeepAndWideTrees(t *testing.T) {
	r := newRig(t)
	r.write(strings.Repeat("d/", 60)+"f", "deep")
	for i := range 1000 {
		r.write(fmt.Sprintf("wide/%d", i), fmt.Sprint(i))
	}
	for i := range 300 {
		r.write(fmt.Sprintf("dirs/%d/%d/f", i%17, i), fmt.Sprint(i))
	}
	asked, _ := r.scan(true)
	if len(asked) != len(slices.Compact(slices.Sorted(slices.Values(asked)))) {
		t.Fatal("a directory was listed twice")
	}
	r.wantWorld()
	if r.content(strings.Repeat("d/", 60)+"f") != "deep" || r.content("wide/999") != "999" {
		t.Fatal("content")
	}
}
