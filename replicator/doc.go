// Package replicator keeps one shard's generations: it publishes new ones, retains old ones, and sees to it that what
// this master serves is what the shard's head names.
//
// A Replica is one shard on one master. A single goroutine (Run) owns its state; everything else sends requests to it,
// so that publishes, rollbacks and flips happen one after the other. A Replica publishes only under a Term, and a
// generation counts as published when Heads.Move has returned: before that, every object of it is durable in the store.
// A Ledger remembers on disk what this master has seen, so that a restart without etcd serves the last head, and an
// etcd restored from an old backup cannot issue numbers a second time.
//
// Subpackages: tree (the format), store (bytes on disk), source (reading a directory).
package replicator
