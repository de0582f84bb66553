package source

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/go-git/go-billy/v5"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// maxWarnings bounds the warnings that a scan keeps.
const maxWarnings = 20

// Scan is one look at the source: a tree.Lister, which reads and stores what has changed while it lists. It ends with
// Commit or Abort.
type Scan struct {
	src   *Source
	fs    billy.Filesystem
	began time.Time
	until time.Time // a file that is not at rest by then keeps its previous version
	top   tree.Observed
	full  string // why everything is looked at; "": it is not
	plan  *plan  // nil: full
	taken *dirt  // the dirty set that this scan answers
	watch *watcher
	root  bool // this process may read everything
	ahead *ahead
	meter meter
	last  summary // of the scan before
	dev   tree.LinkID

	mu       sync.Mutex // guards what follows
	warnings []string
	more     int     // warnings that were not kept
	skipped  Skipped // counted so far
	left     *dirt   // to be looked at again by the next scan
	late     string  // a linked file that the plan did not know of
	groups   map[tree.LinkID]*shared
	linked   []link
	seen     []tree.LinkID // by a full scan
	err      error
	ended    bool
}

// link is a name of a file with several.
type link struct {
	path  string
	id    tree.LinkID
	nlink int64
}

// Skipped counts the files that a scan has read and that have what NFSv3 cannot carry.
type Skipped struct {
	Xattrs int // files with extended attributes
	ACLs   int // files with access control lists
}

// begin makes a scan; what it returns with an error is to be aborted.
func (s *Source) begin(ctx context.Context, full bool, progress func(Progress)) (*Scan, error) {
	sc := &Scan{
		src: s, began: time.Now(), taken: &dirt{}, left: &dirt{}, root: os.Geteuid() == 0,
		groups: map[tree.LinkID]*shared{}, last: s.facts.summary(),
	}
	sc.meter.report = progress
	if err := s.reopen(); err != nil {
		return sc, err
	}
	reason := ""
	if full {
		reason = "asked for"
	} else if reason = s.blind(); reason == "" {
		if err := s.watching().sync(ctx); err != nil {
			reason = err.Error()
		}
	}
	s.take(sc, reason)
	if err := sc.lookAtRoot(); err != nil {
		return sc, err
	}
	if sc.full == "" {
		var err error
		sc.plan, err = newPlan(sc, sc.taken)
		if errors.Is(err, errFull) {
			sc.full, sc.plan, err = err.Error(), nil, nil
		}
		if err != nil {
			return sc, err
		}
	}
	if sc.full != "" {
		sc.meter.now.TotalFiles, sc.meter.now.TotalBytes = int64(sc.last.Files), int64(sc.last.Bytes)
		if sc.watch != nil {
			sc.watch.retry()
		}
	}
	s.log.Debug().Str("full", sc.full).Int("dirty", sc.taken.size()-1).Msg("scan")
	sc.ahead = newAhead(ctx, min(runtime.GOMAXPROCS(0), 4), func(ctx context.Context, dir string) (*listed, error) {
		return sc.list(ctx, dir, false)
	})
	return sc, nil
}

// blind returns why an incremental scan would miss changes; "": it would not.
func (s *Source) blind() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.full != "":
		return s.full
	case !s.sees():
		return "not every directory is watched"
	}
	return ""
}

// take moves the dirty set into sc.
func (s *Source) take(sc *Scan, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if reason == "" {
		reason = s.full // may have come up since blind was asked
	}
	sc.fs, sc.watch, sc.full = s.fs, s.watch, reason
	sc.until = sc.began.Add(s.cfg.MaxWait)
	if s.pending.waiting {
		sc.until = s.pending.first.Add(s.cfg.MaxWait)
	}
	if least := sc.began.Add(2 * s.cfg.Quiet); sc.until.Before(least) {
		sc.until = least // what was written a moment ago may come to rest yet
	}
	sc.taken, s.dirt, s.dirty, s.full = s.dirt, &dirt{}, 0, ""
	s.pending = pending{notBefore: s.pending.notBefore}
	select {
	case <-s.due:
	default:
	}
}

// reopen opens the source directory anew if another one is there in its place.
func (s *Source) reopen() error {
	s.mu.Lock()
	old, w := s.fs, s.watch
	s.mu.Unlock()
	fresh, err := reopened(old)
	if fresh == nil || err != nil {
		return err
	}
	if w != nil {
		w.forget(".", true)
	}
	s.mu.Lock()
	s.fs = fresh
	if w != nil {
		w.complete = false
	}
	if s.full == "" {
		s.full = "the source directory was replaced"
	}
	s.mu.Unlock()
	return closeFS(old)
}

// alive returns an error unless the source directory is still where it was.
func (s *Source) alive(fs billy.Filesystem) error {
	fresh, err := reopened(fs)
	if err != nil {
		return err
	}
	if fresh != nil {
		return errors.Join(fmt.Errorf("%w: it was replaced during the scan", ErrVanished), closeFS(fresh))
	}
	return nil
}

// reopened opens the host path of old again, and returns what is there if it is another directory.
func reopened(old billy.Filesystem) (billy.Filesystem, error) {
	before, err := old.Lstat(".")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrVanished, err)
	}
	r, ok := old.(interface {
		Reopen() (billy.Filesystem, error)
	})
	if !ok {
		return nil, nil
	}
	fresh, err := r.Reopen()
	if err != nil {
		if vanished(err) {
			err = fmt.Errorf("%w: %w", ErrVanished, err)
		}
		return nil, err
	}
	now, err := fresh.Lstat(".")
	if err == nil && !os.SameFile(before, now) {
		return fresh, nil
	}
	return nil, errors.Join(err, closeFS(fresh))
}

// lookAtRoot reads the root's attributes, and refuses an empty directory where a file system was unmounted.
func (sc *Scan) lookAtRoot() error {
	info, err := sc.fs.Lstat(".")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrVanished, err)
	}
	e, err := entryOf(info)
	if err != nil {
		return err
	}
	e.Name = ""
	sc.top = tree.Observed{Entry: e, Descend: true}
	st, err := statOf(info)
	if err != nil {
		return err
	}
	sc.dev = linkOf(st)
	if sc.last.Files == 0 || sc.last.Dev == sc.dev.Dev {
		return nil
	}
	infos, err := sc.fs.ReadDir(".")
	if err == nil && len(infos) == 0 {
		err = fmt.Errorf("%w: an empty directory of another file system is in its place; is it mounted?", ErrVanished)
	}
	return err
}

// Root returns the root directory's attributes, for tree.MergeOptions.
func (sc *Scan) Root() tree.Observed { return sc.top }

// Full reports whether the scan looks at everything.
func (sc *Scan) Full() bool { return sc.full != "" }

// List is tree.Lister's. It is called by one goroutine.
func (sc *Scan) List(ctx context.Context, dir string, prev *tree.Entry) (tree.Listing, error) {
	l, err := sc.listing(ctx, dir, prev == nil)
	if err != nil {
		err = fmt.Errorf("source directory %q: %w", dir, err)
		sc.fail(err)
		return tree.Listing{}, err
	}
	return l.Listing, nil
}

func (sc *Scan) listing(ctx context.Context, dir string, fresh bool) (*listed, error) {
	if sc.plan != nil && fresh {
		if pd := sc.plan.dirs[dir]; pd != nil && !pd.complete {
			return sc.list(ctx, dir, fresh)
		}
	}
	return sc.ahead.get(ctx, dir)
}

// Warnings says what could not be read as it should have been; at most 20, and how many more there were.
func (sc *Scan) Warnings() []string {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	out := slices.Clone(sc.warnings)
	if sc.more > 0 {
		out = append(out, fmt.Sprintf("%d more", sc.more))
	}
	return out
}

// Skipped returns how many of the files read have what NFSv3 cannot carry.
func (sc *Scan) Skipped() Skipped {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	return sc.skipped
}

func (sc *Scan) warn(format string, args ...any) {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	if len(sc.warnings) == maxWarnings {
		sc.more++
		return
	}
	sc.warnings = append(sc.warnings, fmt.Sprintf(format, args...))
}

func (sc *Scan) skip(xattrs, acls bool) {
	if !xattrs && !acls {
		return
	}
	sc.mu.Lock()
	defer sc.mu.Unlock()
	if xattrs {
		sc.skipped.Xattrs++
	}
	if acls {
		sc.skipped.ACLs++
	}
}

// again leaves a path for the next scan; deep: with everything below.
func (sc *Scan) again(path string, deep bool) {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	node, _ := sc.left.add(path)
	node.deep = node.deep || deep
}

// lateLink notes a file with several names in a directory that was not planned.
func (sc *Scan) lateLink(path string) {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	sc.late = path
}

// note records what was found at path.
func (sc *Scan) note(path string, info os.FileInfo, o tree.Observed) {
	st, err := statOf(info)
	if err != nil || o.Type == tree.Directory {
		return
	}
	sc.meter.add(path, o.Size)
	sc.mu.Lock()
	defer sc.mu.Unlock()
	if o.Link != (tree.LinkID{}) {
		sc.linked = append(sc.linked, link{path, o.Link, int64(st.Nlink)})
	}
	if sc.plan == nil && o.Type == tree.Regular {
		sc.seen = append(sc.seen, linkOf(st))
	}
}

// watchDir watches a directory that is about to be listed.
func (sc *Scan) watchDir(dir string) {
	if sc.watch != nil {
		sc.watch.add(dir, sc.plan == nil)
	}
}

// fail notes the first error, for Status.
func (sc *Scan) fail(err error) {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	if sc.err == nil {
		sc.err = err
	}
}
