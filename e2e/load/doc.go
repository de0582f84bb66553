// Package load asks an NFSv3 server for as much as it can answer, and costs little itself, so that it is the server that is
// measured. It speaks by hand: one thread, sockets without the runtime's poller, calls that are copied from templates, one write
// for all calls that the replies make room for. Of a reply it looks at the status, of a READ also at the count, of a READDIRPLUS
// at all; a READ's bytes are received and thrown away. With Op.Each it writes and reads as libnfs does, and finds the same
// ratios between servers: how many calls come at once is what small ones depend on.
//
// What it measures is one Op: an operation over and over on Conns connections with Depth calls in flight on each, for some
// time, or once through a whole tree. Handles are found by package nfs before the clock starts.
//
// While a run lasts its thread does not return to Go's scheduler: a process that loads does nothing else.
package load
