package peer

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Ahead brings objects of a tree in the making from the master that announces them: what feed gives, as blobs of their
// sizes. It returns when feed is closed and they are here and durable, but for those that the master turned out not to have.
// Nothing follows from an error but that less is here: the Fetch of the tree, once it has a root, brings what lacks.
func (f *Fetcher) Ahead(ctx context.Context, master string, feed <-chan []tree.Part, progress func(Progress)) error {
	select {
	case f.turns <- struct{}{}:
		defer func() { <-f.turns }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer f.cfg.Store.Hold()()
	r := f.newRun(ctx, master, progress)
	r.objects, r.feed = true, feed
	r.masters = func() []string { return []string{master} }
	err := r.loop()
	if err == nil {
		err = r.lost
	}
	if err != nil {
		return fmt.Errorf("fetch what master %s announces: %w", master, err)
	}
	return nil
}

// hungry returns feed when there is room for more of it.
func (r *run) hungry() <-chan []tree.Part {
	if r.queue.len() >= aheadBacklog {
		return nil
	}
	return r.feed
}

// take wants what was announced.
func (r *run) take(parts []tree.Part, more bool) {
	if !more {
		r.feed = nil
	}
	for i := range parts {
		r.want(newItem(parts[i]))
	}
}

// aheadBacklog is how many objects that were announced may wait before more are taken in.
const aheadBacklog = 8192

// Announcements are a stream of records, each a digest and the object's size, 32 bits, big-endian. One with a zero digest
// names no object: its number is aheadBeat, a sign of life, or aheadEnd.
const (
	aheadRecord = 32 + 4
	aheadBeat   = 0
	aheadEnd    = 1
)

// AppendAnnounced appends the announcement of objects that are stored to b; of none, it is a sign of life.
func AppendAnnounced(b []byte, parts []tree.Part) []byte {
	for i := range parts {
		b = binary.BigEndian.AppendUint32(append(b, parts[i].Digest[:]...), uint32(parts[i].Size))
	}
	if len(parts) == 0 {
		b = appendMark(b, aheadBeat)
	}
	return b
}

// AppendAnnouncedAll appends what says that nothing more comes.
func AppendAnnouncedAll(b []byte) []byte { return appendMark(b, aheadEnd) }

func appendMark(b []byte, n uint32) []byte {
	var none tree.Digest
	return binary.BigEndian.AppendUint32(append(b, none[:]...), n)
}

// Announced reads a stream of announcements.
type Announced struct{ in *bufio.Reader }

// NewAnnounced returns a reader of the stream r.
func NewAnnounced(r io.Reader) *Announced {
	const records = 1024
	return &Announced{bufio.NewReaderSize(r, records*aheadRecord)}
}

// Next waits for the next objects, and returns as many as have come; none are a sign of life. The end is io.EOF; a stream
// that was cut off is io.ErrUnexpectedEOF.
func (a *Announced) Next() ([]tree.Part, error) {
	var parts []tree.Part
	for {
		b, err := a.in.Peek(aheadRecord)
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
		p := tree.Part{Digest: tree.Digest(b[:32]), Form: tree.Blob, Size: uint64(binary.BigEndian.Uint32(b[32:]))}
		switch end := p.Digest.IsZero() && p.Size == aheadEnd; {
		case end && len(parts) > 0:
			return parts, nil // and next time the end
		case end:
			return nil, io.EOF
		case p.Digest.IsZero() && p.Size == aheadBeat:
		case !p.Digest.IsZero() && p.Size <= store.MaxObject:
			parts = append(parts, p)
		default:
			return nil, fmt.Errorf("an announcement of %d bytes: %w", p.Size, errProtocol)
		}
		if _, err := a.in.Discard(aheadRecord); err != nil {
			return nil, err
		}
		if a.in.Buffered() < aheadRecord {
			return parts, nil
		}
	}
}
