package master

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/nfs-fleet/nfs-fleet/fleet/console"
	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// maxUploads bounds the uploads that lie open: each keeps the store from collecting.
const maxUploads = 64

// uploads are the uploads under way. Each holds the store, so that what it has put, or was told is there already, stays
// until it is published.
type uploads struct {
	store *store.Store

	mu   sync.Mutex // guards open and what it holds
	open map[string]*upload
}

type upload struct {
	shard   string
	release func()
	used    time.Time
	busy    int // calls that use it now
}

func newUploads(s *store.Store) *uploads { return &uploads{store: s, open: map[string]*upload{}} }

func (u *uploads) begin(shard string) (string, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.open) >= maxUploads {
		return "", console.Errorf(console.ErrUnavailable, "%d uploads are under way already: try again later", len(u.open))
	}
	id := uuid.NewString()
	u.open[id] = &upload{shard: shard, release: u.store.Hold(), used: time.Now()}
	return id, nil
}

// use marks an upload as in use until done is called.
func (u *uploads) use(id, shard string) (done func(), err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	up := u.open[id]
	if up == nil || up.shard != shard {
		return nil, console.Errorf(console.ErrGone, "no upload %q for shard %s: it has ended, or lay unused for more than %s", id, shard, console.UploadIdle)
	}
	up.busy++
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		up.busy--
		up.used = time.Now()
	}, nil
}

func (u *uploads) end(id string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if up := u.open[id]; up != nil {
		delete(u.open, id)
		up.release()
	}
}

// endIdle ends the uploads that nobody has used for console.UploadIdle.
func (u *uploads) endIdle() { u.endOlder(time.Now().Add(-console.UploadIdle)) }

func (u *uploads) endAll() { u.endOlder(time.Now().Add(time.Hour)) }

func (u *uploads) endOlder(than time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for id, up := range u.open {
		if up.busy == 0 && up.used.Before(than) {
			delete(u.open, id)
			up.release()
		}
	}
}

// BeginUpload implements console.Control.
func (c control) BeginUpload(_ context.Context, shard string) (string, error) {
	if _, err := c.find(shard); err != nil {
		return "", err
	}
	return c.uploads.begin(shard)
}

// Missing implements console.Control.
func (c control) Missing(_ context.Context, shard, id string, want []tree.Digest) ([]tree.Digest, error) {
	done, err := c.uploads.use(id, shard)
	if err != nil {
		return nil, err
	}
	defer done()
	out := []tree.Digest{}
	for _, d := range want {
		if !c.store.Has(d) {
			out = append(out, d)
		}
	}
	return out, nil
}

// PutObjects implements console.Control.
func (c control) PutObjects(ctx context.Context, shard, id string, r io.Reader) error {
	done, err := c.uploads.use(id, shard)
	if err != nil {
		return err
	}
	defer done()
	for object, err := range console.DecodeObjects(r) {
		if err != nil {
			return err
		}
		if _, err := c.store.Put(ctx, object); err != nil {
			return kindOf(err)
		}
	}
	return nil
}

// EndUpload implements console.Control.
func (c control) EndUpload(_ context.Context, _, id string) error {
	c.uploads.end(id)
	return nil
}
