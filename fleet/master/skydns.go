package master

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nfs-fleet/nfs-fleet/election"
	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/dns"
	"github.com/nfs-fleet/nfs-fleet/fleet/spread"
)

const (
	// skyEvery is the time between two looks at the records, skyRest that between two writes while there is more to write.
	skyEvery, skyRest = time.Second, 200 * time.Millisecond
	// skyReread is how often they are read again: somebody may have changed them.
	skyReread = 10 * time.Minute
	// skyAgain is the time until a write that failed is tried again, for which all is read first.
	skyAgain = 5 * time.Second
	// skyRetry is the time until what etcd has forbidden is tried again.
	skyRetry = time.Minute
)

// skyKeeper keeps the fleet's DNS records in etcd, for a stock CoreDNS with its etcd plugin, under one term of the
// coordinator. It writes what has changed, some at a time, and deletes what is out of date; records of other fleets in the
// same etcd it leaves alone.
type skyKeeper struct {
	*Master
	term *election.Term

	// run's own.
	memory  fleet.SkyDNS
	have    map[string]string // what there is of this fleet; nil: it is to be read
	foreign map[string]string // by key: the fleet that has a record there
	readAt  time.Time
	readOf  string // the domain then
	want    map[string]string
	wanted  wantedRecords // what want is of
	costly  time.Time     // until when want is good enough
}

// wantedRecords is what the records are made from.
type wantedRecords struct {
	domain string
	slaves int64 // View.SlavesRevision
	hosts  []spread.Host
	places map[string]place
}

func (w wantedRecords) equal(o wantedRecords) bool {
	return w.domain == o.domain && w.slaves == o.slaves && slices.Equal(w.hosts, o.hosts) && maps.EqualFunc(w.places, o.places, place.equal)
}

// keepRecords does a skyKeeper's work until the term ends.
func (m *Master) keepRecords(term *election.Term) {
	k := &skyKeeper{Master: m, term: term}
	ctx := term.Context()
	pause := time.NewTimer(skyRest)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		pause.Reset(k.turn(ctx))
	}
}

// turn does what is due, and returns when to look again.
func (k *skyKeeper) turn(ctx context.Context) time.Duration {
	g := k.guide.Load()
	if g == nil || k.etcdProblem() != nil {
		return skyEvery
	}
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	more, err := k.step(ctx, g)
	switch {
	case errors.Is(err, fleet.ErrDenied):
		k.have = nil
		if k.warnOnce("skydns denied") {
			k.log.Warn().Err(err).Msg("the DNS records for CoreDNS cannot be kept in etcd: grant this user /skydns/, or say --skydns=false")
		}
		return skyRetry
	case err != nil:
		k.have = nil // perhaps written, perhaps not
		k.log.Debug().Err(err).Msg("the DNS records for CoreDNS are not written yet; trying again")
		return skyAgain
	case more:
		return skyRest
	}
	return skyEvery
}

// step reads, and writes one transaction's worth. more says that there is more to write.
func (k *skyKeeper) step(ctx context.Context, g *guide) (more bool, err error) {
	k.wish(g)
	if k.have == nil || k.readOf != g.domain || time.Since(k.readAt) > skyReread {
		if err := k.read(ctx, g.domain); err != nil {
			return false, err
		}
	}
	puts, gone := k.difference()
	memory := k.memory
	switch {
	case len(puts) > 0 && !slices.Contains(memory.Domains, g.domain):
		memory.Domains = append(slices.Clone(memory.Domains), g.domain)
	case len(puts)+len(gone) == 0 && len(k.want) == 0:
		memory.Domains = nil
	case len(puts)+len(gone) == 0:
		memory.Domains = slices.DeleteFunc(slices.Clone(memory.Domains), func(d string) bool { return d != g.domain })
	}
	var remember *fleet.SkyDNS
	if !slices.Equal(memory.Domains, k.memory.Domains) {
		remember = &memory
	}
	if len(puts)+len(gone) == 0 && remember == nil {
		return false, nil
	}
	fence := fleet.Fence{LeaderKey: k.registry.Keys().Leader(fleet.CoordinatorSubject), Epoch: k.term.Epoch()}
	if err := k.registry.WriteRecords(ctx, fence, remember, puts, gone); err != nil {
		return false, err
	}
	k.memory = memory
	maps.Copy(k.have, puts)
	for _, key := range gone {
		delete(k.have, key)
	}
	return true, nil
}

// wish says what the records should be. It takes a third of a second in a fleet of 10,000 slaves, and is done anew only when
// something has changed, and not all the time even then.
func (k *skyKeeper) wish(g *guide) {
	now := time.Now()
	next := wantedRecords{g.domain, g.view.SlavesRevision, g.hosts, g.places}
	switch {
	case !k.cfg.SkyDNS:
		k.want = nil
	case k.want == nil || k.wanted.domain != next.domain || !k.wanted.equal(next) && now.After(k.costly):
		k.want, k.wanted = dns.SkyDNS(g.recordZone(k.cfg.Fleet)), next
		k.costly = time.Now().Add(20 * time.Since(now))
	}
}

// recordZone is the zone with what the records in etcd need besides.
func (g *guide) recordZone(fleetName string) *dns.Zone {
	return &dns.Zone{
		Domain: g.domain, Serial: uint32(g.revision), Masters: g.dnsTargets(), SlaveOrder: g.order, Fleet: fleetName,
		Slaves: slices.Collect(maps.Keys(g.view.Slaves)),
	}
}

// read reads what there is. A fleet that keeps no records, and has kept none, reads nothing.
func (k *skyKeeper) read(ctx context.Context, domain string) error {
	memory, err := k.registry.SkyDNS(ctx)
	if err != nil {
		return err
	}
	domains := slices.Clone(memory.Domains)
	if k.cfg.SkyDNS && !slices.Contains(domains, domain) {
		domains = append(domains, domain)
	}
	var prefixes []string
	for _, d := range domains {
		prefixes = append(prefixes, dns.SkyDNSPrefixes(d)...)
	}
	found, err := k.registry.Records(ctx, prefixes)
	if err != nil {
		return err
	}
	k.memory, k.readAt, k.readOf, k.have, k.foreign = memory, time.Now(), domain, map[string]string{}, map[string]string{}
	for key, value := range found {
		switch owner := recordOwner(value); owner {
		case k.cfg.Fleet:
			k.have[key] = value
		case "":
		default:
			k.foreign[key] = owner
		}
	}
	return nil
}

// recordOwner is the fleet that has put a record into etcd; "": it does not say.
func recordOwner(value string) string {
	var r struct{ Fleet string }
	if json.Unmarshal([]byte(value), &r) != nil {
		return ""
	}
	return r.Fleet
}

// difference is what is to be written next, one transaction's worth: what concerns everybody before what concerns one slave.
func (k *skyKeeper) difference() (puts map[string]string, gone []string) {
	puts = map[string]string{}
	var news []string
	for key, value := range k.want {
		if owner := k.foreign[key]; owner != "" {
			if k.warnOnce("skydns " + owner) {
				k.log.Warn().Str("fleet", owner).Str("key", key).Msg("another fleet keeps DNS records under the same domain in this etcd, which are left as they are: give one of the two another --domain")
			}
			continue
		}
		if k.have[key] != value {
			news = append(news, key)
		}
	}
	for key := range k.have {
		if _, wanted := k.want[key]; !wanted {
			gone = append(gone, key)
		}
	}
	byWeight := func(a, b string) int { return strings.Compare(recordClass(a)+a, recordClass(b)+b) }
	slices.SortFunc(news, byWeight)
	slices.SortFunc(gone, byWeight)
	// what is new first: for a moment too many are told of rather than too few
	for _, key := range news[:min(len(news), fleet.MaxRecords)] {
		puts[key] = k.want[key]
	}
	return puts, gone[:min(len(gone), fleet.MaxRecords-len(puts))]
}

// recordClass sorts records: those of single slaves come last.
func recordClass(key string) string {
	if strings.Contains(key, "/slaves/") {
		return "1"
	}
	return "0"
}
