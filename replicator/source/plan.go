package source

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/go-git/go-billy/v5"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// maxPlan bounds the names that an incremental scan looks at before it begins; beyond it a full scan is as cheap.
const maxPlan = 50_000

// errFull is wrapped by the reasons why an incremental scan must become a full one.
var errFull = errors.New("everything must be looked at")

// plan is what an incremental scan will list: every dirty name, lstat'ed once, the directories above them, and the
// other names of files that have several.
type plan struct {
	dirs map[string]*plannedDir
	lost map[string]struct{} // directories that are gone or may be others than before
}

type plannedDir struct {
	complete bool // names is all that the directory holds
	names    map[string]*plannedName
}

type plannedName struct {
	info    os.FileInfo // nil: there is no such name
	descend bool
}

// planner makes a plan.
type planner struct {
	plan
	scan   *Scan
	count  int
	fresh  []string            // paths planned since the links were last followed
	pulled map[string]struct{} // paths that links have asked for
}

// newPlan looks at everything in d. An error that wraps errFull says why that is not enough.
func newPlan(sc *Scan, d *dirt) (*plan, error) {
	p := &planner{
		plan:   plan{dirs: map[string]*plannedDir{}, lost: map[string]struct{}{}},
		scan:   sc,
		pulled: map[string]struct{}{},
	}
	for more := d; more != nil; more = p.others() {
		if err := p.visit(sc.fs, ".", more); err != nil {
			return nil, err
		}
	}
	return &p.plan, p.account()
}

func (p *planner) dir(path string) *plannedDir {
	pd := p.dirs[path]
	if pd == nil {
		pd = &plannedDir{names: map[string]*plannedName{}}
		p.dirs[path] = pd
	}
	return pd
}

// visit plans what is dirty in a directory, which at is the root of.
func (p *planner) visit(at billy.Filesystem, path string, d *dirt) error {
	pd := p.dir(path)
	if d.deep {
		return p.everything(at, path, pd)
	}
	for _, name := range d.names() {
		kid, where := d.kids[name], join(path, name)
		n, err := p.name(at, pd, where, name)
		if err != nil {
			return err
		}
		switch {
		case n.info == nil || !n.info.IsDir():
			if kid.dir || kid.below() {
				p.lost[where] = struct{}{}
			}
		case kid.below():
			if err := p.enter(at, n, where, name, func(sub billy.Filesystem) error { return p.visit(sub, where, kid) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// name plans one name, with a lstat unless it is planned already.
func (p *planner) name(at billy.Filesystem, pd *plannedDir, path, name string) (*plannedName, error) {
	if n := pd.names[name]; n != nil {
		return n, nil
	}
	info, err := at.Lstat(name)
	if err != nil && !vanished(err) {
		return nil, fmt.Errorf("%q: %w", path, err)
	}
	n := &plannedName{}
	if err == nil {
		n.info = info
	}
	return n, p.enlist(pd, path, name, n)
}

// enlist adds a name to the plan.
func (p *planner) enlist(pd *plannedDir, path, name string, n *plannedName) error {
	pd.names[name] = n
	p.fresh = append(p.fresh, path)
	if p.count++; p.count > maxPlan {
		return fmt.Errorf("%w: more than %d names are dirty", errFull, maxPlan)
	}
	return nil
}

// enter goes into a directory. One that has gone meanwhile is looked at again next time; one that may not be read is
// reported when it is listed.
func (p *planner) enter(at billy.Filesystem, n *plannedName, path, name string, do func(billy.Filesystem) error) error {
	sub, err := at.Chroot(name)
	switch {
	case err == nil:
		defer closeFS(sub)
		n.descend = true
		return do(sub)
	case vanished(err):
		p.scan.again(path, true)
		return nil
	case denied(err):
		return nil
	}
	return fmt.Errorf("%q: %w", path, err)
}

// everything plans all that is in a directory and below.
func (p *planner) everything(at billy.Filesystem, path string, pd *plannedDir) error {
	if pd.complete {
		return nil
	}
	p.lost[path] = struct{}{}
	p.scan.watchDir(path)
	infos, err := at.ReadDir(".")
	if vanished(err) {
		p.scan.again(path, true)
		return nil
	}
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	pd.complete = true
	for _, info := range infos {
		name, where := info.Name(), join(path, info.Name())
		n := &plannedName{info: info}
		if err := p.enlist(pd, where, name, n); err != nil {
			return err
		}
		if !info.IsDir() {
			continue
		}
		err := p.enter(at, n, where, name, func(sub billy.Filesystem) error { return p.everything(sub, where, p.dir(where)) })
		if err != nil {
			return err
		}
	}
	return nil
}

// others returns the names that the files planned since the last call have, or had, beside the planned ones; nil: none.
func (p *planner) others() *dirt {
	links := p.scan.src.links
	var more *dirt
	pull := func(id tree.LinkID) {
		g := links.groups[id]
		if g == nil {
			return
		}
		for _, path := range g.paths {
			if _, ok := p.pulled[path]; ok {
				continue
			}
			p.pulled[path] = struct{}{}
			if more == nil {
				more = &dirt{}
			}
			more.add(path)
		}
	}
	for _, path := range p.fresh {
		if id, ok := links.byPath[path]; ok {
			pull(id)
		}
		dir, name := split(path)
		if id := linkOfInfo(p.dirs[dir].names[name].info); id != (tree.LinkID{}) {
			pull(id)
		}
	}
	p.fresh = nil
	for _, path := range links.below(p.lost) {
		pull(links.byPath[path])
	}
	return more
}

func linkOfInfo(info os.FileInfo) tree.LinkID {
	if info == nil {
		return tree.LinkID{}
	}
	st, err := statOf(info)
	if err != nil {
		return tree.LinkID{}
	}
	return linked(st)
}

// account makes sure that the plan has all names of every file with several that it has one of.
func (p *planner) account() error {
	planned := map[tree.LinkID]int64{}
	var some []*plannedName // one or more of each
	for _, pd := range p.dirs {
		for _, n := range pd.names {
			if id := linkOfInfo(n.info); id != (tree.LinkID{}) {
				planned[id]++
				some = append(some, n)
			}
		}
	}
	for _, n := range some {
		st, _ := statOf(n.info) // linkOfInfo had it
		id := linkOf(st)
		g := p.scan.src.links.groups[id]
		if g != nil && int64(st.Nlink)-planned[id] == g.outside {
			continue
		}
		if g == nil && (int64(st.Nlink) == planned[id] || p.unheardOf(st)) {
			continue
		}
		return fmt.Errorf("%w: %q has %d names, and not all are known", errFull, n.info.Name(), st.Nlink)
	}
	return nil
}

// unheardOf reports whether a file is new to the source, so that all its names here are dirty ones.
func (p *planner) unheardOf(st *syscall.Stat_t) bool {
	if !regular(st) {
		return false
	}
	_, known := p.scan.src.facts.get(linkOf(st))
	return !known
}

// list returns a planned directory's names in order.
func (pd *plannedDir) list() []named {
	out := make([]named, 0, len(pd.names))
	for name, n := range pd.names {
		out = append(out, named{name: name, info: n.info, descend: n.descend})
	}
	slices.SortFunc(out, func(a, b named) int { return strings.Compare(a.name, b.name) })
	return out
}
