package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/renameio/v2"
	"github.com/google/uuid"
	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"golang.org/x/sys/unix"
)

// Config is what a Member needs to know. All of it but Failed is required.
type Config struct {
	Name         string                        // of this master, and of the member
	Dir          string                        // the member's; Dir.lock and Dir.old-TIME stand beside it
	ClientListen string                        // loopback host:port
	PeerListen   string                        // host:port; an empty host: every address
	PeerURL      string                        // https://host:port, by which the other members reach PeerListen
	TLS          func() (cert, key, ca string) // files; read again for each connection, the CA apart
	Failed       func(error)                   // told each failure that Status.Err shows; must not block; may be nil
	Logger       zerolog.Logger
}

// Status is how this master's etcd does.
type Status struct {
	Running  bool
	Ready    bool // has been part of a quorum since it started
	Voter    bool
	Learner  bool
	Leader   bool
	MemberID uint64 // of the member that runs, or else of the one on disk; 0: none
	Err      error  // why it does not run although it should; nil otherwise
}

// ErrStart is wrapped by what keeps an etcd from starting although nothing is wrong with the settings: a damaged file, a
// full disk. A master that has something to serve goes on without it.
var ErrStart = errors.New("embedded etcd does not start")

// Member is the etcd inside this process. It is safe for concurrent use, but Open comes before Run.
type Member struct {
	cfg     Config
	fsync   fsyncMean
	noFsync bool // for tests

	mu    sync.Mutex // guards the rest; never held while etcd works
	lock  *os.File
	now   *running // nil: it does not run
	err   error
	stuck bool // a start or an end has left something behind: nothing can be started until the process is
}

// New makes a Member, which does not run yet.
func New(cfg Config) *Member {
	cfg.Logger = cfg.Logger.With().Str("part", "etcd").Logger()
	return &Member{cfg: cfg}
}

// Open locks Dir and starts the member that it holds; with birth, when it holds none, a new cluster of one. Without
// either it starts nothing: Run does, when the cluster names this master. It returns when the listeners are open, which
// takes no quorum: see Ready. The error says what to do; when it wraps ErrStart, Run may follow all the same.
func (m *Member) Open(ctx context.Context, birth bool) error {
	if err := m.lockDir(); err != nil {
		return err
	}
	if !m.Holds() && !birth {
		return nil
	}
	if err := m.start(ctx, m.Holds(), nil); err != nil {
		if !errors.Is(err, ErrStart) {
			m.unlock()
		}
		return m.failed(err)
	}
	return nil
}

// Rescue is Open for a member whose cluster has lost its quorum for good: it makes a cluster of one of it, with all the
// data that it has. The other members must not run any more, or there are two clusters; those that come back later are
// strangers to it, and join anew.
func (m *Member) Rescue(ctx context.Context) error {
	if err := m.lockDir(); err != nil {
		return err
	}
	if !m.Holds() {
		m.unlock()
		return fmt.Errorf("embedded etcd: %s holds no member to rescue", m.cfg.Dir)
	}
	if err := m.launch(ctx, func(c *embed.Config) { c.ForceNewCluster = true }); err != nil {
		m.unlock()
		return m.failed(err)
	}
	return nil
}

// lockDir keeps other masters off the directory: etcd itself would wait for it, saying nothing.
func (m *Member) lockDir() error {
	if err := os.MkdirAll(filepath.Dir(m.cfg.Dir), 0o700); err != nil {
		return fmt.Errorf("embedded etcd: %w; choose another directory with --etcd-data-dir", err)
	}
	lock, err := os.OpenFile(m.cfg.Dir+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("embedded etcd: %w; choose another directory with --etcd-data-dir", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("embedded etcd: %s is used by another nfs-fleet that runs: stop it, or choose another directory with --etcd-data-dir", m.cfg.Dir)
		}
		return fmt.Errorf("embedded etcd: lock %s: %w; choose another directory with --etcd-data-dir", lock.Name(), err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lock = lock
	return nil
}

func (m *Member) unlock() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lock != nil {
		m.lock.Close()
		m.lock = nil
	}
}

// Holds reports whether Dir holds a member.
func (m *Member) Holds() bool { return wal.Exist(filepath.Join(m.cfg.Dir, "member", "wal")) }

// start starts the member that Dir holds (held), the one that the list has room for (list), or a new cluster.
func (m *Member) start(ctx context.Context, held bool, list []*pb.Member) error {
	return m.launch(ctx, func(c *embed.Config) {
		switch {
		case held:
		case list != nil:
			c.ClusterState = embed.ClusterStateFlagExisting
			c.InitialCluster = initialCluster(m.cfg.Name, m.cfg.PeerURL, list)
		default:
			// Clusters that are born at the same address must not take each other for themselves.
			c.InitialClusterToken = uuid.NewString()
		}
	})
}

// launch starts the member with settings that differ from the usual ones by what change does.
func (m *Member) launch(ctx context.Context, change func(*embed.Config)) error {
	c, err := m.settings()
	if err != nil {
		return err
	}
	held := m.Holds()
	c.InitialCluster = m.cfg.Name + "=" + m.cfg.PeerURL
	change(c)
	r, err := launch(ctx, c, m.cfg.Logger)
	if err != nil {
		m.mu.Lock()
		m.stuck = m.stuck || errors.Is(err, errLeftOver)
		m.mu.Unlock()
		return fmt.Errorf("%w in %s: %w", ErrStart, m.cfg.Dir, err)
	}
	m.mu.Lock()
	m.now, m.err = r, nil
	m.mu.Unlock()
	m.noteID(r.id())
	m.cfg.Logger.Info().Str("member", memberID(r.id())).Str("peer_url", m.cfg.PeerURL).Bool("new", !held).Msg("etcd member started")
	return nil
}

// initialCluster names every member by its address. The names of the others do not matter, but must not be this
// master's, which a member that it has lost may still have.
func initialCluster(name, peerURL string, list []*pb.Member) string {
	var parts []string
	for _, p := range list {
		for _, u := range p.PeerURLs {
			if u == peerURL {
				parts = append(parts, name+"="+u)
			} else {
				parts = append(parts, "of-"+memberID(p.ID)+"="+u)
			}
		}
	}
	return strings.Join(parts, ",")
}

// failed notes why the member does not run.
func (m *Member) failed(err error) error {
	m.mu.Lock()
	m.err = err
	m.mu.Unlock()
	if m.cfg.Failed != nil {
		m.cfg.Failed(err)
	}
	return err
}

// idFile stands in the member's directory and goes where that goes.
const idFile = "nfs-fleet.json"

type idNote struct {
	Member string `json:"member"`
}

func (m *Member) noteID(id uint64) {
	if m.notedID() == id {
		return
	}
	b, err := json.Marshal(idNote{memberID(id)})
	if err == nil {
		err = renameio.WriteFile(filepath.Join(m.cfg.Dir, idFile), append(b, '\n'), 0o600)
	}
	if err != nil {
		m.cfg.Logger.Warn().Err(err).Msg("the etcd member's ID cannot be written down")
	}
}

// notedID returns the ID of the member on disk; 0 when there is none or it is not known.
func (m *Member) notedID() uint64 {
	b, err := os.ReadFile(filepath.Join(m.cfg.Dir, idFile))
	var note idNote
	var id uint64
	if err == nil {
		err = json.Unmarshal(b, &note)
	}
	if err == nil {
		_, err = fmt.Sscanf(note.Member, "%x", &id)
	}
	if err != nil || !m.Holds() {
		return 0
	}
	return id
}

// setAside moves the member's directory out of the way, and removes what was set aside before. What a start that did not
// get through has left is removed for good.
func (m *Member) setAside() error {
	if _, err := os.Lstat(m.cfg.Dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if _, err := os.Lstat(filepath.Join(m.cfg.Dir, idFile)); errors.Is(err, os.ErrNotExist) && !m.Holds() {
		return os.RemoveAll(m.cfg.Dir)
	}
	old, err := filepath.Glob(m.cfg.Dir + ".old-*")
	if err != nil {
		return err
	}
	to := m.cfg.Dir + ".old-" + time.Now().UTC().Format("20060102T150405.000")
	if err := os.Rename(m.cfg.Dir, to); err != nil {
		return fmt.Errorf("set the old etcd member aside: %w", err)
	}
	m.cfg.Logger.Warn().Str("dir", to).Msg("the data of an etcd member that is no more was set aside")
	for _, dir := range slices.DeleteFunc(old, func(dir string) bool { return dir == to }) {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove what was set aside before: %w", err)
		}
	}
	return nil
}

// present returns the start that runs; nil when none does.
func (m *Member) present() *running {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

// over is closed when the member that runs now has ended; nil while none runs.
func (m *Member) over() <-chan struct{} {
	if r := m.present(); r != nil {
		return r.ended
	}
	return nil
}

// stop ends the member if it runs.
func (m *Member) stop() {
	if r := m.detach(); r != nil {
		m.finish(r)
	}
}

// detach says that no member runs any more, and returns the one that did.
func (m *Member) detach() *running {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.now
	m.now = nil
	return r
}

// finish closes a member. One that does not end keeps its ports and its directory until the process ends.
func (m *Member) finish(r *running) {
	if r.close(closeLimit) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stuck = true
	if m.err != nil {
		m.err = fmt.Errorf("%w; then restart nfs-fleet", m.err)
	}
}

// end hands leadership over, if that takes a second at most, and ends the member.
func (m *Member) end() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := m.MoveLeader(ctx); err != nil {
		m.cfg.Logger.Debug().Err(err).Msg("etcd ends as leader")
	}
	m.stop()
}

// Ready is closed when the member that runs now has become part of a quorum; nil while none runs.
func (m *Member) Ready() <-chan struct{} {
	if r := m.present(); r != nil {
		return r.ready
	}
	return nil
}

// Status says how the member does.
func (m *Member) Status() Status {
	m.mu.Lock()
	r, err := m.now, m.err
	m.mu.Unlock()
	if r == nil || r.isOver() {
		if r != nil && err == nil && !errors.Is(r.err, errRemoved) {
			err = r.err
		}
		return Status{MemberID: m.notedID(), Err: err}
	}
	st := Status{Running: true, Ready: r.isReady(), Leader: r.leads(), MemberID: r.id(), Err: err}
	if seat := r.seat(); seat != nil {
		st.Voter, st.Learner = !seat.IsLearner, seat.IsLearner
	}
	return st
}

// MoveLeader hands etcd's leadership to another voter when this member has it; nil when there is nothing to hand over.
func (m *Member) MoveLeader(ctx context.Context) error {
	if r := m.present(); r != nil {
		return r.handOver(ctx)
	}
	return nil
}

// Close ends the member, which hands leadership over if it can within a second, and unlocks Dir. Run does it too. It may
// be called more than once.
func (m *Member) Close() {
	m.end()
	m.unlock()
}
