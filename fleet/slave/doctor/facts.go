package doctor

import (
	"time"

	"github.com/nfs-fleet/nfs-fleet/exporter/hello"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/control"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/mounts"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/relay"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/resolve"
)

// Facts are what was found on a slave.
type Facts struct {
	Host  Host
	Agent Agent
	Names []Name // that something is mounted by, or that were asked for
}

// Host is what this machine can do.
type Host struct {
	Release    string // of the kernel
	NFS        error  // why there is no NFSv3 client; nil: there is
	Transports error  // why the kernel does not show its transports, which via direct needs
	Breaker    string // how connections to a silent master are broken via direct
	NoBreaker  error  // why they cannot be
	Bind       error  // why no port below 1024 can be had
	FreePorts  int    // of those that the kernel's client and the agent take
	Direct     bool   // something is mounted via direct, or that was asked for
}

// Agent is this host's agent.
type Agent struct {
	Err     error // why it does not answer
	Absent  bool  // because there is none
	Version string
	Own     string // the version of this program
	Mounts  []control.Mount
}

// Name is a SRV name, and those it leads to.
type Name struct {
	Name    string
	Mounts  []mounts.Mount // by this name
	NoDNS   error          // why no name server could be asked
	Servers []resolve.Opinion
	Masters []Master
}

// Step is one thing that was tried with a master.
type Step struct {
	Tried bool
	Took  time.Duration
	Err   error
}

// Master is what a master did.
type Master struct {
	Target relay.Target
	Low    bool // it was talked to from a port below 1024
	// In the order in which they were tried: after one that failed, the next are not, but for HELLO.
	Connect, Null, Hello, Exports, Mount, Read Step

	Says     hello.Answer
	Offset   time.Duration // its clock's before this host's
	Accuracy time.Duration // of Offset
	Exported []string      // shards
	Shard    string        // that was mounted
	Root     string        // its handle
	File     string        // that was read, below the shard; "": there is none
}
