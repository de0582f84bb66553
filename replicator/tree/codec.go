package tree

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
)

// The limits of the format. An ino and a generation fit the bytes that a file handle has for them, and a slot leaves room
// above it for a listing's cookies.
const (
	MaxIno    = 1<<48 - 1
	MaxBorn   = 1<<40 - 1
	MaxSlot   = 1<<62 - 1
	maxName   = 255
	maxTarget = 4096
	maxDepth  = 4096 // directories below one another: deeper than any path that Linux resolves
)

// The kinds of objects, the third byte of each that is not a blob.
const (
	kindRoot      = 'R'
	kindDirectory = 'D'
	kindPage      = 'P'
	kindChunks    = 'C'
)

// formatVersion is the version of the format that is written here, the fourth byte of every object that is not a blob.
const formatVersion = 1

const magicLen = 4

func appendMagic(dst []byte, kind byte) []byte { return append(dst, 'n', 'f', kind, formatVersion) }

// cursor reads the primitives of the format. After the first thing that no encoder writes it stays failed and returns
// zeros; done reports that.
type cursor struct {
	b   []byte
	i   int
	err error
}

// open returns a cursor behind the magic of b.
func open(b []byte, kind byte) (cursor, error) {
	switch {
	case len(b) < magicLen || b[0] != 'n' || b[1] != 'f':
		return cursor{}, fmt.Errorf("not an object of kind %c: %w", kind, ErrCorrupt)
	case b[2] != kind:
		return cursor{}, fmt.Errorf("object of kind %q, want %q: %w", b[2], kind, ErrCorrupt)
	case b[3] != formatVersion:
		return cursor{}, fmt.Errorf("object of kind %c in format version %d, this program reads version %d: %w", kind, b[3], formatVersion, ErrCorrupt)
	}
	return cursor{b: b, i: magicLen}, nil
}

// fail notes the first fault.
func (c *cursor) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf("byte %d: %s: %w", c.i, fmt.Sprintf(format, args...), ErrCorrupt)
		c.i = len(c.b)
	}
}

// done returns the first fault, or one when bytes are left over.
func (c *cursor) done() error {
	if c.err == nil && c.i != len(c.b) {
		c.fail("%d bytes too many", len(c.b)-c.i)
	}
	return c.err
}

func (c *cursor) left() int { return len(c.b) - c.i }

func (c *cursor) byte() byte {
	if c.i >= len(c.b) {
		c.fail("cut short")
		return 0
	}
	v := c.b[c.i]
	c.i++
	return v
}

// uvarint reads an unsigned number in its shortest form.
func (c *cursor) uvarint() uint64 {
	if c.i < len(c.b) && c.b[c.i] < 0x80 {
		c.i++
		return uint64(c.b[c.i-1])
	}
	return c.longUvarint()
}

func (c *cursor) longUvarint() uint64 {
	if b := c.b[c.i:]; len(b) > 2 { // most numbers here are of two or three bytes
		switch {
		case b[1]-1 < 0x7f:
			c.i += 2
			return uint64(b[0]&0x7f) | uint64(b[1])<<7
		case b[1] >= 0x80 && b[2]-1 < 0x7f:
			c.i += 3
			return uint64(b[0]&0x7f) | uint64(b[1]&0x7f)<<7 | uint64(b[2])<<14
		}
	}
	v, n := binary.Uvarint(c.b[c.i:])
	if n <= 0 || c.b[c.i+n-1] == 0 {
		c.fail("not a number in its shortest form")
		return 0
	}
	c.i += n
	return v
}

// atMost reads an unsigned number that must not exceed limit.
func (c *cursor) atMost(limit uint64, what string) uint64 {
	v := c.uvarint()
	if v > limit {
		c.fail("%s %d over %d", what, v, limit)
		return 0
	}
	return v
}

func (c *cursor) uint32(what string) uint32 { return uint32(c.atMost(math.MaxUint32, what)) }

// digest reads a digest that must not be zero.
func (c *cursor) digest(d *Digest) {
	if c.left() < len(d) {
		c.fail("cut short")
		return
	}
	c.i += copy(d[:], c.b[c.i:])
	if d.IsZero() {
		c.fail("zero digest")
	}
}

func zigzag(v int64) uint64   { return uint64(v)<<1 ^ uint64(v>>63) }
func unzigzag(u uint64) int64 { return int64(u>>1) ^ -int64(u&1) }

func appendTime(dst []byte, t Time) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(t.Sec))
	return binary.BigEndian.AppendUint32(dst, t.Nsec)
}

func timeOf(b []byte) Time {
	return Time{int64(binary.BigEndian.Uint64(b)), binary.BigEndian.Uint32(b[8:])}
}

// checkName says what is wrong with a name in a directory.
func checkName(name string) error {
	switch {
	case len(name) == 0 || len(name) > maxName:
		return fmt.Errorf("name of %d bytes", len(name))
	case name == "." || name == "..":
		return fmt.Errorf("name %q", name)
	case strings.IndexByte(name, '/') >= 0 || strings.IndexByte(name, 0) >= 0:
		return fmt.Errorf("name %q has a slash or a NUL", name)
	}
	return nil
}

func checkTarget(target string) error {
	if len(target) == 0 || len(target) > maxTarget || strings.IndexByte(target, 0) >= 0 {
		return fmt.Errorf("symlink target of %d bytes, or with a NUL", len(target))
	}
	return nil
}

// formOf returns how the content of an entry of this type and size is stored: nothing else is allowed, so no object
// says it.
func formOf(t Type, size uint64) Form {
	switch {
	case t == Directory:
		return Dir
	case t != Regular || size == 0:
		return NoContent
	case size <= ChunkSize:
		return Blob
	default:
		return Chunks
	}
}
