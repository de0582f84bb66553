package volume

import (
	"encoding/binary"
	"errors"
)

// HandleSize is the length of a handle in bytes. Nothing needs padding in XDR.
const HandleSize = 28

// A handle is version (1 byte), born (5), ino (6), fsid (8) and tag (8), big endian.
const (
	handleVersion = 1

	handleBorn = 1
	handleIno  = 6
	handleFSID = 12
	handleTag  = 20

	maxBorn = 1<<40 - 1
	maxIno  = 1<<48 - 1
)

// The errors of State.Resolve.
var (
	// ErrBadHandle is for bytes that were never a handle of this shard: NFS3ERR_BADHANDLE.
	ErrBadHandle = errors.New("bad file handle")
	// ErrStale is for an ino that is gone past retention: NFS3ERR_STALE.
	ErrStale = errors.New("stale file handle")
	// ErrFuture is for a handle born in a generation later than the State's: Await it and resolve again.
	ErrFuture = errors.New("file handle of a later generation")
)

// ParseHandle returns the fsid in a handle and the generation that its ino was born in, so that its Volume can be found and
// awaited. ok is false for bytes that cannot be a handle. It does not say that the handle is good; Resolve does.
func ParseHandle(fh []byte) (fsid, born uint64, ok bool) {
	if len(fh) != HandleSize || fh[0] != handleVersion {
		return 0, 0, false
	}
	born = binary.BigEndian.Uint64(fh) >> 16 & maxBorn
	return binary.BigEndian.Uint64(fh[handleFSID:]), born, true
}

// Resolve returns the node that a handle stands for: one of this generation, or one that has left the tree and is kept.
// Its errors are ErrBadHandle, ErrStale and ErrFuture, as they are.
func (s *State) Resolve(fh []byte) (Node, error) {
	fsid, born, ok := ParseHandle(fh)
	if !ok || fsid != s.fsid {
		return Node{}, ErrBadHandle
	}
	if born > s.gen.Number {
		return Node{}, ErrFuture
	}
	ino := binary.BigEndian.Uint64(fh[handleIno-2:]) & maxIno
	n, ok := s.node(ino)
	if !ok {
		if ino == 0 || s.gen.NextIno > 0 && ino >= s.gen.NextIno {
			return Node{}, ErrBadHandle // never allotted
		}
		return Node{}, ErrStale
	}
	r := n.record()
	if string(r[recBorn:recBorn+handleIno]) != string(fh[:handleIno]) || string(r[recTag:recTag+8]) != string(fh[handleTag:]) {
		return Node{}, ErrBadHandle
	}
	return n, nil
}

// AppendHandle appends the node's handle, HandleSize bytes that are the same on every master and for ever.
func (n Node) AppendHandle(dst []byte) []byte {
	r := n.record()
	dst = append(dst, r[recBorn:recBorn+handleIno]...)
	dst = append(dst, r[attrFileID+2:attrFileID+8]...)
	dst = append(dst, r[attrFSID:attrFSID+8]...)
	return append(dst, r[recTag:recTag+8]...)
}
