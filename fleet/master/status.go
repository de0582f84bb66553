package master

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

// picture is what a status is made of, taken at one moment.
type picture struct {
	now     time.Time
	view    fleet.View
	etcdErr error
	id      string
	mounts  map[string]int // clients by shard
}

// Status implements console.Control.
func (c control) Status(context.Context) (console.Status, error) {
	p := picture{now: time.Now().UTC(), mounts: map[string]int{}}
	c.mu.Lock()
	p.view, p.id = c.view, c.local.ID
	c.mu.Unlock()
	p.etcdErr = c.etcdProblem()
	for _, m := range c.mounts.list() {
		p.mounts[m.Shard]++
	}
	st := console.Status{
		Fleet: c.cfg.Fleet, ID: p.id, Master: c.cfg.Name, Version: c.version, Time: p.now, Etcd: c.etcdStatus(p),
		Shards: []console.ShardStatus{}, Masters: c.masterStatuses(p), Warnings: []string{},
	}
	if p.etcdErr != nil {
		st.Warnings = append(st.Warnings, fmt.Sprintf("etcd does not answer (%v): nothing can be published; serving goes on", p.etcdErr))
	} else if p.view.Revision != 0 && p.view.Identity.ID == "" && p.id != "" {
		st.Warnings = append(st.Warnings, "etcd holds no such fleet: run `nfs-fleet recover` if it has lost its data")
	}
	for _, key := range slices.Sorted(maps.Keys(p.view.Problems)) {
		st.Warnings = append(st.Warnings, p.view.Problems[key].Error())
	}
	for _, s := range c.allShards() {
		sh := c.shardStatus(s, p)
		st.Shards = append(st.Shards, sh)
		st.Warnings = append(st.Warnings, shardWarnings(sh)...)
	}
	return st, nil
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
		say("generation %d was published with %d of %d copies: add masters, or lower it with `shard set --min-copies`", s.Generation, s.Copies, s.MinCopies)
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
	if known == nil || p.etcdErr != nil {
		known = map[string]fleet.Master{}
	}
	known[c.cfg.Name] = c.self()
	out := make([]console.MasterStatus, 0, len(known))
	for _, name := range slices.Sorted(maps.Keys(known)) {
		out = append(out, c.masterStatus(known[name], p))
	}
	return out
}

func (c control) masterStatus(m fleet.Master, p picture) console.MasterStatus {
	st := console.MasterStatus{
		Name: m.Name, State: string(m.State), Version: m.Version, StartedAt: m.StartedAt, LeaseAgeMS: -1, Sources: m.Sources,
		Addresses: console.Addresses{NFS: net.JoinHostPort(m.Address, strconv.Itoa(m.NFSPort)), HTTP: m.HTTP},
		Serves:    p.view.Replicas[m.Name].Serves,
	}
	if m.Name != c.cfg.Name {
		return st
	}
	st.Self, st.Clients, st.Serves = true, c.exporter.Stats().Conns, map[string]uint64{}
	select {
	case <-c.open:
	default:
		st.State = "starting"
	}
	for _, s := range c.allShards() {
		st.Serves[s.name] = s.replica.Status().Head.Number
	}
	if lease := c.election.Lease(); lease.ID != 0 {
		st.LeaseAgeMS, st.LeaseTTLMS = lease.Age.Milliseconds(), lease.TTL.Milliseconds()
	}
	disk := c.store.Stats()
	st.Store = &console.StoreStatus{Objects: disk.Objects, Bytes: disk.Bytes, Disk: disk.Disk, Free: disk.Free, Packs: disk.Packs, LargeFiles: disk.LargeFiles}
	return st
}
