package source

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/go-git/go-billy/v5"
	"golang.org/x/sync/errgroup"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// tries is how often a file that changes while it is read is read at least; as long as there is time to wait for it to be
// at rest, it is tried again.
const tries = 4

func regular(st *syscall.Stat_t) bool { return st.Mode&syscall.S_IFMT == syscall.S_IFREG }

// named is a name to observe.
type named struct {
	name    string
	info    os.FileInfo // nil: it is gone
	descend bool
	known   *fact // of its content, valid; nil: to be asked for
}

// fate is what became of a name while it was observed.
type fate uint8

const (
	there fate = iota
	gone
)

// list makes the listing of one directory. It is called from several goroutines.
func (sc *Scan) list(ctx context.Context, dir string, fresh bool) (*listed, error) {
	pd := sc.planned(dir, fresh)
	if pd == nil {
		sc.watchDir(dir)
	}
	at, err := sc.chroot(dir)
	if vanished(err) {
		return sc.vanishedDir(dir)
	}
	if err != nil {
		return nil, err
	}
	if at != sc.fs {
		defer closeFS(at)
	}
	if pd != nil {
		return sc.observe(ctx, at, dir, pd.list(), pd.complete)
	}
	infos, err := at.ReadDir(".")
	if vanished(err) {
		return sc.vanishedDir(dir)
	}
	if err != nil {
		return nil, err
	}
	names := make([]named, len(infos))
	for i, info := range infos {
		names[i] = named{name: info.Name(), info: info, descend: info.IsDir()}
		if sc.plan != nil && linkOfInfo(info) != (tree.LinkID{}) {
			sc.lateLink(join(dir, info.Name()))
		}
	}
	return sc.observe(ctx, at, dir, names, true)
}

// planned returns the plan for dir; nil: it is to be listed as it is. A part of a directory is no plan for one that
// the previous generation does not have.
func (sc *Scan) planned(dir string, fresh bool) *plannedDir {
	if sc.plan == nil {
		return nil
	}
	pd := sc.plan.dirs[dir]
	if pd == nil || fresh && !pd.complete {
		return nil
	}
	return pd
}

func (sc *Scan) chroot(dir string) (billy.Filesystem, error) {
	if dir == "." {
		return sc.fs, nil
	}
	return sc.fs.Chroot(dir)
}

// vanishedDir is the listing of a directory that has gone since the one above it was listed: as it was before. The next
// scan finds it gone. When it is the source itself that has gone, the scan has failed.
func (sc *Scan) vanishedDir(dir string) (*listed, error) {
	if err := sc.src.alive(sc.fs); err != nil {
		return nil, err
	}
	sc.again(dir, true)
	return &listed{}, nil
}

// observe looks at names of a directory, which at is the root of. What must be read is read in parallel.
func (sc *Scan) observe(ctx context.Context, at billy.Filesystem, dir string, names []named, complete bool) (*listed, error) {
	seen := make([]tree.Observed, len(names))
	fates := make([]fate, len(names))
	sc.recall(names)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(cap(sc.src.reader.buffers))
	for i, n := range names {
		if n.info == nil {
			fates[i] = gone
			continue
		}
		look := func() (err error) {
			seen[i], fates[i], err = sc.look(gctx, at, join(dir, n.name), n)
			return err
		}
		if n.known == nil && n.info.Mode().IsRegular() && n.info.Size() > 0 {
			g.Go(look)
		} else if err := look(); err != nil {
			g.Go(func() error { return err })
			break
		}
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	out := &listed{Listing: tree.Listing{Complete: complete, Names: seen[:0]}} // closing the gaps in place
	for i, n := range names {
		if fates[i] == gone {
			if !complete {
				out.Gone = append(out.Gone, n.name)
			}
			continue
		}
		if seen[i].Descend && (complete || sc.plan == nil) {
			out.subdirs = append(out.subdirs, join(dir, n.name))
		}
		out.Names = append(out.Names, seen[i])
	}
	return out, nil
}

// look observes one name, and again while it changes under its hands.
func (sc *Scan) look(ctx context.Context, at billy.Filesystem, path string, n named) (o tree.Observed, f fate, err error) {
	info := n.info
	for try := 0; try < tries || time.Now().Before(sc.until); try++ {
		if info == nil {
			info, err = at.Lstat(n.name)
			if vanished(err) {
				sc.again(path, true)
				return o, gone, nil
			}
			if err != nil {
				return o, f, fmt.Errorf("%q: %w", path, err)
			}
		}
		o, err = sc.once(ctx, at, info, n.known)
		o.Descend = n.descend && o.Type == tree.Directory && !o.Keep
		var store *storeError
		switch {
		case err == nil:
			sc.note(path, info, o)
			return o, there, nil
		case errors.As(err, &store):
			return o, f, fmt.Errorf("%q: %w", path, err)
		case denied(err):
			sc.warn("%q may not be read, and stays as it was: %v", path, errnoOf(err))
			o.Keep = true
			sc.note(path, info, o)
			return o, there, nil
		case !errors.Is(err, errTorn) && !vanished(err):
			return o, f, fmt.Errorf("%q: %w", path, err)
		}
		if try > 0 { // a second chance comes at once; mostly the change was the last of a series
			if err := wait(ctx, tick); err != nil {
				return o, f, err
			}
		}
		info, n.known, n.descend = nil, nil, true // it may be another thing by now
	}
	sc.warn("%q was changing while it was read, and stays as it was", path)
	sc.again(path, false)
	o.Keep = true
	return o, there, nil
}

// once observes one name as info has it. errTorn, or an error that says vanished: it is not so any more.
func (sc *Scan) once(ctx context.Context, at billy.Filesystem, info os.FileInfo, known *fact) (tree.Observed, error) {
	e, err := entryOf(info)
	if err != nil {
		return tree.Observed{}, err
	}
	st, err := statOf(info)
	if err != nil {
		return tree.Observed{}, err
	}
	o := tree.Observed{Entry: e, Link: linked(st)}
	switch e.Type {
	case tree.Directory:
		return o, sc.readable(at, e.Name, st)
	case tree.Symlink:
		o.Target, err = target(at, e.Name, st)
		return o, err
	case tree.Regular:
		if o.Link != (tree.LinkID{}) {
			return sc.byFirst(o.Link, e.Name, func() (tree.Observed, error) {
				return o, sc.content(ctx, at, st, known, &o.Entry)
			})
		}
		return o, sc.content(ctx, at, st, known, &o.Entry)
	}
	return o, nil
}

// readable returns an error that says denied for a directory that this process may not list. Asking costs nothing for
// those that everybody may, and for root.
func (sc *Scan) readable(at billy.Filesystem, name string, st *syscall.Stat_t) error {
	if sc.root || st.Mode&0o555 == 0o555 {
		return nil
	}
	sub, err := at.Chroot(name)
	if err != nil {
		if denied(err) {
			return err
		}
		return nil // found when it is listed
	}
	return closeFS(sub)
}

// target reads a symbolic link.
func target(at billy.Filesystem, name string, st *syscall.Stat_t) (string, error) {
	to, err := at.Readlink(name)
	if errors.Is(err, syscall.EINVAL) {
		return "", errTorn // no link any more
	}
	if err != nil {
		return "", err
	}
	info, err := at.Lstat(name)
	if err != nil {
		return "", err
	}
	if now, err := statOf(info); err != nil || !same(st, now) {
		return "", errors.Join(errTorn, err)
	}
	return to, nil
}

// shared is a file with several names while it is observed: all of them get what the first found.
type shared struct {
	mu   sync.Mutex
	done bool
	o    tree.Observed
}

// byFirst observes a file with several names by the first of them.
func (sc *Scan) byFirst(id tree.LinkID, name string, do func() (tree.Observed, error)) (tree.Observed, error) {
	sc.mu.Lock()
	g := sc.groups[id]
	if g == nil {
		g = &shared{}
		sc.groups[id] = g
	}
	sc.mu.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.done {
		o, err := do()
		if err != nil {
			return o, err
		}
		g.o, g.done = o, true
	}
	o := g.o
	o.Name = name
	return o, nil
}

// recall fills in what is known of the regular files among names, all at once.
func (sc *Scan) recall(names []named) {
	checks := make([]check, len(names))
	sc.src.facts.each(len(names), func(i int) tree.LinkID {
		if names[i].info == nil {
			return tree.LinkID{}
		}
		st, err := statOf(names[i].info)
		if err != nil || !regular(st) {
			return tree.LinkID{}
		}
		if checks[i] == (check{}) {
			checks[i] = checkOf(st)
		}
		return linkOf(st)
	}, func(i int, f fact) {
		if f.check == checks[i] || names[i].info.Size() == 0 {
			names[i].known = &f
		}
	})
}

// content fills in what a regular file holds: from its fingerprint, if that is good and what it names is there, or by
// reading it.
func (sc *Scan) content(ctx context.Context, at billy.Filesystem, st *syscall.Stat_t, known *fact, e *tree.Entry) error {
	id := linkOf(st)
	if known != nil {
		if st.Size == 0 {
			return nil
		}
		have, err := sc.src.present(ctx, known.content)
		if err != nil {
			return &storeError{err}
		}
		if have {
			e.Content, e.Used = known.content, known.used
			return nil
		}
	}
	if err := sc.rest(ctx, st); err != nil {
		return err
	}
	began := time.Now()
	file, err := open(at, e.Name, st)
	if err != nil {
		return err
	}
	defer file.Close()
	if st.Size == 0 { // truncated, perhaps, and about to be written
		return sc.src.remember(id, fact{})
	}
	e.Content, e.Used, err = sc.src.reader.read(ctx, file)
	if err != nil {
		return err
	}
	sc.skip(file.xattrs())
	f := fact{content: e.Content, used: e.Used}
	if changed := time.Unix(int64(st.Ctim.Sec), int64(st.Ctim.Nsec)); began.Sub(changed) >= sc.src.cfg.Racy {
		f.check = checkOf(st)
	}
	return sc.src.remember(id, f)
}

// rest waits until a file has not been changed for the quiet period. errTorn: there is not that much time left. Who
// writes a file piece by piece leaves it alone for moments; only a longer rest says that the pieces are complete.
func (sc *Scan) rest(ctx context.Context, st *syscall.Stat_t) error {
	now := time.Now()
	d := settle(st, sc.src.cfg.Quiet, now)
	if d > tick && now.Add(d).After(sc.until) {
		return errTorn
	}
	return wait(ctx, d)
}
