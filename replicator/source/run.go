package source

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// eventBatch is how many events are handled before the timer is looked at.
const eventBatch = 256

// Run watches the source, if Config.Watch names it, and sends on Due, until ctx ends; then it returns nil. It is called
// once at most. Trouble with watching does not end it: Status tells, and full rescans come more often.
func (s *Source) Run(ctx context.Context) error {
	s.startWatch()
	defer s.stopWatch()
	s.mu.Lock()
	if s.full != "" {
		s.changed()
		s.pending.urgent = true
	}
	s.mu.Unlock()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		s.arm(timer)
		var events <-chan fsnotify.Event
		var errs <-chan error
		w := s.watching()
		if w != nil {
			events, errs = w.n.Events(), w.n.Errors()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.kick:
		case <-timer.C:
			s.tick(time.Now())
		case ev, ok := <-events:
			if !ok {
				s.restartWatch("watching ended unexpectedly")
				continue
			}
			s.drain(w, ev)
		case err := <-errs:
			reason := fmt.Sprintf("watching failed: %v", err)
			if errors.Is(err, fsnotify.ErrEventOverflow) {
				reason = "more events than the kernel keeps"
			}
			s.restartWatch(reason)
		}
	}
}

func (s *Source) watching() *watcher {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.watch
}

func (s *Source) startWatch() {
	if s.cfg.Watch == "" {
		return
	}
	dir := ""
	if s.cfg.State != "" {
		dir = filepath.Dir(s.cfg.State)
	}
	n, err := s.newNotifier(dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchErr = err
	if err == nil {
		s.watch = newWatcher(n, s.cfg.Watch)
	}
}

func (s *Source) stopWatch() {
	s.mu.Lock()
	w := s.watch
	s.watch = nil
	s.mu.Unlock()
	if w == nil {
		return
	}
	if err := w.close(); err != nil {
		s.log.Debug().Err(err).Msg("end watching")
	}
}

// restartWatch begins anew after events were lost: which directories are where is not known any more. The full scan
// that follows adds the watches.
func (s *Source) restartWatch(reason string) {
	s.log.Warn().Str("reason", reason).Msg("full rescan due")
	s.stopWatch()
	s.startWatch()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.markAll(reason)
}

// drain handles an event and those that are there already.
func (s *Source) drain(w *watcher, ev fsnotify.Event) {
	s.event(w, ev)
	for range eventBatch {
		select {
		case ev, ok := <-w.n.Events():
			if !ok {
				return
			}
			s.event(w, ev)
		default:
			return
		}
	}
}

// event notes what an event says to look at.
func (s *Source) event(w *watcher, ev fsnotify.Event) {
	if w.barrier(ev.Name) {
		return
	}
	path, ok := w.rel(ev.Name)
	if !ok {
		return
	}
	gone := ev.Has(fsnotify.Remove) || ev.Has(fsnotify.Rename)
	if path == "." {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.mark(".")
		if gone {
			w.complete = false
			s.markAll("the source directory was moved or deleted")
		}
		return
	}
	wasDir := gone && w.forget(path, ev.Has(fsnotify.Rename))
	isDir := ev.Has(fsnotify.Create) && s.appeared(w, path)
	s.mu.Lock()
	defer s.mu.Unlock()
	node := s.mark(path)
	node.dir = node.dir || wasDir
	node.deep = node.deep || isDir
}

// appeared reports whether the new name is a directory, and if so watches what is below: changes there must count
// before the next scan lists it.
func (s *Source) appeared(w *watcher, path string) bool {
	s.mu.Lock()
	fs := s.fs
	s.mu.Unlock()
	info, err := fs.Lstat(path)
	if err != nil || !info.IsDir() {
		return false
	}
	dir, _ := split(path)
	at, err := fs.Chroot(dir)
	if err != nil {
		return true
	}
	defer closeFS(at)
	w.tree(at, path)
	return true
}

// arm sets the timer to what is due next.
func (s *Source) arm(timer *time.Timer) {
	s.mu.Lock()
	at, ok := s.pending.due(s.cfg.Quiet, s.cfg.MaxWait)
	if rescan, want := s.rescanAt(); want && (!ok || rescan.Before(at)) {
		at, ok = rescan, true
	}
	s.mu.Unlock()
	if !ok {
		timer.Stop()
		return
	}
	timer.Reset(time.Until(at))
}

// rescanAt returns when the next periodic rescan is due, unless a full one is due or under way. The caller holds mu.
func (s *Source) rescanAt() (time.Time, bool) {
	if s.full != "" || s.scanning || s.lastFull.IsZero() {
		return time.Time{}, false
	}
	return s.lastFull.Add(s.fullTook + s.rescanEvery()), true
}

// rescanEvery is the pause between full scans. The caller holds mu.
func (s *Source) rescanEvery() time.Duration {
	if s.cfg.Watch == "" { // nobody counts on changes being noticed
		return s.cfg.Rescan
	}
	return rescanAfter(s.sees(), s.fullTook, s.cfg.Rescan, s.cfg.MaxWait)
}

// sees reports whether every directory is watched, since before it was last listed. The caller holds mu.
func (s *Source) sees() bool {
	if s.watch == nil || !s.watch.complete {
		return false
	}
	_, err := s.watch.health()
	return err == nil
}

// tick sends on Due what is due at now.
func (s *Source) tick(now time.Time) {
	s.mu.Lock()
	rescan, want := s.rescanAt()
	want = want && !now.Before(rescan)
	if want {
		s.markAll("periodic rescan")
		s.pending.urgent = true
	}
	at, ok := s.pending.due(s.cfg.Quiet, s.cfg.MaxWait)
	if ok && !now.Before(at) {
		s.pending.fired = true
		poke(s.due)
	}
	retry := want && s.watch == nil
	s.mu.Unlock()
	if retry {
		s.startWatch() // what kept it from watching may have passed
	}
}
