package master

import (
	"context"
	"fmt"
	"maps"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
	"github.com/nfs-fleet/nfs-fleet/fleet/etcd"
)

// picture is what a status is made of, taken at one moment.
type picture struct {
	now     time.Time
	view    fleet.View
	etcdErr error
	id      string
	mounts  map[string]int // clients by shard
	leads   map[string]int // shards by master
	homes   map[string]int // slaves by master
	lost    map[string]time.Time
}

// picture takes one.
func (c control) picture() picture {
	p := picture{now: time.Now().UTC(), mounts: map[string]int{}, leads: map[string]int{}}
	c.mu.Lock()
	p.view, p.id, p.lost = c.view, c.local.ID, maps.Clone(c.lostSince)
	c.mu.Unlock()
	p.etcdErr, p.homes = c.etcdProblem(), loads(p.view)
	for _, m := range c.mounts.list() {
		p.mounts[m.Shard]++
	}
	for name := range p.view.Shards {
		if leader, ok := c.election.Leader(name); ok {
			p.leads[leader.Master]++
		}
	}
	return p
}

// Status implements console.Control.
func (c control) Status(ctx context.Context) (console.Status, error) {
	p := c.picture()
	st := console.Status{
		Fleet: c.cfg.Fleet, ID: p.id, Master: c.cfg.Name, Version: c.version, Time: p.now, Etcd: c.etcdStatus(p), DNS: c.dnsStatus(),
		Shards: []console.ShardStatus{}, Masters: c.masterStatuses(p), Warnings: []string{},
	}
	c.askOthers(ctx, st.Masters)
	c.addEtcdRoles(ctx, p, st.Masters)
	st.Slaves = slavesStatus(p.view.Slaves, st.Masters)
	switch {
	case p.etcdErr != nil:
		st.Warnings = append(st.Warnings, fmt.Sprintf("etcd does not answer (%v): nothing can be published; serving goes on", p.etcdErr))
	case p.view.Revision != 0 && p.view.Identity.ID == "" && p.id != "":
		st.Warnings = append(st.Warnings, "etcd holds no such fleet: run `nfs-fleet recover` if it has lost its data")
	}
	if c.member != nil && p.etcdErr == nil {
		if err := c.member.Status().Err; err != nil {
			st.Warnings = append(st.Warnings, fmt.Sprintf("the etcd inside this master does not run, others' is used: %v", err))
		}
	}
	if c.steppedDown.Load() {
		st.Warnings = append(st.Warnings, errSteppedDown.Error())
	}
	st.Warnings = append(st.Warnings, c.dnsWarnings(p, st.DNS)...)
	for _, name := range c.stays.twins(p.now) {
		st.Warnings = append(st.Warnings, fmt.Sprintf("two machines greet as the slave %s: mount on one of them by another name", name))
	}
	st.Warnings = append(st.Warnings, shutOutWarnings(p.view, st.Slaves.Shown)...)
	st.Warnings = append(st.Warnings, unevenWarnings(st.Masters, func(name string) bool { _, yes := p.view.Drained[name]; return yes })...)
	for _, key := range slices.Sorted(maps.Keys(p.view.Problems)) {
		st.Warnings = append(st.Warnings, p.view.Problems[key].Error())
	}
	for _, s := range c.allShards() {
		sh := c.shardStatus(s, p)
		st.Shards = append(st.Shards, sh)
		st.Warnings = append(st.Warnings, shardWarnings(sh)...)
		st.Warnings = append(st.Warnings, c.leaderWarnings(sh, p)...)
	}
	for _, m := range st.Masters {
		st.Warnings = append(st.Warnings, masterWarnings(m, p)...)
	}
	return st, nil
}

// leaderWarnings says that nobody leads a shard, or that nobody holds its head.
func (c control) leaderWarnings(s console.ShardStatus, p picture) []string {
	if p.etcdErr != nil || s.Head == 0 {
		return nil
	}
	for _, served := range p.view.Replicas {
		if served.Serves[s.Name] >= s.Head {
			if s.Leader == "" && allDrained(p.view) {
				return []string{fmt.Sprintf("shard %s: nobody leads it: all masters are drained; `nfs-fleet master undrain` takes one back", s.Name)}
			}
			if s.Leader == "" {
				return []string{fmt.Sprintf("shard %s: nobody leads it now", s.Name)}
			}
			return nil
		}
	}
	if p.now.Sub(p.view.Heads[s.Name].PublishedAt) < lagWarning {
		return nil // what masters serve is announced once a second
	}
	return []string{fmt.Sprintf("shard %s: no living master holds generation %d: start one that does, or give it up with `nfs-fleet shard recover %s --accept-loss`", s.Name, s.Head, s.Name)}
}

// allDrained reports whether every living master is drained.
func allDrained(v fleet.View) bool {
	for name := range v.Masters {
		if _, drained := v.Drained[name]; !drained {
			return false
		}
	}
	return len(v.Masters) > 0
}

// unevenWarnings says when the slaves' homes are so uneven that a rebalance is worth its moves. The fleet does not do that by
// itself: homes are sticky.
func unevenWarnings(masters []console.MasterStatus, drained func(master string) bool) []string {
	masters = slices.DeleteFunc(slices.Clone(masters), func(m console.MasterStatus) bool {
		return m.State != console.MasterServing || m.Slots <= 0 || drained(m.Name)
	})
	slots, slaves, fewest := 0, 0, math.MaxInt
	for _, m := range masters {
		slots, slaves, fewest = slots+m.Slots, slaves+m.Slaves, min(fewest, m.Slots)
	}
	over, under, loads := 0, 0, make([]string, 0, len(masters))
	for _, m := range masters {
		part := slaves * m.Slots / slots
		over, under = max(over, m.Slaves-part-1), max(under, part-m.Slaves)
		loads = append(loads, fmt.Sprintf("%s %d", m.Name, m.Slaves))
	}
	if over+under <= max(2, fewest/4) {
		return nil
	}
	if more := len(loads) - maxNamed; more > 0 {
		loads = append(loads[:maxNamed], fmt.Sprintf("and %d more masters", more))
	}
	return []string{fmt.Sprintf("the slaves' homes are uneven (%s): `nfs-fleet rebalance` evens them out", strings.Join(loads, ", "))}
}

// lagWarning is the age of a head from which on every master should serve it.
const lagWarning = 5 * time.Second

func masterWarnings(m console.MasterStatus, p picture) []string {
	var out []string
	switch m.State {
	case console.MasterUnknown:
		out = append(out, fmt.Sprintf("master %s does not answer, and etcd does not say whether it lives", m.Name))
	case console.MasterLost:
		out = append(out, fmt.Sprintf("master %s is lost since %s: `nfs-fleet master remove %s` if it does not come back", m.Name, m.LostSince.Format(time.DateTime), m.Name))
	default:
		for _, shard := range slices.Sorted(maps.Keys(m.Lag)) {
			if head := p.view.Heads[shard]; p.now.Sub(head.PublishedAt) > lagWarning || m.Lag[shard] > announceLag {
				out = append(out, fmt.Sprintf("master %s serves generation %d of shard %s, whose head is %d", m.Name, m.Serves[shard], shard, head.Number))
			}
		}
	}
	return out
}

// addEtcdRoles says what each master is to the etcd inside the masters.
func (c control) addEtcdRoles(ctx context.Context, p picture, all []console.MasterStatus) {
	if c.member == nil || p.etcdErr != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, selfLimit)
	defer cancel()
	members, err := etcd.Members(ctx, c.client, c.routes)
	if err != nil {
		return // the status of etcd says why
	}
	for i := range all {
		all[i].EtcdRole = etcd.Role(members, all[i].Name)
	}
}

func (c control) etcdStatus(p picture) console.EtcdStatus {
	st := console.EtcdStatus{Mode: "embedded", Endpoints: c.client.Endpoints(), Healthy: p.etcdErr == nil, Revision: p.view.Revision}
	if len(c.cfg.Etcd.Endpoints) > 0 {
		st.Mode = "external"
	}
	if p.etcdErr != nil {
		st.Error = p.etcdErr.Error()
	}
	return st
}

func (c control) shardStatus(s *shard, p picture) console.ShardStatus {
	c.mu.Lock()
	settings := s.settings
	c.mu.Unlock()
	r := s.replica.Status()
	st := console.ShardStatus{
		Name: s.name, FSID: settings.FSID, Generation: r.Head.Number, Head: p.view.Heads[s.name].Number, Root: r.Head.Root,
		Files: r.Head.Files, Bytes: r.Head.Bytes, PublishedAt: r.Head.PublishedAt, By: r.Head.By, From: r.Head.Source, Note: r.Head.Note,
		Copies: r.Head.Copies, MinCopies: settings.MinCopies, Retained: len(r.Generations), Mounts: p.mounts[s.name],
		Stale: !r.Confirmed && r.Head.Number > 0,
		Source: console.SourceStatus{
			Identity: s.replica.Identity(), State: string(r.Source), Reason: r.Reason, Watching: r.Scanner.Watching, Dirty: r.Scanner.Dirty,
			LastScan: r.Scanner.LastScan, LastFull: r.Scanner.LastFull, Warnings: r.Warnings,
		},
	}
	if st.Source.Reason == "" {
		st.Source.Reason = r.Scanner.Reason
	}
	if r.Head.Number > 0 {
		st.AgeS = int64(p.now.Sub(r.Head.PublishedAt).Seconds())
	}
	served := 0
	for name := range p.view.Masters {
		if r.Head.Number > 0 && p.view.Replicas[name].Serves[s.name] == r.Head.Number {
			served++
		}
	}
	st.Copies = max(st.Copies, served)
	if leader, ok := c.election.Leader(s.name); ok {
		st.Leader, st.Epoch = leader.Master, leader.Epoch
	}
	if r.Problem != nil {
		st.Problem = r.Problem.Error()
	} else if _, known := p.view.Shards[s.name]; !known && p.view.Revision != 0 && p.view.Identity.ID != "" {
		st.Problem = unknownShard
	}
	if r.SourceError != nil {
		st.Source.Error = r.SourceError.Error()
	}
	return st
}

func shardWarnings(s console.ShardStatus) []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, "shard "+s.Name+": "+fmt.Sprintf(format, args...)) }
	if s.Problem != "" {
		say("the head is not served: %s", s.Problem)
	}
	if s.Stale {
		say("generation %d is stale: etcd has not confirmed it since this master started", s.Generation)
	}
	if s.Generation > 0 && s.Copies < s.MinCopies {
		say("generation %d has %d of %d copies: add masters, or lower it with `shard set --min-copies`", s.Generation, s.Copies, s.MinCopies)
	}
	if s.Source.Error != "" {
		say("publishing from the source failed: %s", s.Source.Error)
	}
	if s.Source.State == "holding" {
		say("%s", s.Source.Reason)
	}
	return out
}

func (c control) masterStatuses(p picture) []console.MasterStatus {
	known := maps.Clone(p.view.Masters)
	if known == nil {
		known = map[string]fleet.Master{}
	}
	known[c.cfg.Name] = c.self()
	out := make([]console.MasterStatus, 0, len(known))
	for _, m := range known {
		st := c.masterStatus(m, p)
		if p.etcdErr != nil && !st.Self {
			st.State = console.MasterUnknown // until it answers itself: without etcd nobody is known to be lost
		}
		out = append(out, st)
	}
	absent := map[string]fleet.RosterEntry{}
	maps.Copy(absent, p.view.Roster)
	if p.view.Revision == 0 {
		for _, name := range c.links.names() { // known from before: etcd has said nothing yet
			absent[name] = fleet.RosterEntry{Name: name}
		}
	}
	for name, entry := range absent {
		if _, alive := known[name]; !alive {
			out = append(out, absentStatus(entry, p))
		}
	}
	slices.SortFunc(out, func(a, b console.MasterStatus) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// absentStatus is a master that etcd does not list among the living, or that is only known from before.
func absentStatus(entry fleet.RosterEntry, p picture) console.MasterStatus {
	st := console.MasterStatus{
		Name: entry.Name, Instance: entry.Instance, State: console.MasterLost, Addresses: console.Addresses{Peer: entry.Peer}, LostSince: p.lost[entry.Name],
		Slaves: p.homes[entry.Name], LeaseAgeMS: -1, Serves: map[string]uint64{}, Lag: map[string]uint64{}, Sources: []string{},
	}
	if p.etcdErr != nil && st.LostSince.IsZero() || entry.Instance == "" {
		st.State = console.MasterUnknown
	}
	return st
}

func (c control) masterStatus(m fleet.Master, p picture) console.MasterStatus {
	st := console.MasterStatus{
		Name: m.Name, Instance: m.Instance, State: string(m.State), Version: m.Version, StartedAt: m.StartedAt, LeaseAgeMS: -1, Sources: m.Sources,
		Addresses: console.Addresses{NFS: net.JoinHostPort(m.Address, strconv.Itoa(m.NFSPort)), HTTP: m.HTTP, Peer: m.Peer},
		Serves:    p.view.Replicas[m.Name].Serves, Leads: p.leads[m.Name], Slots: m.Slots, Slaves: p.homes[m.Name],
	}
	if m.Name == c.cfg.Name {
		c.tellOfSelf(&st)
	}
	if st.Serves == nil {
		st.Serves = map[string]uint64{}
	}
	st.Lag = lag(p.view, st.Serves)
	return st
}

// tellOfSelf adds what only this master knows.
func (c control) tellOfSelf(st *console.MasterStatus) {
	st.Self, st.Clients, st.Serves = true, c.exporter.Stats().Conns, map[string]uint64{}
	select {
	case <-c.open:
	default:
		st.State = console.MasterStarting
	}
	for _, s := range c.allShards() {
		st.Serves[s.name] = s.replica.Status().Serves()
	}
	if lease := c.election.Lease(); lease.ID != 0 {
		st.LeaseAgeMS, st.LeaseTTLMS = lease.Age.Milliseconds(), lease.TTL.Milliseconds()
	}
	heard := c.heardSlaves(time.Now())
	st.Readers = len(heard)
	st.Heard, st.Away = someHeard(heard)
	disk := c.store.Stats()
	st.Store = &console.StoreStatus{Objects: disk.Objects, Bytes: disk.Bytes, Disk: disk.Disk, Free: disk.Free, Packs: disk.Packs, LargeFiles: disk.LargeFiles}
}
