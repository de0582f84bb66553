package master

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet/trust"
	"github.com/nfs-fleet/nfs-fleet/replicator"
	"github.com/nfs-fleet/nfs-fleet/replicator/peer"
	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// The paths on which masters ask each other, below "/peer/v1/shards/SHARD/" where they are about a shard.
const (
	peerPrefix  = "/peer/v1/"
	pathLease   = peerPrefix + "lease"
	pathServed  = peerPrefix + "served"
	pathRecords = peerPrefix + "records"
)

func shardPath(shard, what string) string { return peerPrefix + "shards/" + shard + "/" + what }

// maxPeerBody bounds the body of a request of another master.
const maxPeerBody = 1 << 20

// holdRequest asks for a generation to be fetched and held.
type holdRequest struct {
	Master     string          `json:"master"` // who has it
	Generation tree.Generation `json:"generation"`
}

// leadRequest asks a shard's leader to hand the shard over.
type leadRequest struct {
	To    string `json:"to"`
	Wait  bool   `json:"wait"`            // for a publish that is under way; false: not now, then
	Force bool   `json:"force,omitempty"` // although To does not serve the head: it is about to mend it
}

// publishRequest asks the master with a shard's source to publish it.
type publishRequest struct {
	Note   string `json:"note,omitempty"`
	Caller string `json:"caller,omitempty"`
}

// awaitRequest asks for an answer when a generation is served.
type awaitRequest struct {
	Generation uint64 `json:"generation"`
}

// leaseReport is how a master gets on with etcd, and whom it sees.
type leaseReport struct {
	Alive   bool            `json:"alive"` // it holds a lease that etcd has renewed
	Masters map[string]bool `json:"masters"`
}

// nothing is an answer without content.
type nothing struct{}

// peerHandler answers the other masters. Who asks has been looked at before.
func (m *Master) peerHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(peer.Path, peer.Server(m.store))
	mux.Handle(peer.Path+"/", peer.Server(m.store))
	handle(mux, m, shardPath("{shard}", "hold"), m.answerHold)
	mux.HandleFunc("POST "+shardPath("{shard}", "ahead"), m.answerAhead)
	handle(mux, m, shardPath("{shard}", "offer"), func(ctx context.Context, s *shard, o replicator.Offer, _ func()) (replicator.Result, error) {
		return s.replica.Accept(ctx, o)
	})
	handle(mux, m, shardPath("{shard}", "publish"), func(ctx context.Context, s *shard, r publishRequest, _ func()) (replicator.Result, error) {
		return s.replica.Publish(ctx, replicator.Publication{Note: r.Note, Caller: r.Caller})
	})
	handle(mux, m, shardPath("{shard}", "rescan"), func(_ context.Context, s *shard, _ nothing, _ func()) (nothing, error) {
		if s.source == nil {
			return nothing{}, replicator.ErrNoSource
		}
		s.source.MarkAll("asked for by `source rescan`")
		return nothing{}, nil
	})
	handle(mux, m, shardPath("{shard}", "lead"), func(ctx context.Context, s *shard, r leadRequest, _ func()) (nothing, error) {
		return nothing{}, m.handOver(ctx, s, r)
	})
	handle(mux, m, shardPath("{shard}", "await"), func(ctx context.Context, s *shard, r awaitRequest, _ func()) (nothing, error) {
		if st := s.replica.Status(); st.Problem != nil {
			return nothing{}, fmt.Errorf("%w: %w", replicator.ErrBehind, st.Problem)
		}
		_, err := s.volume.Await(ctx, r.Generation)
		return nothing{}, err
	})
	mux.Handle("POST "+pathLease, answer(m.base, func(context.Context, *http.Request, func()) (leaseReport, error) { return m.leaseReport(), nil }))
	mux.Handle("POST "+pathServed, answer(m.base, func(context.Context, *http.Request, func()) (map[string]uint64, error) { return m.serves(), nil }))
	mux.Handle("POST "+pathRecords, answer(m.base, withBody(m.answerRecords)))
	mux.Handle("POST "+pathReport, answer(m.base, withBody(func(_ context.Context, reports []slaveReport) (nothing, error) {
		return nothing{}, m.takeReports(reports)
	})))
	mux.Handle("POST "+pathOrder, answer(m.base, withBody(m.takeOrder)))
	return mux
}

// fromMasters lets only masters of the fleet through, by their certificate.
func (m *Master) fromMasters(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, err := m.callingMaster(r)
		if err != nil {
			m.refused(err, r.RemoteAddr, name)
			if errors.Is(err, errRemovedCaller) {
				w.Header().Set(removedHeader, "yes")
			}
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

var (
	errNoMaster      = errors.New("only masters of the fleet may ask this")
	errRemovedCaller = errors.New("removed from the fleet")
)

// removedHeader tells a caller that it was removed: it may not see etcd, where it would find that out itself.
const removedHeader = "Nfs-Fleet-Removed"

// refused logs that somebody who is no master was turned away, once for each: a removed master keeps trying.
func (m *Master) refused(err error, from, name string) {
	event := m.log.Debug()
	if m.warnOnce("refused " + name) {
		event = m.log.Warn()
	}
	event.Err(err).Str("client", from).Str("caller", name).Msg("not a master: refused")
}

// callingMaster names the master that a request comes from.
func (m *Master) callingMaster(r *http.Request) (string, error) {
	if r.TLS == nil {
		return "", errNoMaster
	}
	name, instance, ok := trust.Caller(r.TLS)
	if !ok {
		return "", errNoMaster
	}
	return name, m.notRemoved(name, instance)
}

func (m *Master) notRemoved(name, instance string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if gone, removed := m.view.Removed[instance]; removed {
		return fmt.Errorf("master %s, on %s: %w", name, gone.RemovedAt.Format(time.DateTime), errRemovedCaller)
	}
	return nil
}

// handle answers requests about a shard.
func handle[In, Out any](mux *http.ServeMux, m *Master, pattern string, do func(context.Context, *shard, In, func()) (Out, error)) {
	mux.Handle("POST "+pattern, answer(m.base, func(ctx context.Context, r *http.Request, beat func()) (out Out, err error) {
		s, ok := m.shard(r.PathValue("shard"))
		if !ok {
			return out, fmt.Errorf("shard %s is not known here yet", r.PathValue("shard"))
		}
		var in In
		if err := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxPeerBody)).Decode(&in); err != nil {
			return out, err
		}
		return do(ctx, s, in, beat)
	}))
}

// withBody decodes a request's body.
func withBody[In, Out any](do func(context.Context, In) (Out, error)) func(context.Context, *http.Request, func()) (Out, error) {
	return func(ctx context.Context, r *http.Request, _ func()) (out Out, err error) {
		var in In
		if err := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxPeerBody)).Decode(&in); err != nil {
			return out, err
		}
		return do(ctx, in)
	}
}

// answer writes signs of life until do returns, and then its result. beat makes the next one a sign of progress. do's
// context ends with the request and with the master.
func answer[T any](base context.Context, do func(ctx context.Context, r *http.Request, beat func()) (T, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(base, cancel)()
		var progress struct {
			sync.Mutex
			made bool
		}
		type outcome struct {
			result T
			err    error
		}
		done := make(chan outcome, 1)
		go func() {
			result, err := do(ctx, r, func() { progress.Lock(); progress.made = true; progress.Unlock() })
			done <- outcome{result, err}
		}()
		out, alive := newLineWriter(w), time.NewTicker(linkBeat/4)
		defer alive.Stop()
		last := time.Now()
		for {
			select {
			case o := <-done:
				out.end(o.result, o.err)
				return
			case <-alive.C:
				progress.Lock()
				made := progress.made
				progress.made = false
				progress.Unlock()
				if made || time.Since(last) >= linkBeat {
					last = time.Now()
					if out.write(linkLine{Progress: made}) != nil {
						cancel() // and wait for do, which must not outlive its request
					}
				}
			}
		}
	})
}

// lineWriter writes lines of JSON that arrive at once.
type lineWriter struct {
	w http.ResponseWriter
	c *http.ResponseController
}

func newLineWriter(w http.ResponseWriter) lineWriter {
	w.Header().Set("Content-Type", "application/x-ndjson")
	return lineWriter{w, http.NewResponseController(w)}
}

func (l lineWriter) write(line linkLine) error {
	text, err := json.Marshal(line)
	if err != nil {
		return err
	}
	if err := l.c.SetWriteDeadline(time.Now().Add(linkSilence)); err != nil {
		return err
	}
	if _, err := l.w.Write(append(text, '\n')); err != nil {
		return err
	}
	return l.c.Flush()
}

func (l lineWriter) end(result any, err error) {
	line := linkLine{Done: true}
	if err == nil {
		line.Result, err = json.Marshal(result)
	}
	if err != nil {
		line = linkLine{Error: err.Error(), Kind: kindName(err)}
	}
	_ = l.write(line) // whoever is not there any more does not need it
}

// answerHold fetches what a leader is about to publish. A full disk is a refusal: the leader need not wait for it.
func (m *Master) answerHold(ctx context.Context, s *shard, r holdRequest, beat func()) (nothing, error) {
	err := s.replica.Hold(ctx, r.Generation, r.Master, func(replicator.Fetched) { beat() })
	if errors.Is(err, store.ErrFull) {
		err = fmt.Errorf("%w: %w", replicator.ErrDeclined, err)
	}
	return nothing{}, err
}

// answerRecords tells what this disk remembers.
func (m *Master) answerRecords(_ context.Context, in recordsRequest) (map[string]replicator.Record, error) {
	all, err := m.ledger.Read()
	if err != nil {
		return nil, err
	}
	return in.tell(all), nil
}

// peers implements replicator.Peers.
type peers struct{ *Master }

// Others implements replicator.Peers.
func (p peers) Others() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]string, 0, len(p.view.Masters))
	for name, other := range p.view.Masters {
		if name != p.cfg.Name && other.Peer != "" && !gone(p.view, other) {
			out = append(out, name)
		}
	}
	return out
}

// Fetch implements replicator.Peers.
func (p peers) Fetch(ctx context.Context, root, base tree.Digest, prefer string, progress func(replicator.Fetched)) error {
	if prefer == p.cfg.Name {
		prefer = ""
	}
	return p.fetcher.Fetch(ctx, root, base, prefer, func(f peer.Progress) {
		progress(replicator.Fetched{Objects: f.Objects, Bytes: f.Bytes})
	})
}

// Hold implements replicator.Peers.
func (p peers) Hold(ctx context.Context, master, shard string, g tree.Generation, beat func()) error {
	_, err := ask[nothing](ctx, p.links, master, shardPath(shard, "hold"), holdRequest{p.cfg.Name, g}, beat)
	return err
}

// Offer implements replicator.Peers.
func (p peers) Offer(ctx context.Context, shard string, o replicator.Offer) (replicator.Result, error) {
	leader, ok := p.election.Leader(shard)
	if !ok {
		return replicator.Result{}, fmt.Errorf("shard %s: %w", shard, replicator.ErrNoTerm)
	}
	return ask[replicator.Result](ctx, p.links, leader.Master, shardPath(shard, "offer"), o, nil)
}

// heal brings objects that this disk has lost from other masters.
func (m *Master) heal(ctx context.Context, digests ...tree.Digest) error {
	missing, err := m.fetcher.Objects(ctx, digests)
	if err == nil && len(missing) > 0 {
		err = fmt.Errorf("%d objects: no living master has them: %w", len(missing), tree.ErrMissing)
	}
	return err
}
