package source

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/go-git/go-billy/v5"
)

func mustRoot(t *testing.T, dir string) billy.Filesystem {
	t.Helper()
	fsys, err := OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeFS(fsys) })
	return fsys
}

func TestOpenRootRefusesWhatIsNoDirectory(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "file"), nil, 0o644)
	if _, err := OpenRoot(filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
	if _, err := OpenRoot(filepath.Join(dir, "file")); err == nil {
		t.Error("a file was opened as a root")
	}
}

func TestRootReads(t *testing.T) {
	dir := t.TempDir()
	os.MkdirAll(filepath.Join(dir, "a/b"), 0o755)
	os.WriteFile(filepath.Join(dir, "a/b/f"), []byte("hello"), 0o4750)
	os.Chmod(filepath.Join(dir, "a/b/f"), 0o750|os.ModeSetuid)
	os.Symlink("/etc/passwd", filepath.Join(dir, "a/link"))
	top := mustRoot(t, dir)
	sub, err := top.Chroot("a/b")
	if err != nil {
		t.Fatal(err)
	}
	defer closeFS(sub)
	for name, at := range map[string]billy.Filesystem{"a/b/f": top, "f": sub} {
		info, err := at.Lstat(name)
		if err != nil {
			t.Fatal(err)
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || st.Mode&0o7777 != 0o4750 || st.Size != 5 {
			t.Fatalf("%s: %+v", name, st)
		}
		f, err := at.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(f)
		if string(b) != "hello" || err != nil {
			t.Fatalf("%q %v", b, err)
		}
		f.Close()
	}
	if to, err := top.Readlink("a/link"); to != "/etc/passwd" || err != nil {
		t.Fatal(to, err)
	}
	if info, err := top.Stat("a/link"); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		t.Fatal("Stat followed a link", err)
	}
	infos, err := top.ReadDir("a")
	if err != nil || len(infos) != 2 || infos[0].Name() != "b" || infos[1].Name() != "link" {
		t.Fatal(infos, err)
	}
	if names := subdirs(top); len(names) != 1 || names[0] != "a" {
		t.Fatal(names)
	}
}

func TestRootDoesNotLeaveByLinks(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o644)
	os.Mkdir(filepath.Join(dir, "real"), 0o755)
	os.Symlink(outside, filepath.Join(dir, "out"))
	os.Symlink("real", filepath.Join(dir, "in"))
	os.Symlink(filepath.Join(outside, "secret"), filepath.Join(dir, "file"))
	top := mustRoot(t, dir)
	for _, name := range []string{"out", "in", "..", "real/..", "../" + filepath.Base(outside), outside} {
		if name == "real/.." {
			continue // is "."
		}
		if sub, err := top.Chroot(name); err == nil {
			closeFS(sub)
			t.Errorf("Chroot(%q) went there", name)
		}
		if _, err := top.ReadDir(name); err == nil {
			t.Errorf("ReadDir(%q) went there", name)
		}
	}
	for _, name := range []string{"file", "out/secret"} {
		if f, err := top.Open(name); err == nil {
			f.Close()
			t.Errorf("Open(%q) went there", name)
		}
	}
}

// A directory and a link to the outside take each other's place as fast as they can: what is read is the directory's
// file or an error.
func TestRootWinsAgainstASymlinkRace(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	os.WriteFile(filepath.Join(outside, "f"), []byte("secret"), 0o644)
	os.Mkdir(filepath.Join(dir, "real"), 0o755)
	os.WriteFile(filepath.Join(dir, "real/f"), []byte("public"), 0o644)
	os.Symlink(outside, filepath.Join(dir, "link"))
	old, target := filepath.Join(dir, "link"), filepath.Join(dir, "d")
	os.Rename(filepath.Join(dir, "real"), target)
	stop := make(chan struct{})
	var swaps sync.WaitGroup
	swaps.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				exchange(old, target)
			}
		}
	})
	top := mustRoot(t, dir)
	public := 0
	for i := 0; i < 3000 || public < 100 && i < 1_000_000; i++ {
		sub, err := top.Chroot("d")
		if err != nil {
			continue
		}
		if f, err := sub.Open("f"); err == nil {
			b, _ := io.ReadAll(f)
			f.Close()
			if strings.Contains(string(b), "secret") {
				t.Fatal("read a file outside the root")
			}
			public++
		}
		closeFS(sub)
	}
	close(stop)
	swaps.Wait()
	if public == 0 {
		t.Fatal("the directory was never read")
	}
}

func TestRootOpensAFIFOWithoutWaiting(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "p"), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := mustRoot(t, dir).Open("p") // a scan does so only when it lost a race; it must not hang then
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

func TestRootWritesNothing(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o644)
	top := mustRoot(t, dir)
	_, create := top.Create("n")
	_, temp := top.TempFile(".", "n")
	_, trunc := top.OpenFile("f", os.O_RDWR|os.O_TRUNC, 0o644)
	f, err := top.OpenFile("f", os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, write := f.Write([]byte("y"))
	for name, err := range map[string]error{
		"Create": create, "TempFile": temp, "OpenFile": trunc, "Write": write, "Truncate": f.Truncate(0),
		"Rename": top.Rename("f", "g"), "Remove": top.Remove("f"), "MkdirAll": top.MkdirAll("d", 0o755), "Symlink": top.Symlink("f", "l"),
	} {
		if !errors.Is(err, billy.ErrReadOnly) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if billy.CapabilityCheck(top, billy.WriteCapability) {
		t.Error("says that it can write")
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "f")); string(b) != "x" {
		t.Error("the file has changed")
	}
	if infos, _ := top.ReadDir("."); len(infos) != 1 {
		t.Error("the directory has changed")
	}
}
