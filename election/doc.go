// Package election elects one leader a shard among the masters of a fleet, through leases and keys in etcd.
//
// It is for the code that may act only while it leads: it stands for shards and is handed a Term for each one that it
// leads. What it promises:
//
//   - A Term stands for a key in etcd, leaders/<shard>, that this master's lease holds and whose CreateRevision is the
//     term's epoch. There is no term without such a key, and no key makes a term after the lease's deadline.
//   - The deadline is the granted time to live counted from before the renewal was sent, on a clock that runs while the
//     machine is suspended. At the deadline every term of the master ends, whether or not anything else makes progress.
//   - Terms of different masters for one shard never overlap and their epochs only grow. A write to etcd that compares
//     the epoch (Key, Epoch) is safe even from a process that was stopped in between.
//   - A shard without a leader gets one: the master that Assign names tries at once, the next in order a second later.
//     A leader keeps its shard until it dies, withdraws or resigns.
//
// A master has one lease. It keeps that lease's ID until etcd says that the lease is gone, so an outage of etcd ends the
// terms but moves nothing: when etcd is back within what it remembers, the same keys give the same masters new terms.
//
// Decisions are made by state.step, a pure function of (state, event, now) that returns actions. One goroutine in Run
// owns the state and starts the actions; it never does I/O itself. A backend does: etcd for real, Memory for tests.
// Each Term is safe for concurrent use, and so is every method of Election.
package election
