package master

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/nfs-fleet/nfs-fleet/election"
	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/etcd"
)

// defaultSlots is how many slaves a master takes before others are fuller.
const defaultSlots = 10

// objectFormats is the highest object format that this build reads (replicator/tree).
const objectFormats = 1

// startEtcd starts the etcd inside this process unless a running one is configured, and connects to it. Connecting does
// not wait for an answer.
func (m *Master) startEtcd(ctx context.Context, parts *stack) error {
	e := m.cfg.Etcd
	options := []grpc.DialOption{
		// gRPC waits up to two minutes between attempts by default: too long for a fleet whose etcd is back.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}, MinConnectTimeout: time.Second,
		}),
	}
	conf := clientv3.Config{
		Endpoints: e.Endpoints, Logger: zap.NewNop(), DialTimeout: 2 * time.Second,
		DialKeepAliveTime: 5 * time.Second, DialKeepAliveTimeout: 2 * time.Second, DialOptions: options,
	}
	if user, password, ok := strings.Cut(e.User, ":"); ok {
		conf.DialOptions = append(options, (&etcdAuth{user: user, password: password}).options()...)
	}
	if len(e.Endpoints) == 0 {
		if err := m.openMember(ctx); err != nil {
			return err
		}
		conf.Endpoints, conf.DialOptions = m.routes.Endpoints(), append(options, grpc.WithContextDialer(m.routes.Dial))
	}
	tlsConfig, err := etcdTLS(e)
	if err == nil {
		conf.TLS = tlsConfig
		m.client, err = clientv3.New(conf)
	}
	if err != nil {
		if m.member != nil {
			m.member.Close()
		}
		return fmt.Errorf("etcd client: %w", err)
	}
	if m.member != nil {
		parts.start("etcd", func(ctx context.Context) error { return m.member.Run(ctx, m.client, m.routes) })
	}
	parts.start("etcd client", func(ctx context.Context) error {
		<-ctx.Done()
		return m.client.Close()
	})
	return nil
}

// openMember starts the etcd inside this process: the one that the disk has, or, on the first master of a fleet, a new
// one. One that does not start although the settings are right does not keep a master from serving what its disk has.
func (m *Master) openMember(ctx context.Context) error {
	e := m.cfg.Etcd
	dir := e.DataDir
	if dir == "" {
		dir = m.data.join("etcd")
	}
	_, port, err := net.SplitHostPort(e.PeerListen)
	if err != nil {
		return err
	}
	m.etcdPeer = "https://" + net.JoinHostPort(m.address, port)
	m.member = etcd.New(etcd.Config{
		Name: m.cfg.Name, Dir: dir, ClientListen: e.ClientListen, PeerListen: e.PeerListen, PeerURL: m.etcdPeer,
		TLS:    func() (cert, key, ca string) { f := m.files.Load(); return f.Cert, f.Key, f.CA },
		Failed: m.etcdFailed, Logger: m.log,
	})
	first := m.local.Joined == "" && len(m.routes.Peers()) == 0
	if m.toRescue() {
		err = m.rescue(ctx)
	} else {
		err = m.member.Open(ctx, first)
	}
	if errors.Is(err, etcd.ErrStart) && ctx.Err() == nil && m.hasPublished() {
		return nil // it has been logged
	}
	return err
}

// hasPublished reports whether this disk has something to serve without etcd.
func (m *Master) hasPublished() bool {
	records, err := m.ledger.Read()
	if err != nil {
		return false
	}
	for _, rec := range records {
		if len(rec.Generations) > 0 {
			return true
		}
	}
	return false
}

// etcdFailed is called each time that the etcd in this process has failed. It is started again by itself where that helps.
func (m *Master) etcdFailed(err error) {
	m.log.Error().Err(err).Msg("the etcd in this process has failed; serving goes on")
}

func etcdTLS(e EtcdConfig) (*tls.Config, error) {
	secure := slices.ContainsFunc(e.Endpoints, func(u string) bool { return strings.HasPrefix(u, "https://") })
	if !secure && e.Cert == "" && e.CACert == "" {
		return nil, nil
	}
	return transport.TLSInfo{CertFile: e.Cert, KeyFile: e.Key, TrustedCAFile: e.CACert}.ClientConfig()
}

func (m *Master) startElection(parts *stack) error {
	e, err := election.New(election.Config{
		Client: m.client, Prefix: m.registry.Keys().Prefix(), Master: m.cfg.Name, TTL: m.cfg.LeaseTTL, Logger: m.plain,
		Replace: true, // the lock of the data directory says so, and awaitName
	})
	if err != nil {
		return err
	}
	m.election = e
	e.Retire(true) // until runStanding has seen the fleet: nobody is to wait for this master before that
	m.retired = true
	parts.start("election", func(ctx context.Context) error {
		if err := m.awaitName(ctx); err != nil {
			return err
		}
		return e.Run(ctx)
	})
	return nil
}

// runTerms hands each new term to its shard.
func (m *Master) runTerms(ctx context.Context) error {
	m.announce()
	for {
		select {
		case <-ctx.Done():
			return nil
		case t, ok := <-m.election.Terms():
			if !ok {
				return nil // the election has ended: the master is stopping
			}
			m.mu.Lock()
			m.terms[t.Shard()] = t
			m.tellLocked()
			s := m.shards[t.Shard()]
			m.mu.Unlock()
			if s != nil {
				s.replica.SetTerm(t)
			} else if t.Shard() == fleet.CoordinatorSubject {
				m.log.Info().Int64("epoch", t.Epoch()).Msg("coordinating")
				go m.coordinate(t) // ends with the term
			}
		}
	}
}

// announce keeps this master's records in etcd current.
func (m *Master) announce() {
	self, serves := m.self(), m.serves()
	keys := m.registry.Keys()
	m.put(keys.Master(m.cfg.Name), self)
	m.put(keys.Replica(m.cfg.Name), fleet.Replica{Master: m.cfg.Name, Serves: serves})
}

func (m *Master) put(key string, value any) {
	b, err := json.Marshal(value)
	if err != nil {
		m.log.Error().Err(err).Str("key", key).Msg("announce")
		return
	}
	m.election.Announce(key, b)
}

// self is how this master describes itself.
func (m *Master) self() fleet.Master {
	state := fleet.Serving
	m.mu.Lock()
	drained := m.drained(m.view)
	m.mu.Unlock()
	if drained {
		state = fleet.Draining
	}
	self := fleet.Master{
		Name: m.cfg.Name, Address: m.address, NFSPort: m.nfsPort, HTTP: net.JoinHostPort(m.address, m.httpPort),
		Peer: net.JoinHostPort(m.address, m.peerPort), Domain: m.cfg.Domain, Instance: m.instance, Slots: defaultSlots, Version: m.version,
		Formats: objectFormats, StartedAt: m.started, State: state, Sources: slices.AppendSeq([]string{}, maps.Keys(m.cfg.Sources)),
	}
	if m.member != nil {
		self.EtcdPeer = m.etcdPeer
		if id := m.member.Status().MemberID; id != 0 {
			self.EtcdMember = strconv.FormatUint(id, 16)
		}
	}
	return self
}
