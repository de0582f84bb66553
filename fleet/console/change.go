package console

import (
	"encoding/json"
	"fmt"
	"unicode/utf8"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Change is one difference between two generations.
type Change struct {
	Op   string // added, modified or removed
	Path string // from the root, without a leading slash; any bytes but NUL
	Old  *Node  // nil when added
	New  *Node  // nil when removed
}

// Node is what a Change tells of one side.
type Node struct {
	Type   string      `json:"type"` // file, dir, symlink, fifo, socket, block or char
	Mode   string      `json:"mode"` // octal, four digits
	UID    uint32      `json:"uid"`
	GID    uint32      `json:"gid"`
	Links  uint32      `json:"links"`
	Size   uint64      `json:"size"`
	Mtime  string      `json:"mtime"` // RFC 3339, or @seconds for years that it cannot write
	Ino    uint64      `json:"ino"`
	Digest tree.Digest `json:"digest"` // of a file's content object; "" for an empty file and every other type
	Target string      `json:"target,omitempty"`
}

var typeNames = map[tree.Type]string{
	tree.Regular: "file", tree.Directory: "dir", tree.Symlink: "symlink", tree.FIFO: "fifo", tree.Socket: "socket",
	tree.Block: "block", tree.Char: "char",
}

// ChangeOf describes the difference between two entries at a path; nil is an entry that is not there.
func ChangeOf(path string, before, after *tree.Entry) Change {
	c := Change{Op: "modified", Path: path, Old: nodeOf(before), New: nodeOf(after)}
	switch {
	case before == nil:
		c.Op = "added"
	case after == nil:
		c.Op = "removed"
	}
	return c
}

func nodeOf(e *tree.Entry) *Node {
	if e == nil {
		return nil
	}
	n := &Node{
		Type: typeNames[e.Type], Mode: fmt.Sprintf("%04o", e.Mode), UID: e.UID, GID: e.GID, Links: e.Links, Size: e.Size,
		Mtime: stamp(e.Mtime), Ino: e.Ino, Target: e.Target,
	}
	if e.Type == tree.Regular {
		n.Digest = e.Content.Digest
	}
	return n
}

// stamp writes a time that a file system can hold and RFC 3339 perhaps not.
func stamp(t tree.Time) string {
	text, err := t.Go().MarshalText()
	if err != nil {
		return fmt.Sprintf("@%d.%09d", t.Sec, t.Nsec)
	}
	return string(text)
}

// changeJSON is a Change in JSON, whose strings hold UTF-8 only: other names travel in path_bytes as well.
type changeJSON struct {
	Op        string `json:"op"`
	Path      string `json:"path"`
	PathBytes []byte `json:"path_bytes,omitempty"`
	Old       *Node  `json:"old,omitempty"`
	New       *Node  `json:"new,omitempty"`
}

// MarshalJSON writes a path that is not UTF-8 in base64 as path_bytes too.
func (c Change) MarshalJSON() ([]byte, error) {
	j := changeJSON{Op: c.Op, Path: c.Path, Old: c.Old, New: c.New}
	if !utf8.ValidString(c.Path) {
		j.PathBytes = []byte(c.Path)
	}
	return json.Marshal(j)
}

// UnmarshalJSON is the inverse of MarshalJSON.
func (c *Change) UnmarshalJSON(b []byte) error {
	var j changeJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	*c = Change{Op: j.Op, Path: j.Path, Old: j.Old, New: j.New}
	if len(j.PathBytes) > 0 {
		c.Path = string(j.PathBytes)
	}
	return nil
}
