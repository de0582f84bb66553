// Package relay keeps the kernel's NFS mounts of one SRV name on a living master.
//
// The kernel mounts 127.0.0.1. A [Relay] joins each of the kernel's connections to one of its own to the present master
// and passes the bytes on; a [Prober] says which master that is. The two know each other by small interfaces only, and
// neither knows what HELLO looks like on the wire, or DNS: those are given to the Prober as functions.
//
// What it promises:
//
//   - The kernel never sees an error. When a master is lost, every kernel connection with a call under way is reset (a
//     reset, unlike an orderly end, makes the kernel come back without a pause), it comes back at once, and sends its
//     unanswered calls again: the tree is read-only and handles are good on every master. A connection with nothing under way
//     is joined to another master without the kernel noticing.
//   - A planned move loses nothing: the new master's connections are made, and tried with a NULL call, before the old one's
//     are given up; then no more calls go to the old one, its last replies are waited for (50 ms at most), and the kernel's
//     connection goes on with the new one.
//   - The listener never refuses. A connection that finds no master is kept for a second, which the kernel spends better
//     here than after a refusal (three).
//   - No other local user can use it: it talks to 127.0.0.1 and ports below 1024 only, as the master sees ports below 1024
//     from here.
//   - Everything is bounded: connections, waits, memory. A connection costs a few KiB; while the kernel does not take the
//     replies that came, up to 64 KiB of them, or a pipe of 1 MiB, are kept, and no more are read.
//
// A dead process is noticed by its reset. A silent host is noticed within 600 ms while somebody waits for a reply: calls
// that are unanswered for 100 ms make the Prober say HELLO at once, after 200 ms more it says it again over a new
// connection and to the next masters, and 500 ms after the first the silent one is left for the first that answered. A
// master whose replies come, however slow its HELLO, is alive.
//
// Decisions are made by a pure state machine (course); [Prober] performs them. The bytes of all connections are passed by
// one goroutine of the Relay's (loop), which waits for their sockets by itself: large replies are spliced, and of those only
// the record marks are looked at. Another goroutine for each connection of the kernel joins it to masters, one after the
// other. Run returns when all are done.
package relay
