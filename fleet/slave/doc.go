// Package slave is a slave's agent: the small process that keeps a host's mounts on living masters.
//
// For each SRV name that something is mounted by there is a route: a listener at a port of 127.0.0.1 that is the name's own
// (via relay), a [relay.Relay] or another mover that joins the kernel to a master, and a [relay.Prober] that says to which.
// The command that mounts asks the agent for the route (package control), and then has the kernel mount its address
// (package mount); what is mounted the agent reads from the kernel (package mounts).
//
// What it promises:
//
//   - A listener is never absent while this process is: it is handed to whoever started the agent (package fdstore: systemd, or
//     package keeper), and taken over from there at the next start. What the kernel sees of a crash is a reset and a
//     connection that waits for the next process to accept it.
//   - A restart needs no remount and forgets nothing that matters: mounts are in the kernel's table with their names and
//     ports; the masters' last order, name servers and the slave's name are in the state file. Without that file, too, the
//     agent finds its way: from the mounts, and DNS.
//   - It never touches a file below its mounts, so it cannot wait for itself.
//   - A route through which nothing is read any more stops talking to masters; its listener stays, and what connects to it
//     (a mount in another mount namespace, which this process cannot see) wakes it.
//   - Routes, mounts in a greeting, commands at a time and the log are bounded.
//
// The Agent owns a goroutine for each route, one that watches the table of mounts, and one that answers commands; Run returns
// when all have ended.
package slave
