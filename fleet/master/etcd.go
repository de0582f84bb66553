package master

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
)

const (
	etcdQuota     = 1 << 30 // bytes; a fleet of 500 shards with full history needs less than a fifth
	etcdRetention = "10m"   // of old revisions
)

// embeddedEtcd is an etcd that runs inside this process.
type embeddedEtcd struct {
	server  *embed.Etcd
	lock    *os.File
	log     zerolog.Logger
	closing atomic.Bool
	failure chan error // what etcd took for the end of its process
}

// OnWrite is called when etcd logs what it takes for the end of its process: a full disk, an I/O error. It must not be
// the end of ours, which serves readers: etcd's goroutine ends instead, and etcd counts as away from then on.
func (e *embeddedEtcd) OnWrite(entry *zapcore.CheckedEntry, fields []zapcore.Field) {
	select {
	case e.failure <- fmt.Errorf("embedded etcd has failed: %s %v: make room or mend the disk, then restart nfs-fleet", entry.Message, flatten(fields)):
	default: // one failure is enough
	}
	runtime.Goexit()
}

// errEtcdStart is wrapped by what keeps an etcd from starting although nothing is wrong with the settings.
var errEtcdStart = errors.New("embedded etcd does not start")

// startEtcd starts a one-member etcd in dir. It returns when the member is ready to serve.
func startEtcd(ctx context.Context, name, dir, clientListen, peerListen string, log zerolog.Logger) (*embeddedEtcd, error) {
	e := &embeddedEtcd{log: log, failure: make(chan error, 1)}
	c := embed.NewConfig()
	client, peer := httpURL(clientListen), httpURL(peerListen)
	c.Name, c.Dir = name, dir
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	c.InitialCluster = c.InitialClusterFromName(name)
	c.QuotaBackendBytes = etcdQuota
	// etcd's JSON gateway would let any web page that is opened on this host write keys: it asks for no password, takes
	// any Host, and allows every origin. Nobody needs it: etcdctl and this process speak gRPC.
	c.EnableGRPCGateway, c.CORS = false, map[string]struct{}{}
	c.HostWhitelist = map[string]struct{}{"127.0.0.1": {}, "::1": {}, "localhost": {}}
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModePeriodic, etcdRetention
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(zapCore{log, &e.closing}, zap.WithFatalHook(e), zap.WithPanicHook(e)))
	for flag, address := range map[string]string{"--etcd-client-listen": clientListen, "--etcd-peer-listen": peerListen} {
		if err := portFree(address); err != nil {
			return nil, fmt.Errorf("embedded etcd cannot listen on %s: %w; choose another address with %s, or use a running etcd with --etcd", address, err, flag)
		}
	}
	if err := e.lockDir(dir); err != nil {
		return nil, err
	}
	if err := e.launch(ctx, c); err != nil {
		e.close()
		return nil, fmt.Errorf("%w in %s: %w", errEtcdStart, dir, err)
	}
	return e, nil
}

// lockDir keeps other masters off the directory: etcd itself would wait for it, saying nothing.
func (e *embeddedEtcd) lockDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return fmt.Errorf("embedded etcd: %w; choose another directory with --etcd-data-dir", err)
	}
	lock, err := lockFile(dir + ".lock")
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("embedded etcd: %s is used by another nfs-fleet that runs: stop it, or choose another directory with --etcd-data-dir", dir)
	}
	if err != nil {
		return fmt.Errorf("embedded etcd: %w; choose another directory with --etcd-data-dir", err)
	}
	e.lock = lock
	return nil
}

// launch returns when the member is ready to serve. A start that ctx ended is left to the end of the process.
func (e *embeddedEtcd) launch(ctx context.Context, c *embed.Config) error {
	type start struct {
		server *embed.Etcd
		err    error
	}
	started := make(chan start, 1)
	go func() {
		result := start{err: errors.New("it gave up")} // unless it returns
		defer func() {
			if p := recover(); p != nil { // as it does on a damaged file
				result.err = fmt.Errorf("%v", p)
			}
			started <- result
		}()
		result.server, result.err = embed.StartEtcd(c)
	}()
	select {
	case s := <-started:
		if s.err != nil {
			return s.err
		}
		e.server = s.server
	case err := <-e.failure: // in a goroutine of its own, which StartEtcd goes on waiting for
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case <-e.server.Server.ReadyNotify():
		return nil
	case err := <-e.failure:
		return err
	case err := <-e.server.Err():
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// run keeps the server within its quota until ctx ends, and then closes it. When etcd fails it says so to failed, and
// waits for the end: readers are served without etcd too.
func (e *embeddedEtcd) run(ctx context.Context, client *clientv3.Client, failed func(error)) error {
	defer e.close()
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-e.failure:
			failed(err)
			<-ctx.Done()
			return nil
		case err := <-e.server.Err():
			failed(fmt.Errorf("embedded etcd has failed: %w: restart nfs-fleet", err))
			<-ctx.Done()
			return nil
		case <-tick.C:
			if err := e.reclaim(ctx, client); err != nil && ctx.Err() == nil {
				e.log.Warn().Err(err).Msg("embedded etcd: reclaiming space failed; trying again in a minute")
			}
		}
	}
}

func (e *embeddedEtcd) close() {
	e.closing.Store(true)
	if e.server != nil {
		e.server.Close()
	}
	e.lock.Close()
}

// reclaim compacts and defragments when etcd has raised NOSPACE or most of its file is free, and lifts the alarm.
func (e *embeddedEtcd) reclaim(ctx context.Context, client *clientv3.Client) error {
	alarms, err := client.AlarmList(ctx)
	if err != nil {
		return err
	}
	endpoint := client.Endpoints()[0]
	st, err := client.Status(ctx, endpoint)
	if err != nil {
		return err
	}
	full := false
	for _, a := range alarms.Alarms {
		full = full || a.Alarm == etcdserverpb.AlarmType_NOSPACE
	}
	if !full && (st.DbSize < 64<<20 || st.DbSizeInUse > st.DbSize/2) {
		return nil
	}
	if full {
		if _, err := client.Compact(ctx, st.Header.Revision); err != nil {
			return fmt.Errorf("compact: %w", err)
		}
	}
	if _, err := client.Defragment(ctx, endpoint); err != nil {
		return fmt.Errorf("defragment: %w", err)
	}
	if full {
		if _, err := client.AlarmDisarm(ctx, &clientv3.AlarmMember{}); err != nil {
			return fmt.Errorf("disarm: %w", err)
		}
	}
	e.log.Info().Bool("nospace", full).Int64("db_bytes", st.DbSize).Msg("embedded etcd: space reclaimed")
	return nil
}

func httpURL(address string) url.URL { return url.URL{Scheme: "http", Host: address} }

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
