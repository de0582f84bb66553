// Package etcd runs the etcd that masters carry inside themselves, and forms one cluster of them.
//
// A fleet without an etcd of its own elsewhere keeps its coordination in the masters: the first master gives birth to a
// cluster of one voter, and as masters join, the coordinator lets the etcd grow to three and then five voters, an odd
// number at rest. Further masters are plain clients. Four parts, in the order in which a master meets them:
//
//   - Member is the etcd inside this process, which may or may not run. Open starts what the disk has and does not wait
//     for anybody: a master serves readers without etcd. Run keeps it as the cluster wants it: the member list in etcd is
//     the truth, so that a member starts when the list names it and ends when the list does not name it any more.
//   - Routes is how a client reaches the etcd of other masters: through tunnels on their peer listeners, under mutual TLS.
//     The client ports themselves are open to loopback only. It remembers the way on disk, for a start without etcd.
//   - Plan says what should become of a cluster's members: a pure function of its members and the fleet's masters. It
//     takes no step that could cost the quorum. Steer performs its actions one at a time; one master runs it, the
//     coordinator, but two that do for a while harm nothing, because etcd takes one step after the other.
//   - Members tells what each member is and how it does.
//
// Raft between members goes over its own port under mutual TLS with the fleet's certificates, from birth on. Nothing
// that fails in here ends the process.
package etcd

const (
	// Protocol is the ALPN protocol of a tunnel to a master's etcd, on its peer listener.
	Protocol = "nfs-fleet-etcd"
	// ServerName is what the certificate of every master is made out to.
	ServerName = "nfs-fleet-master"
	// MaxVoters is the number of voters that a large fleet has. More make every write slower and nothing safer.
	MaxVoters = 5
	// maxLearners is how many members may be catching up at once.
	maxLearners = 4
)
