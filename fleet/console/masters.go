package console

import (
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/trust"
)

// MasterStatus is one master of the fleet. What only the master itself knows (lease age, clients, store) is there for
// the answering master and for those that it could ask: Store is not nil then.
type MasterStatus struct {
	Name       string            `json:"name"`
	Instance   string            `json:"instance"` // of its data directory; "" while unknown
	State      string            `json:"state"`    // starting, serving, draining, lost or unknown
	Self       bool              `json:"self"`     // the answering master
	Version    string            `json:"version"`
	Addresses  Addresses         `json:"addresses"`
	StartedAt  time.Time         `json:"started_at,omitzero"`
	LostSince  time.Time         `json:"lost_since,omitzero"` // when its lease was seen to be gone; zero: it lives, or the time is unknown
	LeaseAgeMS int64             `json:"lease_age_ms"`        // since the last confirmed renewal; -1: no lease, or unknown
	LeaseTTLMS int64             `json:"lease_ttl_ms"`
	EtcdRole   string            `json:"etcd_role"` // of its embedded etcd: leader, voter, learner or client; "": external etcd, or unknown
	Leads      int               `json:"leads"`     // shards that it leads
	Serves     map[string]uint64 `json:"serves"`    // shard to generation
	Lag        map[string]uint64 `json:"lag"`       // shard to generations behind the head; what is in step is not in it
	Sources    []string          `json:"sources"`
	Clients    int               `json:"clients"` // open NFS connections
	Slots      int               `json:"slots"`   // slaves that it takes before others are fuller; 0: unknown
	Slaves     int               `json:"slaves"`  // that have it as their home
	Readers    int               `json:"readers"` // slaves that read from it now
	Away       int               `json:"away"`    // of those: that have another home
	Store      *StoreStatus      `json:"store,omitempty"`
	// Heard are slaves that read from it, those away first, MaxShown at the most: there in the answer to Self alone.
	Heard []SlaveStatus `json:"heard,omitempty"`
}

// DrainRequest says how to drain a master.
type DrainRequest struct {
	Force bool `json:"force,omitempty"` // also the last one that slaves can read from
}

// The states of a master that an operator sees.
const (
	MasterStarting = "starting"
	MasterServing  = "serving"
	MasterDraining = "draining"
	MasterLost     = "lost"    // it has joined the fleet and holds no lease
	MasterUnknown  = "unknown" // it does not answer, and etcd does not say whether it lives
)

// Addresses are where a master is reached, as host:port.
type Addresses struct {
	NFS  string `json:"nfs"`
	HTTP string `json:"http"` // plain HTTP, usually for its own machine alone
	Peer string `json:"peer"` // TLS under the fleet's CA: other masters, and whoever has a token
}

// StoreStatus is a master's store, sizes in bytes.
type StoreStatus struct {
	Objects    int64 `json:"objects"`
	Bytes      int64 `json:"bytes"` // of the objects
	Disk       int64 `json:"disk"`  // taken on disk
	Free       int64 `json:"free"`  // left on that file system
	Packs      int   `json:"packs"`
	LargeFiles int   `json:"large_files"`
}

// TokenKind is what a token lets its bearer do.
type TokenKind = trust.Kind

// The kinds of token.
const (
	TokenJoin    = trust.Join    // become a master, once
	TokenPublish = trust.Publish // publish and roll back some shards, until it expires
)

// TokenRequest says what token to make.
type TokenRequest struct {
	Kind   TokenKind      `json:"kind"`
	Shards []string       `json:"shards,omitempty"` // that a publish token is for: one at the least
	TTL    fleet.Duration `json:"ttl,omitempty"`    // 0: DefaultTokenTTL; at most MaxTokenTTL
	Note   string         `json:"note,omitempty"`   // for the list of tokens
}

// How long tokens last.
const (
	DefaultTokenTTL = time.Hour
	MaxTokenTTL     = fleet.MaxTokenLife
)

// TokenMade is a token as its maker gets it, once.
type TokenMade struct {
	Token
	Text string `json:"token"` // the secret: what `serve --join` and `publish --token` take
}

// Token is what the fleet knows of a token. Its secret is not there.
type Token struct {
	ID        string    `json:"id"`
	Kind      TokenKind `json:"kind"`
	Shards    []string  `json:"shards"`
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at"`
	By        string    `json:"by"` // who made it, as Caller.String has it
	Note      string    `json:"note,omitempty"`
}

// RecoverShardRequest says how to recover a shard whose head nobody holds.
type RecoverShardRequest struct {
	AcceptLoss bool `json:"accept_loss,omitempty"` // false: report what would be lost, and change nothing
}

// RecoverShardReport is what the recovery of a shard did, or would have done.
type RecoverShardReport struct {
	Shard       string    `json:"shard"`
	Was         uint64    `json:"was"`                   // the head that is lost
	Tree        uint64    `json:"tree"`                  // the generation whose tree takes its place; 0: none is whole anywhere
	PublishedAt time.Time `json:"published_at,omitzero"` // of that generation
	Master      string    `json:"master"`                // a master that holds it
	Generation  uint64    `json:"generation"`            // the head now; 0: nothing was changed
	Warnings    []string  `json:"warnings"`
}
