package exporter

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/nfs-fleet/nfs-fleet/exporter/export"
	"github.com/nfs-fleet/nfs-fleet/exporter/mount3"
	"github.com/nfs-fleet/nfs-fleet/exporter/nfs3"
	"github.com/nfs-fleet/nfs-fleet/exporter/portmap"
	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
)

// The vocabulary of the packages below, as a master uses it.
type (
	Export   = export.Export   // a volume, its name and its rules
	Rules    = export.Rules    // who may read it and as whom
	Squash   = export.Squash   // whose user ids are not believed
	Mount    = mount3.Mount    // who has mounted what
	Mounts   = mount3.Mounts   // keeps account of mounts
	Gate     = rpc.Gate        // holds new connections back
	Observer = rpc.Observer    // is told what was answered
	Stats    = rpc.Stats       // connections, calls and bytes
	Service  = portmap.Service // what port 111 tells of
)

// The ways to squash; the zero value is SquashRoot.
const (
	SquashRoot = export.SquashRoot
	SquashNone = export.SquashNone
	SquashAll  = export.SquashAll
)

// Config is what a Server needs. Everything may be left zero.
type Config struct {
	Logger  zerolog.Logger
	Gate    Gate     // nil: connections are served at once
	Mounts  Mounts   // nil: mounts are not kept
	Observe Observer // may be nil
	// Elsewhere reports whether another master is in step: a client that cannot be answered here in time is then sent
	// away by closing its connection, instead of being told to come again. nil: there is none.
	Elsewhere func() bool
	// Programs are answered on the same port besides NFS and MOUNT.
	Programs []rpc.Program

	MaxConns    int           // open connections; 0: 1024
	MaxRecord   int           // bytes of a call; 0: 128 KiB, twice the WRITE that clients are told to send at most
	MaxInFlight int           // calls of one connection that wait for the disk or a generation; 0: 64
	Readers     int           // reads of all connections that wait for the disk at once; 0: 64
	Idle        time.Duration // after which a silent connection is closed; 0: 10 minutes
}

// Server serves exports. Safe for concurrent use.
type Server struct {
	log     zerolog.Logger
	exports atomic.Pointer[export.Table]
	reads   *reads      // NFS
	stream  *rpc.Server // NFS, MOUNT and Config.Programs
	packet  *rpc.Server // MOUNT over UDP
}

// New returns a server that exports nothing yet.
func New(c Config) *Server {
	// Anybody may connect and begin a call: what is kept of it counts a thousand times.
	c.MaxRecord = cmp.Or(c.MaxRecord, 128<<10)
	s := &Server{log: c.Logger}
	s.SetExports(nil)
	s.reads = new(reads)
	s.reads.Program = nfs3.New(nfs3.Config{Exports: s.exports.Load, Elsewhere: c.Elsewhere, Log: c.Logger, Readers: c.Readers,
		Waits: s.reads.wait})
	mounts := mount3.New(mount3.Config{Exports: s.exports.Load, Mounts: c.Mounts, Log: c.Logger})
	s.stream = rpc.New(rpc.Config{Programs: append([]rpc.Program{s.reads, mounts}, c.Programs...), Log: c.Logger, Gate: c.Gate,
		Observer: c.Observe, MaxConns: c.MaxConns, MaxRecord: c.MaxRecord, MaxInFlight: c.MaxInFlight, IdleTimeout: c.Idle})
	s.packet = rpc.New(rpc.Config{Programs: []rpc.Program{mounts}, Log: c.Logger})
	return s
}

// SetExports replaces what is exported, at once and for connections that are open too.
func (s *Server) SetExports(e []Export) { s.exports.Store(export.NewTable(e)) }

// Serve answers NFS and MOUNT on l until ctx ends or Drain is called, and closes l. Replies in flight are finished, within
// 3 s, before connections are closed. The error is nil unless l failed.
func (s *Server) Serve(ctx context.Context, l net.Listener) error { return s.stream.Serve(ctx, l) }

// ServeMount answers MOUNT over UDP, for the few clients that ask so, until ctx ends, and closes pc.
func (s *Server) ServeMount(ctx context.Context, pc net.PacketConn) error {
	return s.packet.ServePacket(ctx, pc)
}

// ServePortmap answers for port 111 on tcp and udp, either of which may be nil, telling of services and of itself, until
// ctx ends, and closes both.
func (s *Server) ServePortmap(ctx context.Context, tcp net.Listener, udp net.PacketConn, services ...Service) error {
	var own []Service
	for version := uint32(portmap.LowVersion); version <= portmap.Version; version++ {
		if tcp != nil {
			own = append(own, service(portmap.Number, version, tcp.Addr()))
		}
		if udp != nil {
			own = append(own, service(portmap.Number, version, udp.LocalAddr()))
		}
	}
	server := rpc.New(rpc.Config{Programs: []rpc.Program{portmap.New(append(own, services...))}, Log: s.log,
		MaxConns: 256, MaxRecord: 16 << 10, IdleTimeout: time.Minute})
	g, ctx := errgroup.WithContext(ctx)
	if tcp != nil {
		g.Go(func() error { return server.Serve(ctx, tcp) })
	}
	if udp != nil {
		g.Go(func() error { return server.ServePacket(ctx, udp) })
	}
	return g.Wait()
}

// Services returns what port 111, or the host's rpcbind, is to be told of: NFS and MOUNT at the address of a Serve, and
// MOUNT at that of a ServeMount unless it is nil.
func Services(tcp, udp net.Addr) []Service {
	all := []Service{service(nfs3.Number, nfs3.Version, tcp)}
	for version := uint32(mount3.LowVersion); version <= mount3.Version; version++ {
		all = append(all, service(mount3.Number, version, tcp))
		if udp != nil {
			all = append(all, service(mount3.Number, version, udp))
		}
	}
	return all
}

func service(program, version uint32, a net.Addr) Service {
	s := Service{Program: program, Version: version, Network: a.Network()}
	s.Addr, _ = netip.ParseAddrPort(a.String())
	return s
}

// Drain stops serving: no new connection is accepted, replies in flight are finished, connections are closed. When ctx ends
// first the connections are closed under their calls, and ctx's error is returned. Serve can be called again afterwards.
func (s *Server) Drain(ctx context.Context) error { return s.stream.Drain(ctx) }

// Disconnect closes the connections that match names by the client's address and the time when they were accepted, those
// that wait at the gate too: nothing more is read from them, replies in flight are finished within 3 s or until ctx ends.
// It returns how many there were, when all of them are closed. New connections come in as before: it is the Gate that
// keeps them out. match must not block.
func (s *Server) Disconnect(ctx context.Context, match func(client netip.AddrPort, accepted time.Time) bool) int {
	return s.stream.Disconnect(ctx, match)
}

// Stats returns the present figures of NFS and MOUNT over TCP.
func (s *Server) Stats() Stats { return s.stream.Stats() }
