package volume

import (
	"encoding/binary"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Node is an inode as some State has it: a small value that stays good, and the same, for as long as it is kept. The zero
// Node is none; its methods panic.
type Node struct {
	p *page
	i int // which of the page's entries
}

func (n Node) record() []byte { return n.p.record(n.i) }

// Attr returns the node's fattr3 in XDR form (RFC 1813, section 2.3.5), 84 bytes. The caller must not modify it.
func (n Node) Attr() []byte { return n.record()[:attrSize:attrSize] }

// Type returns the node's file type.
func (n Node) Type() tree.Type { return recordType(n.record()) }

// Mode returns the node's permission, set-id and sticky bits.
func (n Node) Mode() uint32 { return binary.BigEndian.Uint32(n.record()[attrMode:]) }

// UID returns the node's owner.
func (n Node) UID() uint32 { return binary.BigEndian.Uint32(n.record()[attrUID:]) }

// GID returns the node's group.
func (n Node) GID() uint32 { return binary.BigEndian.Uint32(n.record()[attrGID:]) }

// Size returns the node's size in bytes.
func (n Node) Size() uint64 { return binary.BigEndian.Uint64(n.record()[attrBytes:]) }

// Ino returns the node's fileid.
func (n Node) Ino() uint64 { return recordIno(n.record()) }

// Target returns what a symlink points to, and nothing for other types. The caller must not modify it.
func (n Node) Target() []byte { return recordTarget(n.p.buf, n.record()) }

func (n Node) dir() *dir { return n.p.dir(n.record()) }

func (n Node) content() tree.Content {
	r := n.record()
	return tree.Content{Form: tree.Form(r[recForm]), Digest: tree.Digest(r[recDigest : recDigest+32])}
}
