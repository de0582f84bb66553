package peer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// A request's body is digests, nothing else. The answer is, for each of them in the same order, a record: its kind, a
// 32-bit big-endian number and, for recordFound, so many bytes. Then comes recordEnd, with the number of records.
const (
	recordFound   = 'o' // the object follows; the number is its size, less than largeObject
	recordMissing = 'm' // the master does not have it; 0
	recordLarge   = 'l' // the object is to be fetched by itself; its size
	recordEnd     = 'e' // of the answer: whatever ends without it was cut off

	recordHeader = 5
)

const (
	// Path is where a Server expects its requests.
	Path = "/peer/v1/objects"

	maxDigests  = 65536
	largeObject = 1 << 20 // from this size on an object has requests of its own

	contentType   = "application/x-nfs-fleet-objects"
	objectHeader  = "Nfs-Fleet-Object" // tells a missing object from a path that is not served
	objectMissing = "missing"
	verifyQuery   = "verify" // =1: look at the object's bytes before sending them
)

// errProtocol is wrapped when a peer sends what no Server sends.
var errProtocol = errors.New("not the answer of a master")

// head is a record without its bytes.
type head struct {
	kind byte
	n    uint32
}

func appendHead(b []byte, kind byte, n uint32) []byte {
	return binary.BigEndian.AppendUint32(append(b, kind), n)
}

// parseHead decodes the record that b begins with. ok is false when more bytes are needed to tell.
func parseHead(b []byte) (h head, ok bool, err error) {
	if len(b) == 0 {
		return head{}, false, nil
	}
	switch b[0] {
	case recordFound, recordMissing, recordLarge, recordEnd:
	default:
		return head{}, false, fmt.Errorf("record of kind %q: %w", b[0], errProtocol)
	}
	if len(b) < recordHeader {
		return head{}, false, nil
	}
	h = head{b[0], binary.BigEndian.Uint32(b[1:])}
	switch {
	case h.kind == recordFound && h.n >= largeObject,
		h.kind == recordMissing && h.n != 0,
		h.kind == recordLarge && (h.n < largeObject || h.n > store.MaxObject),
		h.kind == recordEnd && h.n > maxDigests:
		return head{}, false, fmt.Errorf("record of kind %q with %d: %w", h.kind, h.n, errProtocol)
	}
	return h, true, nil
}

func appendDigests(b []byte, digests []tree.Digest) []byte {
	for i := range digests {
		b = append(b, digests[i][:]...)
	}
	return b
}

// readDigests reads a request's body, of length bytes.
func readDigests(r io.Reader, length int64) ([]tree.Digest, error) {
	const size = int64(len(tree.Digest{}))
	if length < size || length%size != 0 || length > maxDigests*size {
		return nil, fmt.Errorf("a body of %d bytes is not 1 to %d digests", length, maxDigests)
	}
	digests := make([]tree.Digest, 0, min(length/size, 1024))
	var buf [64 * size]byte
	for left := length; left > 0; {
		p := buf[:min(left, int64(len(buf)))]
		if _, err := io.ReadFull(r, p); err != nil {
			return nil, fmt.Errorf("read digests: %w", err)
		}
		left -= int64(len(p))
		for ; len(p) > 0; p = p[size:] {
			digests = append(digests, tree.Digest(p[:size]))
		}
	}
	return digests, nil
}
