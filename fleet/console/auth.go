package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/trust"
)

const (
	// userHeader says on whose behalf a client asks.
	userHeader = "Nfs-Fleet-User"
	// callerHeader is the first caller of a request that a master passes on, and marks it as passed on.
	callerHeader = "Nfs-Fleet-Caller"
)

// admit returns who asks, if the caller may use the route at all.
func (a *api) admit(rt route, r *http.Request) (Caller, error) {
	c, err := a.authorize(r)
	if err != nil {
		return c, err
	}
	if passed := r.Header.Get(callerHeader); passed != "" && c.Kind == CallerMaster {
		var first Caller
		if err := json.Unmarshal([]byte(passed), &first); err != nil {
			return c, Errorf(ErrInvalid, "%s: %w", callerHeader, err)
		}
		c = first
	}
	if c.Kind == CallerLocal || c.Kind == CallerMaster {
		return c, nil
	}
	shard := r.PathValue("shard")
	switch {
	case c.Kind != CallerToken:
		return c, Errorf(ErrForbidden, "a caller of kind %q may do nothing here", c.Kind)
	case !rt.token:
		return c, Errorf(ErrForbidden, "a token is for publishing: do this on one of the masters")
	case shard != "" && !slices.Contains(c.Shards, shard):
		return c, Errorf(ErrForbidden, "token %s is for shard %s, not for %s", c.Name, strings.Join(c.Shards, ", "), shard)
	}
	return c, nil
}

// local lets this machine do everything: the plain port has no other way to know who asks.
func local(r *http.Request) (Caller, error) {
	from := remote(r)
	if here, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); from.IsValid() && !from.IsLoopback() && ok {
		if ap, err := netip.ParseAddrPort(here.String()); err == nil && ap.Addr().Unmap() != from {
			return Caller{}, Errorf(ErrForbidden, "plain HTTP is for this machine only: ask https://%s with a token, at the port of --listen-peer", ap.Addr().Unmap())
		}
	}
	return Caller{Kind: CallerLocal, User: cleanUser(r.Header.Get(userHeader))}, nil
}

// remote is the address that a request came from; invalid when it came over something else than IP.
func remote(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}

// TokenSource looks up what the fleet knows of a token, expired or not: fleet.Registry.Token.
type TokenSource func(ctx context.Context, id string) (fleet.TokenRecord, error)

const (
	lookupTimeout = 5 * time.Second
	maxLookups    = 8                // at a time
	failuresEvery = 10 * time.Second // after which wrong tokens are forgotten
	maxFailures   = 20               // wrong tokens of one address in that time
	maxSuspects   = 4096             // addresses that are remembered
)

// Remote returns what Server.Handler asks: who sends a request over TLS under the fleet's CA. removed reports whether
// the master of that instance was removed from the fleet. What is not a master needs a token; guessing them is slowed
// down by address, and costs etcd little.
func Remote(tokens TokenSource, removed func(instance string) bool) func(*http.Request) (Caller, error) {
	d := &door{tokens: tokens, removed: removed, now: time.Now, lookups: make(chan struct{}, maxLookups), failures: map[netip.Addr]int{}}
	return d.admit
}

// door lets callers from other machines in.
type door struct {
	tokens  TokenSource
	removed func(instance string) bool
	now     func() time.Time
	lookups chan struct{} // holds one for each lookup under way

	mu       sync.Mutex         // guards what follows
	failures map[netip.Addr]int // since then
	since    time.Time
}

func (d *door) admit(r *http.Request) (Caller, error) {
	from := remote(r)
	if name, instance, ok := trust.Caller(r.TLS); ok {
		if d.removed(instance) {
			return Caller{}, Errorf(ErrForbidden, "master %s was removed from the fleet", name)
		}
		return Caller{Kind: CallerMaster, Name: name, From: from.String()}, nil
	}
	text, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return Caller{}, Errorf(ErrUnauthorized, "a token is needed here: make one on a master with `nfs-fleet token create --shard SHARD`, and give it with --token")
	}
	if d.suspect(from) {
		return Caller{}, Errorf(ErrUnauthorized, "too many wrong tokens from %s: wait %s", from, failuresEvery)
	}
	c, err := d.bearer(r.Context(), strings.TrimSpace(text))
	if errors.Is(err, ErrUnauthorized) {
		d.failed(from)
	}
	c.From, c.User = from.String(), cleanUser(r.Header.Get(userHeader))
	return c, err
}

var errToken = Errorf(ErrUnauthorized, "the token is unknown, was used up or revoked: make another with `nfs-fleet token create` on a master")

// bearer returns the caller that a token stands for.
func (d *door) bearer(ctx context.Context, text string) (Caller, error) {
	t, err := trust.ParseToken(text)
	if err != nil {
		return Caller{}, Errorf(ErrUnauthorized, "%w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	select {
	case d.lookups <- struct{}{}:
		defer func() { <-d.lookups }()
	case <-ctx.Done():
		return Caller{}, Errorf(ErrUnavailable, "too many tokens are being looked up: try again")
	}
	record, err := d.tokens(ctx, t.ID)
	switch {
	case errors.Is(err, fleet.ErrNotFound):
		return Caller{}, errToken
	case err != nil:
		return Caller{}, Errorf(ErrNoQuorum, "the token cannot be looked up: %w", err)
	case !trust.Matches(t.Secret, record.Hash) || record.Kind != t.Kind:
		return Caller{}, errToken
	case record.Expired(d.now()):
		return Caller{}, Errorf(ErrUnauthorized, "token %s expired at %s: make another with `nfs-fleet token create` on a master", record.ID, record.ExpiresAt.UTC().Format(time.RFC3339))
	case record.Kind != trust.Publish:
		return Caller{}, Errorf(ErrForbidden, "a %s token is no good for publishing: `nfs-fleet token create --shard SHARD` makes one that is", record.Kind)
	}
	return Caller{Kind: CallerToken, Name: record.ID, Shards: record.Shards}, nil
}

// suspect reports whether an address has sent too many wrong tokens.
func (d *door) suspect(from netip.Addr) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := d.now(); now.Sub(d.since) >= failuresEvery || now.Before(d.since) {
		d.since = now
		clear(d.failures)
	}
	return d.failures[network(from)] >= maxFailures
}

func (d *door) failed(from netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := network(from); len(d.failures) < maxSuspects || d.failures[n] > 0 {
		d.failures[n]++
	}
}

// network is what a wrong token is held against: an IPv6 host has its whole /64.
func network(a netip.Addr) netip.Addr {
	if p, err := a.Prefix(64); err == nil && a.Is6() {
		return p.Addr()
	}
	return a
}

// passOn is the value of the header that tells the next master who asked first.
func passOn(c Caller) (string, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("encode the caller: %w", err)
	}
	return string(b), nil
}
