// Package direct keeps the kernel's NFS mounts of one SRV name on a living master without standing in their way: the kernel
// talks to the master itself, at full speed, and is told when to talk to another.
//
// A [Direct] is a relay.Mover: the same relay.Prober that steers a relay steers it. A [Kernel] is what all of them on a
// machine share: the kernel's transports (its connections to NFS servers, as sysfs shows them since Linux 5.14), who owns
// which, and how a connection to a silent master is broken.
//
// What it does:
//
//   - A move from a living master is one write to the transport's dstaddr. The kernel closes the connection, makes one to
//     the new address at once, and sends its unanswered calls again.
//   - From a silent master the write alone never recovers: the kernel waits for an answer to its FIN. So the old connection
//     is destroyed (SOCK_DESTROY of inet_diag) after the write; a kernel without that gets a rule in its packet filter for
//     a moment (nftables, else the iptables command), which answers that FIN with a reset. Where a FIN cannot be sent, behind
//     calls that were not, another rule answers whatever goes to the old address and port, once the new one is written. The
//     rules are removed when the new connection is there, after 5 seconds at the latest, and by the next start when the
//     process died in between.
//   - A master whose process dies resets its connections. The kernel comes back at once, is refused, and sleeps for three
//     seconds, which nothing can end; the address is written meanwhile. Now and then it holds the address back, and asks the
//     dead master again after those seconds: that attempt is led to the next master by a [Detour], from which the kernel is
//     sent to that master's own address.
//
// Nothing below a mount is ever touched: what the kernel waits for is read from sysfs, and when it last heard from a master
// from the kernel's own socket (inet_diag).
//
// Decisions are pure functions of a picture of the kernel (claim, flow, plan); [Direct] performs them. Everything that
// reaches for Linux is behind [System].
package direct
