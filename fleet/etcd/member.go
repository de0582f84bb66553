package etcd

import (
	"context"
	"errors"
	"net"

	"github.com/rs/zerolog"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Config is what a Member needs to know. All of it but Failed is required.
type Config struct {
	Name         string                        // of this master, and of the member
	Dir          string                        // the member's; Dir.lock and Dir.old-TIME stand beside it
	ClientListen string                        // loopback host:port
	PeerListen   string                        // host:port
	PeerURL      string                        // https://host:port, by which the other members reach PeerListen
	TLS          func() (cert, key, ca string) // files; read again for each connection, the CA apart
	Failed       func(error)                   // called when etcd has failed until the next start of this process; must not block
	Logger       zerolog.Logger
}

// Status is how this master's etcd does.
type Status struct {
	Running  bool
	Ready    bool // has been part of a quorum since it started
	Voter    bool
	Learner  bool
	Leader   bool
	MemberID uint64 // of the member that runs, or is on disk as far as known; 0: none
	Err      error  // why it does not run although it should; nil otherwise
}

// ErrStart is wrapped by what keeps an etcd from starting although nothing is wrong with the settings: a damaged file, a
// full disk. A master that has something to serve goes on without it.
var ErrStart = errors.New("embedded etcd does not start")

// Member is the etcd inside this process. It is safe for concurrent use.
type Member struct{ cfg Config }

// New makes a Member, which does not run yet.
func New(cfg Config) *Member { return &Member{cfg: cfg} }

// Open locks Dir and starts the member that it holds; with birth, when it holds none, a new cluster of one. Without
// either it starts nothing: Run does, when the cluster names this master. It returns when the listeners are open, which
// takes no quorum: see Ready. The error says what to do.
func (m *Member) Open(ctx context.Context, birth bool) error { return nil }

// Holds reports whether Dir holds a member.
func (m *Member) Holds() bool { return false }

// Run keeps the member as the cluster's member list wants it, the client's endpoints as Routes knows them, and the
// database within its quota, until ctx ends; then it hands leadership over, if it can in a second, and closes the
// member. It survives whatever happens to etcd; its error is always nil.
func (m *Member) Run(ctx context.Context, client *clientv3.Client, routes *Routes) error {
	<-ctx.Done()
	return nil
}

// Ready is closed when the member that runs now has become part of a quorum.
func (m *Member) Ready() <-chan struct{} { return nil }

// Status says how the member does.
func (m *Member) Status() Status { return Status{} }

// MoveLeader hands etcd's leadership to another voter when this member has it; nil when there is nothing to hand over.
func (m *Member) MoveLeader(ctx context.Context) error { return nil }

// Pressure reports whether the disk under the log is slow: an fsync took over 100 ms in the mean of the last second.
func (m *Member) Pressure() bool { return false }

// ServeTunnel connects a connection to the client port until either side closes it, ctx ends or the member does. It
// closes conn, at once when the member is not ready. Whoever may use it has been checked by the caller.
func (m *Member) ServeTunnel(ctx context.Context, conn net.Conn) { conn.Close() }

// Close ends the member and unlocks Dir. Run does it too. It may be called more than once.
func (m *Member) Close() {}
