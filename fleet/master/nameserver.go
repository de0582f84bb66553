package master

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet/console"
	"github.com/nfs-fleet/nfs-fleet/fleet/dns"
)

// dnsRetry is the time between two attempts at a port that is taken.
const dnsRetry = 10 * time.Second

// dnsSockets are where DNS questions come in.
type dnsSockets struct {
	udp *net.UDPConn
	tcp net.Listener
}

// listenDNS opens them; nil means off, or, with an error that is no reason not to start, not yet: the default port is also
// that of multicast DNS, so that on many machines avahi-daemon has it, and a fleet has DNS as long as one master has.
func listenDNS(address string) (s *dnsSockets, later, err error) {
	if address == DNSOff {
		return nil, nil, nil
	}
	udp, tcp, err := dns.Listen(context.Background(), address)
	switch {
	case err == nil:
		return &dnsSockets{udp, tcp}, nil, nil
	case address == defaultDNS && errors.Is(err, syscall.EADDRINUSE):
		return nil, explain("--listen-dns", address, err), nil
	}
	return nil, nil, explain("--listen-dns", address, err)
}

func (s *dnsSockets) close() {
	if s != nil {
		_, _ = s.udp.Close(), s.tcp.Close()
	}
}

// nameserver is this master's DNS.
type nameserver struct {
	address string      // where it answers; "": nowhere
	problem error       // why it does not answer
	server  *dns.Server // nil: it has never answered
}

// runDNS answers DNS questions until ctx ends. A port that is taken is waited for.
func (m *Master) runDNS(ctx context.Context, sockets *dnsSockets, problem error) error {
	for {
		if sockets != nil {
			server := dns.NewServer(dns.Config{Zone: m.zone, Logger: m.log})
			m.dns.Store(&nameserver{address: sockets.udp.LocalAddr().String(), server: server})
			if problem = server.Serve(ctx, sockets.udp, sockets.tcp); ctx.Err() != nil {
				return nil
			}
		}
		m.dns.Store(&nameserver{problem: problem})
		if m.warnOnce("dns " + problem.Error()) {
			m.log.Warn().Err(problem).Msg("this master answers no DNS questions; trying again")
		}
		timer := time.NewTimer(dnsRetry)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		var err error
		if sockets, problem, err = listenDNS(m.cfg.Listen.DNS); err != nil {
			problem = err
		}
		if sockets != nil {
			m.log.Info().Str("dns", sockets.udp.LocalAddr().String()).Msg("this master answers DNS questions now")
		}
	}
}

// zone is what DNS questions are answered from.
func (m *Master) zone() *dns.Zone {
	if g := m.guide.Load(); g != nil {
		return g.zone
	}
	return nil
}

// dnsStatus says how this master answers DNS questions.
func (c control) dnsStatus() console.DNSStatus {
	var st console.DNSStatus
	if g := c.guide.Load(); g != nil {
		st.Domain = g.domain
	}
	if n := c.dns.Load(); n != nil {
		st.Address = n.address
		if n.problem != nil {
			st.Error = n.problem.Error()
		}
	}
	return st
}

func (c control) dnsWarnings(p picture, st console.DNSStatus) []string {
	var out []string
	if st.Error != "" {
		out = append(out, "this master answers no DNS questions: "+st.Error)
	}
	if domain, others := domainOf(c.cfg.Domain, p.view.Masters); len(others) > 0 {
		out = append(out, fmt.Sprintf("this master answers DNS questions for %s, and others are set to %s: give all masters one --domain", domain, strings.Join(others, ", ")))
	}
	return out
}
