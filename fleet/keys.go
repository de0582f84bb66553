package fleet

import (
	"fmt"
	"regexp"
	"strings"
)

// CoordinatorSubject is the leader key that makes its holder the coordinator. It is no shard: no shard name begins
// with an underscore.
const CoordinatorSubject = "_fleet"

var namePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)

// ValidName reports what is wrong with s as the name of a fleet, a shard or a master: 1 to 63 lower-case letters,
// digits, dots, dashes and underscores, a letter or digit at both ends.
func ValidName(s string) error {
	if !namePattern.MatchString(s) {
		return fmt.Errorf("name %q: use 1 to 63 lower-case letters, digits, '.', '-' and '_', with a letter or digit at both ends", s)
	}
	return nil
}

// Keys builds the etcd keys of one fleet.
type Keys struct{ prefix string }

// KeysOf returns the keys of the named fleet.
func KeysOf(fleet string) Keys { return Keys{"/nfs-fleet/" + fleet + "/"} }

// Prefix is what every key of the fleet begins with; it ends with a slash.
func (k Keys) Prefix() string { return k.prefix }

// ID is the key of the fleet's identity.
func (k Keys) ID() string { return k.prefix + "id" }

// Shard is the key of a shard's settings.
func (k Keys) Shard(name string) string { return k.prefix + "shards/" + name }

// Deleted is the key that says that the shard with this fsid was deleted on purpose.
func (k Keys) Deleted(f FSID) string { return k.prefix + "deleted/" + f.String() }

// Head is the key of a shard's head.
func (k Keys) Head(shard string) string { return k.prefix + "heads/" + shard }

// Staged is the key of the generation that a shard's leader asks its peers to fetch.
func (k Keys) Staged(shard string) string { return k.prefix + "staged/" + shard }

// Generations is the prefix of a shard's retained history.
func (k Keys) Generations(shard string) string { return k.prefix + "generations/" + shard + "/" }

// Generation is the key of one retained generation; keys sort by number.
func (k Keys) Generation(shard string, n uint64) string {
	return fmt.Sprintf("%s%010d", k.Generations(shard), n)
}

// Leader is the key that a shard's leader holds under its lease.
func (k Keys) Leader(shard string) string { return k.prefix + "leaders/" + shard }

// Master is the key under which a living master describes itself.
func (k Keys) Master(name string) string { return k.prefix + "masters/" + name }

// Replica is the key under which a living master says what it serves.
func (k Keys) Replica(master string) string { return k.prefix + "replicas/" + master }

// Roster is the key under which a master stays known when it is lost.
func (k Keys) Roster(master string) string { return k.prefix + "roster/" + master }

// Drained is the key that says that a master leads nothing.
func (k Keys) Drained(master string) string { return k.prefix + "drained/" + master }

// Removed is the key that says that an instance was removed from the fleet.
func (k Keys) Removed(instance string) string { return k.prefix + "removed/" + instance }

// Tokens is the prefix of the tokens.
func (k Keys) Tokens() string { return k.prefix + "tokens/" }

// Token is the key of one token.
func (k Keys) Token(id string) string { return k.Tokens() + id }

// CA is the key of the fleet's CA, for a fleet whose etcd is not its own.
func (k Keys) CA() string { return k.prefix + "ca" }

// Slaves is the prefix of the slaves' records.
func (k Keys) Slaves() string { return k.prefix + "slaves/" }

// Slave is the key of one slave's record.
func (k Keys) Slave(name string) string { return k.Slaves() + name }

// SkyDNS is the key that says under which domains the fleet keeps DNS records in etcd, outside of its prefix.
func (k Keys) SkyDNS() string { return k.prefix + "skydns" }

// Mounts is the prefix of the mount records.
func (k Keys) Mounts() string { return k.prefix + "mounts/" }

// Mount is the key that says that client (an address) has mounted shard.
func (k Keys) Mount(shard, client string) string { return k.Mounts() + shard + "/" + client }

// split returns the kind and the rest of a key of this fleet: "shards", "www".
func (k Keys) split(key string) (kind, rest string, ok bool) {
	rest, ok = strings.CutPrefix(key, k.prefix)
	if !ok {
		return "", "", false
	}
	kind, rest, _ = strings.Cut(rest, "/")
	return kind, rest, true
}
