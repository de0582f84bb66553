package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"net"

	"github.com/rs/zerolog"
)

// RoutesConfig is what Routes needs to know.
type RoutesConfig struct {
	Self   string                          // this master
	Own    string                          // host:port of its own client port (Config.ClientListen)
	File   string                          // where the routes are kept over a restart
	TLS    func(master string) *tls.Config // for a connection to that master's peer listener; nil: none yet
	Logger zerolog.Logger
}

// Routes says by which endpoints a client reaches the fleet's etcd, and connects to them. Safe for concurrent use.
type Routes struct{ cfg RoutesConfig }

// OpenRoutes reads what the last run has left in the file; a file that is missing or damaged costs nothing but that.
func OpenRoutes(cfg RoutesConfig) *Routes { return &Routes{cfg} }

// Set tells the peer listeners of the fleet's masters, host:port by name, and keeps them. Run asks for no more: call it
// with the join answer, and whenever the roster changes.
func (r *Routes) Set(peers map[string]string) {}

// Peers returns the peer listeners as last set, or as kept from before.
func (r *Routes) Peers() map[string]string { return nil }

// Endpoints returns where to look for etcd first: what clientv3.Config.Endpoints begins with.
func (r *Routes) Endpoints() []string { return nil }

// Dial connects to an endpoint's address: this master's own client port, or another master's through a tunnel. It is
// for grpc.WithContextDialer.
func (r *Routes) Dial(ctx context.Context, address string) (net.Conn, error) {
	return nil, errors.New("not yet")
}

// Endpoint is the endpoint of a master's etcd, for a client that dials through Routes.
func (r *Routes) Endpoint(master string) string { return "" }
