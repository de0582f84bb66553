package tree

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// ErrMissing is what an Objects wraps when it does not hold an object.
var ErrMissing = errors.New("object missing")

// ErrCorrupt is wrapped by every decoder in this package for bytes that no encoder here wrote.
var ErrCorrupt = errors.New("corrupt object")

// Digest is the SHA-256 of an object's bytes, and its name.
type Digest [sha256.Size]byte

// Sum returns the digest of b.
func Sum(b []byte) Digest { return sha256.Sum256(b) }

// IsZero reports whether d names nothing.
func (d Digest) IsZero() bool { return d == Digest{} }

// String returns d in lower-case hexadecimal, as sha256sum prints it.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText is String, for JSON; the zero digest is the empty text.
func (d Digest) MarshalText() ([]byte, error) {
	if d.IsZero() {
		return nil, nil
	}
	return hex.AppendEncode(nil, d[:]), nil
}

// UnmarshalText is the inverse of MarshalText.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*d = Digest{}
		return nil
	}
	if hex.DecodedLen(len(text)) != len(d) {
		return fmt.Errorf("digest of %d characters, want %d", len(text), hex.EncodedLen(len(d)))
	}
	_, err := hex.Decode(d[:], text)
	return err
}

// Type is a file type; its values are ftype3 of RFC 1813, section 2.3.5.
type Type uint8

// The file types.
const (
	Regular   Type = 1
	Directory Type = 2
	Block     Type = 3
	Char      Type = 4
	Symlink   Type = 5
	Socket    Type = 6
	FIFO      Type = 7
)

// Time is a time stamp as a file system keeps it: seconds since 1970 (negative before) and 0 ≤ Nsec < 1e9.
type Time struct {
	Sec  int64
	Nsec uint32
}

// TimeOf converts a time.Time.
func TimeOf(t time.Time) Time { return Time{t.Unix(), uint32(t.Nanosecond())} }

// Go converts to a time.Time in UTC.
func (t Time) Go() time.Time { return time.Unix(t.Sec, int64(t.Nsec)).UTC() }

// Less reports whether t is before u.
func (t Time) Less(u Time) bool { return t.Sec < u.Sec || t.Sec == u.Sec && t.Nsec < u.Nsec }

// Next returns the time 1 ns after t.
func (t Time) Next() Time {
	if t.Nsec+1 == 1e9 {
		return Time{t.Sec + 1, 0}
	}
	return Time{t.Sec, t.Nsec + 1}
}

// Form says how an entry's content is stored.
type Form uint8

// The forms of content.
const (
	NoContent Form = 0 // an empty regular file, or a type without content
	Blob      Form = 1 // a regular file of at most ChunkSize bytes: the object is the content
	Chunks    Form = 2 // a larger regular file: the object is a list of extents
	Dir       Form = 3 // a directory: the object is a directory object
)

// ChunkSize is the largest content, in bytes, that is one object of its own; larger files are lists of chunks.
const ChunkSize = 4 << 20

// PageSlots is how many slots one page of a directory covers.
const PageSlots = 4096

// Content names what a regular file or a directory holds.
type Content struct {
	Form   Form
	Digest Digest
}

// Device is the rdev of a block or character device.
type Device struct{ Major, Minor uint32 }

// Entry is one name in a directory with everything that NFSv3 tells of it. DESIGN section 5 says what each number means
// and how long it lives.
type Entry struct {
	Name    string // any bytes but '/' and NUL, 1 to 255 of them; "" for a root
	Type    Type
	Mode    uint32 // the permission bits, set-id and sticky bits: 07777
	UID     uint32
	GID     uint32
	Links   uint32 // names of this ino in the shard; for a directory 2 + its subdirectories
	Size    uint64 // bytes
	Used    uint64 // bytes that take space: Size less the holes
	Mtime   Time
	Ctime   Time
	Ino     uint64 // the fileid
	Tag     uint64 // random bits, drawn with the ino
	Slot    uint64 // the entry's number within its directory, from 1; 0 for a root
	Born    uint64 // the generation that first had this ino
	Content Content
	Target  string // of a symlink
	Rdev    Device // of a device
}

// Generation is the record of one immutable state of a shard, as etcd, the API and the disk hold it.
type Generation struct {
	Number      uint64    `json:"generation"`
	Root        Digest    `json:"root"`     // digest of the root object
	Files       uint64    `json:"files"`    // names that are not directories
	Bytes       uint64    `json:"bytes"`    // sum of their sizes
	NextIno     uint64    `json:"next_ino"` // the lowest ino not yet allotted
	PublishedAt time.Time `json:"published_at"`
	By          string    `json:"by"`               // the master that moved the head
	Era         int       `json:"era,omitempty"`    // recoveries of the fleet before it: epochs are compared as (Era, Epoch)
	Epoch       int64     `json:"epoch"`            // its epoch as leader
	Source      string    `json:"source"`           // where the content came from: "master:/path", "upload", "rollback:N"
	Copies      int       `json:"copies"`           // masters that held it whole when the head moved
	Caller      string    `json:"caller,omitempty"` // who asked for it; "": the source published by itself
	Note        string    `json:"note,omitempty"`
}

// After reports whether g was published after h, a generation of the same shard.
func (g Generation) After(h Generation) bool {
	return cmp.Or(cmp.Compare(g.Era, h.Era), cmp.Compare(g.Number, h.Number), cmp.Compare(g.Epoch, h.Epoch)) > 0
}
