// Package control is how the commands of a slave talk to its agent: JSON over HTTP on a unix socket that only root, and
// whoever runs the agent, can use.
//
//	POST /v1/routes   Want → Route: have a way to the masters of a SRV name ready, and wait until it leads to one
//	POST /v1/release  Want → nothing: the mount that wanted it came to nothing
//	GET  /v1/status   → Status: who reads from where, since when and why
package control

import (
	"errors"
	"net/netip"
	"time"
)

// The ways in which a mount is kept on a living master.
const (
	Relay  = "relay"
	Direct = "direct"
)

// What a request can fail with; every error that the agent answers is one of these, with words of its own.
var (
	ErrInvalid  = errors.New("invalid")
	ErrNoName   = errors.New("no such name")
	ErrNoMaster = errors.New("no master answers")
	ErrNoPort   = errors.New("no free port")
	ErrTooMany  = errors.New("too many")
	ErrFailed   = errors.New("failed")
)

// kinds are the names of the errors on the wire.
var kinds = map[string]error{
	"invalid": ErrInvalid, "no-name": ErrNoName, "no-master": ErrNoMaster, "no-port": ErrNoPort, "too-many": ErrTooMany,
	"failed": ErrFailed,
}

// Want says which masters a mount wants, and how.
type Want struct {
	Name    string   `json:"name"`              // the SRV name
	Via     string   `json:"via"`               // Relay or Direct
	Dir     string   `json:"dir,omitempty"`     // where it is to be mounted: what follows counts as long as it is
	DNS     []string `json:"dns,omitempty"`     // name servers; none: the agent's
	Masters []string `json:"masters,omitempty"` // HOST:PORT of masters to begin with; DNS is asked besides if name servers were named
	Slave   string   `json:"slave,omitempty"`   // this slave's name in the fleet; "": from the SRV name, or the agent's
	// Wait is how long a master may take to answer.
	Wait time.Duration `json:"wait_ns,omitempty"`
}

// Route is a way to the masters of a SRV name.
type Route struct {
	Addr   netip.AddrPort `json:"addr"`   // what the kernel is to mount
	Master string         `json:"master"` // who answers there
}

// Status is what an agent does.
type Status struct {
	Version string  `json:"version"`
	Since   string  `json:"since"` // when the agent's present process began
	Mounts  []Mount `json:"mounts"`
}

// Mount is one mount, or with Dir "" a way that something reads through that the agent cannot see, as in a container.
type Mount struct {
	Name     string   `json:"name"`
	Path     string   `json:"path"`
	Dir      string   `json:"dir"`
	Via      string   `json:"via"`
	Addr     string   `json:"addr"` // what the kernel has mounted
	Slave    string   `json:"slave"`
	Master   string   `json:"master"`                // "": none
	At       string   `json:"master_addr,omitempty"` // its address
	State    string   `json:"state"`                 // Reading, Searching or Idle
	Since    string   `json:"since,omitempty"`       // when it began to read there; Searching: since when none answers
	Why      string   `json:"why,omitempty"`         // why there; Searching: why none does
	Home     string   `json:"home,omitempty"`        // where it wants to be
	Order    []string `json:"order"`                 // masters, the best first
	DNS      []string `json:"dns,omitempty"`         // name servers that it or the agent was given; none: the system's
	Reattach *Change  `json:"last_reattach"`         // null: none
}

// The states of a Mount.
const (
	Reading   = "reading"   // a master answers
	Searching = "searching" // none does
	Idle      = "idle"      // nothing is mounted
)

// Change is a change from one master to another.
type Change struct {
	At      string  `json:"at"`
	TookMS  float64 `json:"took_ms"`
	From    string  `json:"from"`
	To      string  `json:"to"`
	Why     string  `json:"why"`
	Planned bool    `json:"planned"`
}

// Time formats a time as the agent does; "" for none.
func Time(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05.000Z")
}
