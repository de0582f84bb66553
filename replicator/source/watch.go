package source

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/go-git/go-billy/v5"
)

// notifier is what the Source needs of fsnotify. Add and Remove may be called while events are not being received.
type notifier interface {
	Add(path string) error
	Remove(path string) error
	Events() <-chan fsnotify.Event
	Errors() <-chan error
	// Barrier causes an event with the name that it returns: whatever happened before has its event before that one.
	Barrier() (string, error)
	Close() error
}

// inotify is an fsnotify.Watcher with a directory of its own for barriers.
type inotify struct {
	*fsnotify.Watcher
	errs    chan error
	drained sync.WaitGroup
	dir     string
	count   int // barriers so far; Barrier is called by one goroutine at a time
}

// newInotify starts watching; barrier files go into a temporary directory under dir.
func newInotify(dir string) (notifier, error) {
	w, err := fsnotify.NewBufferedWatcher(1024)
	if err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	n := &inotify{Watcher: w, errs: make(chan error, 16)}
	// fsnotify can block on Errors while it holds the lock that Add takes.
	n.drained.Go(func() {
		for err := range w.Errors {
			select {
			case n.errs <- err:
			default:
			}
		}
	})
	if n.dir, err = os.MkdirTemp(dir, "watch-"); err == nil {
		err = w.Add(n.dir)
	}
	if err != nil {
		return nil, fmt.Errorf("watch: %w", errors.Join(err, n.Close()))
	}
	return n, nil
}

func (n *inotify) Events() <-chan fsnotify.Event { return n.Watcher.Events }
func (n *inotify) Errors() <-chan error          { return n.errs }

func (n *inotify) Barrier() (string, error) {
	n.count++
	name := filepath.Join(n.dir, strconv.Itoa(n.count))
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		return "", err
	}
	return name, os.Remove(name)
}

func (n *inotify) Close() error {
	err := n.Watcher.Close()
	n.drained.Wait()
	if n.dir != "" {
		err = errors.Join(err, os.RemoveAll(n.dir))
	}
	return err
}

// watcher knows which directories of one source are watched.
type watcher struct {
	n    notifier
	root string // host path of the source

	complete bool // a full scan has been committed since this watcher began; guarded by Source.mu

	mu       sync.Mutex // guards what follows; taken after Source.mu, if that is held
	dirs     map[string]struct{}
	failed   error // why some directory is not watched
	barriers map[string]chan struct{}
	ended    chan struct{}
}

func newWatcher(n notifier, root string) *watcher {
	return &watcher{
		n: n, root: filepath.Clean(root),
		dirs: map[string]struct{}{}, barriers: map[string]chan struct{}{}, ended: make(chan struct{}),
	}
}

func (w *watcher) host(dir string) string {
	if dir == "." {
		return w.root
	}
	return strings.TrimSuffix(w.root, "/") + "/" + dir
}

// rel is the inverse of host.
func (w *watcher) rel(host string) (string, bool) {
	if host == w.root {
		return ".", true
	}
	return strings.CutPrefix(host, strings.TrimSuffix(w.root, "/")+"/")
}

// add watches a directory; again: also if it is thought to be watched. After a failure it does nothing until retry.
func (w *watcher) add(dir string, again bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.dirs[dir]; w.failed != nil || ok && !again {
		return
	}
	err := w.n.Add(w.host(dir))
	switch {
	case err == nil:
		w.dirs[dir] = struct{}{}
	case vanished(err), errors.Is(err, fsnotify.ErrClosed):
	default:
		w.failed = fmt.Errorf("watch %q: %w", dir, err)
	}
}

// retry forgets a failure.
func (w *watcher) retry() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failed = nil
}

// forget stops watching a directory and, for a tree, all below it. It reports whether the directory was watched.
// fsnotify knows watches by path: a renamed directory must be forgotten before it is added under its new name.
func (w *watcher) forget(dir string, tree bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.dirs[dir]; !ok {
		return false
	}
	w.remove(dir)
	if tree {
		for d := range w.dirs {
			if dir == "." || strings.HasPrefix(d, dir+"/") {
				w.remove(d)
			}
		}
	}
	return true
}

// remove stops one watch. The kernel has often ended it already: that error says nothing. The caller holds mu.
func (w *watcher) remove(dir string) {
	delete(w.dirs, dir)
	_ = w.n.Remove(w.host(dir))
}

// health returns how many directories are watched, and why not all are.
func (w *watcher) health() (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.dirs), w.failed
}

// barrierWait is the longest that a scan waits for the events before it.
const barrierWait = 5 * time.Second

// sync waits until every event of what happened before has been handled.
func (w *watcher) sync(ctx context.Context) error {
	w.mu.Lock() // held until the barrier is registered: its event cannot overtake that
	name, err := w.n.Barrier()
	reached := make(chan struct{})
	if err == nil {
		w.barriers[name] = reached
	}
	w.mu.Unlock()
	if err != nil {
		return fmt.Errorf("watch barrier: %w", err)
	}
	t := time.NewTimer(barrierWait)
	defer t.Stop()
	select {
	case <-reached:
		return nil
	case <-w.ended:
		return errors.New("watch began anew")
	case <-t.C:
		return fmt.Errorf("watch barrier: no event in %s", barrierWait)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// barrier reports whether an event is a barrier's, and lets its waiter go.
func (w *watcher) barrier(name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	reached, ok := w.barriers[name]
	if ok {
		close(reached)
		delete(w.barriers, name)
	}
	return ok
}

func (w *watcher) close() error {
	close(w.ended)
	return w.n.Close()
}

// tree watches a directory that has just appeared and all below it, each before it is listed. What cannot be read is
// left to the scan to report.
func (w *watcher) tree(at billy.Filesystem, dir string) {
	w.add(dir, true)
	_, name := split(dir)
	sub, err := at.Chroot(name)
	if err != nil {
		return
	}
	defer closeFS(sub)
	for _, kid := range subdirs(sub) {
		w.tree(sub, join(dir, kid))
	}
}

func subdirs(at billy.Filesystem) []string {
	if s, ok := at.(interface {
		Subdirs(string) ([]string, error)
	}); ok {
		names, _ := s.Subdirs(".")
		return names
	}
	infos, _ := at.ReadDir(".")
	var names []string
	for _, info := range infos {
		if info.IsDir() {
			names = append(names, info.Name())
		}
	}
	return names
}
