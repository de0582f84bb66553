// Package exporter is the NFSv3 server of a master: it serves volumes, and MOUNT beside them, on one TCP port, answers
// for port 111 when asked to, and applies each export's access rules. What is served may be changed at any moment with
// [Server.SetExports]; calls in flight finish on what they began with.
//
// The parts are below: exporter/rpc moves calls and replies, exporter/nfs3, mount3 and portmap answer them, exporter/export
// holds the rules and exporter/volume the content. Here they are put together; the types that a caller must name are
// given their names here.
//
// A [Server] owns the connections and goroutines of its Serve methods, which return when all of them are done.
package exporter
