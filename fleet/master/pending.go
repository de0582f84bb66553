package master

import (
	"context"
	"net/http"

	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

// errPending is the answer to what this master cannot do.
var errPending = console.Errorf(console.ErrUnavailable, "not yet")

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
