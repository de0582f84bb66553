package console

import (
	"context"
	"net/http"
	"net/url"

	"github.com/nfs-fleet/nfs-fleet/fleet"
)

// Lead is Control.Lead.
func (c *Client) Lead(ctx context.Context, shard, master string) error {
	_, err := callShard[empty](ctx, c, shard, request{method: http.MethodPost, path: "/lead", body: leadership{master}, timeout: slowTimeout})
	return err
}

// RecoverShard is Control.RecoverShard.
func (c *Client) RecoverShard(ctx context.Context, shard string, r RecoverShardRequest) (RecoverShardReport, error) {
	return callShard[RecoverShardReport](ctx, c, shard, request{method: http.MethodPost, path: "/recover", body: r, timeout: slowTimeout})
}

// Masters is Control.Masters.
func (c *Client) Masters(ctx context.Context) ([]MasterStatus, error) {
	return call[[]MasterStatus](ctx, c, request{path: "/v1/masters"})
}

// Self is Control.Self.
func (c *Client) Self(ctx context.Context) (MasterStatus, error) {
	return call[MasterStatus](ctx, c, request{path: "/v1/self"})
}

// Drain is Control.Drain.
func (c *Client) Drain(ctx context.Context, master string, r DrainRequest) error {
	return c.onMaster(ctx, http.MethodPost, master, "/drain", r)
}

// Undrain is Control.Undrain.
func (c *Client) Undrain(ctx context.Context, master string) error {
	return c.onMaster(ctx, http.MethodPost, master, "/undrain", nil)
}

// RemoveMaster is Control.RemoveMaster.
func (c *Client) RemoveMaster(ctx context.Context, master string) error {
	return c.onMaster(ctx, http.MethodDelete, master, "", nil)
}

func (c *Client) onMaster(ctx context.Context, method, master, verb string, body any) error {
	if err := fleet.ValidName(master); err != nil {
		return Errorf(ErrInvalid, "master %w", err)
	}
	_, err := call[empty](ctx, c, request{method: method, path: "/v1/masters/" + url.PathEscape(master) + verb, body: body, timeout: slowTimeout})
	return err
}

// CreateToken is Control.CreateToken.
func (c *Client) CreateToken(ctx context.Context, r TokenRequest) (TokenMade, error) {
	return call[TokenMade](ctx, c, request{method: http.MethodPost, path: "/v1/tokens", body: r})
}

// Tokens is Control.Tokens.
func (c *Client) Tokens(ctx context.Context) ([]Token, error) {
	return call[[]Token](ctx, c, request{path: "/v1/tokens"})
}

// RevokeToken is Control.RevokeToken.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	if id == "" {
		return Errorf(ErrInvalid, "name the token by its id")
	}
	_, err := call[empty](ctx, c, request{method: http.MethodDelete, path: "/v1/tokens/" + url.PathEscape(id)})
	return err
}
