package dns

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
)

// skyRoot is where a stock CoreDNS with its etcd plugin looks for records.
const skyRoot = "/skydns"

// skyRecord is a record in etcd. The lifetime is explicit: without one CoreDNS makes it up from the key's lease.
type skyRecord struct {
	Host     string `json:"host"`
	Port     uint16 `json:"port,omitempty"`
	Priority uint16 `json:"priority,omitempty"`
	Weight   int    `json:"weight,omitempty"`
	TTL      int    `json:"ttl"`
	Fleet    string `json:"fleet,omitempty"` // who keeps it; CoreDNS passes over it
}

// SkyDNS returns the zone's records as they are kept in etcd, by key, for a stock CoreDNS with its etcd plugin: the SRV
// records of the fleet and of every slave in z.Slaves, and the addresses of the masters. Other slaves have none there. The
// keys must have no lease. Of two masters named "a" and "b.a" only the shorter has addresses, because the plugin would mix them up.
func SkyDNS(z *Zone) map[string]string {
	x := z.look()
	out := map[string]string{}
	put := func(r skyRecord, path ...string) {
		r.Fleet = z.Fleet
		value, _ := json.Marshal(r) // of strings and numbers: it cannot fail
		out[skyRoot+"/"+strings.Join(path, "/")] = string(value)
	}
	base := reversed(x.labels)
	targets := func(slave string, path ...string) {
		for i, t := range z.targets(slave) {
			key := strconv.Itoa(i + 1)
			if slave == "" {
				key = t.name
			}
			put(skyRecord{Host: strings.TrimSuffix(t.fqdn, "."), Port: t.port, Priority: t.priority, Weight: weight, TTL: ttl}, append(path, protocol, service, key)...)
		}
	}
	targets("", slices.Clone(base)...)
	for _, slave := range z.Slaves {
		slave = strings.ToLower(slave)
		if labels := strings.Split(slave, "."); hostName(labels) && fits(strings.Join([]string{service, protocol, slave, slavesAt, x.domain}, ".")) {
			targets(slave, slices.Concat(base, []string{slavesAt}, reversed(labels))...)
		}
	}
	for _, h := range x.byName {
		if x.insideAnother(h.name) {
			continue
		}
		path := slices.Concat(base, []string{mastersAt}, reversed(strings.Split(h.name, ".")))
		for i, a := range slices.Concat(h.v4, h.v6) {
			put(skyRecord{Host: a.String(), TTL: ttl}, append(path, "a"+strconv.Itoa(i+1))...)
		}
	}
	return out
}

// SkyDNSPrefixes returns what the keys of SkyDNS begin with: whatever else is found in etcd under one of them is out of date.
// Keys of other services in the domain, and of domains below it, are not under them.
func SkyDNSPrefixes(domain string) []string {
	z := Zone{Domain: domain}
	base := skyRoot + "/" + strings.Join(reversed(z.look().labels), "/") + "/"
	return []string{base + protocol + "/" + service + "/", base + mastersAt + "/", base + slavesAt + "/"}
}

// insideAnother says whether a master's name is below that of another master.
func (x *index) insideAnother(name string) bool {
	for {
		_, after, found := strings.Cut(name, ".")
		if !found {
			return false
		}
		if x.byName[after] != nil {
			return true
		}
		name = after
	}
}

func reversed(labels []string) []string {
	out := slices.Clone(labels)
	slices.Reverse(out)
	return out
}
