package master

import (
	"context"
	"net/http"
)

const pathJoin = "/join"

func (m *Master) join(context.Context) error { return nil }

func (m *Master) joinHandler() http.Handler { return http.NotFoundHandler() }
