package volume

import (
	"encoding/binary"
	"math"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Where the fields of a fattr3 are in its XDR form (RFC 1813, section 2.3.5). attrSize is the length of the whole.
const (
	attrType   = 0
	attrMode   = 4
	attrNlink  = 8
	attrUID    = 12
	attrGID    = 16
	attrBytes  = 20
	attrUsed   = 28
	attrRdev   = 36
	attrFSID   = 44
	attrFileID = 52
	attrAtime  = 60
	attrMtime  = 68
	attrCtime  = 76
	attrSize   = 84
)

// Where the rest of a record is. recBorn is as a handle begins: its version and the five bytes of born. recDigest is the
// content's, or of a directory the place of its dir in the page's list.
const (
	recBorn      = attrSize
	recPlace     = recBorn + 6    // uint16: the slot less the page's first
	recName      = recPlace + 2   // uint32: where in the page the name is, and after it the target
	recTag       = recName + 4    // uint64
	recDigest    = recTag + 8     // 32 bytes
	recForm      = recDigest + 32 // uint8
	recNameLen   = recForm + 1    // uint8
	recTargetLen = recNameLen + 1 // uint16
	recSize      = recTargetLen + 2
)

// maxTarget bounds a symlink's target; Linux allows 4,095 bytes.
const maxTarget = math.MaxUint16

// putRecord writes the record of e to r, except for recDigest of a directory. place is its slot less its page's first,
// name where in the page its name is.
func putRecord(r []byte, e *tree.Entry, fsid uint64, place, name int) {
	be := binary.BigEndian
	be.PutUint32(r[attrType:], uint32(e.Type))
	be.PutUint32(r[attrMode:], e.Mode&0o7777)
	be.PutUint32(r[attrNlink:], e.Links)
	be.PutUint32(r[attrUID:], e.UID)
	be.PutUint32(r[attrGID:], e.GID)
	be.PutUint64(r[attrBytes:], e.Size)
	be.PutUint64(r[attrUsed:], e.Used)
	be.PutUint32(r[attrRdev:], e.Rdev.Major)
	be.PutUint32(r[attrRdev+4:], e.Rdev.Minor)
	be.PutUint64(r[attrFSID:], fsid)
	be.PutUint64(r[attrFileID:], e.Ino)
	mtime := wireTime(e.Mtime)
	be.PutUint64(r[attrAtime:], mtime)
	be.PutUint64(r[attrMtime:], mtime)
	be.PutUint64(r[attrCtime:], wireTime(e.Ctime))
	be.PutUint64(r[recBorn:], handleVersion<<56|e.Born<<16|uint64(place))
	be.PutUint32(r[recName:], uint32(name))
	be.PutUint64(r[recTag:], e.Tag)
	copy(r[recDigest:recForm], e.Content.Digest[:])
	r[recForm] = byte(e.Content.Form)
	r[recNameLen] = byte(len(e.Name))
	be.PutUint16(r[recTargetLen:], uint16(len(e.Target)))
}

// wireTime returns an nfstime3: 32 bits of seconds, 32 of nanoseconds. Its seconds are unsigned, so what is before 1970 or
// after 2106 becomes the nearest time that can be told.
func wireTime(t tree.Time) uint64 {
	switch {
	case t.Sec < 0:
		return 0
	case t.Sec > math.MaxUint32:
		return math.MaxUint32<<32 | 999_999_999
	}
	return uint64(t.Sec)<<32 | uint64(t.Nsec)
}

func recordIno(r []byte) uint64 { return binary.BigEndian.Uint64(r[attrFileID:]) }

func recordType(r []byte) tree.Type { return tree.Type(r[attrType+3]) }

func recordPlace(r []byte) uint32 { return uint32(binary.BigEndian.Uint16(r[recPlace:])) }

func recordLinks(r []byte) uint32 { return binary.BigEndian.Uint32(r[attrNlink:]) }
