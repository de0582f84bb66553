package master

import (
	"context"
	"crypto/tls"
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
	"github.com/nfs-fleet/nfs-fleet/exporter/hello"
	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
	"github.com/nfs-fleet/nfs-fleet/fleet/etcd"
	"github.com/nfs-fleet/nfs-fleet/fleet/trust"
	"github.com/nfs-fleet/nfs-fleet/replicator"
	"github.com/nfs-fleet/nfs-fleet/replicator/peer"
	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
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
	slaves   *slaveBook
	spreader atomic.Pointer[spreader] // nil: another master coordinates
	stays    stays
	exported atomic.Pointer[[]exporter.Export] // what clients see
	metrics  *metrics
	dns      atomic.Pointer[nameserver] // nil: off
	console  *console.Server
	uploads  *uploads
	prune    chan struct{} // a generation went past retention
	fatal    chan error    // an error that no retry mends
	open     chan struct{} // closed when clients are served
	openOnce sync.Once
	draining atomic.Bool
	instance string // of the data directory
	address  string // that others reach this master by
	nfsPort  int
	httpPort string
	peerPort string

	credentials atomic.Pointer[trust.Credentials]
	files       atomic.Pointer[trust.Files] // of the credentials, for the embedded etcd
	links       *links
	fetcher     *peer.Fetcher
	member      *etcd.Member          // nil: etcd is elsewhere
	etcdPeer    string                // URL by which other members reach it
	routes      *etcd.Routes          // to the other masters, kept on disk
	base        context.Context       // ends when the master stops: for what is done for other masters
	standing    chan struct{}         // runStanding is to look again
	guiding     chan struct{}         // runGuide is to look again
	guide       atomic.Pointer[guide] // nil: etcd has never answered
	addresses   *addressBook          // of masters
	sendingAway atomic.Bool           // slaves are told to go: it is about to step down
	steppedDown atomic.Bool
	confirmedAt time.Time   // when another master last said that it has a lease and this one has none; only runStepDown uses it
	foreign     atomic.Bool // etcd holds another fleet than the one of this disk
	trusted     bool        // settleTrust is done; only Registry.Follow's goroutine uses it
	retired     bool        // stands for nothing; only runStanding uses it

	exporting sync.Mutex // held while the exports are put together, so that the newest ones stay

	// mu guards what follows. It is held for short, never across I/O; a Replica is never called under it but for the
	// Set methods and Status, which do not wait.
	mu         sync.Mutex
	local      localIdentity
	view       fleet.View           // the last one seen; Revision 0 before the first
	reconciled fleet.View           // the last view whose shards are those here
	changed    chan struct{}        // closed, and replaced, when reconciled or terms change
	etcdErr    error                // why etcd cannot be read now
	backAt     time.Time            // since when etcd can be read, and this master has had a lease
	lostSince  map[string]time.Time // by master: when its lease was seen to be gone
	shards     map[string]*shard
	terms      map[string]*election.Term // by shard, the latest
	warned     map[string]bool           // what warnOnce has said
	witnesses  map[string]int            // masters that are fetched from whether they live or not, and for how many
}

var errNotAsked = errors.New("not asked yet")

// Run is a master from its start until ctx ends. An error says what to do where that is not obvious.
func Run(ctx context.Context, cfg Config, version string, log zerolog.Logger) error {
	m := &Master{
		cfg: cfg, version: version, started: time.Now().UTC(), log: log.With().Str("master", cfg.Name).Logger(), plain: log,
		prune: make(chan struct{}, 1), fatal: make(chan error, 1), open: make(chan struct{}), standing: make(chan struct{}, 1), guiding: make(chan struct{}, 1),
		lostSince: map[string]time.Time{}, witnesses: map[string]int{},
		shards: map[string]*shard{}, terms: map[string]*election.Term{}, warned: map[string]bool{}, changed: make(chan struct{}), etcdErr: errNotAsked,
	}
	defer m.closeDisk()
	if err := m.openDisk(); err != nil {
		return err
	}
	if err := m.join(ctx); err != nil {
		return err
	}
	m.instance = m.local.Instance
	if err := m.openTrust(); err != nil {
		return err
	}
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	m.base = base
	listeners, err := openListeners(cfg.Listen)
	if err != nil {
		return err
	}
	defer listeners.close()
	m.address = advertised(cfg.Advertise, listeners.nfs.Addr())
	m.nfsPort = portOf(listeners.nfs.Addr())
	m.httpPort = strconv.Itoa(portOf(listeners.http.Addr()))
	m.peerPort = strconv.Itoa(portOf(listeners.peer.Addr()))
	parts := newStack()
	if err := m.start(ctx, parts, listeners); err != nil {
		parts.stop(stopLimit)
		return err
	}
	m.log.Info().Str("fleet", m.cfg.Fleet).Str("version", version).Str("nfs", listeners.nfs.Addr().String()).
		Str("http", listeners.http.Addr().String()).Str("data_dir", m.data.path).Msg("master started")
	select {
	case <-ctx.Done():
		m.log.Info().Msg("stopping")
	case err = <-parts.failed:
	case err = <-m.fatal:
	}
	deadline := time.Now().Add(stopLimit)
	m.draining.Store(true)
	m.guideSoon()
	if err == nil {
		var heirs sync.WaitGroup
		heirs.Go(m.farewell)
		m.seeOff(base, stopNotice)
		heirs.Wait()
	}
	cancel()
	if late := parts.stop(time.Until(deadline)); len(late) > 0 {
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
	if m.local.Instance == "" {
		m.local.Instance = fleet.NewInstance()
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

// connect makes the ways to the other masters.
func (m *Master) connect() {
	m.links = newLinks(m.credentials.Load)
	m.routes = etcd.OpenRoutes(etcd.RoutesConfig{
		Self: m.cfg.Name, Own: m.cfg.Etcd.ClientListen, File: m.data.join("routes"), Logger: m.log,
		TLS: func(master string) *tls.Config { return m.credentials.Load().ClientTLS(master) },
	})
	m.links.set(m.routes.Peers())
	pressure := func() bool { return m.member != nil && m.member.Pressure() }
	m.fetcher = peer.NewFetcher(peer.Config{Store: m.store, Client: m.links.client, Masters: m.fetchable, Pressure: pressure, Logger: m.log})
	m.store.SetHeal(func(ctx context.Context, d tree.Digest) error { return m.heal(ctx, d) })
}

// start starts the parts from the bottom up.
func (m *Master) start(ctx context.Context, parts *stack, l *listeners) error {
	m.connect()
	if err := m.startEtcd(ctx, parts); err != nil {
		return err
	}
	m.registry = fleet.NewRegistry(m.client, m.cfg.Fleet)
	m.mounts = newMountTable(m.cfg.Name, m.registry, m.log)
	m.slaves = newSlaveBook(m.cfg.Name, m.address, m.nfsPort, m.slaveRecord)
	m.metrics = newMetrics(m)
	m.addresses = newAddressBook(lookUpHost, m.guideSoon, m.log)
	m.uploads = newUploads(m.store)
	m.console = console.NewServer(console.Config{
		Control: control{m}, Metrics: m.metrics.registry, Logger: m.log, Name: m.cfg.Name, Leader: m.leaderOf, Peer: m.links.client,
	})
	m.exporter = exporter.New(exporter.Config{
		Logger: m.log, MaxConns: m.cfg.NFS.MaxConnections, Idle: m.cfg.NFS.IdleTimeout, Mounts: exportMounts{m.mounts, m.slaves}, Observe: m.metrics,
		Gate: steadyGate{m, newHeadGate(m.open, m.loadIfHealthy, m.awaitServed)}, Elsewhere: m.elsewhere,
		Programs: []rpc.Program{hello.Program(m.greet)},
	})
	if err := m.startElection(parts); err != nil {
		return err
	}
	if err := m.restoreShards(ctx); err != nil {
		return err
	}
	if m.member != nil && m.member.Status().Err != nil {
		m.serve() // there is no etcd to wait for
	}
	parts.start("shards", m.runShards)
	parts.start("fleet", func(ctx context.Context) error {
		return m.registry.Follow(ctx, reread, func(v fleet.View) { m.seen(ctx, v) }, m.lost)
	})
	parts.start("terms", m.runTerms)
	parts.start("standing", m.runStanding)
	parts.start("addresses", m.addresses.run)
	parts.start("guide", m.runGuide)
	parts.start("step-down", m.runStepDown)
	parts.start("mounts", func(ctx context.Context) error { return m.mounts.run(ctx, m.connected) })
	parts.start("slaves", func(ctx context.Context) error { return m.slaves.run(ctx, m.tellCoordinator) })
	parts.start("care", m.runCare)
	parts.start("memory", runMemory)
	parts.start("stale", m.serveStale)
	parts.start("nfs", func(ctx context.Context) error { return m.exporter.Serve(ctx, l.nfs) })
	parts.start("peers", func(ctx context.Context) error { return m.servePeers(ctx, l.peer) })
	if l.dns != nil || l.dnsLater != nil {
		parts.start("dns", func(ctx context.Context) error { return m.runDNS(ctx, l.dns, l.dnsLater) })
	}
	m.startPortmap(parts, l)
	return m.startConsole(parts, l)
}

func (m *Master) connected() map[netip.Addr]bool { return m.exporter.Clients() }

// etcdProblem says why etcd cannot be relied on now; nil when it can. A lease that runs out tells first.
func (m *Master) etcdProblem() error {
	m.mu.Lock()
	err := m.etcdErr
	m.mu.Unlock()
	if err != nil && m.member != nil {
		if own := m.member.Status().Err; own != nil {
			err = own // says more than that nobody answers
		}
	}
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
	return newest{etcd: m.registry.Load, others: m.askServed, last: m.lastView}.load(ctx)
}

// awaitServed waits until every head of v is served here. What this master cannot serve now does not keep a client
// away when no other master is in step either.
func (m *Master) awaitServed(ctx context.Context, v fleet.View) error {
	for _, s := range m.allShards() {
		head := v.Heads[s.name]
		if head.Number == 0 || s.volume.State() == nil && !m.othersServe(v, s.name) {
			continue
		}
		if s.replica.Status().Problem != nil && !m.othersServe(v, s.name) {
			continue // what it serves is all that it can: better than nothing, and no reason to shut out the others
		}
		if _, err := s.volume.Await(ctx, head.Number); err != nil && m.othersServe(v, s.name) {
			return fmt.Errorf("shard %s: waiting for generation %d: %w", s.name, head.Number, err)
		}
	}
	return nil
}

// lastView is what etcd said last.
func (m *Master) lastView() fleet.View {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.view
}

// slaveRecord is what the fleet knows of a slave.
func (m *Master) slaveRecord(name string) (fleet.Slave, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.view.Slaves[name]
	return s, ok
}

// noteMounted sees to it that slaves that have no agent, and therefore tell nothing of themselves, are not forgotten while
// they are connected.
func (m *Master) noteMounted(now time.Time) {
	var connected map[netip.Addr]bool
	for name, s := range m.lastView().Slaves {
		if s.Mode != fleet.ModeMount {
			continue
		}
		if connected == nil {
			connected = m.connected()
		}
		if !connected[s.Address] {
			continue
		}
		if m.slaves.touch(name, now); now.Sub(s.SeenAt) >= seenEvery {
			m.slaves.seen(mountSighting(name, "", "", s.Address, now))
		}
	}
}

// elsewhere reports whether a client that cannot be answered here had better go to another master.
func (m *Master) elsewhere() bool {
	v := m.lastView()
	for name := range v.Shards {
		if !m.othersServe(v, name) {
			return false
		}
	}
	return len(v.Shards) > 0
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
