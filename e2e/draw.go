package e2e

import (
	"math/rand"
	"regexp"
	"slices"
	"strings"
	"time"
)

// choice is a kind of fault that chaos can draw.
type choice struct {
	name string
	make func(d *draw) fault
}

// draw is what one drawing chose at random, for any kind of fault.
type draw struct {
	*chaos
	random *rand.Rand
	hold   time.Duration
	m      *Master
	shard  string
}

// The kinds of fault. Some are there twice, in forms that matter more than others.
var choices = []choice{
	{"kill", func(d *draw) fault { return kills(d.hold, d.m) }},
	{"kill-restart", func(d *draw) fault { return kills(0, d.m) }},
	{"kill-leader", func(d *draw) fault { return kills(d.hold, d.leader()) }},
	{"kill-publishing", func(d *draw) fault { return d.publishing(kills(d.hold, d.leader())) }},
	{"pause-publishing", func(d *draw) fault { return d.publishing(pauses(3*chaosTTL, d.leader())) }},
	{"kill-most", func(d *draw) fault { return kills(d.hold, d.shuffled()[:len(d.Masters)/2+1]...) }},
	{"kill-all", func(d *draw) fault { return kills(d.hold, d.Masters...) }},
	{"pause", func(d *draw) fault { return pauses(3*chaosTTL, d.m) }},
	{"pause-leader", func(d *draw) fault { return pauses(d.hold, d.leader()) }},
	{"cut", func(d *draw) fault { return cuts(d.hold, d.m) }},
	{"cut-long", func(d *draw) fault { return cuts(3*chaosTTL, d.m) }},
	{"mute", func(d *draw) fault {
		return deafens(d.hold, "what comes from "+d.m.Name, []*Host{d.m.Host}, d.LAN.hosts, d.m)
	}},
	{"deaf", func(d *draw) fault {
		return deafens(d.hold, "what goes to "+d.m.Name, d.LAN.hosts, []*Host{d.m.Host}, d.m)
	}},
	{"rolling", func(d *draw) fault { return restarts(d.shuffled()) }},
	{"drain", func(d *draw) fault { return drains(d.hold, d.m, d.Masters[d.random.Intn(len(d.Masters))]) }},
	{"full", func(d *draw) fault { return fills(d.hold, d.Masters[len(d.Masters)-1]) }},
	{"rot", func(d *draw) fault { return rots(d.random, d.hold, d.Masters[d.random.Intn(max(1, len(d.Masters)-1))]) }},
}

// externalChoices are those that only an external etcd allows.
var externalChoices = []choice{
	{"etcd-kill", func(d *draw) fault { return etcdDies(d.hold, d.Masters, d.members()...) }},
	{"etcd-kill-all", func(d *draw) fault { return etcdDies(3*chaosTTL, d.Masters, d.Etcd.Members...) }},
	{"etcd-deaf", func(d *draw) fault {
		return deafens(d.hold, "what "+d.m.Name+" sends to etcd", []*Host{d.m.Host}, d.Etcd.hosts(), d.m)
	}},
	{"etcd-hang", func(d *draw) fault { return etcdHangs(d.hold, d.Masters, d.members()...) }},
}

// choicesNamed returns the kinds of fault that the fleet allows and whose name matches.
func (h *chaos) choicesNamed(only *regexp.Regexp) []choice {
	all := slices.Clone(choices)
	if h.Etcd != nil {
		all = append(all, externalChoices...)
	}
	return slices.DeleteFunc(all, func(c choice) bool { return !only.MatchString(c.name) })
}

// one makes a fault of one of these kinds.
func (h *chaos) one(random *rand.Rand, among []choice) fault {
	d := &draw{
		chaos: h, random: random, m: h.Masters[random.Intn(len(h.Masters))], shard: chaosShards[random.Intn(len(chaosShards))],
	}
	d.hold = chaosTTL/10 + time.Duration(random.Int63n(int64(3*chaosTTL))).Round(10*time.Millisecond)
	f := among[random.Intn(len(among))].make(d)
	if h.Etcd == nil {
		f.hits = append(f.hits, etcdAway(h.Masters)...) // whoever is hit may be etcd's leader, or its quorum
	}
	return f
}

// draw picks a round's faults among those whose name matches only: one, or two that do not touch the same.
func (h *chaos) draw(random *rand.Rand, only *regexp.Regexp) []fault {
	among := h.choicesNamed(only)
	if len(among) == 0 {
		h.t.Fatalf("no kind of fault is named %v", only)
	}
	faults := []fault{h.one(random, among)}
	if random.Intn(3) == 0 {
		faults = h.also(random, faults, among)
	}
	return faults
}

// also adds a fault of one of these kinds, unless all that is drawn touches what the others touch.
func (h *chaos) also(random *rand.Rand, faults []fault, among []choice) []fault {
	for range 20 {
		next := h.one(random, among)
		if !slices.ContainsFunc(faults, func(f fault) bool {
			return slices.ContainsFunc(f.touches, func(n string) bool { return slices.Contains(next.touches, n) })
		}) {
			return append(faults, next)
		}
	}
	return faults
}

// publishing has a fault begin as soon as its master asks the others to fetch a generation: it is in the middle of a publish then.
func (d *draw) publishing(f fault) fault {
	begin, master := f.begin, f.touches[0]
	f.what += ", in the middle of a publish"
	f.begin = func() {
		// Without etcd, or without a publish that gets so far, it begins anyway.
		d.watchKey("staged/"+d.shard, func() {}, func(value string) bool { return strings.Contains(value, `"`+master+`"`) })
		begin()
	}
	return f
}

// leader returns who leads a shard at this moment, or any master.
func (d *draw) leader() *Master {
	if name := d.Leader(d.shard); name != "" {
		return d.Master(name)
	}
	return d.m
}

// shuffled returns all masters in any order.
func (d *draw) shuffled() []*Master {
	all := slices.Clone(d.Masters)
	d.random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// members returns some members of the external etcd, one at least.
func (d *draw) members() []*EtcdMember {
	all := slices.Clone(d.Etcd.Members)
	d.random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:d.random.Intn(len(all))+1]
}
