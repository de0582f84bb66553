package console

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

const (
	// MaxMissing is the most digests that one call of Missing takes.
	MaxMissing = 8192
	// MaxObject is the size in bytes of the largest object in a stream.
	MaxObject = 64 << 20
	// UploadIdle is how long an upload may lie unused before its Control ends it.
	UploadIdle = 10 * time.Minute
)

// A stream of objects is a sequence of frames: digest (32 bytes), length (4 bytes, big endian), the object. A frame
// with a zero digest and length ends it, so that a stream that was cut off is told from a whole one.
const frameHeader = len(tree.Digest{}) + 4

// ErrStream is wrapped by DecodeObjects for bytes that are no stream of objects. It is an ErrInvalid.
var ErrStream = Errorf(ErrInvalid, "damaged object stream")

// EncodeObject writes one object, which is not empty, and returns its digest.
func EncodeObject(w io.Writer, object []byte) (tree.Digest, error) {
	d := tree.Sum(object)
	return d, writeFrame(w, d, object)
}

// EncodeEnd writes the end of a stream.
func EncodeEnd(w io.Writer) error { return writeFrame(w, tree.Digest{}, nil) }

func writeFrame(w io.Writer, d tree.Digest, object []byte) error {
	var header [frameHeader]byte
	copy(header[:], d[:])
	binary.BigEndian.PutUint32(header[len(d):], uint32(len(object)))
	if _, err := w.Write(header[:]); err != nil {
		return err
	}
	_, err := w.Write(object)
	return err
}

// DecodeObjects yields the objects of a stream, each checked against its digest. The slice is valid until the next
// one. A stream that is cut off, or holds anything that EncodeObject does not write, ends with an error; so does a
// read error of r.
func DecodeObjects(r io.Reader) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		br := bufio.NewReaderSize(r, 64<<10)
		var buf []byte
		for {
			object, err := readFrame(br, buf)
			if err != nil {
				yield(nil, err)
				return
			}
			if object == nil || !yield(object, nil) {
				return
			}
			buf = object[:0]
		}
	}
}

// readFrame returns the next object, in buf when it has room, and nil at the end of the stream.
func readFrame(r io.Reader, buf []byte) ([]byte, error) {
	var header [frameHeader]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, cutOff(err)
	}
	d := tree.Digest(header[:len(tree.Digest{})])
	size := int(binary.BigEndian.Uint32(header[len(d):]))
	switch {
	case d.IsZero() && size == 0:
		return nil, nil
	case size == 0 || size > MaxObject:
		return nil, fmt.Errorf("object of %d bytes: %w", size, ErrStream)
	}
	object, err := readBytes(r, buf, size)
	if err != nil {
		return nil, cutOff(err)
	}
	if tree.Sum(object) != d {
		return nil, fmt.Errorf("object %s has other content: %w", d, ErrStream)
	}
	return object, nil
}

// readBytes reads size bytes. It does not believe size before that many bytes have come.
func readBytes(r io.Reader, buf []byte, size int) ([]byte, error) {
	const step = 1 << 20
	buf = buf[:0]
	for len(buf) < size {
		n := min(size-len(buf), step)
		if cap(buf)-len(buf) < n {
			buf = append(make([]byte, 0, min(size, 2*(len(buf)+n))), buf...)
		}
		got, err := io.ReadFull(r, buf[len(buf):len(buf)+n])
		buf = buf[:len(buf)+got]
		if err != nil {
			return nil, err
		}
	}
	return buf, nil
}

func cutOff(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("cut off: %w", ErrStream)
	}
	return err
}
