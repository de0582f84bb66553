package master

import (
	"context"
	"net/http"

	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

// errPending is the answer to what this master cannot do.
var errPending = console.Errorf(console.ErrUnavailable, "not yet")

// Lead implements console.Control.
func (c control) Lead(context.Context, string, string) error { return errPending }

// RecoverShard implements console.Control.
func (c control) RecoverShard(context.Context, string, console.RecoverShardRequest) (console.RecoverShardReport, error) {
	return console.RecoverShardReport{}, errPending
}

// Masters implements console.Control.
func (c control) Masters(ctx context.Context) ([]console.MasterStatus, error) {
	st, err := c.Status(ctx)
	return st.Masters, err
}

// Self implements console.Control.
func (c control) Self(ctx context.Context) (console.MasterStatus, error) {
	all, err := c.Masters(ctx)
	for _, m := range all {
		if m.Self {
			return m, err
		}
	}
	return console.MasterStatus{}, err
}

// Drain implements console.Control.
func (c control) Drain(context.Context, string) error { return errPending }

// Undrain implements console.Control.
func (c control) Undrain(context.Context, string) error { return errPending }

// RemoveMaster implements console.Control.
func (c control) RemoveMaster(context.Context, string) error { return errPending }

// CreateToken implements console.Control.
func (c control) CreateToken(context.Context, console.TokenRequest) (console.TokenMade, error) {
	return console.TokenMade{}, errPending
}

// Tokens implements console.Control.
func (c control) Tokens(context.Context) ([]console.Token, error) { return nil, errPending }

// RevokeToken implements console.Control.
func (c control) RevokeToken(context.Context, string) error { return errPending }

const pathJoin = "/join"

func (m *Master) join(context.Context) error { return nil }

func (m *Master) joinHandler() http.Handler { return http.NotFoundHandler() }

func (m *Master) remoteConsole() http.Handler { return http.NotFoundHandler() }
