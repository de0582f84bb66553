package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// RosterEntry is what stays known of a master when it is lost: how to reach it again, and which of the masters that ever
// had this name it is.
type RosterEntry struct {
	Name     string    `json:"name"`
	Instance string    `json:"instance"` // made with its data directory, and anew by each join
	Peer     string    `json:"peer"`     // host:port of its peer listener
	JoinedAt time.Time `json:"joined_at"`
}

// Drain says that a master leads nothing until it is undrained, over restarts as well.
type Drain struct {
	Master string    `json:"master"`
	Since  time.Time `json:"since"`
	By     string    `json:"by"` // who asked for it
}

// Removal is what stays of an instance that was removed from the fleet. Its certificate is refused from then on, and a
// process that finds itself here does not run: old data never comes back by accident.
type Removal struct {
	Master    string    `json:"master"`
	Instance  string    `json:"instance"`
	RemovedAt time.Time `json:"removed_at"`
}

// NewInstance returns the identity of a new master's data directory.
func NewInstance() string { return uuid.NewString() }

// ValidInstance reports what is wrong with s as an instance: it is a UUID as NewInstance makes it.
func ValidInstance(s string) error {
	if id, err := uuid.Parse(s); err != nil || id.String() != s {
		return fmt.Errorf("instance %q: not a UUID", s)
	}
	return nil
}

func unchanged(key string, revision int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(key), "=", revision)
}

func absent(key string) clientv3.Cmp { return clientv3.Compare(clientv3.CreateRevision(key), "=", 0) }

// PutRoster enters a master, or its new instance or address, and writes nothing when that is there already. An instance
// keeps its first JoinedAt. ErrRemoved: the instance was removed. ErrExists: another instance of this name is alive.
func (r *Registry) PutRoster(ctx context.Context, e RosterEntry) error {
	if err := errors.Join(ValidName(e.Name), ValidInstance(e.Instance)); err != nil {
		return fmt.Errorf("roster: %w", err)
	}
	for {
		if err := r.putRoster(ctx, e); !errors.Is(err, ErrConflict) {
			return err
		}
	}
}

func (r *Registry) putRoster(ctx context.Context, e RosterEntry) error {
	key, living, removed := r.keys.Roster(e.Name), r.keys.Master(e.Name), r.keys.Removed(e.Instance)
	resp, err := r.client.Txn(ctx).Then(clientv3.OpGet(key), clientv3.OpGet(living), clientv3.OpGet(removed)).Commit()
	if err != nil {
		return fmt.Errorf("read %s: %w", key, unavailable(err))
	}
	var known RosterEntry
	var alive Master
	revisions := make([]int64, len(resp.Responses))
	for i, into := range []any{&known, &alive, &Removal{}} {
		for _, kv := range resp.Responses[i].GetResponseRange().Kvs {
			revisions[i] = kv.ModRevision
			if err := decode(string(kv.Key), kv.Value, into); err != nil {
				return err
			}
		}
	}
	conditions := []clientv3.Cmp{unchanged(key, revisions[0]), absent(removed)}
	switch {
	case revisions[2] != 0:
		return fmt.Errorf("%s (instance %s): %w", e.Name, e.Instance, ErrRemoved)
	case known.Instance == e.Instance:
		e.JoinedAt = known.JoinedAt
	case alive.Instance != "" && alive.Instance != e.Instance:
		return fmt.Errorf("a living master is called %s (instance %s, peer %s): %w", e.Name, alive.Instance, alive.Peer, ErrExists)
	default:
		conditions = append(conditions, unchanged(living, revisions[1]))
	}
	if known == e {
		return nil
	}
	if _, err := r.swap(ctx, conditions, put(key, e)); err != nil {
		return fmt.Errorf("write %s: %w", key, err)
	}
	return nil
}

// Drain says that a master of the roster leads nothing from now on, and returns the revision at which that was written. Drained
// already it stays as it is. ErrNotFound: the roster does not have it. ErrConflict: the master that was to remain has been drained
// itself, at the revision that is returned; "": nobody needs to remain.
func (r *Registry) Drain(ctx context.Context, d Drain, remains string) (int64, error) {
	key, roster := r.keys.Drained(d.Master), r.keys.Roster(d.Master)
	reads := []clientv3.Op{clientv3.OpGet(roster, clientv3.WithCountOnly()), clientv3.OpGet(key)}
	conditions := []clientv3.Cmp{absent(key), clientv3.Compare(clientv3.CreateRevision(roster), ">", 0)}
	if remains != "" {
		other := r.keys.Drained(remains)
		conditions, reads = append(conditions, absent(other)), append(reads, clientv3.OpGet(other))
	}
	resp, err := r.client.Txn(ctx).If(conditions...).Then(put(key, d)).Else(reads...).Commit()
	switch {
	case err != nil:
		return 0, fmt.Errorf("drain %s: %w", d.Master, unavailable(err))
	case resp.Succeeded:
		return resp.Header.Revision, nil
	case resp.Responses[0].GetResponseRange().Count == 0:
		return 0, fmt.Errorf("master %s: %w", d.Master, ErrNotFound)
	}
	if kvs := resp.Responses[1].GetResponseRange().Kvs; len(kvs) > 0 {
		return kvs[0].ModRevision, nil
	}
	return resp.Responses[2].GetResponseRange().Kvs[0].ModRevision,
		fmt.Errorf("drain %s: master %s is drained meanwhile: %w", d.Master, remains, ErrConflict)
}

// Undrain lets a master lead again, and returns the revision at which that was written. ErrNotFound: it is not drained.
func (r *Registry) Undrain(ctx context.Context, master string) (int64, error) {
	return r.remove(ctx, r.keys.Drained(master))
}

// Remove takes a master off the roster and makes sure that its instance does not come back. ErrNotFound: the roster does
// not have it. ErrConflict: it has another instance under this name by now.
func (r *Registry) Remove(ctx context.Context, name, instance string) error {
	if err := ValidInstance(instance); err != nil {
		return err
	}
	key := r.keys.Roster(name)
	var e RosterEntry
	revision, err := r.get(ctx, key, &e)
	if err != nil {
		return err
	}
	if e.Instance != instance {
		return fmt.Errorf("master %s is instance %s now, not %s: %w", name, e.Instance, instance, ErrConflict)
	}
	_, err = r.swap(ctx, []clientv3.Cmp{unchanged(key, revision)}, clientv3.OpDelete(key), clientv3.OpDelete(r.keys.Drained(name)),
		put(r.keys.Removed(instance), Removal{name, instance, time.Now().UTC()}))
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

// remove deletes one key and returns the revision of that: ErrNotFound when it is not there.
func (r *Registry) remove(ctx context.Context, key string) (int64, error) {
	resp, err := r.client.Delete(ctx, key)
	if err != nil {
		return 0, fmt.Errorf("delete %s: %w", key, unavailable(err))
	}
	if resp.Deleted == 0 {
		return 0, fmt.Errorf("%s: %w", key, ErrNotFound)
	}
	return resp.Header.Revision, nil
}
