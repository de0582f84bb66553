package hello

import (
	"fmt"
	"time"
)

// Number and Version name the protocol to RPC. The number is from the range that everybody may use.
const (
	Number  = 0x2F1EE702
	Version = 1
)

// The procedures.
const (
	procNull  = 0
	procHello = 1
)

// Bounds. What has more of something is cut down by whoever sends it, and refused by whoever gets it.
const (
	MaxGreeting = 8 << 10  // bytes of an encoded greeting
	MaxAnswer   = 16 << 10 // bytes of an encoded answer
	MaxMounts   = 64       // mounts of a greeting
	MaxTargets  = 16       // targets of an answer
	maxText     = 256      // bytes of a string; more than any valid name has, so that none is cut to a valid one
	maxDir      = 1024     // bytes of a mount's directory
)

// How often a slave says HELLO when the master does not say otherwise, and what an answer may ask of it.
const (
	DefaultEvery = 500 * time.Millisecond
	MinEvery     = 50 * time.Millisecond
	MaxEvery     = time.Minute
)

// Greeting is what a slave says of itself.
type Greeting struct {
	Slave    string // its name in the fleet
	Instance string // made anew at each start of its machine: two hosts of one name are told apart by it
	Mode     string // how it reattaches: "relay" or "direct"
	Version  string // of the agent
	Mounts   []Mount
	More     int // mounts that found no room in Mounts
	Last     Reattach
}

// Mount is one of a slave's mounts.
type Mount struct {
	Name  string // the SRV name
	Shard string
	Dir   string // where on the slave
}

// Reattach is a slave's change from one master to another. The zero value says that there was none.
type Reattach struct {
	At       time.Time
	Took     time.Duration // from the loss being noticed to the first answer from To
	From, To string        // masters
	Why      string
}

// Answer is what a master says to a Greeting.
type Answer struct {
	Status   Status
	Master   string        // who answers
	Revision int64         // of etcd, that Targets are from: an answer with a lower one says nothing new
	Targets  []Target      // where the slave is to read from, the best first; empty: the master does not know
	Every    time.Duration // how often the slave is to say HELLO; 0: DefaultEvery
	Why      string        // words for a Status other than OK, for people
	Now      time.Time     // the master's clock; zero: it does not say
}

// Target is a master as a slave reaches it.
type Target struct {
	Name string
	Host string // an address, or a name with one
	Port uint16
}

// Status is what a master thinks of a slave reading from it.
type Status uint32

// The statuses. One that is not known here, from a later release, is taken for Unwell: it is no OK, and whoever has nowhere
// else to go stays.
const (
	OK      Status = iota
	Leave          // go where Targets say, now: the master is being drained, or the slave was moved
	Unwell         // this master cannot serve well, although it answers
	Refused        // this greeting is not for this fleet, or not from who it says: Why says more. Targets are empty.
	statuses
)

// String returns a word.
func (s Status) String() string {
	switch s {
	case OK:
		return "ok"
	case Leave:
		return "leave"
	case Unwell:
		return "unwell"
	case Refused:
		return "refused"
	}
	return fmt.Sprintf("status %d", uint32(s))
}

// ProcedureName returns the name of a procedure, for statistics.
func ProcedureName(n uint32) string {
	switch n {
	case procNull:
		return "NULL"
	case procHello:
		return "HELLO"
	}
	return "UNKNOWN"
}
