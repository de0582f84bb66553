package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// quick lets a watched Source say at once that something is due.
func quick(c *Config) { c.Quiet = time.Millisecond }

// settled publishes incrementally what has been done, and demands that the scan was no full one.
func (r *rig) settled() []string {
	r.t.Helper()
	asked, sc := r.scan(false)
	if sc.Full() {
		r.t.Fatalf("a full scan: %s", sc.full)
	}
	return asked
}

func TestOneDirtyNameCostsOneName(t *testing.T) {
	var n counts
	r := newRig(t, quick, withFaults(&hooks{}, &n)).watch()
	for i := range 2000 {
		r.write(fmt.Sprintf("d%d/f%d", i%40, i), fmt.Sprint(i))
	}
	r.scan(false)
	n.lstats.Store(0)
	n.opens.Store(0)
	n.dirs.Store(0)
	r.write("d7/f7", "changed")
	asked := r.settled()
	if !slices.Equal(asked, []string{".", "d7"}) {
		t.Fatalf("listed %q", asked)
	}
	// d7, f7, and what os.WriteFile made visible in between at most once more.
	if n.lstats.Load() != 2 || n.opens.Load() != 1 || n.dirs.Load() != 0 {
		t.Fatalf("%d lstats, %d files opened, %d directories read", n.lstats.Load(), n.opens.Load(), n.dirs.Load())
	}
	if r.content("d7/f7") != "changed" {
		t.Fatal("the change is not published")
	}
	if st := r.src.Status(); !st.Watching || st.Mode != ModeWatching || st.Watches != 41 || st.Reason != "" {
		t.Fatalf("%+v", st)
	}
}

// edits are what people and programs do to directories.
var edits = map[string]func(r *rig){
	"write": func(r *rig) { r.write("a/f", "new") },
	"append": func(r *rig) {
		f, _ := os.OpenFile(r.path("a/f"), os.O_APPEND|os.O_WRONLY, 0)
		f.WriteString("+")
		f.Close()
	},
	"create":          func(r *rig) { r.write("a/new", "new") },
	"create in root":  func(r *rig) { r.write("new", "new") },
	"remove":          func(r *rig) { r.do(os.Remove(r.path("a/f"))) },
	"chmod":           func(r *rig) { r.do(os.Chmod(r.path("a/f"), 0o600)) },
	"chmod dir":       func(r *rig) { r.do(os.Chmod(r.path("a"), 0o700)) },
	"chmod root":      func(r *rig) { r.do(os.Chmod(r.dir, 0o700)) },
	"touch":           func(r *rig) { r.age("a/f") },
	"rename":          func(r *rig) { r.do(os.Rename(r.path("a/f"), r.path("a/g"))) },
	"replace":         func(r *rig) { r.write("t", "x"); r.do(os.Rename(r.path("t"), r.path("a/f"))) },
	"symlink":         func(r *rig) { r.do(os.Symlink("f", r.path("a/l"))) },
	"rename dir":      func(r *rig) { r.do(os.Rename(r.path("a"), r.path("moved"))) },
	"rename deep dir": func(r *rig) { r.do(os.Rename(r.path("a/b"), r.path("b"))) },
	"swap dirs":       func(r *rig) { r.do(exchange(r.path("a"), r.path("z"))) },
	"remove tree":     func(r *rig) { r.do(os.RemoveAll(r.path("a"))) },
	"move in": func(r *rig) {
		d := filepath.Join(filepath.Dir(r.dir), "in")
		os.MkdirAll(filepath.Join(d, "x/y"), 0o755)
		os.WriteFile(filepath.Join(d, "x/y/f"), []byte("in"), 0o644)
		r.do(os.Rename(d, r.path("in")))
	},
	"move out":          func(r *rig) { r.do(os.Rename(r.path("a"), filepath.Join(filepath.Dir(r.dir), "out"))) },
	"make deep":         func(r *rig) { r.write("n1/n2/n3/f", "deep") },
	"dir becomes file":  func(r *rig) { r.do(os.RemoveAll(r.path("a"))); r.write("a", "file now") },
	"dir becomes link":  func(r *rig) { r.do(os.RemoveAll(r.path("a"))); r.do(os.Symlink("z", r.path("a"))) },
	"file becomes dir":  func(r *rig) { r.do(os.Remove(r.path("a/f"))); r.write("a/f/g", "in a dir now") },
	"dir is made again": func(r *rig) { r.do(os.RemoveAll(r.path("a"))); r.write("a/only", "this") },
	"link":              func(r *rig) { r.do(os.Link(r.path("a/f"), r.path("z/l"))) },
	"odd name":          func(r *rig) { r.write("a/\n\xff", "odd") },
	"long name":         func(r *rig) { r.write(strings.Repeat("l", 255), "long") },
}

func TestEveryEditIsSeen(t *testing.T) {
	for name, edit := range edits {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, quick).watch()
			r.write("a/f", "old")
			r.write("a/b/c/g", "deep")
			r.write("z/f", "z")
			r.scan(false)
			edit(r)
			<-r.src.Due()
			r.scan(false)
			r.wantWorld()
			// And the watches are where the directories are now: another edit everywhere is seen too.
			var dirs []string
			r.do(filepath.WalkDir(r.dir, func(p string, d fs.DirEntry, err error) error {
				if d.IsDir() {
					dirs = append(dirs, p)
				}
				return err
			}))
			for _, d := range dirs {
				r.do(os.WriteFile(filepath.Join(d, "later"), []byte(d), 0o644))
			}
			r.settled()
			r.wantWorld()
		})
	}
}

func TestFirstSecondNameOfAFile(t *testing.T) {
	r := newRig(t, quick).watch()
	r.write("a/f", "x")
	r.write("b/g", "y")
	r.scan(false)
	r.do(os.Link(r.path("a/f"), r.path("b/f"))) // no event tells of a/f
	_, sc := r.scan(false)
	if !sc.Full() {
		t.Fatal("nothing but a full scan finds the other name")
	}
	r.wantWorld()

	// A new file that has its other name elsewhere needs no search.
	// (Before anything is deleted: a file that takes over a deleted one's inode number is taken for it.)
	other := filepath.Join(t.TempDir(), "pool")
	r.do(os.WriteFile(other, []byte("pooled"), 0o644))
	r.do(os.Link(other, r.path("a/pooled")))
	r.settled()
	r.wantWorld()

	// Now they are known: a change under one name brings in the other, and so does its end.
	for _, edit := range []func(){
		func() { r.write("b/f", "changed") },
		func() { r.do(os.Chmod(r.path("a/f"), 0o600)) },
		func() { r.do(os.Link(r.path("a/f"), r.path("b/third"))) },
		func() { r.do(os.Rename(r.path("b/third"), r.path("c"))) },
		func() { r.do(os.RemoveAll(r.path("b"))) },
		func() { r.do(os.Remove(r.path("c"))) },
	} {
		edit()
		r.settled()
		r.wantWorld()
	}
}

func TestHardLinkedTreeComesAndGoes(t *testing.T) {
	r := newRig(t, quick).watch()
	for i := range 20 {
		r.write(fmt.Sprintf("a/%d/f", i), fmt.Sprint(i))
	}
	r.scan(false)
	r.do(os.Mkdir(r.path("b"), 0o755))
	for i := range 20 { // as cp -al does
		r.do(os.Mkdir(r.path(fmt.Sprintf("b/%d", i)), 0o755))
		r.do(os.Link(r.path(fmt.Sprintf("a/%d/f", i)), r.path(fmt.Sprintf("b/%d/f", i))))
	}
	r.scan(false)
	r.wantWorld()
	r.do(os.RemoveAll(r.path("a")))
	r.settled()
	r.wantWorld()
	if r.world["b/3/f"].Link != (tree.LinkID{}) {
		t.Fatal("still linked")
	}
}

func TestAWholeTreeMovedInIsListedOnce(t *testing.T) {
	var n counts
	r := newRig(t, quick, withFaults(&hooks{}, &n)).watch()
	r.write("f", "x")
	r.scan(false)
	r.do(os.MkdirAll(r.path("new/sub"), 0o755))
	for i := range 200 {
		r.write(fmt.Sprintf("new/sub/%d", i), fmt.Sprint(i))
	}
	n.opens.Store(0)
	n.dirs.Store(0)
	r.settled()
	if n.opens.Load() != 200 || n.dirs.Load() != 2 {
		t.Fatalf("%d files opened, %d directories read", n.opens.Load(), n.dirs.Load())
	}
	r.wantWorld()
}

func TestAWatchedSourceIsReplaced(t *testing.T) {
	r := newRig(t, quick).watch()
	r.write("d/f", "old")
	r.scan(false)
	r.do(os.Rename(r.dir, r.dir+".old"))
	t.Cleanup(func() { os.RemoveAll(r.dir + ".old") })
	r.write("d/g", "new")
	<-r.src.Due() // the kernel tells that the root was moved
	r.scan(false)
	r.wantWorld()
	r.write("d/g", "newer")
	r.settled()
	r.wantWorld()
}

func TestAWatchedSourceIsDeleted(t *testing.T) {
	r := newRig(t, quick).watch()
	r.write("d/f", "x")
	r.scan(false)
	r.do(os.RemoveAll(r.dir))
	<-r.src.Due()
	if _, err := r.src.Scan(t.Context(), false, nil); !errors.Is(err, ErrVanished) {
		t.Fatal(err)
	}
}

func TestBarrierFilesAreNotLeftBehind(t *testing.T) {
	state := t.TempDir()
	n, err := newInotify(state)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		name, err := n.Barrier()
		if err != nil {
			t.Fatal(err)
		}
		for ev := range n.Events() {
			if ev.Name == name && ev.Has(fsnotify.Create) {
				break
			}
		}
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(state); len(left) != 0 {
		t.Fatal(left)
	}
}

// bubble runs f with a Source whose events a test sends, in a synctest bubble: no time passes but what f waits for.
func bubble(t *testing.T, f func(t *testing.T, r *rig, s *stub)) {
	synctest.Test(t, func(t *testing.T) {
		s := newStub()
		r := newRig(t, func(c *Config) { c.Watch, c.Quiet, c.MaxWait = "/src", 0, 0 })
		r.src.newNotifier = func(string) (notifier, error) { return s, nil }
		ctx, cancel := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() {
			if err := r.src.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		f(t, r, s)
		cancel()
		run.Wait()
	})
}

// due returns how long it takes until a scan is due, within limit.
func due(r *rig, limit time.Duration) (time.Duration, bool) {
	began := time.Now()
	select {
	case <-r.src.Due():
		return time.Since(began), true
	case <-time.After(limit):
		return 0, false
	}
}

func TestDueTimes(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig, s *stub) {
		r.write("f", "x")
		if d, ok := due(r, time.Hour); !ok || d != 0 {
			t.Fatalf("the first scan is due after %v %v", d, ok)
		}
		r.scan(false)
		s.events <- fsnotify.Event{Name: "/src/f", Op: fsnotify.Write}
		if d, ok := due(r, time.Hour); !ok || d != 500*time.Millisecond {
			t.Fatalf("one change is due after %v %v", d, ok)
		}
		if _, ok := due(r, time.Minute); ok {
			t.Fatal("due twice for one change")
		}
		if st := r.src.Status(); st.Dirty != 1 {
			t.Fatalf("%+v", st)
		}
		if asked := r.settled(); !slices.Equal(asked, []string{"."}) {
			t.Fatalf("listed %q", asked)
		}
		began := time.Now()
		for time.Since(began) < 29*time.Second { // never quiet
			s.events <- fsnotify.Event{Name: "/src/f", Op: fsnotify.Write}
			time.Sleep(400 * time.Millisecond)
		}
		for range 5 {
			s.events <- fsnotify.Event{Name: "/src/f", Op: fsnotify.Write}
			if _, ok := due(r, 400*time.Millisecond); ok {
				break
			}
		}
		if d := time.Since(began); d != 30*time.Second {
			t.Fatalf("restless changes are due after %v", d)
		}
		r.settled()
		full := r.src.Status().LastFull
		if _, ok := due(r, time.Hour); !ok || time.Since(full) != 10*time.Minute {
			t.Fatalf("the periodic rescan is due %v after the last", time.Since(full))
		}
		if st := r.src.Status(); st.Reason != "periodic rescan" {
			t.Fatalf("%+v", st)
		}
		_, sc := r.scan(false)
		if !sc.Full() {
			t.Fatal("not full")
		}
		r.src.MarkAll("asked for by a test")
		if d, ok := due(r, time.Hour); !ok || d != 0 {
			t.Fatalf("what is asked for is due after %v %v", d, ok)
		}
	})
}

func TestFailedScansAreTriedLessAndLess(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig, s *stub) {
		<-r.src.Due()
		r.scan(false)
		s.events <- fsnotify.Event{Name: "/src/f", Op: fsnotify.Write}
		last := time.Duration(0)
		for range 12 {
			d, ok := due(r, time.Hour)
			if !ok || d < last || d > 30*time.Second {
				t.Fatalf("due after %v, then %v", last, d)
			}
			last = d
			sc, err := r.src.Scan(t.Context(), false, nil)
			r.do(err)
			sc.Abort()
		}
		if last != 30*time.Second {
			t.Fatalf("still tried every %v", last)
		}
		if st := r.src.Status(); st.Dirty != 1 {
			t.Fatalf("an aborted scan lost what was dirty: %+v", st)
		}
		<-r.src.Due()
		r.settled()
		s.events <- fsnotify.Event{Name: "/src/f", Op: fsnotify.Write}
		if d, _ := due(r, time.Hour); d != 500*time.Millisecond {
			t.Fatalf("after a success due after %v", d)
		}
	})
}

func TestLostEventsMeanAFullScan(t *testing.T) {
	for name, lose := range map[string]func(*stub){
		"overflow": func(s *stub) { s.errs <- fsnotify.ErrEventOverflow },
		"error":    func(s *stub) { s.errs <- errors.New("read: bad file descriptor") },
		"end":      func(s *stub) { close(s.events) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, r *rig, s *stub) {
				<-r.src.Due()
				r.scan(false)
				next := newStub()
				r.src.newNotifier = func(string) (notifier, error) { return next, nil } // read by Run, after lose
				lose(s)
				if d, ok := due(r, time.Hour); !ok || d != 500*time.Millisecond {
					t.Fatalf("due after %v %v", d, ok)
				}
				if st := r.src.Status(); st.Watching || st.Reason == "" {
					t.Fatalf("%+v", st)
				}
				if _, sc := r.scan(false); !sc.Full() {
					t.Fatal("not full")
				}
				if st := r.src.Status(); !st.Watching || st.Reason != "" {
					t.Fatalf("%+v", st)
				}
				next.events <- fsnotify.Event{Name: "/src/f", Op: fsnotify.Write}
				if d, ok := due(r, time.Hour); !ok || d != 500*time.Millisecond {
					t.Fatalf("watching anew: due after %v %v", d, ok)
				}
			})
		})
	}
}

func TestNoWatchesLeft(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig, s *stub) {
		tries := 0
		s.add = func(path string) error {
			tries++
			if path == "/src/d" {
				return os.NewSyscallError("inotify_add_watch", syscall.ENOSPC)
			}
			return nil
		}
		r.write("d/e/f", "x")
		<-r.src.Due()
		r.scan(false)
		st := r.src.Status()
		if st.Watching || st.Mode != ModeRescan || !strings.Contains(st.Reason, `"d"`) || !strings.Contains(st.Reason, "no space") {
			t.Fatalf("%+v", st)
		}
		if tries != 2 {
			t.Fatalf("%d watches were tried after the first failure", tries-2)
		}
		for range 2 {
			if d, ok := due(r, time.Hour); !ok || d != 30*time.Second {
				t.Fatalf("rescan after %v %v", d, ok)
			}
			if _, sc := r.scan(false); !sc.Full() {
				t.Fatal("not full")
			}
		}
		s.add = nil // the administrator has raised the limit
		<-r.src.Due()
		r.scan(false)
		if st := r.src.Status(); !st.Watching || st.Watches != 3 {
			t.Fatalf("%+v", st)
		}
	})
}

func TestNoInotifyInstanceLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.Watch, c.Quiet, c.MaxWait = "/src", 0, 0 })
		s := newStub()
		var works atomic.Bool
		r.src.newNotifier = func(string) (notifier, error) {
			if !works.Load() {
				return nil, errors.New("too many open files")
			}
			return s, nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.src.Run(ctx) }()
		<-r.src.Due()
		r.scan(false)
		if st := r.src.Status(); st.Mode != ModeRescan || st.Reason != "too many open files" {
			t.Fatalf("%+v", st)
		}
		works.Store(true)
		if d, ok := due(r, time.Hour); !ok || d != 30*time.Second {
			t.Fatalf("rescan after %v %v", d, ok)
		}
		synctest.Wait()
		r.scan(false)
		if st := r.src.Status(); !st.Watching {
			t.Fatalf("%+v", st)
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

func TestUnwatchedSourceIsRescanned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.src.Run(ctx) }()
		<-r.src.Due()
		r.scan(false)
		if d, ok := due(r, time.Hour); !ok || d != 10*time.Minute {
			t.Fatalf("rescan after %v %v", d, ok)
		}
		if st := r.src.Status(); st.Mode != ModeUnwatched {
			t.Fatalf("%+v", st)
		}
		cancel()
		<-done
	})
}

func TestTooMuchDirtIsAFullScan(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig, s *stub) {
		<-r.src.Due()
		r.scan(false)
		r.src.mu.Lock()
		for i := range maxDirt + 1 {
			r.src.mark(fmt.Sprint(i))
		}
		r.src.mu.Unlock()
		st := r.src.Status()
		if st.Dirty > 1 || !strings.Contains(st.Reason, "200000") {
			t.Fatalf("%+v", st)
		}
		if _, sc := r.scan(false); !sc.Full() {
			t.Fatal("not full")
		}
	})
}

func TestEventsDuringAScanAreForTheNext(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig, s *stub) {
		r.write("f", "old")
		<-r.src.Due()
		sc, err := r.src.Scan(t.Context(), false, nil)
		r.do(err)
		r.world, err = r.world.publish(t.Context(), sc, nil)
		r.do(err)
		r.write("f", "new")
		s.events <- fsnotify.Event{Name: "/src/f", Op: fsnotify.Write}
		synctest.Wait()
		r.do(sc.Commit())
		if d, ok := due(r, time.Hour); !ok || d != 500*time.Millisecond {
			t.Fatalf("due after %v %v", d, ok)
		}
		r.settled()
		if r.content("f") != "new" {
			t.Fatal("lost")
		}
	})
}
