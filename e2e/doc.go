// Package e2e shows that nfs-fleet works with things that nobody here wrote: it runs the real binary with its real etcd, and
// reads what it serves with stock Linux kernels, libnfs, showmount, rpcinfo and etcdctl. It imports no production package;
// what it knows of the product is the command line, the HTTP addresses and the protocols.
//
// The parts: a Host is a network namespace on a LAN (a bridge, 10.77.0.0/24, invisible outside). A Master is an nfs-fleet
// process on a Host, or on this machine with ports of its own when the test has no root. A Slave is a user-mode-linux
// kernel on the LAN, told what to do over a serial line (packages slaveinit and wire), so that cutting its network never
// cuts it off from its test. A Fleet is several masters on a LAN, with the etcd inside them or with an Etcd of its own, of
// Debian's version or of this module's.
//
// Chaos is what is done to a fleet under traffic (make chaos): publishers change a tree whose every state is known and
// publish it through any master, readers (package nfs) read whole files and listings from every master, and both record what
// they saw (package history). Faults are drawn by a seed and a round's number. After each round the fleet must come to rest,
// and what was recorded is held against etcd's own history: package history says which rules that must obey. A new fault is
// one function in faults.go and one line in draw.go.
//
// What slaves are promised is measured on slaves (make failover): a survival is a fleet whose kernel slaves have mounted by SRV
// name, whose tree is published without end, and to which events happen again and again. The files are known (package known):
// every block says what it is, so that each read is judged on the slave; and each wait is measured there, in windows (Watch).
//
// A soak (make soak) lets hostile clients (package hostile) loose on one master, beside clients that mean well and while versions
// are published, and holds what the master is afterwards against what it was before.
//
// Package load asks a server for as much as it can answer; make bench measures the product with it beside NFS-Ganesha and
// go-nfs.
//
// A test owns what it starts: t.Cleanup stops it, logs are printed when the test failed. Every process dies with the test
// binary, and what a killed test binary left (namespaces, directories) is swept by the next run. All names carry the test
// binary's process id, so runs do not meet.
//
// What needs root or a missing command skips by name with the reason; with CI=true that is a failure.
package e2e
