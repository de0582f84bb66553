package master

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/fleet/etcd"
	"github.com/nfs-fleet/nfs-fleet/fleet/trust"
)

const (
	peerHeaderTimeout = 5 * time.Second
	peerIdleTimeout   = 2 * time.Minute
	peerStopTimeout   = time.Second
)

// servePeers answers other masters, joining ones, and whoever has a token, until ctx ends.
func (m *Master) servePeers(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle(peerPrefix, m.fromMasters(m.peerHandler()))
	mux.Handle("POST "+pathJoin, m.joinHandler())
	mux.Handle("/", m.remoteConsole())
	h := &http.Server{
		Handler: mux, BaseContext: func(net.Listener) context.Context { return m.base },
		ReadHeaderTimeout: peerHeaderTimeout, IdleTimeout: peerIdleTimeout, MaxHeaderBytes: 64 << 10,
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){etcd.Protocol: m.serveTunnel},
		ErrorLog:     log.New(debugWriter{m.log}, "", 0),
	}
	secure := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return m.credentials.Load().ServerTLS(etcd.Protocol), nil // they may have changed
	}}
	ended := make(chan error, 1)
	go func() { ended <- h.Serve(tls.NewListener(l, secure)) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve peers on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), peerStopTimeout)
	defer cancel()
	if h.Shutdown(stop) != nil {
		h.Close() // whoever is still there is cut off
	}
	m.links.close()
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// serveTunnel connects another master to the etcd in this process.
func (m *Master) serveTunnel(_ *http.Server, conn *tls.Conn, _ http.Handler) {
	state := conn.ConnectionState()
	name, instance, ok := trust.Caller(&state)
	if err := m.notRemoved(name, instance); !ok || err != nil || m.member == nil {
		m.refused(err, conn.RemoteAddr().String(), name)
		conn.Close()
		return
	}
	m.member.ServeTunnel(m.base, conn)
}

// debugWriter takes what net/http has to complain about: clients that misbehave.
type debugWriter struct{ log zerolog.Logger }

func (w debugWriter) Write(p []byte) (int, error) {
	w.log.Debug().Str("part", "peers").Msg(strings.TrimSpace(string(p)))
	return len(p), nil
}
