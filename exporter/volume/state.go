package volume

import (
	"hash/maphash"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// State is one generation as it is served. It is immutable, and safe for concurrent use without locks.
type State struct {
	fsid  uint64
	gen   tree.Generation
	seed  maphash.Seed
	inos  inoTable
	pages pageTable
	root  dirPage    // the one entry that is the root directory
	gone  []departed // in ascending order of generation
}

// departed is a page of entries, with nlink 0, that left the tree with a generation.
type departed struct {
	generation uint64 // the first without them
	id         uint32
}

// Generation returns the number of the generation.
func (s *State) Generation() uint64 { return s.gen.Number }

// FSID returns the shard's fsid.
func (s *State) FSID() uint64 { return s.fsid }

// Files returns the number of names that are not directories.
func (s *State) Files() uint64 { return s.gen.Files }

// Bytes returns the sum of the sizes of the files, one count a name.
func (s *State) Bytes() uint64 { return s.gen.Bytes }

// Root returns the root directory.
func (s *State) Root() Node { return Node{p: s.root.page} }

// node returns the node with an ino, of the tree or departed.
func (s *State) node(ino uint64) (Node, bool) {
	at := s.inos.get(ino)
	if at == 0 {
		return Node{}, false
	}
	p := s.pages.get(at.page())
	i, ok := p.find(at.place())
	return Node{p: p, i: i}, ok
}

// Lookup returns the node called name in the directory dir. "." is dir itself and ".." the directory that it is in, or the
// root for the root. There is none when dir is no directory. A directory that has left the tree has no entries but ".".
func (s *State) Lookup(dir Node, name []byte) (Node, bool) {
	d := dir.dir()
	switch {
	case string(name) == ".":
		return dir, dir.Type() == tree.Directory
	case d == nil:
		return Node{}, false
	case string(name) == "..":
		return s.node(d.parent)
	}
	return d.find(s.seed, name)
}
