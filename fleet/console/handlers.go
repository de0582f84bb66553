package console

import (
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// answer writes v, or returns err.
func answer(w http.ResponseWriter, v any, err error) error {
	if err == nil {
		writeJSON(w, http.StatusOK, v)
	}
	return err
}

// empty is the answer to what has nothing to say.
type empty struct{}

// listed makes an empty list of nil: readers get [], never null.
func listed[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func (a *api) status(w http.ResponseWriter, r *http.Request) error {
	st, err := a.control.Status(r.Context())
	st.Shards, st.Warnings, st.Etcd.Endpoints = listed(st.Shards), listed(st.Warnings), listed(st.Etcd.Endpoints)
	st.Masters, st.Slaves.Shown = wholeAll(st.Masters), wholeAll(st.Slaves.Shown)
	return answer(w, st, err)
}

func (a *api) shards(w http.ResponseWriter, r *http.Request) error {
	all, err := a.control.Shards(r.Context())
	return answer(w, listed(all), err)
}

func (a *api) showShard(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("shard")
	all, err := a.control.Shards(r.Context())
	if err != nil {
		return err
	}
	for _, s := range all {
		if s.Name == name {
			return answer(w, s, nil)
		}
	}
	return Errorf(ErrNotFound, "no shard %q: `nfs-fleet shard list` lists them", name)
}

func (a *api) createShard(w http.ResponseWriter, r *http.Request) error {
	s := fleet.NewShard("", time.Now())
	if err := readBody(w, r, &s); err != nil {
		return err
	}
	if err := s.Validate(); err != nil {
		return Errorf(ErrInvalid, "%w", err)
	}
	s, err := a.control.CreateShard(r.Context(), s)
	return answer(w, s, err)
}

func (a *api) setShard(w http.ResponseWriter, r *http.Request) error {
	var p ShardPatch
	if err := readBody(w, r, &p); err != nil {
		return err
	}
	s, err := a.control.SetShard(r.Context(), r.PathValue("shard"), p)
	return answer(w, s, err)
}

func (a *api) deleteShard(w http.ResponseWriter, r *http.Request) error {
	return answer(w, empty{}, a.control.DeleteShard(r.Context(), r.PathValue("shard")))
}

// publish and rollback go on to their end when the client hangs up: what an operator has started is either done or
// failed, and never abandoned half way by a dropped connection.
func (a *api) publish(w http.ResponseWriter, r *http.Request) error {
	var req PublishRequest
	if err := readBody(w, r, &req); err != nil {
		return err
	}
	ctx, cancel := a.detached(r)
	defer cancel()
	s := newStream(w)
	defer s.stop()
	req.Caller = CallerOf(r.Context())
	p, err := a.control.Publish(ctx, r.PathValue("shard"), req, s.progress)
	p.Warnings = listed(p.Warnings)
	return s.end(p, err)
}

func (a *api) rollback(w http.ResponseWriter, r *http.Request) error {
	var req RollbackRequest
	if err := readBody(w, r, &req); err != nil {
		return err
	}
	ctx, cancel := a.detached(r)
	defer cancel()
	s := newStream(w)
	defer s.stop()
	req.Caller = CallerOf(r.Context())
	p, err := a.control.Rollback(ctx, r.PathValue("shard"), req, s.progress)
	p.Warnings = listed(p.Warnings)
	return s.end(p, err)
}

func (a *api) verify(w http.ResponseWriter, r *http.Request) error {
	var req VerifyRequest
	if err := readBody(w, r, &req); err != nil {
		return err
	}
	s := newStream(w)
	defer s.stop()
	v, err := a.control.Verify(r.Context(), req, s.progress)
	v.Bad, v.Missing = listed(v.Bad), listed(v.Missing)
	return s.end(v, err)
}

func (a *api) history(w http.ResponseWriter, r *http.Request) error {
	all, err := a.control.History(r.Context(), r.PathValue("shard"))
	return answer(w, listed(all), err)
}

// diffed is the result of a diff.
type diffed struct {
	Changes int `json:"changes"`
}

func (a *api) diff(w http.ResponseWriter, r *http.Request) error {
	from, err := generation(r, "a")
	if err != nil {
		return err
	}
	to, err := generation(r, "b")
	if err != nil {
		return err
	}
	if err := http.NewResponseController(w).SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	s := newStream(w)
	defer s.stop()
	n := 0
	err = a.control.Diff(r.Context(), r.PathValue("shard"), from, to, func(c Change) error {
		n++
		return s.send(line{Change: &c})
	})
	return s.end(diffed{n}, err)
}

// generation reads a generation's number from the query; absent is 0.
func generation(r *http.Request, name string) (uint64, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, Errorf(ErrInvalid, "%s=%q is no generation's number", name, text)
	}
	return n, nil
}

func (a *api) source(w http.ResponseWriter, r *http.Request) error {
	action := SourceAction(r.PathValue("action"))
	switch action {
	case SourcePause, SourceRescan:
		return answer(w, empty{}, a.control.Source(r.Context(), r.PathValue("shard"), action))
	}
	return Errorf(ErrInvalid, "source action %q: use pause, resume or rescan", action)
}

func (a *api) resume(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := a.detached(r)
	defer cancel()
	patient(w)
	return answer(w, empty{}, a.control.Source(ctx, r.PathValue("shard"), SourceResume))
}

func (a *api) recover(w http.ResponseWriter, r *http.Request) error {
	var req RecoverRequest
	if err := readBody(w, r, &req); err != nil {
		return err
	}
	ctx, cancel := a.detached(r)
	defer cancel()
	rep, err := a.control.Recover(ctx, req)
	rep.Shards, rep.Warnings = listed(rep.Shards), listed(rep.Warnings)
	return answer(w, rep, err)
}

// uploadID is the answer to the beginning of an upload.
type uploadID struct {
	Upload string `json:"upload"`
}

// digests is a list of digests, as request and as answer.
type digests struct {
	Digests []tree.Digest `json:"digests"`
}

func (a *api) beginUpload(w http.ResponseWriter, r *http.Request) error {
	id, err := a.control.BeginUpload(r.Context(), r.PathValue("shard"))
	return answer(w, uploadID{id}, err)
}

func (a *api) endUpload(w http.ResponseWriter, r *http.Request) error {
	return answer(w, empty{}, a.control.EndUpload(r.Context(), r.PathValue("shard"), r.PathValue("upload")))
}

func (a *api) missing(w http.ResponseWriter, r *http.Request) error {
	var want digests
	if err := readBody(w, r, &want); err != nil {
		return err
	}
	if len(want.Digests) > MaxMissing {
		return Errorf(ErrInvalid, "%d digests: ask for at most %d at a time", len(want.Digests), MaxMissing)
	}
	lacks, err := a.control.Missing(r.Context(), r.PathValue("shard"), r.PathValue("upload"), want.Digests)
	return answer(w, digests{listed(lacks)}, err)
}

func (a *api) putObjects(w http.ResponseWriter, r *http.Request) error {
	body := &patientReader{http.MaxBytesReader(w, r.Body, maxUpload), http.NewResponseController(w)}
	err := a.control.PutObjects(r.Context(), r.PathValue("shard"), r.PathValue("upload"), body)
	if err != nil {
		_, _ = io.Copy(io.Discard, body) // a client that still sends would see a reset instead of the error
	}
	return answer(w, empty{}, err)
}

// patientReader reads a long body: each piece, not the whole, has to come within the read timeout.
type patientReader struct {
	r   io.Reader
	ctl *http.ResponseController
}

func (p *patientReader) Read(b []byte) (int, error) {
	if err := p.ctl.SetReadDeadline(time.Now().Add(readTimeout)); err != nil {
		return 0, err
	}
	n, err := p.r.Read(b)
	if err != nil {
		// The body is read; what is done with it may take longer.
		_ = p.ctl.SetReadDeadline(time.Time{})
	}
	return n, err
}
