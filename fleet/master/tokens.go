package master

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
	"github.com/nfs-fleet/nfs-fleet/fleet/trust"
)

// remoteConsole is the console for other machines: masters by their certificate, publishers by their token.
func (m *Master) remoteConsole() http.Handler {
	removed := func(instance string) bool { return m.notRemoved("", instance) != nil }
	return m.console.Handler(m.base, console.Remote(m.registry.Token, removed))
}

// CreateToken implements console.Control.
func (c control) CreateToken(ctx context.Context, r console.TokenRequest) (console.TokenMade, error) {
	if err := r.Validate(); err != nil {
		return console.TokenMade{}, err
	}
	if err := c.writable(); err != nil {
		return console.TokenMade{}, err
	}
	if r.Kind == console.TokenJoin && len(c.cfg.Etcd.Endpoints) > 0 {
		return console.TokenMade{}, console.Errorf(console.ErrInvalid, "this fleet has an etcd of its own: a master joins by naming it, with `nfs-fleet serve --etcd`, and needs no token")
	}
	for _, name := range r.Shards {
		if _, err := c.find(name); err != nil {
			return console.TokenMade{}, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	slices.Sort(r.Shards)
	now := time.Now().UTC()
	t := trust.NewToken(r.Kind, c.credentials.Load().Authority().Fingerprint(), c.peerAddresses())
	record := fleet.TokenRecord{
		ID: t.ID, Kind: r.Kind, Shards: slices.Compact(r.Shards), Hash: trust.HashSecret(t.Secret), CreatedAt: now, ExpiresAt: now.Add(time.Duration(r.TTL)),
		By: console.CallerOf(ctx).String(), Note: r.Note,
	}
	if err := record.Validate(); err != nil {
		return console.TokenMade{}, console.Errorf(console.ErrInvalid, "%w", err)
	}
	if err := c.registry.CreateToken(ctx, record); err != nil {
		return console.TokenMade{}, kindOf(err)
	}
	c.log.Info().Str("token", t.ID).Str("kind", string(t.Kind)).Strs("shards", record.Shards).Time("expires_at", record.ExpiresAt).Str("by", record.By).
		Msg("a token is made")
	return console.TokenMade{Token: tokenOf(record), Text: t.String()}, nil
}

// peerAddresses are the peer listeners of this fleet's masters: this one's first, then the living ones', then the others'.
func (m *Master) peerAddresses() []string {
	own := net.JoinHostPort(m.address, m.peerPort)
	v := m.lastView()
	out := []string{own}
	for _, name := range slices.Sorted(maps.Keys(v.Masters)) {
		out = append(out, v.Masters[name].Peer)
	}
	for _, name := range slices.Sorted(maps.Keys(v.Roster)) {
		out = append(out, v.Roster[name].Peer)
	}
	seen := map[string]bool{"": true}
	return slices.DeleteFunc(out, func(a string) bool {
		again := seen[a]
		seen[a] = true
		return again
	})
}

func tokenOf(r fleet.TokenRecord) console.Token {
	return console.Token{ID: r.ID, Kind: r.Kind, Shards: r.Shards, CreatedAt: r.CreatedAt, ExpiresAt: r.ExpiresAt, By: r.By, Note: r.Note}
}

// Tokens implements console.Control: those that are of use to somebody yet.
func (c control) Tokens(ctx context.Context) ([]console.Token, error) {
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	records, err := c.registry.Tokens(ctx)
	if err != nil {
		return nil, kindOf(err)
	}
	out := make([]console.Token, 0, len(records))
	for _, r := range records {
		if r.UsedBy == "" {
			out = append(out, tokenOf(r))
		}
	}
	slices.SortFunc(out, func(a, b console.Token) int { return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID)) })
	return out, nil
}

// RevokeToken implements console.Control.
func (c control) RevokeToken(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	err := c.registry.DeleteToken(ctx, id)
	switch {
	case errors.Is(err, fleet.ErrNotFound):
		return console.Errorf(console.ErrNotFound, "no token %q: it was used up, revoked or has expired; `nfs-fleet token list` shows those that are left", id)
	case err != nil:
		return kindOf(err)
	}
	c.log.Info().Str("token", id).Str("by", console.CallerOf(ctx).String()).Msg("a token is revoked")
	return nil
}
