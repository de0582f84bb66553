package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/e2e/wire"
)

// Ways to keep a mount on a living master.
const (
	viaRelay  = "relay"
	viaDirect = "direct"
)

// slaveDomain is the domain of fleets that slaves mount from.
const slaveDomain = "fleet.test"

// dnsFlags are what masters need to answer DNS questions.
var dnsFlags = []string{"--listen-dns", "0.0.0.0:53", "--domain", slaveDomain}

// SRV is the name by which a slave mounts.
func (f *Fleet) SRV(slave string) string { return "_nfs._tcp." + slave + ".slaves." + slaveDomain }

// DNS lists the masters as name servers, as --dns takes them.
func (f *Fleet) DNS() string {
	var all []string
	for _, m := range f.Masters {
		all = append(all, m.Host.Addr+":53")
	}
	return strings.Join(all, ",")
}

// Mounted is a kernel slave with an agent that has mounted a shard by its SRV name.
type Mounted struct {
	*Slave
	Name, Via, Shard, Dir string

	fleet *Fleet
	agent *Process
	bin   string
}

// MountSlave boots a slave, starts its agent and mounts a shard.
func (f *Fleet) MountSlave(t testing.TB, name, via, shard string) *Mounted {
	t.Helper()
	m := &Mounted{Slave: f.LAN.Slave(t), Name: name, Via: via, Shard: shard, Dir: "/mnt/" + shard, fleet: f, bin: product(t)}
	m.StartAgent()
	m.Must("mkdir", "-p", m.Dir)
	m.MountAgain()
	t.Cleanup(func() {
		if t.Failed() {
			m.explain()
		}
	})
	return m
}

// explain logs where the slave's kernel and its agent are.
func (m *Mounted) explain() {
	const script = `grep . /sys/kernel/sunrpc/xprt-switches/*/xprt-*/{dstaddr,xprt_state}; ss -tnoe state all | grep -v TIME-WAIT; nft list ruleset 2>/dev/null; "$0" mounts -o json`
	var r wire.Result
	err := m.rpc.Call("Slave.Run", wire.Command{Args: []string{"timeout", "10", "bash", "-c", script, m.bin}, Limit: 15 * time.Second}, &r)
	m.t.Logf("%s via %s, %v:\n%s%s", m.Name, m.Via, err, r.Stdout, r.Stderr)
}

// StartAgent starts the slave's agent and waits until it answers.
func (m *Mounted) StartAgent() {
	m.t.Helper()
	m.agent = m.Start(nil, m.bin, "agent", "--dns", m.fleet.DNS(), "--log-level", "debug", "--log-format", "json")
	eventually(m.t, restLimit, "the agent answers", func() bool { return m.Run(m.bin, "mounts").Code == 0 })
}

// agentSince is what the slave's agent has logged from then on.
func (m *Mounted) agentSince(at time.Time) string {
	m.t.Helper()
	var said []string
	for line := range strings.Lines(string(m.agent.Output().Said)) {
		var entry struct{ Time time.Time }
		if json.Unmarshal([]byte(line), &entry) != nil || !entry.Time.Before(at) {
			said = append(said, line)
		}
	}
	return strings.Join(said, "")
}

// MountAgain mounts what is not mounted.
func (m *Mounted) MountAgain() {
	m.t.Helper()
	m.Must(m.bin, "mount", "-v", "--via", m.Via, "--dns", m.fleet.DNS(), m.fleet.SRV(m.Name)+":/"+m.Shard, m.Dir)
}

// connections counts the slave's connections to the NFS port of each master, as its kernel says.
func (m *Mounted) connections() map[*Master]int {
	m.t.Helper()
	f := m.MustOpen("/proc/net/tcp")
	defer f.Close()
	table, err := f.Read(0, 1<<16)
	if err != nil {
		m.t.Fatalf("slave %s: %v", m.Name, err)
	}
	found := map[*Master]int{}
	for _, master := range m.fleet.Masters {
		var a, b, c, d byte
		fmt.Sscanf(master.Host.Addr, "%d.%d.%d.%d", &a, &b, &c, &d)
		if n := strings.Count(table, fmt.Sprintf("%02X%02X%02X%02X:%04X 01 ", d, c, b, a, 2049)); n > 0 {
			found[master] = n
		}
	}
	return found
}

// ReadsFrom waits until the slave reads from one master and returns it. There is a connection for HELLO and one or more for
// reading; of another master, to which the slave wants to go back, it asks only how it is, by one. No program is run for it,
// which would cost the slave more than what is measured.
func (m *Mounted) ReadsFrom() (from *Master) {
	m.t.Helper()
	var found map[*Master]int
	defer func() {
		if from == nil {
			m.t.Logf("connections of %s: %v", m.Name, found)
		}
	}()
	eventually(m.t, restLimit, m.Name+" reads from one master", func() bool {
		found, from = m.connections(), nil
		for master, n := range found {
			if n > 1 && from == nil {
				from = master
			} else if n > 1 {
				from = nil
				return false
			}
		}
		return from != nil
	})
	return from
}

// watchBoth starts the readers whose pauses count: single blocks past the cache, and a stream.
func (m *Mounted) watchBoth() []*Watch {
	m.t.Helper()
	path := filepath.Join(m.Dir, bigFile)
	return []*Watch{
		m.Watch(wire.Watch{Path: path, Name: bigFile, Reads: 150, Pace: 2 * time.Millisecond}),
		m.Watch(wire.Watch{Path: path, Name: bigFile, Stream: true, Pace: 25 * time.Millisecond}),
		m.Watch(wire.Watch{Path: filepath.Join(m.Dir, stampFile), Name: stampFile, Reads: 1, Pace: 50 * time.Millisecond}),
	}
}
