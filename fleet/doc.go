// Package fleet holds the vocabulary of a fleet (identity, shards, masters, heads) and the etcd keys they live under.
//
// Every value in etcd is JSON that a person can read with `etcdctl get --prefix /nfs-fleet/`; DESIGN.md section 3 lists
// the keys. Registry is the only code that reads and writes them, leader keys apart (package election). It promises
// that a shard's head moves only in a transaction that is fenced by the leader's epoch, one generation at a time, and
// that an fsid is never given out twice. Follow keeps a View of the fleet that cannot silently fall behind: it reads
// everything again at intervals beside its watch.
package fleet
