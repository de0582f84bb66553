package election

import (
	"context"
	"errors"
	"time"
)

// backend is what an election needs of etcd: the seam between the loop and the I/O. All methods may be called
// concurrently, return soon after ctx ends, and retry nothing: the loop decides what is tried again and when. An error
// other than errGone leaves open whether the call had an effect.
type backend interface {
	grant(ctx context.Context, ttl time.Duration) (id int64, granted time.Duration, err error)
	// renew returns errGone when, and only when, etcd says that the lease is no more.
	renew(ctx context.Context, id int64) (granted time.Duration, err error)
	revoke(ctx context.Context, id int64) error
	// read returns all leader keys and candidates as of one revision, linearizably. Who knows some of them, and they are
	// all that there were at revision since, may be told only what has changed after it: the snapshot is then partial, and
	// none of those known is gone. With known 0 it never is.
	read(ctx context.Context, since int64, known int) (snapshot, error)
	// write does all of w in one transaction.
	write(ctx context.Context, w write) (written, error)
	// watch calls each with every change of a leader key or candidate from revision rev on, in the order of revisions
	// and from one goroutine, until it cannot go on. The caller must then read again: revisions may be missing.
	watch(ctx context.Context, rev int64, each func(changes)) error
	// tries is how many calls one after the other should be made before giving up: the number of endpoints.
	tries() int
	// close ends everything, at the latest when ctx does.
	close(ctx context.Context)
}

// errGone: the lease has expired or was revoked.
var errGone = errors.New("etcd has no such lease")

// kv is a key as etcd has it. A deletion has create 0, and mod says when.
type kv struct {
	key         string
	value       []byte
	create, mod int64
	lease       int64
}

type snapshot struct {
	rev     int64
	kvs     []kv
	partial bool
}

type changes struct {
	rev int64
	kvs []kv
}

// write is what one master wants of etcd at one time. Everything is put under lease.
type write struct {
	lease    int64
	puts     map[string][]byte // announcements
	deletes  []string          // announcements; only what is still under lease is deleted
	claims   []string          // leader keys to create if absent
	claim    []byte            // the value they get
	marks    map[string]mark   // leader keys to give another value
	releases map[string]int64  // leader keys to delete if CreateRevision is still this
	revoke   []int64           // leases that an older process of this master left behind; not part of the transaction
}

type mark struct {
	epoch int64
	value []byte
}

// maxOps bounds the operations of one write; etcd takes 128 by default.
const maxOps = 100

// mostKeys bounds the leader keys of one write: a place is left for the candidate record of whoever writes it.
const mostKeys = maxOps - 1

func (w *write) ops() int {
	return len(w.puts) + len(w.deletes) + len(w.claims) + len(w.marks) + len(w.releases)
}

func (w *write) empty() bool { return w.ops() == 0 && len(w.revoke) == 0 }

// written is etcd's answer to a write.
type written struct {
	rev   int64
	seats []kv // what the claimed and marked leader keys are now, ours or another master's
}
