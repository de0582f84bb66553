package etcd

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/google/renameio/v2"
	"github.com/rs/zerolog"
)

// dialLimit bounds a connection to an etcd, its TLS handshake included.
const dialLimit = 2 * time.Second

// RoutesConfig is what Routes needs to know.
type RoutesConfig struct {
	Self   string                          // this master
	Own    string                          // host:port of its own client port (Config.ClientListen)
	File   string                          // where the routes are kept over a restart
	TLS    func(master string) *tls.Config // for a connection to that master's peer listener; nil while there is none
	Logger zerolog.Logger
}

// Routes says by which endpoints a client reaches the fleet's etcd, and connects to them. Safe for concurrent use.
type Routes struct {
	cfg RoutesConfig

	mu   sync.Mutex // guards the rest, and the file
	kept kept
}

// kept is the content of the file. Its maps and slices are never changed in place.
type kept struct {
	Peers  map[string]string `json:"peers"`  // peer listeners, host:port, by master
	Voters []string          `json:"voters"` // masters whose etcd votes, in order of name
}

// OpenRoutes reads what the last run has left in the file; one that is missing or damaged costs nothing but that.
func OpenRoutes(cfg RoutesConfig) *Routes {
	r := &Routes{cfg: cfg}
	b, err := os.ReadFile(cfg.File)
	if err == nil {
		err = json.Unmarshal(b, &r.kept)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		cfg.Logger.Warn().Err(err).Str("file", cfg.File).Msg("the known routes to etcd cannot be read")
		r.kept = kept{}
	}
	return r
}

// Set tells the peer listeners of the fleet's masters, host:port by name, and keeps them. Call it with the answer to a
// join and whenever the roster changes, but not with a roster that is not known.
func (r *Routes) Set(peers map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !maps.Equal(peers, r.kept.Peers) {
		r.keep(kept{maps.Clone(peers), r.kept.Voters})
	}
}

// setVoters tells which masters' etcd votes, and keeps it.
func (r *Routes) setVoters(names []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(names, r.kept.Voters) {
		r.keep(kept{r.kept.Peers, slices.Clone(names)})
	}
}

// keep takes on what is known now and writes it down. The caller holds r.mu.
func (r *Routes) keep(k kept) {
	r.kept = k
	b, err := json.MarshalIndent(k, "", "  ")
	if err == nil {
		err = renameio.WriteFile(r.cfg.File, append(b, '\n'), 0o600)
	}
	if err != nil {
		r.cfg.Logger.Warn().Err(err).Msg("the routes to etcd cannot be written down: a start without etcd will miss them")
	}
}

func (r *Routes) known() kept {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.kept
}

// Peers returns the peer listeners as last set, or as kept from before.
func (r *Routes) Peers() map[string]string { return maps.Clone(r.known().Peers) }

// Endpoints returns where to look for etcd when nothing else is known: what clientv3.Config.Endpoints begins with. It is
// never empty.
func (r *Routes) Endpoints() []string {
	k := r.known()
	if list := r.endpoints(k.Voters); len(list) > 0 {
		return list
	}
	if list := r.endpoints(slices.Collect(maps.Keys(k.Peers))); len(list) > 0 {
		return list
	}
	return []string{r.Endpoint(r.cfg.Self)}
}

// endpoints returns the endpoints of those masters that there is a way to. This master's own comes first, the others in
// an order that is this master's own, so that a fleet's clients spread.
func (r *Routes) endpoints(masters []string) []string {
	peers := r.known().Peers
	reachable := slices.DeleteFunc(slices.Clone(masters), func(m string) bool { return m != r.cfg.Self && peers[m] == "" })
	slices.SortFunc(reachable, func(a, b string) int {
		if a == r.cfg.Self || b == r.cfg.Self {
			return first(a == r.cfg.Self, b == r.cfg.Self)
		}
		ha, hb := rendezvous(r.cfg.Self, a), rendezvous(r.cfg.Self, b)
		return first(ha < hb, hb < ha)
	})
	list := make([]string, len(reachable))
	for i, m := range reachable {
		list[i] = r.Endpoint(m)
	}
	return list
}

func rendezvous(a, b string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(a + "\n" + b))
	return h.Sum64()
}

// Endpoint is the endpoint of a master's etcd, for a client that dials through Routes.
func (r *Routes) Endpoint(master string) string {
	if master == r.cfg.Self {
		return "http://" + r.cfg.Own
	}
	return "http://" + master
}

// Dial connects to an endpoint's address: this master's own client port, or another master's through a tunnel. It is
// for grpc.WithContextDialer.
func (r *Routes) Dial(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	if address == r.cfg.Own {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}
	peer := r.known().Peers[address]
	config := r.cfg.TLS(address)
	if peer == "" || config == nil {
		return nil, fmt.Errorf("no way to the etcd of master %s is known", address)
	}
	config = config.Clone()
	config.NextProtos = []string{Protocol}
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", peer)
	if err != nil {
		return nil, fmt.Errorf("tunnel to the etcd of master %s at %s: %w", address, peer, err)
	}
	if got := conn.(*tls.Conn).ConnectionState().NegotiatedProtocol; got != Protocol {
		conn.Close()
		return nil, fmt.Errorf("master %s at %s has no etcd to reach", address, peer)
	}
	return conn, nil
}
