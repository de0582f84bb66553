package console

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// A batch is sent when it has so many bytes or objects.
const (
	batchBytes   = 16 << 20
	batchObjects = MaxMissing / 2
)

// Uploader is a tree.Objects whose objects are at a master: what is put is kept until a batch is full, and then the
// master is asked what of it is missing there, and sent that. Nothing can be got back. It is safe for concurrent use;
// an error of one batch is the error of everything that follows.
type Uploader struct {
	control   Control
	shard, id string

	mu      sync.Mutex // guards what follows, and is held while a batch is sent
	put     map[tree.Digest]struct{}
	pending []pendingObject
	size    int
	sent    Sent
	err     error
}

type pendingObject struct {
	digest tree.Digest
	object []byte
}

// Sent is what an upload has transferred. What the master held already is not in it.
type Sent struct{ Objects, Bytes int64 }

// NewUploader begins an upload. End it whatever happens.
func NewUploader(ctx context.Context, c Control, shard string) (*Uploader, error) {
	id, err := c.BeginUpload(ctx, shard)
	if err != nil {
		return nil, err
	}
	return &Uploader{control: c, shard: shard, id: id, put: map[tree.Digest]struct{}{}}, nil
}

// ID is the upload's, for a PublishRequest.
func (u *Uploader) ID() string { return u.id }

// Get returns an error that wraps tree.ErrMissing.
func (u *Uploader) Get(_ context.Context, d tree.Digest) ([]byte, error) {
	return nil, fmt.Errorf("object %s was uploaded: %w", d, tree.ErrMissing)
}

// Has reports whether d was put.
func (u *Uploader) Has(d tree.Digest) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	_, ok := u.put[d]
	return ok
}

// Put keeps a copy of b until it is sent.
func (u *Uploader) Put(ctx context.Context, b []byte) (tree.Digest, error) {
	d := tree.Sum(b)
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err != nil {
		return d, u.err
	}
	if _, ok := u.put[d]; ok {
		return d, nil
	}
	u.put[d] = struct{}{}
	u.pending = append(u.pending, pendingObject{d, bytes.Clone(b)})
	u.size += len(b)
	if u.size < batchBytes && len(u.pending) < batchObjects {
		return d, nil
	}
	return d, u.send(ctx)
}

// Flush sends what is kept still, and returns what was transferred in all.
func (u *Uploader) Flush(ctx context.Context) (Sent, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err != nil {
		return u.sent, u.err
	}
	return u.sent, u.send(ctx)
}

// send sends the batch. The caller holds mu.
func (u *Uploader) send(ctx context.Context) error {
	if len(u.pending) == 0 {
		return nil
	}
	if u.err = u.transfer(ctx); u.err != nil {
		u.err = fmt.Errorf("upload: %w", u.err)
	}
	clear(u.pending)
	u.pending, u.size = u.pending[:0], 0
	return u.err
}

func (u *Uploader) transfer(ctx context.Context) error {
	want := make([]tree.Digest, len(u.pending))
	for i, p := range u.pending {
		want[i] = p.digest
	}
	lacks, err := u.control.Missing(ctx, u.shard, u.id, want)
	if err != nil || len(lacks) == 0 {
		return err
	}
	missing := make(map[tree.Digest]bool, len(lacks))
	for _, d := range lacks {
		missing[d] = true
	}
	var stream bytes.Buffer
	var sent Sent
	for _, p := range u.pending {
		if !missing[p.digest] {
			continue
		}
		if err := writeFrame(&stream, p.digest, p.object); err != nil {
			return err
		}
		sent.Objects++
		sent.Bytes += int64(len(p.object))
	}
	if err := EncodeEnd(&stream); err != nil {
		return err
	}
	if err := u.control.PutObjects(ctx, u.shard, u.id, &stream); err != nil {
		return err
	}
	u.sent.Objects += sent.Objects
	u.sent.Bytes += sent.Bytes
	return nil
}

// End tells the master that the upload is over, published or not. It does so even when ctx has ended already.
func (u *Uploader) End(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return u.control.EndUpload(ctx, u.shard, u.id)
}
