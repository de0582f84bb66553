package console

import (
	"context"
	"io"
	"net/netip"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Control is what a master does when it is asked. All methods may be called concurrently. Errors wrap the sentinels of
// this package; any other error is a failure without a kind. A progress function may be nil, is called by one goroutine
// at a time, and is never called after the method has returned.
type Control interface {
	// Status describes the fleet as this master sees it. It answers without etcd too.
	Status(ctx context.Context) (Status, error)

	// Shards returns every shard's settings, sorted by name.
	Shards(ctx context.Context) ([]Shard, error)
	// CreateShard makes a shard and allots its fsid, which it ignores in s. ErrConflict: there is one of that name.
	CreateShard(ctx context.Context, s Shard) (Shard, error)
	// SetShard changes the settings that p names and returns all of them.
	SetShard(ctx context.Context, name string, p ShardPatch) (Shard, error)
	// DeleteShard forgets a shard, its head and its history. Its fsid is never given out again.
	DeleteShard(ctx context.Context, name string) error

	// Publish returns when the head has moved. Whoever cancels ctx gives up waiting for the result: once the head may
	// have begun to move, the move is brought to its end.
	Publish(ctx context.Context, shard string, r PublishRequest, progress func(Progress)) (Published, error)
	// Rollback publishes the tree of an earlier generation as the next one.
	Rollback(ctx context.Context, shard string, r RollbackRequest, progress func(Progress)) (Published, error)
	// History returns the retained generations, the newest (the head) first.
	History(ctx context.Context, shard string) ([]tree.Generation, error)
	// Diff calls fn for every difference between generations a and b. b = 0 is the head, a = 0 the one before b. An
	// error of fn ends it and is returned.
	Diff(ctx context.Context, shard string, a, b uint64, fn func(Change) error) error
	// Source pauses or resumes a shard's source, or has it read in full.
	Source(ctx context.Context, shard string, a SourceAction) error

	// Lead hands the leadership of a shard over to a master, and returns when that one leads. ErrConflict: the master
	// cannot lead it, because it is draining, lost, or not in step.
	Lead(ctx context.Context, shard, master string) error
	// RecoverShard publishes the newest tree that the living masters still hold whole as the next generation of a shard
	// whose head none of them holds. Without AcceptLoss it only reports what would be lost. ErrConflict: the head is
	// held, and there is nothing to recover.
	RecoverShard(ctx context.Context, shard string, r RecoverShardRequest) (RecoverShardReport, error)

	// Masters describes every master of the fleet, the lost ones too, sorted by name.
	Masters(ctx context.Context) ([]MasterStatus, error)
	// Self describes the answering master alone, in full. It asks nobody else.
	Self(ctx context.Context) (MasterStatus, error)
	// Drain takes a master's leaderships and slaves away and keeps them away, after a restart too, until Undrain. It returns
	// when the master leads nothing, and its slaves have other homes if that does not take long. A lost master can be drained; draining one twice is no error.
	// ErrConflict: no other master is there that slaves can read from, and it is not forced.
	Drain(ctx context.Context, master string, r DrainRequest) error
	// Undrain lets a drained master lead again. One that is not drained is no error.
	Undrain(ctx context.Context, master string) error
	// RemoveMaster takes a master out of the fleet for good: its data directory can never join again. ErrConflict: it is
	// alive and not drained, or the last one.
	RemoveMaster(ctx context.Context, master string) error

	// Slaves describes every slave that the fleet knows, and every one that a master hears of, sorted by name.
	Slaves(ctx context.Context) ([]SlaveStatus, error)
	// Slave describes one. ErrNotFound: nobody knows it.
	Slave(ctx context.Context, name string) (SlaveStatus, error)
	// HeardSlaves describes the slaves that read from the answering master, and with Reads "" those that it has heard of
	// before. It asks nobody else.
	HeardSlaves(ctx context.Context) ([]SlaveStatus, error)
	// MoveSlave makes a master a slave's home, and returns when this is written: the slave goes there by itself. ErrConflict:
	// the master is drained or not in step.
	MoveSlave(ctx context.Context, name, master string) error
	// ForgetSlave makes the fleet forget a slave. One that is still heard of is enrolled anew.
	ForgetSlave(ctx context.Context, name string) error
	// Rebalance evens the masters out with as few moves as it takes, and returns them by slave.
	Rebalance(ctx context.Context, r RebalanceRequest) ([]SlaveMove, error)

	// CreateToken makes a token. Its text is in the answer and nowhere else: the fleet keeps a hash.
	CreateToken(ctx context.Context, r TokenRequest) (TokenMade, error)
	// Tokens returns the tokens, expired ones for a while too, sorted by the time of their making.
	Tokens(ctx context.Context) ([]Token, error)
	// RevokeToken ends a token now. ErrNotFound: there is none of that id, or it was used up.
	RevokeToken(ctx context.Context, id string) error

	// Verify reads and hashes what this master's store holds. Cancelling ctx stops it.
	Verify(ctx context.Context, r VerifyRequest, progress func(Progress)) (VerifyReport, error)
	// Recover writes identity, shards and heads into an etcd that has lost them, from this master's disk.
	Recover(ctx context.Context, r RecoverRequest) (RecoverReport, error)

	// BeginUpload returns the id of a new upload. While it lasts, the store deletes nothing. A Control ends an upload
	// that has not been used for UploadIdle.
	BeginUpload(ctx context.Context, shard string) (string, error)
	// Missing returns those of want (at most MaxMissing) that the store does not hold, in the order of want.
	Missing(ctx context.Context, shard, upload string, want []tree.Digest) ([]tree.Digest, error)
	// PutObjects stores the objects of a stream that EncodeObject and EncodeEnd wrote; DecodeObjects reads it.
	PutObjects(ctx context.Context, shard, upload string, r io.Reader) error
	// EndUpload lets the store collect again what no published generation names. An unknown id is no error.
	EndUpload(ctx context.Context, shard, upload string) error

	// Healthy returns nil when the process works at all: GET /healthz.
	Healthy() error
	// Ready returns nil when clients may be sent here, and otherwise why not: GET /readyz.
	Ready() error
}

// Shard is a shard's settings.
type Shard = fleet.Shard

// ShardPatch says which of a shard's settings to change: nil leaves one as it is.
type ShardPatch struct {
	Networks        *[]netip.Prefix `json:"networks,omitempty"`
	Squash          *fleet.Squash   `json:"squash,omitempty"`
	AnonUID         *uint32         `json:"anon_uid,omitempty"`
	AnonGID         *uint32         `json:"anon_gid,omitempty"`
	Insecure        *bool           `json:"insecure,omitempty"`
	MinCopies       *int            `json:"min_copies,omitempty"`
	Strict          *bool           `json:"strict,omitempty"`
	KeepGenerations *int            `json:"keep_generations,omitempty"`
	KeepFor         *fleet.Duration `json:"keep_for,omitempty"`
}

// Apply returns s with the settings that p names. It does not validate them.
func (p ShardPatch) Apply(s Shard) Shard {
	replace(&s.Networks, p.Networks)
	replace(&s.Squash, p.Squash)
	replace(&s.AnonUID, p.AnonUID)
	replace(&s.AnonGID, p.AnonGID)
	replace(&s.Insecure, p.Insecure)
	replace(&s.MinCopies, p.MinCopies)
	replace(&s.Strict, p.Strict)
	replace(&s.Keep.Generations, p.KeepGenerations)
	replace(&s.Keep.For, p.KeepFor)
	return s
}

func replace[T any](at *T, with *T) {
	if with != nil {
		*at = *with
	}
}

// PublishRequest says what to publish.
type PublishRequest struct {
	Note   string      `json:"note,omitempty"`
	Wait   bool        `json:"wait,omitempty"`   // until every master in step serves it
	Root   tree.Digest `json:"root,omitzero"`    // an uploaded root object; zero: the configured source
	Upload string      `json:"upload,omitempty"` // the id under which Root was uploaded
	Origin string      `json:"origin,omitempty"` // where an uploaded tree came from: "host:/dir"
	Caller Caller      `json:"-"`                // who asks; the server fills it in
}

// RollbackRequest says which generation to go back to.
type RollbackRequest struct {
	Generation uint64 `json:"generation,omitempty"` // 0: the one before the head
	Note       string `json:"note,omitempty"`
	Wait       bool   `json:"wait,omitempty"`
	Caller     Caller `json:"-"` // who asks; the server fills it in
}

// SourceAction is what a shard's source can be told.
type SourceAction string

// The source actions.
const (
	SourcePause  SourceAction = "pause"
	SourceResume SourceAction = "resume"
	SourceRescan SourceAction = "rescan"
)

// VerifyRequest says what to verify.
type VerifyRequest struct {
	Shard  string `json:"shard,omitempty"` // "": all
	Repair bool   `json:"repair,omitempty"`
}

// RecoverRequest says how to recover.
type RecoverRequest struct {
	DryRun bool `json:"dry_run,omitempty"` // report what would be written, and write nothing
	// LostQuorum prepares this master's embedded etcd to go on alone from its next start, because most voters are gone
	// for good; nothing else is recovered then. ErrConflict: a living master has its quorum.
	LostQuorum bool `json:"lost_quorum,omitempty"`
}
