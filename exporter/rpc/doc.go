// Package rpc answers ONC RPC version 2 (RFC 5531) over TCP with record marking, and over UDP for the small programs
// that people still ask that way. It knows nothing of NFS: programs are given to it as [Program] values, and it gives
// each of them the undecoded arguments of a call and a buffer to append the result to.
//
// What it promises:
//
//   - One goroutine at a time has a connection. It answers every whole call that is already buffered in place, one after
//     the other, into one output buffer, and writes them together. Neither it nor the header code allocates. Connections
//     with small calls only, which are answered without any waiting, share a goroutine, the loop, which looks for their
//     calls a little longer before it sleeps; as soon as there is more to do a connection goes on with one of its own.
//   - A program that would block says [ErrDefer]; the call is then made again with [Call.Blocking] set, on a goroutine
//     of its own, and its reply goes out when it is ready, in any order.
//   - A peer that does not read its replies, sends slowly, sends nonsense or goes away costs itself only: output is
//     bounded by stopping to read, and every wait on a peer has a deadline.
//   - Bytes that are no call get the protocol's own error or a closed connection. A program that panics has its call
//     answered SYSTEM_ERR and is logged once a procedure; the process goes on.
//   - An idle connection holds no buffers.
//
// A [Server] owns its connections and every goroutine it starts; Serve and ServePacket return when all of them are done.
package rpc
