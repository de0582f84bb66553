// Package fleet holds the vocabulary of a fleet (identity, shards, masters, heads) and the etcd keys they live under.
//
// Every value in etcd is JSON that a person can read with `etcdctl get --prefix /nfs-fleet/` (the CA alone is PEM). Under
// /nfs-fleet/<fleet>/, where L says that a key lives under its master's lease:
//
//	id                         Identity: made once, its era counts recoveries
//	shards/<shard>             Shard: settings
//	deleted/<fsid>             DeletedShard: what stays of a shard that was deleted
//	heads/<shard>              tree.Generation: what the shard serves now
//	staged/<shard>             tree.Generation: what the leader asks the other masters to fetch
//	generations/<shard>/<n>    tree.Generation: the retained history
//	leaders/<shard>            L, written by package election; leaders/_fleet makes its holder the coordinator
//	masters/<name>             L, Master: how a living master describes itself
//	replicas/<name>            L, Replica: which generation of each shard it serves
//	roster/<name>              RosterEntry: what stays known of a master when it is lost
//	drained/<name>             Drain: a master that leads nothing
//	removed/<instance>         Removal: an instance that must not come back
//	tokens/<id>                TokenRecord: a hash, never a secret
//	ca                         the fleet's CA with its key, when etcd is not the fleet's own
//	slaves/<name>              Slave: where it is to read from; written by the coordinator alone
//	mounts/<shard>/<client>    Mount: expires unseen
//
// Registry is the only code that reads and writes them, what election writes apart. It promises that a shard's head
// moves, and that something is staged, only in a transaction that is fenced by the leader's epoch; that the head moves
// one generation at a time; that an fsid is never given out twice; that a slave's home
// changes only under the coordinator's epoch; that a token is deleted once; and that an instance
// that was removed is never entered again. Follow keeps a View of the fleet that cannot silently fall behind: it reads
// everything again at intervals beside its watch.
package fleet
