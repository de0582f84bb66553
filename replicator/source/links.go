package source

import (
	"strings"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// group is a file with several names.
type group struct {
	paths   []string // its names in the shard, as far as scans have met them
	outside int64    // how many more it has elsewhere
}

// links knows, of every file with several names, which they are: the kernel tells of a change under one name only. It
// is rebuilt by each full scan, and kept in memory: what happened while nobody watched needs a full scan anyway.
//
// Not safe for concurrent use; a scan owns it while it plans and when it commits.
type links struct {
	groups map[tree.LinkID]*group
	byPath map[string]tree.LinkID
}

func newLinks() *links {
	return &links{groups: map[tree.LinkID]*group{}, byPath: map[string]tree.LinkID{}}
}

// add records that path is a name of the file id, which has nlink names altogether.
func (l *links) add(path string, id tree.LinkID, nlink int64) {
	l.drop(path)
	g := l.groups[id]
	if g == nil {
		g = &group{}
		l.groups[id] = g
	}
	g.paths = append(g.paths, path)
	g.outside = max(0, nlink-int64(len(g.paths)))
	l.byPath[path] = id
}

// drop forgets one name.
func (l *links) drop(path string) {
	id, ok := l.byPath[path]
	if !ok {
		return
	}
	delete(l.byPath, path)
	g := l.groups[id]
	for i, p := range g.paths {
		if p == path {
			g.paths[i] = g.paths[len(g.paths)-1]
			g.paths = g.paths[:len(g.paths)-1]
			break
		}
	}
	if len(g.paths) == 0 {
		delete(l.groups, id)
	}
}

// below returns the linked names inside any of the directories.
func (l *links) below(dirs map[string]struct{}) []string {
	if len(dirs) == 0 {
		return nil
	}
	var out []string
	_, all := dirs["."]
	for path := range l.byPath {
		in := all
		for i := 0; i < len(path) && !in; {
			j := strings.IndexByte(path[i:], '/')
			if j < 0 {
				break
			}
			_, in = dirs[path[:i+j]]
			i += j + 1
		}
		if in {
			out = append(out, path)
		}
	}
	return out
}
