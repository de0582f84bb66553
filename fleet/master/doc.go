// Package master is one master of a fleet: what `nfs-fleet serve` runs.
//
// It wires the parts together and converts between them, so that they need not know each other: etcd (its own or a
// cluster), the election, one replicator.Replica and one volume a shard, the NFS exporter, and the console. It promises
// that whatever happens to etcd, what was served goes on being served; that nothing is published without a term; and
// that a stop takes each part down after those that stand on it.
//
// Who owns what: Run starts and stops every part (stack). Registry.Follow's goroutine alone adds and removes shards.
// A shard's state belongs to its Replica.
package master
