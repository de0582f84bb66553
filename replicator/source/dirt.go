package source

import (
	"slices"
	"strings"
)

// maxDirt bounds the names that are remembered one by one; beyond it looking at everything is cheaper.
const maxDirt = 200_000

// dirt is the set of names to look at again, as a tree that follows the directories. The node of a dirty name has no
// kids; the nodes above it are directories whose own attributes may have changed with it.
type dirt struct {
	kids map[string]*dirt
	deep bool // look at everything below: what is here may be another directory than before
	dir  bool // it was a directory when it was last seen
}

// add marks a path dirty ("." is the root) and returns its node and how many nodes were made.
func (d *dirt) add(path string) (*dirt, int) {
	if path == "." {
		return d, 0
	}
	made := 0
	for name := range strings.SplitSeq(path, "/") {
		kid := d.kids[name]
		if kid == nil {
			kid = &dirt{}
			if d.kids == nil {
				d.kids = map[string]*dirt{}
			}
			d.kids[name] = kid
			made++
		}
		d = kid
	}
	return d, made
}

// merge adds everything in o, which must not be used afterwards, and returns how many nodes that made at most.
func (d *dirt) merge(o *dirt) int {
	d.deep = d.deep || o.deep
	d.dir = d.dir || o.dir
	made := 0
	for name, kid := range o.kids {
		mine := d.kids[name]
		if mine != nil {
			made += mine.merge(kid)
			continue
		}
		if d.kids == nil {
			d.kids = map[string]*dirt{}
		}
		d.kids[name] = kid
		made += kid.size()
	}
	return made
}

// size counts the nodes, this one included.
func (d *dirt) size() int {
	n := 1
	for _, kid := range d.kids {
		n += kid.size()
	}
	return n
}

// below reports whether anything inside this node, a directory, is to be looked at.
func (d *dirt) below() bool { return d.deep || len(d.kids) > 0 }

// names returns the kids' names, sorted, so that two scans of the same dirt do the same.
func (d *dirt) names() []string {
	names := make([]string, 0, len(d.kids))
	for name := range d.kids {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// join appends a name to a directory's path.
func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

// split is the inverse of join.
func split(path string) (dir, name string) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return ".", path
	}
	return path[:i], path[i+1:]
}
