// Package export says what is exported to whom: an [Export] is a volume, its name and its [Rules]; a [Table] is all of
// them at one moment. It decides whether an address may ask at all, whom a credential stands for and what the mode bits
// let that person do. It is pure: no I/O, no state, everything safe for concurrent use.
package export

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
	"github.com/nfs-fleet/nfs-fleet/exporter/volume"
)

// Squash says whose user ids are not believed.
type Squash uint8

// The zero Squash is the careful one, as in exports(5).
const (
	SquashRoot Squash = iota // uid 0 and gid 0 become anonymous
	SquashNone               // all are believed
	SquashAll                // everyone is anonymous
)

// Nobody is the uid and gid of the anonymous when Rules name none.
const Nobody = 65534

// Rules say who may read an export and as whom.
type Rules struct {
	Networks []netip.Prefix // from where; empty: from everywhere
	Squash   Squash
	// AnonUID and AnonGID are what the anonymous become; 0 stands for Nobody, for squashing to root would not be squashing.
	AnonUID, AnonGID uint32
	Insecure         bool // calls from ports of 1024 and above are let in
}

// Export is one shard as it is exported, under "/" and its name.
type Export struct {
	Name   string
	Volume *volume.Volume
	Rules  Rules
}

// Admits reports whether a call from an address is let in.
func (r *Rules) Admits(from netip.AddrPort) bool {
	return (r.Insecure || from.Port() < 1024) && r.Covers(from.Addr())
}

// Covers reports whether an address is in the allowed networks.
func (r *Rules) Covers(a netip.Addr) bool {
	if len(r.Networks) == 0 {
		return true
	}
	a = a.Unmap().WithZone("")
	for _, n := range r.Networks {
		if n.Contains(a) {
			return true
		}
	}
	return false
}

// Identity is whom a call acts for. Its groups alias the call's credential.
type Identity struct {
	UID, GID uint32
	gids     []uint32
	// root is the gid that a 0 among gids stands for
	root uint32
}

// Identify applies the squash rules to a credential. Without AUTH_SYS everyone is anonymous.
func (r *Rules) Identify(c *rpc.Cred) Identity {
	anonUID, anonGID := r.AnonUID, r.AnonGID
	if anonUID == 0 {
		anonUID = Nobody
	}
	if anonGID == 0 {
		anonGID = Nobody
	}
	if c.Flavor != rpc.AuthSys || r.Squash == SquashAll {
		return Identity{UID: anonUID, GID: anonGID}
	}
	id := Identity{UID: c.UID, GID: c.GID, gids: c.GIDs}
	if r.Squash == SquashRoot {
		id.root = anonGID
		if id.UID == 0 {
			id.UID = anonUID
		}
		if id.GID == 0 {
			id.GID = anonGID
		}
	}
	return id
}

// In reports whether id is in a group.
func (id *Identity) In(gid uint32) bool {
	if id.GID == gid {
		return true
	}
	for _, g := range id.gids {
		if g == 0 {
			g = id.root
		}
		if g == gid {
			return true
		}
	}
	return false
}

// Permission bits, as in one octal digit of a mode.
const (
	Exec  = 1 // for a directory: search
	Write = 2
	Read  = 4
)

// Permits returns what id may do to a file, by its mode bits. Uid 0 may do all but execute what nobody may.
func (id *Identity) Permits(mode, uid, gid uint32, directory bool) uint32 {
	switch {
	case id.UID == 0:
		if directory || mode&0o111 != 0 {
			return Read | Write | Exec
		}
		return Read | Write
	case id.UID == uid:
		return mode >> 6 & 7
	case id.In(gid):
		return mode >> 3 & 7
	}
	return mode & 7
}

// Table is what is exported at one moment. It does not change.
type Table struct {
	all    []Export
	byName map[string]*Export
	byFSID map[uint64]*Export
}

// NewTable makes a table. Of exports with the same name or fsid the last counts.
func NewTable(exports []Export) *Table {
	t := &Table{byName: make(map[string]*Export), byFSID: make(map[uint64]*Export)}
	for _, e := range exports {
		e.Rules.Networks = slices.Clone(e.Rules.Networks)
		t.byName[e.Name], t.byFSID[e.Volume.FSID()] = &e, &e
	}
	for _, name := range slices.Sorted(maps.Keys(t.byName)) {
		t.all = append(t.all, *t.byName[name])
	}
	return t
}

// All returns the exports in the order of their names. The caller does not modify it.
func (t *Table) All() []Export { return t.all }

// ByName returns the export with a name, or nil.
func (t *Table) ByName(name string) *Export { return t.byName[name] }

// ByFSID returns the export whose handles carry an fsid, or nil.
func (t *Table) ByFSID(fsid uint64) *Export { return t.byFSID[fsid] }
