package tree

import "errors"

// Extent is a stretch of a file: Length bytes that are the object named Digest or, when that is zero, a hole.
type Extent struct {
	Length uint64
	Digest Digest
}

// EncodeChunks encodes a chunk list. It merges adjacent holes and leaves out empty extents; x is not modified.
func EncodeChunks(x []Extent) []byte { return nil }

// DecodeChunks decodes a chunk list.
func DecodeChunks(b []byte) ([]Extent, error) { return nil, errors.ErrUnsupported }
