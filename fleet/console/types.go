package console

import (
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Status is the fleet as one master sees it. docs/api.md documents the JSON; fields are added, never renamed.
type Status struct {
	Fleet    string         `json:"fleet"`
	ID       string         `json:"id"`     // the cluster identity; "" while it is unknown
	Master   string         `json:"master"` // who answers
	Version  string         `json:"version"`
	Time     time.Time      `json:"time"` // the answering master's clock
	Etcd     EtcdStatus     `json:"etcd"`
	DNS      DNSStatus      `json:"dns"`
	Shards   []ShardStatus  `json:"shards"`  // by name
	Masters  []MasterStatus `json:"masters"` // by name, the lost ones too; the answering master is always one of them
	Slaves   SlavesStatus   `json:"slaves"`
	Warnings []string       `json:"warnings"`
}

// EtcdStatus is how the answering master gets on with etcd.
type EtcdStatus struct {
	Mode      string   `json:"mode"` // embedded or external
	Endpoints []string `json:"endpoints"`
	Healthy   bool     `json:"healthy"`
	Error     string   `json:"error,omitempty"` // why not
	Revision  int64    `json:"revision"`        // of the view that this status was made from
}

// DNSStatus is how the answering master answers DNS questions.
type DNSStatus struct {
	Address string `json:"address"` // host:port; "" when it does not
	Domain  string `json:"domain"`  // of the fleet; "" while nothing is known of the fleet
	Error   string `json:"error,omitempty"`
}

// ShardStatus is one shard: the head as the fleet knows it, and what the answering master makes of it.
type ShardStatus struct {
	Name        string       `json:"name"`
	FSID        fleet.FSID   `json:"fsid"`
	Generation  uint64       `json:"generation"` // served by the answering master; 0: nothing was published yet
	Head        uint64       `json:"head"`       // as etcd has it; 0: none, or unknown
	Root        tree.Digest  `json:"root"`
	Files       uint64       `json:"files"`
	Bytes       uint64       `json:"bytes"`
	Leader      string       `json:"leader"` // "" when nobody leads
	Epoch       int64        `json:"epoch"`
	PublishedAt time.Time    `json:"published_at,omitzero"`
	AgeS        int64        `json:"age_s"` // seconds since then
	By          string       `json:"by"`    // the master that published it
	From        string       `json:"from"`  // where its content came from, as the generation's source
	Note        string       `json:"note,omitempty"`
	Copies      int          `json:"copies"` // masters that are known to hold the generation
	MinCopies   int          `json:"min_copies"`
	Retained    int          `json:"retained"` // generations kept, the head included
	Mounts      int          `json:"mounts"`   // clients that have mounted it, on any master
	Source      SourceStatus `json:"source"`
	Stale       bool         `json:"stale"`             // etcd has not confirmed the generation since the master started
	Problem     string       `json:"problem,omitempty"` // why etcd's head is not served
}

// SourceStatus is the answering master's source for a shard.
type SourceStatus struct {
	Identity string    `json:"identity"` // "master:/path"; "" without a source
	State    string    `json:"state"`    // watching, manual, paused, holding or none
	Reason   string    `json:"reason,omitempty"`
	Watching bool      `json:"watching"` // file system events arrive; false: found by rescans only
	Dirty    int       `json:"dirty"`    // names that a publish will look at
	LastScan time.Time `json:"last_scan,omitzero"`
	LastFull time.Time `json:"last_full,omitzero"` // the last scan of everything
	Error    string    `json:"error,omitempty"`    // of the last publish from this source
	Warnings []string  `json:"warnings,omitempty"` // of the last publish from this source
}

// Progress is how far a long operation is. Counts are of the current step; a total of 0 is not known yet.
type Progress struct {
	Step       string `json:"step"` // scan, upload, merge, store, wait, verify, …
	Files      int64  `json:"files"`
	TotalFiles int64  `json:"total_files"`
	Bytes      int64  `json:"bytes"`
	TotalBytes int64  `json:"total_bytes"`
	Path       string `json:"path,omitempty"`
}

// Published is what a publish or a rollback did: the head afterwards.
type Published struct {
	tree.Generation
	Shard    string   `json:"shard"`
	Changed  bool     `json:"changed"` // false: there was nothing to publish
	Added    int      `json:"added"`   // names
	Modified int      `json:"modified"`
	Removed  int      `json:"removed"`
	ServedBy []string `json:"served_by,omitempty"` // the masters that serve it; only of a request that waits for them
	Warnings []string `json:"warnings"`
	TookMS   int64    `json:"took_ms"`
}

// VerifyReport is what a verify found.
type VerifyReport struct {
	Objects  int64           `json:"objects"` // read and hashed
	Bytes    int64           `json:"bytes"`
	Bad      []tree.Digest   `json:"bad"`      // damaged, and quarantined
	Missing  []MissingObject `json:"missing"`  // named by a retained generation and not held
	Repaired int64           `json:"repaired"` // of the bad and missing ones, whole again
	TookMS   int64           `json:"took_ms"`
}

// MissingObject is an object that a retained generation needs and the store does not hold.
type MissingObject struct {
	Shard      string      `json:"shard"`
	Generation uint64      `json:"generation"` // the newest that needs it
	Digest     tree.Digest `json:"digest"`
}

// Sound reports whether every retained generation was whole at the end.
func (r VerifyReport) Sound() bool { return len(r.Missing) == 0 && int64(len(r.Bad)) <= r.Repaired }

// RecoverReport is what a recover wrote into etcd, or would have.
type RecoverReport struct {
	ID       string           `json:"id"`
	Shards   []RecoveredShard `json:"shards"`
	Restart  bool             `json:"restart,omitempty"` // the master has to be restarted for it to happen
	Warnings []string         `json:"warnings"`
}

// RecoveredShard is one shard of a recovery.
type RecoveredShard struct {
	Name       string     `json:"name"`
	FSID       fleet.FSID `json:"fsid"`
	Action     string     `json:"action"`     // created, raised or kept
	Was        uint64     `json:"was"`        // the head in etcd before; 0: none
	Generation uint64     `json:"generation"` // the head in etcd now
	NextIno    uint64     `json:"next_ino"`
}
