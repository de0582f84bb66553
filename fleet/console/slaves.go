package console

import (
	"context"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
)

// SlaveStatus is one slave: what the fleet wants of it, and what the master says that hears of it.
type SlaveStatus struct {
	Name       string         `json:"name"`
	Master     string         `json:"master"`         // that it is to read from: its home; "": none yet
	Reads      string         `json:"reads"`          // the master that it reads from; "": nobody hears of it now
	Fallbacks  []string       `json:"fallbacks"`      // where it goes when its home is lost, in this order
	Since      time.Time      `json:"since,omitzero"` // since when Master is its home
	Mode       string         `json:"mode"`           // relay, direct or mount, as fleet.SlaveMode
	Address    netip.Addr     `json:"address"`        // where it was last seen
	Instance   string         `json:"instance"`       // of its machine, made anew at each start; "": it has no agent
	Version    string         `json:"version"`        // of its agent
	EnrolledAt time.Time      `json:"enrolled_at,omitzero"`
	SeenAt     time.Time      `json:"seen_at,omitzero"` // when it was last heard of; while Reads is "" by a master that lives, else to some hours
	Mounts     []SlaveMount   `json:"mounts"`           // as it says; none while Reads is ""
	MoreMounts int            `json:"more_mounts"`      // that it has not named
	Last       *SlaveReattach `json:"last_reattach,omitempty"`
}

// Away reports whether a slave reads from another master than its home.
func (s SlaveStatus) Away() bool { return s.Reads != "" && s.Reads != s.Master }

// SlaveMount is one mount of a slave.
type SlaveMount struct {
	Name  string `json:"name"` // what it was mounted by: a SRV name, or a path
	Shard string `json:"shard"`
	Dir   string `json:"dir"` // where on the slave; "": unknown
}

// SlaveReattach is how a slave went from one master to another.
type SlaveReattach struct {
	At     time.Time `json:"at"`
	TookMS int64     `json:"took_ms"` // from the loss being noticed to the first answer from To
	From   string    `json:"from"`
	To     string    `json:"to"`
	Why    string    `json:"why"`
}

// SlavesStatus is the slaves in a Status: numbers, and not all of them when they are many.
type SlavesStatus struct {
	Total    int           `json:"total"`    // that the fleet knows
	Heard    int           `json:"heard"`    // of which a master hears now
	Away     int           `json:"away"`     // of those: that read from another master than their home
	Homeless int           `json:"homeless"` // that have no home
	Shown    []SlaveStatus `json:"shown"`    // all, when they are MaxShown or fewer; otherwise as many of those away and homeless
}

// MaxShown is the most slaves that a Status shows one by one.
const MaxShown = 50

// SlaveMove is a slave that gets another home.
type SlaveMove struct {
	Slave string `json:"slave"`
	From  string `json:"from"`
	To    string `json:"to"`
}

// RebalanceRequest says how to rebalance.
type RebalanceRequest struct {
	DryRun bool `json:"dry_run,omitempty"` // report who would move, and move nobody
}

func (s SlaveStatus) whole() SlaveStatus {
	s.Fallbacks, s.Mounts = listed(s.Fallbacks), listed(s.Mounts)
	return s
}

// The endpoints of the slaves.

func (a *api) slaves(w http.ResponseWriter, r *http.Request) error {
	all, err := a.control.Slaves(r.Context())
	return answer(w, wholeAll(all), err)
}

func (a *api) heardSlaves(w http.ResponseWriter, r *http.Request) error {
	all, err := a.control.HeardSlaves(r.Context())
	return answer(w, wholeAll(all), err)
}

func (a *api) showSlave(w http.ResponseWriter, r *http.Request) error {
	name, err := slaveOf(r)
	if err != nil {
		return err
	}
	s, err := a.control.Slave(r.Context(), name)
	return answer(w, s.whole(), err)
}

func (a *api) moveSlave(w http.ResponseWriter, r *http.Request) error {
	name, err := slaveOf(r)
	if err != nil {
		return err
	}
	var to leadership
	if err := readBody(w, r, &to); err != nil {
		return err
	}
	if err := fleet.ValidName(to.Master); err != nil {
		return Errorf(ErrInvalid, "master %w", err)
	}
	ctx, cancel := a.detached(r)
	defer cancel()
	return answer(w, empty{}, a.control.MoveSlave(ctx, name, to.Master))
}

func (a *api) forgetSlave(w http.ResponseWriter, r *http.Request) error {
	name, err := slaveOf(r)
	if err != nil {
		return err
	}
	ctx, cancel := a.detached(r)
	defer cancel()
	return answer(w, empty{}, a.control.ForgetSlave(ctx, name))
}

func (a *api) rebalance(w http.ResponseWriter, r *http.Request) error {
	var req RebalanceRequest
	if err := readBody(w, r, &req); err != nil {
		return err
	}
	ctx, cancel := a.detached(r)
	defer cancel()
	moves, err := a.control.Rebalance(ctx, req)
	return answer(w, listed(moves), err)
}

func slaveOf(r *http.Request) (string, error) {
	name := r.PathValue("slave")
	return name, validSlave(name)
}

func validSlave(name string) error {
	if err := fleet.ValidSlaveName(name); err != nil {
		return Errorf(ErrInvalid, "slave %w", err)
	}
	return nil
}

// Slaves is Control.Slaves.
func (c *Client) Slaves(ctx context.Context) ([]SlaveStatus, error) {
	return call[[]SlaveStatus](ctx, c, request{path: "/v1/slaves"})
}

// HeardSlaves is Control.HeardSlaves.
func (c *Client) HeardSlaves(ctx context.Context) ([]SlaveStatus, error) {
	return call[[]SlaveStatus](ctx, c, request{path: "/v1/self/slaves"})
}

// Slave is Control.Slave.
func (c *Client) Slave(ctx context.Context, name string) (SlaveStatus, error) {
	return callSlave[SlaveStatus](ctx, c, name, request{})
}

// MoveSlave is Control.MoveSlave.
func (c *Client) MoveSlave(ctx context.Context, name, master string) error {
	_, err := callSlave[empty](ctx, c, name, request{method: http.MethodPost, path: "/move", body: leadership{master}})
	return err
}

// ForgetSlave is Control.ForgetSlave.
func (c *Client) ForgetSlave(ctx context.Context, name string) error {
	_, err := callSlave[empty](ctx, c, name, request{method: http.MethodDelete})
	return err
}

// Rebalance is Control.Rebalance.
func (c *Client) Rebalance(ctx context.Context, r RebalanceRequest) ([]SlaveMove, error) {
	return call[[]SlaveMove](ctx, c, request{method: http.MethodPost, path: "/v1/rebalance", body: r})
}

// callSlave calls what is below a slave.
func callSlave[T any](ctx context.Context, c *Client, name string, r request) (out T, err error) {
	if err := validSlave(name); err != nil {
		return out, err
	}
	r.path = "/v1/slaves/" + url.PathEscape(name) + r.path
	return call[T](ctx, c, r)
}
