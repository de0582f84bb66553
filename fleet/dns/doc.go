// Package dns answers DNS questions about a fleet: which masters there are, and which one a slave shall mount.
//
// Under the fleet's domain, nfs-fleet.internal unless told otherwise, there are
//
//	<domain>                              SOA, NS
//	_nfs._tcp.<domain>                    SRV: every master in step, priority 10, equal weights
//	_nfs._tcp.<slave>.slaves.<domain>     SRV: the order of that slave: priority 10 its master, 20, 30, … its fallbacks
//	<master>.masters.<domain>             A, AAAA: what the SRV records name
//
// Every slave name has an answer, enrolled or not, and no question changes anything: Answer is a pure function of a Zone,
// an immutable picture of the fleet, and the bytes of a question. Whoever follows the fleet makes a new Zone for each
// change; while etcd is away the last one goes on answering. Every record lives 5 seconds, so that a resolver between
// a slave and the fleet forgets soon.
//
// Server puts Answer on a UDP and a TCP port. Memory, connections, and the answers that one network of clients gets over
// UDP in a second are bounded; who asks for more is told to come back over TCP, where nobody can lie about who they are.
//
// SkyDNS gives the same records as they are kept in etcd for a stock CoreDNS with its etcd plugin.
//
// Messages are coded by github.com/miekg/dns, of which nothing shows in what this package exports.
package dns
