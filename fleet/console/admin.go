package console

import (
	"context"
	"net/http"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
)

// The endpoints of the fleet itself: masters, tokens, leadership.

// whole makes lists and maps of what is nil in a master's description.
func (m MasterStatus) whole() MasterStatus {
	m.Sources = listed(m.Sources)
	if m.Serves == nil {
		m.Serves = map[string]uint64{}
	}
	if m.Lag == nil {
		m.Lag = map[string]uint64{}
	}
	return m
}

// wholeAll makes each of them whole.
func wholeAll[T interface{ whole() T }](all []T) []T {
	out := make([]T, len(all)) // the Control may keep its own
	for i, t := range all {
		out[i] = t.whole()
	}
	return out
}

func (a *api) masters(w http.ResponseWriter, r *http.Request) error {
	all, err := a.control.Masters(r.Context())
	return answer(w, wholeAll(all), err)
}

func (a *api) self(w http.ResponseWriter, r *http.Request) error {
	m, err := a.control.Self(r.Context())
	return answer(w, m.whole(), err)
}

// onMaster does something to the master of the path, to its end, whether or not the client waits.
func (a *api) onMaster(w http.ResponseWriter, r *http.Request, do func(ctx context.Context, master string) error) error {
	name := r.PathValue("master")
	if err := fleet.ValidName(name); err != nil {
		return Errorf(ErrInvalid, "master %w", err)
	}
	ctx, cancel := a.detached(r)
	defer cancel()
	patient(w)
	return answer(w, empty{}, do(ctx, name))
}

func (a *api) drain(w http.ResponseWriter, r *http.Request) error {
	var req DrainRequest
	if err := readBody(w, r, &req); err != nil {
		return err
	}
	return a.onMaster(w, r, func(ctx context.Context, master string) error { return a.control.Drain(ctx, master, req) })
}

func (a *api) undrain(w http.ResponseWriter, r *http.Request) error {
	return a.onMaster(w, r, a.control.Undrain)
}

func (a *api) removeMaster(w http.ResponseWriter, r *http.Request) error {
	return a.onMaster(w, r, a.control.RemoveMaster)
}

// leadership is the request to hand a shard over.
type leadership struct {
	Master string `json:"master"`
}

func (a *api) lead(w http.ResponseWriter, r *http.Request) error {
	var to leadership
	if err := readBody(w, r, &to); err != nil {
		return err
	}
	if err := fleet.ValidName(to.Master); err != nil {
		return Errorf(ErrInvalid, "master %w", err)
	}
	ctx, cancel := a.detached(r)
	defer cancel()
	patient(w)
	return answer(w, empty{}, a.control.Lead(ctx, r.PathValue("shard"), to.Master))
}

func (a *api) recoverShard(w http.ResponseWriter, r *http.Request) error {
	var req RecoverShardRequest
	if err := readBody(w, r, &req); err != nil {
		return err
	}
	ctx, cancel := a.detached(r)
	defer cancel()
	patient(w)
	rep, err := a.control.RecoverShard(ctx, r.PathValue("shard"), req)
	rep.Warnings = listed(rep.Warnings)
	return answer(w, rep, err)
}

func (a *api) tokens(w http.ResponseWriter, r *http.Request) error {
	all, err := a.control.Tokens(r.Context())
	out := append([]Token{}, all...)
	for i := range out {
		out[i].Shards = listed(out[i].Shards)
	}
	return answer(w, out, err)
}

func (a *api) createToken(w http.ResponseWriter, r *http.Request) error {
	var req TokenRequest
	if err := readBody(w, r, &req); err != nil {
		return err
	}
	if err := req.Validate(); err != nil {
		return err
	}
	made, err := a.control.CreateToken(r.Context(), req)
	made.Shards = listed(made.Shards)
	return answer(w, made, err)
}

func (a *api) revokeToken(w http.ResponseWriter, r *http.Request) error {
	return answer(w, empty{}, a.control.RevokeToken(r.Context(), r.PathValue("token")))
}

// Validate reports, as an ErrInvalid, what cannot be a token's. It replaces a TTL of 0 by the default.
func (t *TokenRequest) Validate() error {
	if t.TTL == 0 {
		t.TTL = fleet.Duration(DefaultTokenTTL)
	}
	if ttl := time.Duration(t.TTL); ttl < time.Second || ttl > MaxTokenTTL {
		return Errorf(ErrInvalid, "a token cannot last %s: use 1s to %s", ttl, MaxTokenTTL)
	}
	switch {
	case t.Kind == TokenJoin && len(t.Shards) > 0:
		return Errorf(ErrInvalid, "a join token is for no shard: leave the shards out, or make a publish token")
	case t.Kind == TokenPublish && len(t.Shards) == 0:
		return Errorf(ErrInvalid, "name the shards that the token may publish")
	case t.Kind != TokenJoin && t.Kind != TokenPublish:
		return Errorf(ErrInvalid, "token kind %q: use join or publish", t.Kind)
	}
	for _, s := range t.Shards {
		if err := fleet.ValidName(s); err != nil {
			return Errorf(ErrInvalid, "shard %w", err)
		}
	}
	return nil
}
