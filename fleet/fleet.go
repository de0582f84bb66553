package fleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Identity is what makes a fleet this fleet: made once, held in etcd and in every data directory.
type Identity struct {
	ID        string    `json:"id"`
	Fleet     string    `json:"fleet"`
	CreatedAt time.Time `json:"created_at"`
	// Era counts recoveries. An etcd that was made anew starts its revisions from a small number, so that epochs are
	// compared as (era, epoch).
	Era int `json:"era,omitempty"`
}

// FSID is a shard's file system identity, written as 16 hexadecimal digits because JSON numbers lose 64-bit precision
// in many readers. Zero is none.
type FSID uint64

// String returns the 16 hexadecimal digits.
func (f FSID) String() string { return fmt.Sprintf("%016x", uint64(f)) }

// MarshalText is String.
func (f FSID) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads 1 to 16 hexadecimal digits.
func (f *FSID) UnmarshalText(b []byte) error {
	v, err := strconv.ParseUint(string(b), 16, 64)
	if err != nil {
		return fmt.Errorf("fsid: %w", err)
	}
	*f = FSID(v)
	return nil
}

// Squash says which callers a shard's exporter turns into the anonymous user.
type Squash string

// The values of Squash.
const (
	SquashNone Squash = "none"
	SquashRoot Squash = "root"
	SquashAll  Squash = "all"
)

// Shard is a shard's settings.
type Shard struct {
	Name      string         `json:"name"`
	FSID      FSID           `json:"fsid"`
	Networks  []netip.Prefix `json:"networks"` // who may mount; empty: everyone
	Squash    Squash         `json:"squash"`
	AnonUID   uint32         `json:"anon_uid"`
	AnonGID   uint32         `json:"anon_gid"`
	Insecure  bool           `json:"insecure"`   // callers may use ports from 1024
	MinCopies int            `json:"min_copies"` // masters that hold a generation before the head moves; 1 to 5
	Strict    bool           `json:"strict"`     // refuse to publish with fewer masters alive than MinCopies
	Keep      Keep           `json:"keep"`
	Paused    bool           `json:"source_paused"`
	Lead      string         `json:"lead,omitempty"` // the master that an operator wants to lead it; "": any
	CreatedAt time.Time      `json:"created_at"`
}

// DeletedShard is what stays of a shard that was deleted. Without it a master could not tell a shard that was deleted
// from one that an etcd restored from an older backup does not know, and would throw the only copy away.
type DeletedShard struct {
	Name      string    `json:"name"`
	FSID      FSID      `json:"fsid"`
	DeletedAt time.Time `json:"deleted_at"`
}

// Keep says which generations are retained: the last Generations of them and every one younger than For, at most
// MaxKept.
type Keep struct {
	Generations int      `json:"generations"`
	For         Duration `json:"for"`
}

// MaxKept is the most generations that a shard retains, and Keep.Generations' upper bound.
const MaxKept = 1000

// Duration is a time.Duration that JSON shows as "24h0m0s".
type Duration time.Duration

// MarshalText is time.Duration's String.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// NewShard returns the default settings of a shard, without an fsid.
func NewShard(name string, now time.Time) Shard {
	return Shard{
		Name: name, Networks: []netip.Prefix{}, Squash: SquashNone, AnonUID: 65534, AnonGID: 65534,
		MinCopies: 2, Keep: Keep{Generations: 10, For: Duration(24 * time.Hour)}, CreatedAt: now.UTC(),
	}
}

// Validate reports the first setting that is out of range.
func (s Shard) Validate() error {
	if err := ValidName(s.Name); err != nil {
		return fmt.Errorf("shard %w", err)
	}
	switch s.Squash {
	case SquashNone, SquashRoot, SquashAll:
	default:
		return fmt.Errorf("shard %s: squash %q: use none, root or all", s.Name, s.Squash)
	}
	if s.MinCopies < 1 || s.MinCopies > 5 {
		return fmt.Errorf("shard %s: min_copies %d: use 1 to 5", s.Name, s.MinCopies)
	}
	if s.Keep.Generations < 1 || s.Keep.Generations > MaxKept {
		return fmt.Errorf("shard %s: keep %d generations: use 1 to %d", s.Name, s.Keep.Generations, MaxKept)
	}
	if s.Keep.For < 0 {
		return fmt.Errorf("shard %s: keep for %s: use a duration of 0 or more", s.Name, time.Duration(s.Keep.For))
	}
	return nil
}

// Covers reports whether an address is in the networks that may mount the shard.
func (s Shard) Covers(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return len(s.Networks) == 0 || slices.ContainsFunc(s.Networks, func(n netip.Prefix) bool { return n.Contains(a) })
}

// Expired returns how many of the generations, given oldest first with the head last, are past retention at now. A
// generation grows old from the moment that the next one took its place: until then it was what everybody had open.
func (k Keep) Expired(generations []tree.Generation, now time.Time) int {
	n := 0
	for i := range generations {
		left := len(generations) - i
		if left <= k.Generations || left <= MaxKept && now.Sub(generations[i+1].PublishedAt) < time.Duration(k.For) {
			break
		}
		n++
	}
	return n
}

// MasterState says what a living master does.
type MasterState string

// The states of a living master.
const (
	Serving  MasterState = "serving"
	Draining MasterState = "draining"
)

// Master is how a living master describes itself, under its lease.
type Master struct {
	Name      string      `json:"name"`
	Address   string      `json:"address"` // host or IP address that slaves and peers reach it by
	NFSPort   int         `json:"nfs_port"`
	HTTP      string      `json:"http"`             // host:port of its console
	Peer      string      `json:"peer"`             // host:port of its peer listener
	Domain    string      `json:"domain,omitempty"` // that it is set to answer DNS questions for; "": none
	Instance  string      `json:"instance"`
	Slots     int         `json:"slots"` // slaves that it takes before others are fuller
	Version   string      `json:"version"`
	Formats   int         `json:"formats"` // the highest object format it reads
	StartedAt time.Time   `json:"started_at"`
	State     MasterState `json:"state"`
	Sources   []string    `json:"sources"` // shards whose source it has
	// Its embedded etcd: where the other members reach it (https://host:port), and its member ID in hexadecimal. "": none.
	EtcdPeer   string `json:"etcd_peer,omitempty"`
	EtcdMember string `json:"etcd_member,omitempty"`
}

// Replica is what one master serves: the generation of each shard.
type Replica struct {
	Master string            `json:"master"`
	Serves map[string]uint64 `json:"serves"`
}

// Mount is one client's mount of one shard.
type Mount struct {
	Shard  string     `json:"shard"`
	Client netip.Addr `json:"client"`
	Path   string     `json:"path"` // as the client asked for it: /www/sub
	Master string     `json:"master"`
	Since  time.Time  `json:"since"`
}

// Sentinels of this package, tested with errors.Is.
var (
	ErrNotFound = errors.New("not found")
	ErrExists   = errors.New("exists already")
	// ErrRemoved: the instance was removed from the fleet and may not come back.
	ErrRemoved = errors.New("this master was removed from the fleet")
	// ErrFenced: the epoch is no longer the shard's leader's. Whoever gets it leads no more.
	ErrFenced = errors.New("leadership lost")
	// ErrConflict: the key has changed since it was read.
	ErrConflict = errors.New("changed meanwhile")
	// ErrUnavailable: etcd did not answer in time, or has no quorum. A write may or may not have happened.
	ErrUnavailable = errors.New("etcd unavailable")
)

func decode(key string, value []byte, into any) error {
	if err := json.Unmarshal(value, into); err != nil {
		return fmt.Errorf("etcd key %s: %w", key, err)
	}
	return nil
}
