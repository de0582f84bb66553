// Package nfs3 answers the 22 procedures of NFS version 3 (RFC 1813) for read-only volumes: the read side in full, the
// write side with NFS3ERR_ROFS after its arguments have been decoded.
//
// What it promises:
//
//   - Every call checks again who asks, from where, and what the mode bits let them do; a handle alone opens nothing.
//   - A call is answered from the one State that the volume had when the call began.
//   - GETATTR, LOOKUP, ACCESS and READ from the page cache allocate nothing and never block: what would block is
//     postponed (rpc.ErrDefer) and made again from a goroutine of its own.
//   - A handle that is born later than the served generation waits for that generation, a bounded time.
//   - Listings go in slot order, the cookie of an entry is its slot + 2, the cookie verifier is 0 and never refused, so
//     that a listing goes on at another master and across a publish.
//
// A [Program] owns nothing but the limit on how many reads wait for the disk at once.
package nfs3
