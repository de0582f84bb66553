package master

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/nfs-fleet/nfs-fleet/election"
	"github.com/nfs-fleet/nfs-fleet/exporter"
	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/replicator"
	"github.com/nfs-fleet/nfs-fleet/replicator/store"
)

const (
	// staleAfter is how long a starting master waits for etcd before it serves what its disk has.
	staleAfter = 10 * time.Second
	// stopLimit bounds a whole stop: what takes longer is left to the end of the process.
	stopLimit = 4500 * time.Millisecond
	// reread is the time between two linearizable reads of the fleet beside the watch.
	reread = 10 * time.Second
)

// Master is one running master.
type Master struct {
	cfg     Config
	version string
	started time.Time
	log     zerolog.Logger
	plain   zerolog.Logger // log without the master's name, for a part that adds it

	data     *dataDir
	store    *store.Store
	ledger   *replicator.Ledger
	client   *clientv3.Client
	registry *fleet.Registry
	election election.Election
	exporter *exporter.Server
	mounts   *mountTable
	metrics  *metrics
	uploads  *uploads
	prune    chan struct{} // a generation went past retention
	fatal    chan error    // an error that no retry mends
	open     chan struct{} // closed when clients are served
	openOnce sync.Once
	draining atomic.Bool
	address  string // that others reach this master by
	nfsPort  int
	httpPort string

	exporting sync.Mutex // held while the exports are put together, so that the newest ones stay

	// mu guards what follows. It is held for short, never across I/O; a Replica is never called under it but for the
	// Set methods and Status, which do not wait.
	mu         sync.Mutex
	local      localIdentity
	view       fleet.View    // the last one seen; Revision 0 before the first
	reconciled fleet.View    // the last view whose shards are those here
	changed    chan struct{} // closed, and replaced, when reconciled or terms change
	etcdErr    error         // why etcd cannot be read now
	etcdGone   error         // why the etcd in this process is gone for good
	shards     map[string]*shard
	terms      map[string]*election.Term // by shard, the latest
	warned     map[string]bool           // what warnOnce has said
}

var errNotAsked = errors.New("not asked yet")

// Run is a master from its start until ctx ends. An error says what to do where that is not obvious.
func Run(ctx context.Context, cfg Config, version string, log zerolog.Logger) error {
	m := &Master{
		cfg: cfg, version: version, started: time.Now().UTC(), log: log.With().Str("master", cfg.Name).Logger(), plain: log,
		prune: make(chan struct{}, 1), fatal: make(chan error, 1), open: make(chan struct{}),
		shards: map[string]*shard{}, terms: map[string]*election.Term{}, warned: map[string]bool{}, changed: make(chan struct{}), etcdErr: errNotAsked,
	}
	defer m.closeDisk()
	if err := m.openDisk(); err != nil {
		return err
	}
	listeners, err := openListeners(cfg.Listen)
	if err != nil {
		return err
	}
	defer listeners.close()
	m.address = advertised(cfg.Advertise, listeners.nfs.Addr())
	m.nfsPort = portOf(listeners.nfs.Addr())
	m.httpPort = strconv.Itoa(portOf(listeners.http.Addr()))
	parts := newStack()
	if err := m.start(ctx, parts, listeners); err != nil {
		parts.stop(stopLimit)
		return err
	}
	m.log.Info().Str("fleet", cfg.Fleet).Str("version", version).Str("nfs", listeners.nfs.Addr().String()).
		Str("http", listeners.http.Addr().String()).Str("data_dir", m.data.path).Msg("master started")
	select {
	case <-ctx.Done():
		m.log.Info().Msg("stopping")
	case err = <-parts.failed:
	case err = <-m.fatal:
	}
	m.draining.Store(true)
	if late := parts.stop(stopLimit); len(late) > 0 {
		m.log.Warn().Strs("parts", late).Msg("did not stop in time")
	}
	return err
}

func (m *Master) openDisk() error {
	var err error
	if m.data, err = openDataDir(m.cfg.DataDir); err != nil {
		return err
	}
	if m.local, err = m.data.identity(); err != nil {
		return err
	}
	if err := m.local.check(m.cfg.Fleet, m.cfg.Name, m.data.path); err != nil {
		return err
	}
	if m.ledger, err = replicator.OpenLedger(m.data.join("ledger")); err != nil {
		return err
	}
	m.store, err = store.Open(m.data.join("store"), store.Options{Logger: m.log})
	return err
}

func (m *Master) closeDisk() {
	if m.store != nil {
		if err := m.store.Close(); err != nil {
			m.log.Error().Err(err).Msg("closing the store")
		}
	}
	if m.ledger != nil {
		if err := m.ledger.Close(); err != nil {
			m.log.Error().Err(err).Msg("closing the ledger")
		}
	}
	if m.data != nil {
		m.data.close()
	}
}

// start starts the parts from the bottom up.
func (m *Master) start(ctx context.Context, parts *stack, l *listeners) error {
	if err := m.startEtcd(ctx, parts); err != nil {
		return err
	}
	m.registry = fleet.NewRegistry(m.client, m.cfg.Fleet)
	m.mounts = newMountTable(m.cfg.Name, m.registry, m.log)
	m.metrics = newMetrics(m)
	m.uploads = newUploads(m.store)
	m.exporter = exporter.New(exporter.Config{
		Logger: m.log, MaxConns: m.cfg.NFS.MaxConnections, Idle: m.cfg.NFS.IdleTimeout, Mounts: exportMounts{m.mounts}, Observe: m.metrics,
		Gate: newHeadGate(m.open, m.loadIfHealthy, m.awaitServed),
	})
	if err := m.startElection(parts); err != nil {
		return err
	}
	if err := m.restoreShards(ctx); err != nil {
		return err
	}
	if m.etcdGone != nil {
		m.serve() // there is no etcd to wait for
	}
	parts.start("shards", m.runShards)
	parts.start("fleet", func(ctx context.Context) error {
		return m.registry.Follow(ctx, reread, func(v fleet.View) { m.seen(ctx, v) }, m.lost)
	})
	parts.start("terms", m.runTerms)
	parts.start("mounts", func(ctx context.Context) error { return m.mounts.run(ctx, m.connected) })
	parts.start("care", m.runCare)
	parts.start("memory", runMemory)
	parts.start("stale", m.serveStale)
	parts.start("nfs", func(ctx context.Context) error { return m.exporter.Serve(ctx, l.nfs) })
	m.startPortmap(parts, l)
	return m.startConsole(parts, l)
}

func (m *Master) connected() map[netip.Addr]bool { return m.exporter.Clients() }

// etcdProblem says why etcd cannot be relied on now; nil when it can. A lease that runs out tells first.
func (m *Master) etcdProblem() error {
	m.mu.Lock()
	err := m.etcdErr
	if m.etcdGone != nil {
		err = m.etcdGone
	}
	m.mu.Unlock()
	if lease := m.election.Lease(); err == nil && lease.ID != 0 && !lease.Alive {
		if err = lease.Err; err == nil {
			err = election.ErrLeaseLost
		}
	}
	return err
}

// loadIfHealthy reads the heads for the gate, and does not try while etcd is known to be away.
func (m *Master) loadIfHealthy(ctx context.Context) (fleet.View, error) {
	if err := m.etcdProblem(); err != nil {
		return fleet.View{}, err
	}
	return m.registry.Load(ctx)
}

// awaitServed waits until every head of v that this master holds at all is served.
func (m *Master) awaitServed(ctx context.Context, v fleet.View) error {
	for _, s := range m.allShards() {
		head := v.Heads[s.name]
		if head.Number == 0 || s.volume.State() == nil || s.replica.Status().Problem != nil {
			continue // what it serves is all that it can: better than nothing, and no reason to shut out the others
		}
		if _, err := s.volume.Await(ctx, head.Number); err != nil {
			return fmt.Errorf("shard %s: waiting for generation %d: %w", s.name, head.Number, err)
		}
	}
	return nil
}

// fail stops the master with an error that no retry mends.
func (m *Master) fail(err error) {
	select {
	case m.fatal <- err:
	default: // the first one is on its way
	}
}

// warnOnce reports whether what is asked for the first time.
func (m *Master) warnOnce(what string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	first := !m.warned[what]
	m.warned[what] = true
	return first
}
