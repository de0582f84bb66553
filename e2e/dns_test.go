package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// dig asks a master's DNS as bind's tool does, from a host of the LAN. It returns the answer's status and its records
// without their lifetime, owners in lower case, sorted.
func (f *Fleet) dig(m *Master, args ...string) (status string, records []string) {
	r := runOn(f.t, f.Outside, 20*time.Second, nil, append([]string{"dig", "@" + m.Host.Addr, "-p", "5353", "+time=2", "+tries=2", "+nodnssec"}, args...)...)
	section := ""
	for line := range strings.Lines(r.Stdout) {
		line = strings.TrimSpace(line)
		if _, after, ok := strings.Cut(line, "status: "); ok {
			status, _, _ = strings.Cut(after, ",")
		}
		if after, ok := strings.CutPrefix(line, ";; "); ok {
			section = after
		}
		if field := strings.Fields(line); len(field) > 4 && strings.HasPrefix(section, "ANSWER") && !strings.HasPrefix(line, ";") {
			records = append(records, strings.Join(append([]string{strings.ToLower(field[0])}, field[3:]...), " "))
		}
	}
	slices.Sort(records)
	return status, records
}

// What masters answer is what BIND's client understands: over UDP and TCP, of what there is and what there is not, and with
// all of etcd gone.
func TestDNS(t *testing.T) {
	needCommands(t, "dig")
	f := StartFleet(t, FleetConfig{Masters: 3, Etcd: EtcdModule, Flags: []string{"--domain", "Prod.Example."}})
	source := t.TempDir()
	writeFile(t, source+"/file", "content")
	f.createShard("www")
	f.WaitServed("www", f.publishAnywhere("www", source, "first").Number, 30*time.Second)

	const service, slave = "_nfs._tcp.prod.example.", "_nfs._tcp.web17.slaves.prod.example."
	addr := map[string]string{}
	var all []string
	for _, m := range f.Masters {
		addr[m.Name] = m.Host.Addr
		all = append(all, fmt.Sprintf("%s SRV 10 33 2049 %s.masters.prod.example.", service, m.Name))
	}
	check := func(what string, m *Master, status string, want []string, args ...string) {
		t.Helper()
		var got []string
		var said string
		eventually(t, 30*time.Second, fmt.Sprintf("%s: dig %s of %s answered %s %q", what, args, m.Name, status, want), func() bool {
			said, got = f.dig(m, args...)
			return said == status && slices.Equal(got, want)
		})
	}
	everywhere := func(what string) {
		t.Helper()
		var order []string
		for _, m := range f.Masters {
			check(what, m, "NOERROR", all, service, "SRV")
			check(what, m, "NOERROR", all, service, "SRV", "+tcp")
			check(what, m, "NOERROR", all, "_NFS._tcp.PROD.example.", "SRV", "+noedns")
			check(what, m, "NOERROR", []string{"m2.masters.prod.example. A " + addr["m2"]}, "m2.masters.prod.example", "A")
			check(what, m, "NOERROR", nil, "m2.masters.prod.example", "AAAA")
			check(what, m, "NXDOMAIN", nil, "m9.masters.prod.example", "A")
			check(what, m, "REFUSED", nil, "www.example", "A")
			status, got := f.dig(m, slave, "SRV")
			if order == nil {
				order = got
			}
			if status != "NOERROR" || len(got) != 3 || !slices.Equal(got, order) {
				t.Errorf("%s: %s answers for a slave %s %q, m1 %q", what, m.Name, status, got, order)
			}
		}
		m1 := f.Masters[0]
		if status, got := f.dig(m1, "prod.example", "SOA"); status != "NOERROR" || len(got) != 1 || !strings.Contains(got[0], "hostmaster.prod.example.") {
			t.Errorf("%s: SOA %s %q", what, status, got)
		}
		if status, got := f.dig(m1, "prod.example", "NS"); status != "NOERROR" || len(got) != 3 || !strings.HasSuffix(got[0], " NS m1.masters.prod.example.") {
			t.Errorf("%s: NS %s %q", what, status, got)
		}
	}
	everywhere("all is well")

	f.Masters[0].MustCLI("master", "drain", "m3")
	two := []string{service + " SRV 10 50 2049 m1.masters.prod.example.", service + " SRV 10 50 2049 m2.masters.prod.example."}
	check("m3 drained", f.Masters[0], "NOERROR", two, service, "SRV")
	f.Masters[0].MustCLI("master", "undrain", "m3")
	for _, m := range f.Masters {
		check("m3 undrained", m, "NOERROR", all, service, "SRV")
	}
	f.Masters[2].Kill()
	check("m3 killed", f.Masters[0], "NOERROR", two, service, "SRV")
	f.Masters[2].Start()
	f.Masters[2].WaitReady()
	for _, m := range f.Masters {
		check("m3 back", m, "NOERROR", all, service, "SRV")
	}

	for _, member := range f.Etcd.Members {
		member.Kill()
	}
	f.Masters[0].waitEtcd(false)
	everywhere("etcd is gone")
}
