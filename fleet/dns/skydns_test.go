package dns

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestSkyDNS(t *testing.T) {
	want := map[string]string{
		"/skydns/example/prod/_tcp/_nfs/m1":                   `{"host":"m1.masters.prod.example","port":2049,"priority":10,"weight":100,"ttl":5}`,
		"/skydns/example/prod/_tcp/_nfs/m2":                   `{"host":"m2.masters.prod.example","port":2050,"priority":10,"weight":100,"ttl":5}`,
		"/skydns/example/prod/slaves/web17/_tcp/_nfs/1":       `{"host":"m2.masters.prod.example","port":2050,"priority":10,"weight":100,"ttl":5}`,
		"/skydns/example/prod/slaves/web17/_tcp/_nfs/2":       `{"host":"m1.masters.prod.example","port":2049,"priority":20,"weight":100,"ttl":5}`,
		"/skydns/example/prod/slaves/rack2/web18/_tcp/_nfs/1": `{"host":"m1.masters.prod.example","port":2049,"priority":10,"weight":100,"ttl":5}`,
		"/skydns/example/prod/slaves/rack2/web18/_tcp/_nfs/2": `{"host":"m2.masters.prod.example","port":2050,"priority":20,"weight":100,"ttl":5}`,
		"/skydns/example/prod/slaves/rack2/web18/_tcp/_nfs/3": `{"host":"m3.masters.prod.example","port":2049,"priority":30,"weight":100,"ttl":5}`,
		"/skydns/example/prod/masters/m1/a1":                  `{"host":"10.77.0.1","ttl":5}`,
		"/skydns/example/prod/masters/m1/a2":                  `{"host":"fd00::1","ttl":5}`,
		"/skydns/example/prod/masters/m2/a1":                  `{"host":"10.77.0.2","ttl":5}`,
		"/skydns/example/prod/masters/m2/a2":                  `{"host":"10.77.1.2","ttl":5}`,
		"/skydns/example/prod/masters/m3/a1":                  `{"host":"10.77.0.3","ttl":5}`,
	}
	got := SkyDNS(threeMasters())
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if got[key] != want[key] {
			t.Errorf("%s:\n got %s\nwant %s", key, got[key], want[key])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d keys, want %d: %q", len(got), len(want), slices.Sorted(maps.Keys(got)))
	}
	prefixes := SkyDNSPrefixes("Prod.Example.")
	for key := range got {
		if !slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(key, p) }) {
			t.Errorf("%s is under none of %q", key, prefixes)
		}
	}
	same(t, "prefixes of the default", SkyDNSPrefixes(""), []string{
		"/skydns/internal/nfs-fleet/_tcp/_nfs/", "/skydns/internal/nfs-fleet/masters/", "/skydns/internal/nfs-fleet/slaves/",
	})
}

func TestSkyDNSLeavesOutWhatCannotBeAsked(t *testing.T) {
	z := threeMasters()
	z.Slaves = []string{"", "_tcp", "a..b", "a/b", strings.Repeat("a", 64), strings.Repeat("a.", 120) + "a", "WEB17"}
	z.Masters = append(z.Masters, Target{Name: "b.a.m1", Addresses: addrs("10.77.0.9"), Port: 2049})
	for key := range SkyDNS(z) {
		if strings.Contains(key, "/slaves/") && !strings.Contains(key, "/slaves/web17/_tcp/_nfs/") || strings.Contains(key, "/m1/a/b/") {
			t.Error(key)
		}
	}
}

// plugin answers as the etcd plugin of CoreDNS does: everything below a name's path belongs to the name, and the weights
// of one priority are shares of a hundred.
type plugin map[string]string

func (p plugin) below(name string) []skyRecord {
	prefix := skyRoot + "/" + strings.Join(reversed(dns.SplitDomainName(name)), "/") + "/"
	var out []skyRecord
	for _, key := range slices.Sorted(maps.Keys(p)) {
		var r skyRecord
		if strings.HasPrefix(key, prefix) && json.Unmarshal([]byte(p[key]), &r) == nil {
			out = append(out, r)
		}
	}
	return out
}

func (p plugin) srv(name string) (services, hosts []string) {
	sum := map[uint16]int{}
	for _, r := range p.below(name) {
		sum[r.Priority] += r.Weight
	}
	for _, r := range p.below(name) {
		share := int(100 / float64(sum[r.Priority]) * float64(r.Weight))
		services = append(services, fmt.Sprintf("%d %d %d %s.", r.Priority, max(share, 1), r.Port, r.Host))
		for _, a := range p.below(r.Host + ".") {
			if _, err := netip.ParseAddr(a.Host); err == nil {
				hosts = append(hosts, r.Host+". "+a.Host)
			}
		}
	}
	return services, hosts
}

func TestCoreDNSSaysTheSame(t *testing.T) {
	fleets := map[string]*Zone{"three": threeMasters()}
	for _, n := range []int{1, 2, 3, 7, 10, 33, 99, 100, 101, 300} {
		z := manyMasters(n)
		z.Slaves = []string{"web17"}
		z.SlaveOrder = func(string) []string { return []string{z.Masters[n/2].Name, z.Masters[0].Name} }
		fleets[fmt.Sprint(n)] = z
	}
	for name, z := range fleets {
		p := plugin(SkyDNS(z))
		for _, q := range []string{"_nfs._tcp.prod.example.", "_nfs._tcp.web17.slaves.prod.example."} {
			r := ask(t, z, question(q, dns.TypeSRV), TCP)
			services, hosts := p.srv(q)
			ours := srvs(r.Answer)
			var ourHosts []string
			for _, rr := range r.Extra {
				f := strings.Fields(rr.String())
				ourHosts = append(ourHosts, f[0]+" "+f[4])
			}
			for _, list := range [][]string{services, hosts, ours, ourHosts} {
				slices.Sort(list)
			}
			same(t, name+" "+q, services, ours)
			same(t, name+" "+q+" addresses", hosts, ourHosts)
		}
	}
}
