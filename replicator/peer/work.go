package peer

import (
	"errors"
	"fmt"

	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// task is something for a worker: a slab of objects that have come, or objects that were here already and are to be looked
// into.
type task struct {
	slab *slab
	here []item
}

// event is what run is told of: a request that has ended, a Sync that has, or what a worker has done.
type event struct {
	ended  *request // nothing more comes of it
	synced bool

	req      *request
	finished []item // stored, or found here, and looked into
	fetched  int64  // bytes of these that came from a peer
	found    []item // that they name, and that are not blobs that are here
	wrong    []item // what came of them is not them
	again    []item // were here, and could not be read
	err      error  // ends the fetch
}

// tell tells run, unless it is over.
func (r *run) tell(e event) {
	select {
	case r.events <- e:
	case <-r.ctx.Done():
	}
}

// worker stores what comes and looks into it, until the fetch is over.
func (r *run) worker() {
	for {
		select {
		case t := <-r.work:
			if t.slab != nil {
				r.tell(r.takeIn(t.slab))
				t.slab.free()
			} else {
				r.tell(r.lookInto(t.here))
			}
		case <-r.ctx.Done():
			return
		}
	}
}

// takeIn hashes and stores the objects of a slab.
func (r *run) takeIn(s *slab) event {
	e := event{req: s.req, finished: make([]item, 0, len(s.objects))}
	if e.err = r.store(s); e.err != nil {
		return e
	}
	for i := range s.objects {
		o := &s.objects[i]
		if o.wrong {
			e.wrong = append(e.wrong, o.item)
			continue
		}
		if e.err = r.expand(&o.item, o.data, &e); e.err != nil {
			return e
		}
		e.fetched += int64(len(o.data))
		e.finished = append(e.finished, o.item)
	}
	return e
}

// store puts the objects that have come, but for those that are not what was asked for: these are marked wrong.
func (r *run) store(s *slab) error {
	data := make([][]byte, len(s.objects))
	for i := range s.objects {
		data[i] = s.objects[i].data
	}
	digests := make([]tree.Digest, len(data))
	tree.Sums(digests, data)
	good := make([]store.Hashed, 0, len(data))
	for i := range s.objects {
		o := &s.objects[i]
		o.wrong = digests[i] != o.item.digest || o.item.form == tree.Blob && int(o.item.size) != len(o.data)
		if !o.wrong {
			good = append(good, store.Hashed{Digest: digests[i], Bytes: o.data})
		}
	}
	if err := r.f.cfg.Store.PutHashed(r.ctx, good); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

// expand finds what an object names.
func (r *run) expand(it *item, b []byte, e *event) error {
	if it.leaf() {
		return nil
	}
	return it.part.Expand(r.ctx, r.f.cfg.Store, b, func(p tree.Part) error {
		if p.Form != tree.Blob || !r.f.cfg.Store.Has(p.Digest) {
			e.found = append(e.found, newItem(p))
		}
		return nil
	})
}

// lookInto reads objects that are here.
func (r *run) lookInto(here []item) event {
	var e event
	for i := range here {
		it := &here[i]
		b, err := r.f.cfg.Store.Get(r.ctx, it.digest)
		switch {
		case errors.Is(err, tree.ErrMissing), errors.Is(err, tree.ErrCorrupt):
			e.again = append(e.again, *it)
			continue
		case err == nil:
			err = r.expand(it, b, &e)
		}
		if err != nil {
			e.err = err
			return e
		}
		e.finished = append(e.finished, *it)
	}
	return e
}
