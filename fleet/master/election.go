package master

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/nfs-fleet/nfs-fleet/election"
	"github.com/nfs-fleet/nfs-fleet/fleet"
)

// objectFormats is the highest object format that this build reads (replicator/tree).
const objectFormats = 1

// startEtcd starts the etcd inside this process unless a running one is configured, and connects to it. Connecting does
// not wait for an answer.
func (m *Master) startEtcd(ctx context.Context, parts *stack) error {
	e := m.cfg.Etcd
	conf := clientv3.Config{
		Endpoints: e.Endpoints, Logger: zap.NewNop(), DialTimeout: 2 * time.Second,
		DialKeepAliveTime: 5 * time.Second, DialKeepAliveTimeout: 2 * time.Second,
		// gRPC waits up to two minutes between attempts by default: too long for a fleet whose etcd is back.
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}, MinConnectTimeout: time.Second,
		})},
	}
	conf.Username, conf.Password, _ = strings.Cut(e.User, ":")
	var own *embeddedEtcd
	if len(e.Endpoints) == 0 {
		dir := e.DataDir
		if dir == "" {
			dir = m.data.join("etcd")
		}
		var err error
		own, err = startEtcd(ctx, m.cfg.Name, dir, e.ClientListen, e.PeerListen, m.log)
		switch {
		case err == nil:
			conf.Endpoints = []string{"http://" + own.server.Clients[0].Addr().String()}
		case errors.Is(err, errEtcdStart) && ctx.Err() == nil && m.hasPublished():
			m.etcdFailed(err)
			conf.Endpoints = []string{"http://" + e.ClientListen}
		default:
			return err
		}
	}
	tlsConfig, err := etcdTLS(e)
	if err == nil {
		conf.TLS = tlsConfig
		m.client, err = clientv3.New(conf)
	}
	if err != nil {
		if own != nil {
			own.close()
		}
		return fmt.Errorf("etcd client: %w", err)
	}
	if own != nil {
		parts.start("etcd", func(ctx context.Context) error { return own.run(ctx, m.client, m.etcdFailed) })
	}
	parts.start("etcd client", func(ctx context.Context) error {
		<-ctx.Done()
		return m.client.Close()
	})
	return nil
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

// etcdFailed notes that the etcd in this process is gone until the next start.
func (m *Master) etcdFailed(err error) {
	m.log.Error().Err(err).Msg("etcd is gone; serving goes on, publishing waits")
	m.mu.Lock()
	m.etcdGone = err
	m.mu.Unlock()
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
		Replace: true, // the lock of the data directory says so
	})
	if err != nil {
		return err
	}
	m.election = e
	e.Stand(fleet.CoordinatorSubject, false)
	parts.start("election", e.Run)
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
			}
		}
	}
}

// announce keeps this master's records in etcd current.
func (m *Master) announce() {
	self := m.self()
	serves := map[string]uint64{}
	for _, s := range m.allShards() {
		if n := s.replica.Status().Head.Number; n > 0 {
			serves[s.name] = n
		}
	}
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
	if m.draining.Load() {
		state = fleet.Draining
	}
	sources := []string{}
	for _, s := range m.allShards() {
		if s.source != nil {
			sources = append(sources, s.name)
		}
	}
	return fleet.Master{
		Name: m.cfg.Name, Address: m.address, NFSPort: m.nfsPort, HTTP: net.JoinHostPort(m.address, m.httpPort), Version: m.version,
		Formats: objectFormats, StartedAt: m.started, State: state, Sources: sources,
	}
}
