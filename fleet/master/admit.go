package master

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/trust"
)

const (
	maxJoinBody  = 64 << 10
	maxJoins     = 4    // looked at at a time
	joinFailures = 5    // wrong tokens a second, of one address
	joinSuspects = 4096 // addresses that are remembered
)

// refusal is an answer to a request to join that is no.
type refusal struct {
	status int // of HTTP
	text   string
}

func (r *refusal) Error() string { return r.text }

// final reports whether the same request gets the same answer later, and from other masters.
func (r *refusal) final() bool {
	return r.status >= 400 && r.status < 500 && r.status != http.StatusTooManyRequests && r.status != http.StatusNotFound
}

func refuse(status int, format string, args ...any) error {
	return &refusal{status, fmt.Sprintf(format, args...)}
}

// joinHandler lets machines that have a token become masters of the fleet.
func (m *Master) joinHandler() http.Handler {
	return &gatekeeper{Master: m, looking: make(chan struct{}, maxJoins), failures: map[netip.Addr]int{}}
}

// gatekeeper answers requests to join. The secret of a token has 160 bits: what it slows down is not guessing, but the
// work that guessing makes.
type gatekeeper struct {
	*Master
	looking chan struct{} // holds one for each request that is looked at

	mu       sync.Mutex         // guards what follows
	failures map[netip.Addr]int // by address, since then
	since    time.Time
}

// ServeHTTP implements http.Handler.
func (g *gatekeeper) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	deadline := time.Now().Add(joinLimit)
	err := errors.Join(control.SetReadDeadline(deadline), control.SetWriteDeadline(deadline))
	ctx, cancel := context.WithDeadline(r.Context(), deadline)
	defer cancel()
	var answer joinAnswer
	if err == nil {
		answer, err = g.answer(ctx, http.MaxBytesReader(w, r.Body, maxJoinBody), r.RemoteAddr)
	}
	var body []byte
	if err == nil {
		body, err = json.Marshal(answer)
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Connection", "close")
	if err == nil {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(body) // who is not there any more asks again
		return
	}
	var no *refusal
	if !errors.As(err, &no) {
		no = &refusal{http.StatusServiceUnavailable, err.Error()}
	}
	g.log.Warn().Str("client", r.RemoteAddr).Int("status", no.status).Str("why", no.text).Msg("a request to join was refused")
	http.Error(w, no.text, no.status)
}

func (g *gatekeeper) answer(ctx context.Context, body io.Reader, client string) (joinAnswer, error) {
	if g.member == nil {
		return joinAnswer{}, refuse(http.StatusConflict, "the etcd of this fleet runs outside of its masters: start the new one with the same --etcd as the others, without --join")
	}
	from := sender(client)
	if g.suspect(from) {
		return joinAnswer{}, refuse(http.StatusTooManyRequests, "too many wrong tokens from %s: wait a second", from)
	}
	var r joinRequest
	if err := json.NewDecoder(body).Decode(&r); err != nil {
		return joinAnswer{}, refuse(http.StatusBadRequest, "not a request to join: %v", err)
	}
	if err := r.validate(); err != nil {
		return joinAnswer{}, refuse(http.StatusBadRequest, "%v", err)
	}
	select {
	case g.looking <- struct{}{}:
		defer func() { <-g.looking }()
	case <-ctx.Done():
		return joinAnswer{}, refuse(http.StatusServiceUnavailable, "too many masters are joining: try again")
	}
	answer, err := g.admit(ctx, r)
	var no *refusal
	if errors.As(err, &no) && no.status == http.StatusForbidden {
		g.failed(from)
	}
	if err != nil {
		return answer, err
	}
	g.log.Info().Str("peer", r.Name).Str("instance", r.Instance).Str("token", r.Token).Str("version", r.Version).Bool("member", answer.Member).
		Str("client", net.JoinHostPort(from.String(), r.Peer)).Msg("master joins")
	return answer, nil
}

func (r joinRequest) validate() error {
	err := errors.Join(fleet.ValidName(r.Name), fleet.ValidInstance(r.Instance))
	if r.Was != "" {
		err = errors.Join(err, fleet.ValidInstance(r.Was))
	}
	if _, e := netip.ParseAddrPort("127.0.0.1:" + r.Peer); e != nil {
		err = errors.Join(err, fmt.Errorf("port %.10q: not a port", r.Peer))
	}
	if len(r.Version) > 128 || len(r.Fleet) > 128 {
		err = errors.Join(err, errors.New("more text than there should be"))
	}
	return err
}

// admit looks the token and the fleet up, and takes note of who has used the token: that instance may ask again, because
// it may die before it has written the answer down.
func (g *gatekeeper) admit(ctx context.Context, r joinRequest) (joinAnswer, error) {
	unavailable := func(err error) error {
		return refuse(http.StatusServiceUnavailable, "the fleet's etcd does not answer, and nobody can join without it: %v", err)
	}
	if err := g.etcdProblem(); err != nil {
		return joinAnswer{}, unavailable(err)
	}
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	t, err := g.registry.Token(ctx, r.Token)
	switch {
	case errors.Is(err, fleet.ErrNotFound):
		return joinAnswer{}, errWrongToken
	case err != nil:
		return joinAnswer{}, unavailable(err)
	}
	if err := r.admitted(t, time.Now()); err != nil {
		return joinAnswer{}, err
	}
	v, err := g.registry.Load(ctx)
	if err != nil {
		return joinAnswer{}, unavailable(err)
	}
	member, err := r.fits(v)
	if err != nil {
		return joinAnswer{}, err
	}
	if !member {
		err = g.registry.UseToken(ctx, t, r.Instance)
		switch {
		case errors.Is(err, fleet.ErrConflict):
			return joinAnswer{}, refuse(http.StatusServiceUnavailable, "the token has just been used or revoked")
		case err != nil:
			return joinAnswer{}, unavailable(err)
		}
	}
	answer := joinAnswer{
		Identity: v.Identity, CA: string(g.credentials.Load().Authority().PEM()), Member: member,
		Masters: map[string]string{g.cfg.Name: net.JoinHostPort(g.address, g.peerPort)},
	}
	for name, other := range v.Masters {
		if other.Peer != "" && name != r.Name {
			answer.Masters[name] = other.Peer
		}
	}
	return answer, nil
}

var errWrongToken = refuse(http.StatusForbidden, "the token is unknown, was used up or revoked: make another with `nfs-fleet token create --join` on a master")

// admitted says why a token does not let somebody in.
func (r joinRequest) admitted(t fleet.TokenRecord, now time.Time) error {
	switch {
	case !trust.Matches(r.Secret, t.Hash):
		return errWrongToken
	case t.Kind != trust.Join:
		return refuse(http.StatusForbidden, "token %s is for publishing: make one for joining with `nfs-fleet token create --join` on a master", t.ID)
	case t.Expired(now):
		return refuse(http.StatusForbidden, "token %s expired at %s: make another with `nfs-fleet token create --join` on a master", t.ID, t.ExpiresAt.UTC().Format(time.RFC3339))
	case t.UsedBy != "" && t.UsedBy != r.Instance:
		return refuse(http.StatusForbidden, "token %s was used up: each makes one master; make another with `nfs-fleet token create --join` on a master", t.ID)
	}
	return nil
}

// fits says why a master cannot join the fleet as it is. member is true when its data directory is a master of it
// already: nothing is to be changed then.
func (r joinRequest) fits(v fleet.View) (member bool, err error) {
	entry, known := v.Roster[r.Name]
	living, alive := v.Masters[r.Name]
	_, gone := v.Removed[r.Instance]
	reads, version := oldestReader(v)
	switch {
	case v.Identity.ID == "":
		return false, refuse(http.StatusServiceUnavailable, "etcd holds no fleet yet, or has lost it: see `nfs-fleet status` on a master")
	case r.Fleet != "" && r.Fleet != v.Identity.ID:
		return false, refuse(http.StatusConflict, "the data directory belongs to another fleet (%s) than %s (%s), which the token is for: choose another with --data-dir",
			r.Fleet, v.Identity.Fleet, v.Identity.ID)
	case r.FleetName != "" && r.FleetName != v.Identity.Fleet:
		return false, refuse(http.StatusConflict, "the token is for fleet %q, not %.100q: leave --fleet out, or give the right one", v.Identity.Fleet, r.FleetName)
	case gone:
		return false, refuse(http.StatusConflict, "this master was removed from the fleet again: make another token with `nfs-fleet token create --join`")
	case r.Formats < reads:
		return false, refuse(http.StatusConflict, "the fleet's content may be of format %d, and nfs-fleet %.100s reads up to %d: install the masters' version, %s", reads, r.Version, r.Formats, version)
	case known && r.Was != "" && entry.Instance == r.Was:
		return true, nil
	case known && entry.Instance == r.Instance:
		return false, nil
	case alive && r.Was != "" && living.Instance == r.Was:
		return false, refuse(http.StatusServiceUnavailable, "the lease that this master held before has not run out yet")
	case alive:
		return false, refuse(http.StatusConflict, "a master called %s lives in this fleet: give the new one a name of its own with --name", r.Name)
	case known:
		return false, refuse(http.StatusConflict, "the fleet has a master called %s, which is lost: if it is gone for good, say so with `nfs-fleet master remove %s`; otherwise give the new one a name of its own with --name",
			r.Name, r.Name)
	}
	return false, nil
}

// oldestReader returns the highest object format that all living masters read, and a version that does not read more:
// no newer one is written before every master can read it.
func oldestReader(v fleet.View) (formats int, version string) {
	for _, m := range v.Masters {
		if version == "" || m.Formats < formats {
			formats, version = m.Formats, m.Version
		}
	}
	return formats, version
}

// sender is what wrong tokens are held against: an IPv6 host has its whole /64.
func sender(client string) netip.Addr {
	ap, err := netip.ParseAddrPort(client)
	if err != nil {
		return netip.Addr{}
	}
	return origin(ap.Addr())
}

// origin is what one host can have addresses of: an IPv6 host has its whole /64.
func origin(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if p, err := a.Prefix(64); err == nil && a.Is6() {
		return p.Addr()
	}
	return a
}

// suspect reports whether an address has sent too many wrong tokens within a second.
func (g *gatekeeper) suspect(from netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := time.Now(); now.Sub(g.since) >= time.Second || now.Before(g.since) {
		g.since = now
		clear(g.failures)
	}
	return g.failures[from] >= joinFailures
}

func (g *gatekeeper) failed(from netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.failures) < joinSuspects || g.failures[from] > 0 {
		g.failures[from]++
	}
}

// sweepTokens deletes the join tokens that have been used up: the coordinator calls it now and then. Those that expired
// are deleted by etcd itself, after a week in which whoever has one learns that it expired.
func (m *Master) sweepTokens(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	all, err := m.registry.Tokens(ctx)
	if err != nil {
		m.log.Debug().Err(err).Msg("tokens cannot be read now")
		return
	}
	m.mu.Lock()
	in := map[string]bool{}
	for _, entry := range m.view.Roster {
		in[entry.Instance] = true
	}
	for instance := range m.view.Removed {
		in[instance] = true
	}
	m.mu.Unlock()
	for _, t := range all {
		if !in[t.UsedBy] {
			continue
		}
		if err := m.registry.DeleteToken(ctx, t.ID); err != nil && !errors.Is(err, fleet.ErrNotFound) {
			m.log.Debug().Err(err).Str("token", t.ID).Msg("a token that was used up stays for now")
		}
	}
}
