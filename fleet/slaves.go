package fleet

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Slave is a slave as the fleet knows it: who it is, and where it is to read from. The coordinator alone writes it.
type Slave struct {
	Name      string     `json:"name"`
	Master    string     `json:"master"`           // its home; "": none yet
	Fallbacks []string   `json:"fallbacks"`        // where it goes when its home is lost, in this order
	Since     time.Time  `json:"since"`            // since when Master is its home, by the coordinator's clock
	Address   netip.Addr `json:"address,omitzero"` // where it was last seen
	Mode      SlaveMode  `json:"mode"`
	Instance  string     `json:"instance,omitempty"` // of its agent's machine; two hosts of one name differ in it
	Version   string     `json:"version,omitempty"`  // of its agent
	// EnrolledAt is when the fleet first heard of it, SeenAt when it last wrote that down: every few hours, and
	// when it is heard no more.
	EnrolledAt time.Time `json:"enrolled_at"`
	SeenAt     time.Time `json:"seen_at"`

	// Revision is the ModRevision of the record's key: the next write of it compares.
	Revision int64 `json:"-"`
	// Placed is the revision since which Master is known to have been its home. Unlike Revision it stays when something else
	// of the record changes. A follower that has just begun knows it as Revision.
	Placed int64 `json:"-"`
}

// SlaveMode says how a slave goes from one master to another.
type SlaveMode string

// The modes. A slave whose mount was seen, and of which no agent has told, has ModeMount: it goes nowhere by itself.
const (
	ModeRelay  SlaveMode = "relay"
	ModeDirect SlaveMode = "direct"
	ModeMount  SlaveMode = "mount"
)

func (m SlaveMode) known() bool { return m == ModeRelay || m == ModeDirect || m == ModeMount }

// maxSlaveText is the most bytes of what an agent says of itself.
const maxSlaveText = 256

// ValidSlaveName reports what is wrong with s as the name of a slave. It is a name as ValidName has it, and each part of it
// between two dots begins and ends with a letter or digit, so that it can stand in DNS.
func ValidSlaveName(s string) error {
	if err := ValidName(s); err != nil {
		return err
	}
	for label := range strings.SplitSeq(s, ".") {
		if err := ValidName(label); err != nil {
			return fmt.Errorf("name %q: part %q between the dots: use letters and digits at both ends", s, label)
		}
	}
	return nil
}

// Validate reports the first field that is out of range.
func (s Slave) Validate() error {
	if err := ValidSlaveName(s.Name); err != nil {
		return fmt.Errorf("slave %w", err)
	}
	if !s.Mode.known() {
		return fmt.Errorf("slave %s: mode %.20q: use relay, direct or mount", s.Name, s.Mode)
	}
	for _, master := range append([]string{s.Master}, s.Fallbacks...) {
		if master == "" && s.Master == "" {
			continue
		}
		if err := ValidName(master); err != nil {
			return fmt.Errorf("slave %s: master %w", s.Name, err)
		}
	}
	if len(s.Instance) > maxSlaveText || len(s.Version) > maxSlaveText {
		return fmt.Errorf("slave %s: instance or version of more than %d bytes", s.Name, maxSlaveText)
	}
	return nil
}

// sameHome reports whether two records tell of one and the same stay at a master.
func (s Slave) sameHome(o Slave) bool { return s.Master == o.Master && s.Since.Equal(o.Since) }

// WriteSlaves stores the records in put and deletes those in gone, if f, of the coordinator, still holds and each of them is
// still at its Revision, where 0 says that there is none yet. It returns the revision of the write. More than 100
// records are written in several transactions, in the order given, and an error says nothing of those before.
// ErrFenced: somebody else coordinates. ErrConflict: one of them has changed. ErrUnavailable: it may be written or not.
func (r *Registry) WriteSlaves(ctx context.Context, f Fence, put, gone []Slave) (revision int64, err error) {
	ops, conditions, err := r.slaveOps(put, gone)
	if err != nil {
		return 0, err
	}
	for len(ops) > 0 {
		n := min(len(ops), maxOps)
		revision, err = r.writeSlaves(ctx, f, conditions[:n], ops[:n])
		if err != nil {
			return 0, fmt.Errorf("write slaves: %w", err)
		}
		ops, conditions = ops[n:], conditions[n:]
	}
	return revision, nil
}

func (r *Registry) slaveOps(puts, gone []Slave) (ops []clientv3.Op, conditions []clientv3.Cmp, err error) {
	for _, s := range puts {
		if err := s.Validate(); err != nil {
			return nil, nil, err
		}
		key := r.keys.Slave(s.Name)
		ops, conditions = append(ops, put(key, s)), append(conditions, unchanged(key, s.Revision))
	}
	for _, s := range gone {
		if err := ValidSlaveName(s.Name); err != nil {
			return nil, nil, err
		}
		key := r.keys.Slave(s.Name)
		ops, conditions = append(ops, clientv3.OpDelete(key)), append(conditions, unchanged(key, s.Revision))
	}
	return ops, conditions, nil
}

func (r *Registry) writeSlaves(ctx context.Context, f Fence, conditions []clientv3.Cmp, ops []clientv3.Op) (int64, error) {
	resp, err := r.client.Txn(ctx).If(append([]clientv3.Cmp{f.holds()}, conditions...)...).Then(ops...).Else(clientv3.OpGet(f.LeaderKey)).Commit()
	switch {
	case err != nil:
		return 0, unavailable(err)
	case resp.Succeeded:
		return resp.Header.Revision, nil
	}
	if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) == 0 || kvs[0].CreateRevision != f.Epoch {
		return 0, ErrFenced
	}
	return 0, ErrConflict
}

// setSlave records one slave, or forgets it. prior is what was known of slaves before. Of a record that cannot be used only
// its Revision counts: the coordinator, which writes many records at once, can then write it anew, or delete it, and
// it is in nobody's way.
func setSlave(slaves, prior map[string]Slave, name string, kv *mvccpb.KeyValue, deleted bool) error {
	before, known := prior[name]
	delete(slaves, name)
	if deleted {
		return nil
	}
	if err := ValidSlaveName(name); err != nil { // nobody can greet by it
		return fmt.Errorf("etcd key %s: %w", kv.Key, err)
	}
	s, err := readSlave(name, kv)
	if err != nil {
		s = Slave{Name: name, Mode: ModeMount}
	}
	s.Revision, s.Placed = kv.ModRevision, kv.ModRevision
	if known && before.sameHome(s) {
		s.Placed = before.Placed
	}
	slaves[name] = s
	return err
}

// readSlave reads a record. A mode that a later release has is none that this one could heed.
func readSlave(name string, kv *mvccpb.KeyValue) (Slave, error) {
	var s Slave
	if err := decode(string(kv.Key), kv.Value, &s); err != nil {
		return Slave{}, err
	}
	s.Name = name
	if !s.Mode.known() {
		s.Mode = ModeMount
	}
	if err := s.Validate(); err != nil {
		return Slave{}, fmt.Errorf("etcd key %s: %w", kv.Key, err)
	}
	return s, nil
}

// loadAll is Load with the slaves, who may be ten thousand: unless whole is set, of those that known has only what has
// changed since is read, as long as none is gone.
func (r *Registry) loadAll(ctx context.Context, known View, whole bool) (View, error) {
	if whole = whole || known.applied == 0; whole {
		v, part, err := r.load(ctx, clientv3.OpGet(r.keys.Slaves(), clientv3.WithPrefix()))
		if err == nil {
			v.setSlaves(r.keys, known.Slaves, part[0].GetResponseRange().Kvs)
		}
		return v, err
	}
	v, part, err := r.load(ctx, clientv3.OpGet(r.keys.Slaves(), clientv3.WithPrefix(), clientv3.WithMinModRev(known.applied+1)))
	if err != nil {
		return v, err
	}
	changed := part[0].GetResponseRange()
	v.Slaves, v.SlavesRevision = maps.Clone(known.Slaves), known.SlavesRevision
	v.setAll(r.keys, changed.Kvs)
	if v.Revision < known.applied || int64(len(v.Slaves)) != changed.Count { // as many: what is there was known, or has changed
		return r.loadAll(ctx, known, true)
	}
	return v, nil
}

// setSlaves takes over all slaves. prior is what was known of them before.
func (v *View) setSlaves(keys Keys, prior map[string]Slave, kvs []*mvccpb.KeyValue) {
	v.Slaves, v.SlavesRevision = make(map[string]Slave, len(kvs)), v.Revision
	for _, kv := range kvs {
		if err := setSlave(v.Slaves, prior, strings.TrimPrefix(string(kv.Key), keys.Slaves()), kv, false); err != nil {
			v.Problems[string(kv.Key)] = err
		}
	}
}
