package peer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// dispatch asks whoever is free for what is wanted. It returns an error when something is not to be had.
func (r *run) dispatch() error {
	now := time.Now()
	for _, g := range slices.Backward(slices.Clone(r.queue.groups)) { // what somebody lacks first: it has waited longer
		if err := r.hopeless(g); err != nil {
			return err
		}
		for g.len() > 0 && r.mayAsk(now) {
			s := choose(r.sources, g.lacks, r.prefer, now)
			if s == nil {
				break
			}
			if !r.start(g, s, now) {
				break
			}
		}
		r.queue.drop(g)
	}
	return nil
}

// mayAsk says whether another request may be under way.
func (r *run) mayAsk(now time.Time) bool {
	if r.pressed {
		return len(r.active) == 0 && now.Sub(r.eased) >= easeTime
	}
	return len(r.active) < max(1, maxStreams/int(r.f.running.Load()))
}

// hopeless returns an error when a group cannot be had. When single objects are wanted it empties the group instead.
func (r *run) hopeless(g *group) error {
	if g.len() == 0 {
		return nil
	}
	lacking, lost := verdict(r.sources, g.lacks)
	if lost == nil && !lacking {
		return nil
	}
	items := slices.Concat(g.meta, g.blobs, g.large)
	var err error
	if lost != nil {
		err = fmt.Errorf("object %s, and %d others: %w: %w", items[0].digest, len(items)-1, ErrUnreachable, lost)
	} else {
		err = fmt.Errorf("object %s, and %d others, that no living master has: %w", items[0].digest, len(items)-1, tree.ErrMissing)
	}
	if !r.objects {
		return err
	}
	g.meta, g.blobs, g.large, g.costs = nil, nil, nil, 0
	for i := range items {
		if lacking {
			r.missing = append(r.missing, items[i].digest)
		}
		r.open--
		r.finish(&items[i])
	}
	if !lacking && r.lost == nil {
		r.lost = err
	}
	return nil
}

// start asks s for something of g, and reports whether there was anything that it may be asked for now.
func (r *run) start(g *group, s *source, now time.Time) bool {
	req := &request{src: s, lacks: g.lacks, begun: now}
	switch {
	case len(g.large) > 0 && (len(g.meta)+len(g.blobs) == 0 || len(g.meta) == 0 && s.streams%2 == 1) && r.charge(&g.large[len(g.large)-1]):
		last := len(g.large) - 1
		req.alone, req.items = true, []item{g.large[last]}
		g.large[last] = item{}
		g.large = g.large[:last]
		p := req.items[0].partial
		req.cost = p.size - int64(len(p.buf))
	case len(g.meta)+len(g.blobs) > 0:
		before := g.costs
		req.items = g.batch(r.share(g, s, now))
		req.cost = before - g.costs
	default:
		return false
	}
	req.left = req.items
	s.streams++
	r.eased = now
	r.active[req] = struct{}{}
	ctx, cancel := context.WithCancelCause(r.ctx)
	req.cancel, req.watch = cancel, newWatch(cancel)
	r.wg.Go(func() { r.perform(ctx, req) })
	return true
}

// share is how much of g to ask s for at once: what it can give in a while, and not so much that others have nothing to do.
func (r *run) share(g *group, s *source, now time.Time) int64 {
	if r.pressed {
		return smallBatch
	}
	others := int64(0)
	for _, o := range r.sources {
		if o.alive && !g.lacks.has(o.number) && o.failures == 0 && o.rank(now) <= s.rank(now) {
			others++
		}
	}
	return min(s.batchBytes(), max(g.costs/(2*max(others, 1)), smallBatch))
}

// charge takes the memory for a large object, and reports whether there was some.
func (r *run) charge(it *item) bool {
	if it.partial == nil {
		it.partial = &partial{size: int64(it.size)}
	}
	p := it.partial
	if p.charged == 0 {
		if r.large > 0 && r.large+p.size > largeMemory/r.f.running.Load() {
			return false
		}
		p.charged = p.size
		r.large += p.charged
	}
	return true
}

// ended takes back what is left of a request.
func (r *run) ended(req *request) {
	delete(r.active, req)
	s, now := req.src, time.Now()
	s.streams--
	r.came += req.bytes.Load()
	s.timed(req.bytes.Load(), now.Sub(req.begun))
	for i := range req.missing {
		r.release(&req.missing[i])
	}
	if req.alone && len(req.left) > 0 && req.left[0].partial.whole {
		req.left[0].partial.reset()
	}
	r.queue.add(req.lacks.with(s.number), req.missing...)
	r.queue.add(req.lacks, req.large...)
	r.queue.add(req.lacks, req.left...)
	if req.err == nil {
		s.answered(now, len(req.items), len(req.missing))
		return
	}
	s.failed(now, req.err, req.sent > 0 || len(req.missing) > 0)
	if errors.Is(req.err, errProtocol) {
		r.shun(s, req.err)
		return
	}
	e := r.f.log.Debug()
	if errors.Is(req.err, errStalled) {
		e = r.f.log.Warn()
	}
	e.Err(req.err).Str("peer", s.name).Int("left", len(req.left)).Msg("a peer did not give all that it was asked for")
}

// release gives back what a large object has taken.
func (r *run) release(it *item) {
	if p := it.partial; p != nil {
		r.large -= p.charged
		p.charged = 0
		p.reset()
	}
}

// wrong takes back an object that was not what its name says.
func (r *run) wrong(req *request, it item) {
	s := req.src
	if p := it.partial; p != nil {
		mixed := p.mixed
		r.release(&it)
		if mixed {
			p.whole = true
			r.queue.add(req.lacks, it)
			return
		}
	}
	r.queue.add(req.lacks.with(s.number), it)
	s.failed(time.Now(), errWrong, true)
	r.shun(s, fmt.Errorf("object %s: %w", it.digest, errWrong))
	if s.wrong++; s.wrong <= maxHints {
		r.wg.Go(func() { r.hint(s.name, it.digest) })
	}
}

// maxHints is how often a fetch tells a source that it has a damaged object.
const maxHints = 16

// hint makes a source look at the bytes of an object. If it is honest, it finds that they have rotted.
func (r *run) hint(master string, d tree.Digest) {
	ctx, cancel := context.WithTimeout(r.ctx, stallTime)
	defer cancel()
	client, base, err := r.f.cfg.Client(master)
	if err != nil {
		return
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, base+Path+"/"+d.String()+"?"+verifyQuery+"=1", nil)
	if err != nil {
		return
	}
	if resp, err := client.Do(req); err == nil {
		_ = resp.Body.Close()
	}
}

// shun makes a source the last one to be asked, in this fetch and in others.
func (r *run) shun(s *source, why error) {
	now := time.Now()
	if now.Before(s.shunUntil) {
		return
	}
	s.shunUntil = now.Add(shunTime)
	r.f.shun(s.name, s.shunUntil)
	r.f.log.Warn().Err(why).Str("peer", s.name).Dur("for", shunTime).Msg("a peer sent what it should not have: it is shunned")
}
