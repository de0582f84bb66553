package election

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rs/zerolog"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The causes with which a term's context ends (context.Cause, Term.Check), tested with errors.Is.
var (
	// ErrLeaseLost: the master's lease was not renewed in time, or etcd has dropped it.
	ErrLeaseLost = errors.New("the lease is lost")
	// ErrDeposed: the leader key was deleted or replaced in etcd.
	ErrDeposed = errors.New("the leader key is gone")
	// ErrResigned: this master gave the leadership up itself: Withdraw, Resign, or the end of Run.
	ErrResigned = errors.New("the leadership was given up")
)

// DefaultTTL is the lease's time to live when Config does not say; MinTTL is the least that New takes.
const (
	DefaultTTL = 5 * time.Second
	MinTTL     = 2 * time.Second
)

// Election is one master's part in electing leaders. All methods are safe for concurrent use and none of them but Run
// waits for etcd; Stand, Withdraw, Resign and Announce may be called before Run and are remembered.
type Election interface {
	// Stand makes the master take part for a shard ("_fleet", the coordinator, is one like any other). preferred says
	// that it has the shard's source. Standing again changes the preference.
	Stand(shard string, preferred bool)
	// Withdraw stops taking part: a term for the shard ends with ErrResigned, its key is deleted and another master
	// takes over at once.
	Withdraw(shard string)
	// Retire makes the master stand for nothing at all, also not for shards that it has not heard of yet, until it is
	// told false: then it stands for what Stand and Withdraw said in the meantime and before. Terms end as by Withdraw.
	Retire(on bool)
	// Resign ends the term for a shard, if there is one, in favour of the master named to, which takes the shard before
	// any other. The term ends as soon as etcd has the name of the heir, and not if it cannot be written; the shard is
	// without a leader for about two round trips to etcd. This master goes on standing: should the heir not take the
	// shard within a second, the others may. A Withdraw or Retire that follows leaves the choice of the heir as it is.
	// With to "" or this master it does nothing.
	Resign(shard, to string)
	// Terms delivers each term of this master as it begins; one that ended before it was received is left out. The
	// channel is closed when Run ends.
	Terms() <-chan *Term
	// Announce keeps key (a whole etcd key) at value under this master's lease: it is written again whenever the lease
	// is a new one, and vanishes with the lease. A change is written at once when the key's last was a second ago or
	// more: one that keeps changing is written once a second. nil deletes. It keeps no reference to value.
	Announce(key string, value []byte)
	// Lease says how the master's lease is.
	Lease() LeaseStatus
	// Leader returns the last known leader of a shard, also while etcd is away; false if none is known.
	Leader(shard string) (Leader, bool)
	// Changed receives when what Lease (its ID, Alive, Err) or Leader says has changed. One value may stand for many changes.
	Changed() <-chan struct{}
	// Run takes part until ctx ends, once. Then all terms end, and the keys and the lease are given back to etcd within
	// a bounded time (half the TTL, 2 s at most). The error says that etcd did not confirm this: the keys then expire.
	Run(ctx context.Context) error
}

// Config says who takes part and where.
type Config struct {
	// Client is the way to etcd. It stays the caller's; its endpoints may change while the election runs.
	Client *clientv3.Client
	// Prefix is the fleet's: "/nfs-fleet/<fleet>/". It ends with a slash.
	Prefix string
	// Master is this master's name, unique in the fleet.
	Master string
	// TTL is the lease's time to live in whole seconds (rounded up), 0: DefaultTTL. What etcd grants counts.
	TTL time.Duration
	// Replace says that no older process of this master can be running (the caller holds the lock of its data
	// directory). A lease that such a process left behind is then revoked at the start instead of waited for.
	Replace bool
	// Logger gets one line for each event of leadership and for each loss or return of the lease.
	Logger zerolog.Logger
}

// Validate reports the first setting that cannot be used.
func (c Config) Validate() error {
	switch {
	case !strings.HasSuffix(c.Prefix, "/"):
		return fmt.Errorf("election: prefix %q does not end with a slash", c.Prefix)
	case c.Master == "" || strings.Contains(c.Master, "/"):
		return fmt.Errorf("election: master %q: not a name", c.Master)
	case c.TTL < 0:
		return fmt.Errorf("election: TTL %s is negative", c.TTL)
	}
	return nil
}

// LeaseStatus is how a master's lease is.
type LeaseStatus struct {
	ID int64 // 0: none was ever granted
	// Alive: the deadline is ahead, and terms may be held.
	Alive bool
	// TTL is the time to live that etcd granted.
	TTL time.Duration
	// Deadline is when terms end unless a renewal is confirmed before; it is past when Alive is false.
	Deadline time.Time
	// Age is how long ago the last confirmed grant or renewal was sent.
	Age time.Duration
	// Err is why the latest attempt to get or renew the lease failed; nil when it did not.
	Err error
}

// Leader is who leads a shard, as etcd said last.
type Leader struct {
	Master string    `json:"master"`
	Epoch  int64     `json:"epoch"` // CreateRevision of the leader key
	Since  time.Time `json:"since"` // by the leader's wall clock
}

// New returns the election that runs on etcd. It does not contact etcd: Run does.
func New(c Config) (Election, error) {
	if c.TTL == 0 {
		c.TTL = DefaultTTL
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Client == nil {
		return nil, errors.New("election: no etcd client")
	}
	if c.TTL < MinTTL {
		return nil, fmt.Errorf("election: TTL %s: use %s or more", c.TTL, MinTTL)
	}
	return newLoop(c, newEtcd(c.Client, c.Prefix, c.Master), bootClock), nil
}
