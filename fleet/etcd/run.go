package etcd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	quotaBytes = 1 << 30 // a fleet of 500 shards with full history needs less than a fifth
	retention  = "10m"   // of old revisions
	closeLimit = 9 * time.Second
)

// running is one start of an etcd member in this process.
type running struct {
	server  *embed.Etcd // set before it is handed out
	log     zerolog.Logger
	closing atomic.Bool
	failure chan error    // what etcd took for the end of its process
	ready   chan struct{} // closed when it is part of a quorum
	ended   chan struct{} // closed when it is over, closed by us or not
	err     error         // why, unless closed by us; read it after ended
	tunnels tunnels

	closeOnce sync.Once
	closed    chan struct{} // closed when everything of it has ended and its ports are free
}

// OnWrite is called when etcd logs what it takes for the end of its process: a full disk, an I/O error. It must not be
// the end of ours, which serves readers: etcd's goroutine ends instead, and etcd counts as away from then on.
func (r *running) OnWrite(entry *zapcore.CheckedEntry, fields []zapcore.Field) {
	select {
	case r.failure <- fmt.Errorf("embedded etcd has failed: %s %v", entry.Message, flatten(fields)):
	default: // one failure is enough
	}
	runtime.Goexit()
}

// errLeftOver is wrapped when a start has failed in a way that leaves parts of it behind, such as its ports.
var errLeftOver = errors.New("until nfs-fleet is restarted")

// errRemoved is why a member has ended that was taken out of the cluster.
var errRemoved = errors.New("this master's etcd member was taken out of the cluster")

// launch starts etcd and returns when its listeners are open. A start that ctx ended is left to the end of the process.
func launch(ctx context.Context, c *embed.Config, log zerolog.Logger) (*running, error) {
	r := &running{
		log: log, failure: make(chan error, 1), ready: make(chan struct{}), ended: make(chan struct{}), closed: make(chan struct{}),
	}
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(zapCore{log, &r.closing}, zap.WithFatalHook(r), zap.WithPanicHook(r)))
	started := make(chan error, 1)
	go func() {
		err := fmt.Errorf("it gave up: %w", errLeftOver) // unless it returns
		defer func() {
			if p := recover(); p != nil { // as it does on a damaged file
				err = fmt.Errorf("%v: %w", p, errLeftOver)
			}
			started <- err
		}()
		r.server, err = embed.StartEtcd(c)
	}()
	select {
	case err := <-started:
		select {
		case why := <-r.failure: // says more
			err = fmt.Errorf("%w: %w", why, errLeftOver)
		default:
		}
		if err != nil {
			return nil, err
		}
	case err := <-r.failure: // in a goroutine of its own, which StartEtcd goes on waiting for
		return nil, fmt.Errorf("%w: %w", err, errLeftOver)
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", context.Cause(ctx), errLeftOver)
	}
	go r.watch()
	return r, nil
}

// watch tells when etcd is ready, and when it is over. It ends when etcd has ended or failed.
func (r *running) watch() {
	defer close(r.ended)
	ready := r.server.Server.ReadyNotify()
	for {
		select {
		case <-ready:
			close(r.ready)
			ready = nil
		case err := <-r.failure:
			r.err = fmt.Errorf("%w: make room or mend the disk", err)
			return
		case err, ok := <-r.server.Err():
			if ok {
				r.err = fmt.Errorf("embedded etcd has failed: %w", err)
			}
			return
		case <-r.server.Server.StopNotify():
			switch {
			case r.closing.Load():
			case r.server.Server.IsIDRemoved(r.id()):
				r.err = errRemoved
			default:
				r.err = errors.New("embedded etcd has ended by itself, as it does when its member was removed meanwhile")
			}
			return
		}
	}
}

func (r *running) isReady() bool {
	select {
	case <-r.ready:
		return !r.closing.Load() && !r.isOver()
	default:
		return false
	}
}

func (r *running) isOver() bool {
	select {
	case <-r.ended:
		return true
	default:
		return false
	}
}

// seat returns what etcd has of its own member; nil when it has none, as before the first word of the others and after
// it was removed.
func (r *running) seat() *membership.Member {
	return r.server.Server.Cluster().Member(r.server.Server.MemberID())
}

func (r *running) id() uint64  { return uint64(r.server.Server.MemberID()) }
func (r *running) leads() bool { return r.server.Server.Leader() == r.server.Server.MemberID() }

// handOver gives leadership to another voter when this member has it and there is one, within the limits of ctx.
func (r *running) handOver(ctx context.Context) error {
	if r.isOver() || !r.leads() {
		return nil
	}
	done := make(chan error, 1)
	go func() { done <- r.server.Server.TryTransferLeadershipOnShutdown() }() // gives up by itself after 7 s
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("hand etcd's leadership over: %w", err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("hand etcd's leadership over: %w", context.Cause(ctx))
	}
}

// close ends the member. It returns when its data is closed and its ports are free, or reports false after the limit.
func (r *running) close(limit time.Duration) bool {
	r.closeOnce.Do(func() {
		r.closing.Store(true)
		r.tunnels.close()
		go func() { // ends when etcd has, which a member whose goroutines have failed may never do
			defer close(r.closed)
			r.server.Server.HardStop() // first, because closing the listeners waits for streams, for up to 7 s
			r.server.Close()
		}()
	})
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-r.closed:
		return true
	case <-timer.C:
		return false
	}
}

// settings returns what all starts of the member have in common.
func (m *Member) settings() (*embed.Config, error) {
	c := embed.NewConfig()
	client := url.URL{Scheme: "http", Host: m.cfg.ClientListen}
	peer, err := url.Parse(m.cfg.PeerURL)
	if err != nil || peer.Scheme != "https" || peer.Host == "" {
		return nil, fmt.Errorf("embedded etcd: %q is no https://host:port", m.cfg.PeerURL)
	}
	c.Name, c.Dir = m.cfg.Name, m.cfg.Dir
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	c.AdvertisePeerUrls = []url.URL{*peer}
	c.QuotaBackendBytes, c.MaxLearners, c.UnsafeNoFsync = quotaBytes, maxLearners, m.noFsync
	// etcd's JSON gateway would let any web page that is opened on this host write keys: it asks for no password, takes
	// any Host, and allows every origin. Nobody needs it: etcdctl and this process speak gRPC.
	c.EnableGRPCGateway, c.CORS = false, map[string]struct{}{}
	c.HostWhitelist = map[string]struct{}{"127.0.0.1": {}, "::1": {}, "localhost": {}}
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModePeriodic, retention
	cert, key, ca := m.cfg.TLS()
	// A master's certificate names no address, because addresses change: both sides check that it is a master of this
	// fleet instead.
	c.PeerTLSInfo = transport.TLSInfo{
		CertFile: cert, KeyFile: key, TrustedCAFile: ca, ClientCertAuth: true, SkipClientSANVerify: true, ServerName: ServerName,
	}
	c.TlsMinVersion = "TLS1.3"
	if err := portFree(m.cfg.ClientListen); err != nil {
		return nil, taken(m.cfg.ClientListen, err, "--etcd-client-listen")
	}
	listen, err := bindable(m.cfg.PeerListen)
	if err != nil {
		return nil, taken(m.cfg.PeerListen, err, "--etcd-peer-listen")
	}
	c.ListenPeerUrls = []url.URL{{Scheme: "https", Host: listen}}
	return c, nil
}

func taken(address string, err error, flag string) error {
	return fmt.Errorf("embedded etcd cannot listen on %s: %w; choose another address with %s, or use a running etcd with --etcd", address, err, flag)
}

// portFree tries the address, because etcd's own error names no flag.
func portFree(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) {
			return op.Err
		}
		return err
	}
	return l.Close()
}

// bindable returns a listen address as etcd takes it, which wants an IP address: an empty host becomes the widest
// address that this machine can listen on.
func bindable(address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", err
	}
	if host != "" {
		resolved, err := net.ResolveTCPAddr("tcp", address)
		if err != nil {
			return "", err
		}
		return resolved.String(), portFree(resolved.String())
	}
	every := net.JoinHostPort("::", port)
	if err = portFree(every); err == nil {
		return every, nil
	}
	every = net.JoinHostPort("0.0.0.0", port)
	if portFree(every) == nil {
		return every, nil
	}
	return "", err
}
