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
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/renameio/v2"
	"github.com/rs/zerolog"
)

// dialLimit bounds a connection to an etcd, its TLS handshake included.
const dialLimit = 2 * time.Second

const (
	scheme = "http://" // TLS is in the tunnel
	slots  = 3         // the number of Endpoints
)

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

	mu    sync.Mutex // guards the rest, and the file
	kept  kept
	slots [slots]slot
	led   bool // Run says what the slots stand for
}

// lead lets the slots stand for what Run has found.
func (r *Routes) lead(to []string) {
	r.mu.Lock()
	r.led = true
	r.mu.Unlock()
	r.point(to)
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
	r.point(r.fallback())
	return r
}

// Set tells the peer listeners of the fleet's masters, host:port by name, and keeps them. Call it with the answer to a
// join and whenever the roster changes, but not with a roster that is not known.
func (r *Routes) Set(peers map[string]string) {
	r.mu.Lock()
	if !maps.Equal(peers, r.kept.Peers) {
		r.keep(kept{maps.Clone(peers), r.kept.Voters})
	}
	led := r.led
	r.mu.Unlock()
	if !led {
		r.point(r.fallback())
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

// Endpoints are the endpoints for the fleet's clients, which never change: they stand for the members that serve best at
// the moment. Several of them, because a client that gets no answer goes on to the next.
func (r *Routes) Endpoints() []string {
	list := make([]string, slots)
	for i := range list {
		list[i] = scheme + slotName(i)
	}
	return list
}

// slotName is no name that a master can have.
func slotName(i int) string { return "ETCD-" + strconv.Itoa(i+1) }

// fallback returns the endpoints to try while it is not known which member serves: those that voted when there was a
// last word of it, and then all others. It is never empty.
func (r *Routes) fallback() []string {
	k := r.known()
	list := r.endpoints(k.Voters)
	for _, e := range r.endpoints(slices.Collect(maps.Keys(k.Peers))) {
		if !slices.Contains(list, e) {
			list = append(list, e)
		}
	}
	if len(list) == 0 {
		list = []string{r.Endpoint(r.cfg.Self)}
	}
	return list
}

// point lets Endpoints stand for other members, given by their endpoints, the best one first. Connections to what they
// stood for before are closed.
func (r *Routes) point(to []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range slots {
		address := strings.TrimPrefix(to[i%len(to)], scheme)
		if r.slots[i].address == address {
			continue
		}
		r.cfg.Logger.Debug().Int("slot", i+1).Str("address", address).Msg("etcd endpoint")
		r.slots[i].address = address
		for c := range r.slots[i].conns {
			c.Conn.Close()
		}
		r.slots[i].conns = nil
	}
}

// slot is what one of Endpoints stands for.
type slot struct {
	address string
	conns   map[*slotConn]bool
}

// slotConn is a connection that is closed when its slot stands for something else.
type slotConn struct {
	net.Conn
	forget func(*slotConn)
}

// Close closes the connection.
func (c *slotConn) Close() error {
	c.forget(c)
	return c.Conn.Close()
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
		return scheme + r.cfg.Own
	}
	return scheme + master
}

// Dial connects to an endpoint's address: this master's own client port, or another master's through a tunnel. It is
// for grpc.WithContextDialer.
func (r *Routes) Dial(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	for i := range slots {
		if address == slotName(i) {
			return r.dialSlot(ctx, i)
		}
	}
	return r.dial(ctx, address)
}

func (r *Routes) dialSlot(ctx context.Context, i int) (net.Conn, error) {
	r.mu.Lock()
	address := r.slots[i].address
	r.mu.Unlock()
	conn, err := r.dial(ctx, address)
	if err != nil {
		return nil, err
	}
	c := &slotConn{Conn: conn, forget: func(c *slotConn) {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.slots[i].conns, c)
	}}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.slots[i].address != address {
		conn.Close()
		return nil, errors.New("this endpoint has just become another")
	}
	if r.slots[i].conns == nil {
		r.slots[i].conns = map[*slotConn]bool{}
	}
	r.slots[i].conns[c] = true
	return c, nil
}

func (r *Routes) dial(ctx context.Context, address string) (net.Conn, error) {
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
