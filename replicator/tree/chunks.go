package tree

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Extent is a stretch of a file: Length bytes that are the object named Digest or, when that is zero, a hole.
type Extent struct {
	Length uint64
	Digest Digest
}

// The kinds of extents in a chunk list.
const (
	extentHole = 0
	extentData = 1
)

// EncodeChunks encodes a chunk list. It merges adjacent holes and leaves out empty extents; x is not modified.
func EncodeChunks(x []Extent) []byte {
	plain := make([]Extent, 0, len(x))
	for _, e := range x {
		switch last := len(plain) - 1; {
		case e.Length == 0:
		case e.Digest.IsZero() && last >= 0 && plain[last].Digest.IsZero():
			plain[last].Length += e.Length
		default:
			plain = append(plain, e)
		}
	}
	b := appendMagic(nil, kindChunks)
	b = binary.AppendUvarint(b, uint64(len(plain)))
	for i := range plain {
		if plain[i].Digest.IsZero() {
			b = binary.AppendUvarint(append(b, extentHole), plain[i].Length)
			continue
		}
		b = binary.AppendUvarint(append(b, extentData), plain[i].Length)
		b = append(b, plain[i].Digest[:]...)
	}
	return b
}

// DecodeChunks decodes a chunk list.
func DecodeChunks(b []byte) ([]Extent, error) {
	const minExtent = 2
	c, err := open(b, kindChunks)
	if err != nil {
		return nil, fmt.Errorf("decode chunk list: %w", err)
	}
	n := c.uvarint()
	if n > uint64(c.left()/minExtent) {
		c.fail("%d extents in %d bytes", n, c.left())
	}
	// A list may not claim more memory than it pays for in bytes: a data extent takes 34, and holes are never adjacent.
	x := make([]Extent, 0, min(n, uint64(c.left()/16)+1))
	total, hole := uint64(0), false
	for i := uint64(0); i < n && c.err == nil; i++ {
		var e Extent
		switch kind := c.byte(); {
		case kind == extentHole && !hole:
			e.Length, hole = c.uvarint(), true
		case kind == extentData:
			e.Length, hole = c.atMost(ChunkSize, "chunk length"), false
			c.digest(&e.Digest)
		default:
			c.fail("extent of kind %d", kind)
		}
		if total += e.Length; e.Length == 0 || total < e.Length || total > math.MaxInt64 {
			c.fail("extent of %d bytes", e.Length)
		}
		x = append(x, e)
	}
	if err := c.done(); err != nil {
		return nil, fmt.Errorf("decode chunk list: %w", err)
	}
	return x, nil
}
