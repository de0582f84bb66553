package volume

import (
	"errors"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// HandleSize is the length of a handle in bytes.
const HandleSize = 28

// The errors of Resolve.
var (
	ErrBadHandle = errors.New("bad file handle")
	ErrStale     = errors.New("stale file handle")
	ErrFuture    = errors.New("file handle of a later generation")
)

// ParseHandle returns a handle's fsid and the generation in which its ino was born; ok is false when it is no handle.
func ParseHandle(fh []byte) (fsid, born uint64, ok bool) { return 0, 0, false }

// State is one generation as it is served. It is immutable.
type State struct{}

// Generation returns the number of the generation.
func (s *State) Generation() uint64 { return 0 }

// FSID returns the shard's fsid.
func (s *State) FSID() uint64 { return 0 }

// Files returns the number of names that are not directories.
func (s *State) Files() uint64 { return 0 }

// Bytes returns the sum of the sizes of the files.
func (s *State) Bytes() uint64 { return 0 }

// Root returns the root directory.
func (s *State) Root() Node { return Node{} }

// Resolve returns the node that a handle names.
func (s *State) Resolve(fh []byte) (Node, error) { return Node{}, ErrBadHandle }

// Lookup returns what name is in directory dir.
func (s *State) Lookup(dir Node, name []byte) (Node, bool) { return Node{}, false }

// List returns a Cursor before the first entry of dir whose slot is greater than after.
func (s *State) List(dir Node, after uint64) Cursor { return Cursor{} }

// Cursor goes through a directory in slot order.
type Cursor struct{}

// Next returns the next entry; ok is false after the last.
func (c *Cursor) Next() (slot uint64, name []byte, n Node, ok bool) { return 0, nil, Node{}, false }

// Node is an inode as a State has it.
type Node struct{}

// Attr returns the 84 bytes of the fattr3.
func (n Node) Attr() []byte { return nil }

// Type returns the file type.
func (n Node) Type() tree.Type { return 0 }

// Mode returns the permission bits.
func (n Node) Mode() uint32 { return 0 }

// UID returns the owner.
func (n Node) UID() uint32 { return 0 }

// GID returns the group.
func (n Node) GID() uint32 { return 0 }

// Size returns the size in bytes.
func (n Node) Size() uint64 { return 0 }

// Ino returns the fileid.
func (n Node) Ino() uint64 { return 0 }

// Target returns what a symlink points to.
func (n Node) Target() []byte { return nil }

// AppendHandle appends the node's handle.
func (n Node) AppendHandle(dst []byte) []byte { return dst }
