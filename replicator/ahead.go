package replicator

import (
	"context"
	"errors"
	"io"

	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// ahead is the fetching of what a leader announces. There is one at a time.
type ahead struct {
	fence  fence
	cancel context.CancelFunc
	done   chan struct{}

	// Guarded by Replica.mu.
	progress func(Fetched) // of whoever waits for it; nil: nobody
	got      Fetched
}

// Ahead fetches from a leader what it announces while it reads its source: next returns what has come since, and io.EOF
// when that was all. Nothing of it counts for anything before Hold; if there is no Hold it is garbage. It returns when all
// of it is here, or cannot be had. A leader before the latest one that this master has been told of is refused, and the
// announcements of a later publish end those of the one before.
func (r *Replica) Ahead(ctx context.Context, from string, era int, epoch int64, next func(context.Context) ([]tree.Part, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a := &ahead{fence: fence{era, epoch}, cancel: cancel, done: make(chan struct{})}
	if err := r.enterAhead(ctx, a); err != nil {
		return err
	}
	defer r.leaveAhead(a)
	feed, fetched := make(chan []tree.Part), make(chan error, 1)
	go func() {
		err := r.cfg.Peers.FetchAhead(ctx, from, feed, func(f Fetched) { r.aheadBeat(a, f) })
		cancel() // nobody takes what is announced any more
		fetched <- err
	}()
	told := r.hearAhead(ctx, a, feed, next)
	if told != nil {
		cancel()
	}
	close(feed)
	err := errors.Join(told, <-fetched)
	if told != nil || errors.Is(err, store.ErrFull) {
		r.makeRoom() // for what nobody may ask for
	}
	r.mu.Lock()
	got := a.got
	r.mu.Unlock()
	r.log.Debug().Err(err).Str("leader", from).Int64("epoch", epoch).Int64("objects", got.Objects).Int64("bytes", got.Bytes).Msg("fetched ahead")
	return err
}

// hearAhead hands on what is announced, until that was all.
func (r *Replica) hearAhead(ctx context.Context, a *ahead, feed chan<- []tree.Part, next func(context.Context) ([]tree.Part, error)) error {
	for {
		parts, err := next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = r.admit(a.fence)
		}
		if err != nil {
			return err
		}
		select {
		case feed <- parts:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// enterAhead makes a the one fetching ahead, once the one before has ended.
func (r *Replica) enterAhead(ctx context.Context, a *ahead) error {
	for {
		if err := r.admit(a.fence); err != nil {
			return err
		}
		r.mu.Lock()
		before := r.ahead
		if before == nil {
			r.ahead = a
		}
		r.mu.Unlock()
		if before == nil {
			return nil
		}
		before.cancel()
		select {
		case <-before.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (r *Replica) leaveAhead(a *ahead) {
	r.mu.Lock()
	r.ahead = nil
	r.mu.Unlock()
	close(a.done)
}

func (r *Replica) aheadBeat(a *ahead, f Fetched) {
	r.mu.Lock()
	progress := a.progress
	a.got = f
	r.mu.Unlock()
	if progress != nil {
		progress(f)
	}
}

// awaitAhead waits for what the leader has announced to be here, so that nothing is fetched twice. What another leader
// has announced is given up.
func (r *Replica) awaitAhead(ctx context.Context, f fence, progress func(Fetched)) error {
	r.mu.Lock()
	a := r.ahead
	if a != nil {
		a.progress = progress
	}
	r.mu.Unlock()
	if a == nil {
		return nil
	}
	if a.fence != f {
		a.cancel()
	}
	select {
	case <-a.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
