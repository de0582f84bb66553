package master

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nfs-fleet/nfs-fleet/exporter/hello"
	"github.com/nfs-fleet/nfs-fleet/fleet"
)

const (
	// seenEvery is how old the SeenAt of a slave's record may grow while it is heard of.
	seenEvery = 4 * time.Hour
	// maxHeard is how many slaves a master keeps in mind.
	maxHeard = 16384
	// heardFor is how long a slave that says nothing any more is kept in mind.
	heardFor = 2 * time.Minute
	// readingFor is how long a slave counts as reading from a master after its last greeting. It greets whom it reads from
	// twice a second, and whom it has left not at all: that master would go on counting it.
	readingFor = 10 * time.Second
	// newsRest and changeRest are the least times between two reports of a slave that the fleet does not know, and of one
	// that has changed: two hosts of one name must not make the fleet write without end.
	newsRest, changeRest = 10 * time.Second, time.Minute
)

// slaveSighting is a slave that was heard of: by its greeting, or by a MNT, which tells less. Its name may be anything.
type slaveSighting struct {
	hello.Greeting
	From netip.AddrPort
	At   time.Time
}

// mountSighting is what a MNT tells of a slave. machine is what the client calls itself.
func mountSighting(machine, shard, path string, client netip.Addr, now time.Time) slaveSighting {
	return slaveSighting{
		Greeting: hello.Greeting{Slave: machine, Mode: string(fleet.ModeMount), Mounts: []hello.Mount{{Shard: shard, Name: path}}},
		From:     netip.AddrPortFrom(client, 0), At: now,
	}
}

// idle reports whether an agent says that it has nothing mounted: not yet, because its first mount is on its way or has
// failed, or no more.
func (s slaveSighting) idle() bool {
	return s.Mode != string(fleet.ModeMount) && len(s.Mounts) == 0 && s.More == 0
}

// slaveReport is what the coordinator is told of a slave.
type slaveReport struct {
	Name     string          `json:"name"`
	Address  netip.Addr      `json:"address"`
	Mode     fleet.SlaveMode `json:"mode"`
	Instance string          `json:"instance,omitempty"`
	Version  string          `json:"version,omitempty"`
	Master   string          `json:"master"` // who has heard of it
	At       time.Time       `json:"at"`
	// Silent is for how long it has said nothing: that it was there until then is all that the report says. 0: it is there.
	Silent time.Duration `json:"silent,omitempty"`
}

// report is the sighting as the coordinator wants it; ok is false when it cannot be of a slave.
func (s slaveSighting) report(master string) (r slaveReport, ok bool) {
	r = slaveReport{
		Name: strings.ToLower(s.Slave), Address: s.From.Addr().Unmap().WithZone(""), Mode: fleet.SlaveMode(s.Mode),
		Instance: s.Instance, Version: s.Version, Master: master, At: s.At,
	}
	return r, r.valid() == nil && r.Name != "localhost" && !strings.HasPrefix(r.Name, "localhost.")
}

func (r slaveReport) valid() error {
	if r.Silent < 0 || r.Silent > forgetAfter {
		return fmt.Errorf("slave %s: silent for %s", r.Name, r.Silent)
	}
	return r.over(fleet.Slave{}).Validate()
}

// over is the record of a slave after the report, its home apart.
func (r slaveReport) over(s fleet.Slave) fleet.Slave {
	if r.Silent > 0 && s.Name != "" {
		s.SeenAt = later(s.SeenAt, r.At.UTC())
		return s
	}
	s.Name, s.Address, s.Mode, s.Instance, s.Version = r.Name, r.Address, r.Mode, r.Instance, r.Version
	s.SeenAt = r.At.UTC()
	if s.EnrolledAt.IsZero() {
		s.EnrolledAt = s.SeenAt
	}
	return s
}

// news reports whether a report says something that the slave's record does not. A MNT of a slave that has an agent says
// nothing: the agent mounts, too.
func (r slaveReport) news(s fleet.Slave) bool {
	if r.Silent > 0 {
		return s.Name != "" && r.At.Sub(s.SeenAt) >= changeRest
	}
	if r.Mode == fleet.ModeMount && s.Mode != fleet.ModeMount && s.Name != "" && r.At.Sub(s.SeenAt) < agentGone {
		return false
	}
	return r.Address != s.Address || r.Mode != s.Mode || r.Instance != s.Instance || r.Version != s.Version || r.At.Sub(s.SeenAt) >= seenEvery
}

// agentGone is how long an agent must not have been heard of for its slave to count as one without.
const agentGone = 24 * time.Hour

// slaveBook is what a master hears of slaves. It is kept in memory, and what is news to the fleet is told the coordinator.
type slaveBook struct {
	master, address string                                // this one, and its host:port for NFS
	record          func(name string) (fleet.Slave, bool) // the fleet's
	wake            chan struct{}                         // there is something to report

	mu      sync.Mutex // guards what follows
	heard   map[string]heardSlave
	origins map[netip.Addr]int     // of heard: how many each origin has
	agents  map[netip.Addr]int     // of heard: how many with an agent each address has
	left    map[string]time.Time   // slaves of the fleet that are heard no more: when they last were
	gone    []slaveSighting        // the last of slaves of the fleet that were put into left since sweep
	swept   time.Time              // when room was last made
	news    map[string]slaveReport // to be told; at most one of each that is heard
}

// heardSlave is the last that was heard of a slave.
type heardSlave struct {
	slaveSighting
	beside   slaveSighting // what its agent said last of its other mode: it greets for each, in turn
	told     time.Time     // when it was last reported
	enrolled bool          // it was one of the fleet's
}

// otherMode is what was last said of a slave's other mode by the agent that greets now.
func (h heardSlave) otherMode(s slaveSighting) slaveSighting {
	switch {
	case h.Instance != s.Instance || s.Mode == string(fleet.ModeMount):
		return slaveSighting{}
	case h.Mode != s.Mode && h.Mode != string(fleet.ModeMount):
		return h.slaveSighting
	}
	return h.beside
}

func (h heardSlave) besideFresh() bool {
	return !h.beside.At.IsZero() && h.At.Sub(h.beside.At) <= readingFor
}

// whole is what a slave says of all its mounts, the relay's first. One whose modes read from two masters tells each of them
// what it has from there.
func (h heardSlave) whole(readsHere func(slaveSighting) bool) slaveSighting {
	first, second := h.slaveSighting, h.beside
	if !h.besideFresh() {
		return first
	}
	if first.Mode != string(fleet.ModeRelay) {
		first, second = second, first
	}
	switch {
	case !readsHere(second):
		return first
	case !readsHere(first):
		return second
	}
	first.Mounts = slices.Concat(first.Mounts, second.Mounts)
	first.More += second.More
	first.At = later(first.At, second.At)
	if second.Last.At.After(first.Last.At) {
		first.Last = second.Last
	}
	return first
}

func newSlaveBook(master, host string, port int, record func(string) (fleet.Slave, bool)) *slaveBook {
	return &slaveBook{
		master: master, address: net.JoinHostPort(host, strconv.Itoa(port)), record: record, wake: make(chan struct{}, 1),
		heard: map[string]heardSlave{}, origins: map[netip.Addr]int{}, agents: map[netip.Addr]int{}, left: map[string]time.Time{},
		news: map[string]slaveReport{},
	}
}

// seen takes note of a slave. It does not block, and may be called for every greeting. What cannot be a slave's name is
// passed over. Nobody is enrolled for a greeting that tells of no mount: it may never have one.
func (b *slaveBook) seen(s slaveSighting) {
	r, ok := s.report(b.master)
	if !ok {
		return
	}
	known, enrolled := b.record(r.Name)
	b.mu.Lock()
	defer b.mu.Unlock()
	before, kept := b.heard[r.Name]
	from := origin(r.Address)
	if !kept && (r.Mode == fleet.ModeMount && !enrolled && b.agentAtLocked(r.Address, s.At) || !b.roomLocked(from, s.At)) {
		return
	}
	rest := changeRest
	if !enrolled {
		rest = newsRest
	}
	now := heardSlave{slaveSighting: s, beside: before.otherMode(s), told: before.told, enrolled: enrolled}
	if now.besideFresh() {
		r.Mode = fleet.ModeRelay // of both, always this: the record does not change with every greeting
	}
	if (enrolled || !s.idle()) && r.news(known) && s.At.Sub(before.told) >= rest {
		now.told, b.news[r.Name] = s.At, r
		signal(b.wake)
	}
	if kept {
		b.leaveLocked(before)
	}
	b.heard[r.Name] = now
	b.origins[from]++
	if r.Mode != fleet.ModeMount {
		b.agents[r.Address]++
	}
	delete(b.left, r.Name)
	if b.news[r.Name].Silent > 0 {
		delete(b.news, r.Name)
	}
}

// agentAtLocked reports whether an agent is heard of at an address. What is mounted there the agent tells of itself, by the
// slave's own name instead of the machine's.
func (b *slaveBook) agentAtLocked(a netip.Addr, now time.Time) bool {
	if b.agents[a] > 0 && now.Sub(b.swept) >= time.Second {
		b.swept = now
		b.sweepLocked(now)
	}
	return b.agents[a] > 0
}

// roomLocked reports whether one more slave of an origin can be kept in mind, and makes room when it can.
func (b *slaveBook) roomLocked(from netip.Addr, now time.Time) bool {
	full := func() bool { return len(b.heard) >= maxHeard || b.origins[from] >= maxAtOrigin }
	if full() && now.Sub(b.swept) >= time.Second {
		b.swept = now
		b.sweepLocked(now)
	}
	return !full()
}

// sweepLocked forgets slaves that say nothing any more.
func (b *slaveBook) sweepLocked(now time.Time) {
	maps.DeleteFunc(b.heard, func(name string, s heardSlave) bool {
		silent := now.Sub(s.At) > heardFor
		if silent {
			b.leaveLocked(s)
			if s.enrolled && len(b.left) < maxSlaves {
				b.left[name] = s.At
				b.gone = append(b.gone, s.slaveSighting)
			}
		}
		return silent
	})
}

// sweep forgets slaves that say nothing any more, and has the fleet told when they last did: by the slave's home, which hears of
// it wherever it reads.
func (b *slaveBook) sweep(now time.Time) {
	b.mu.Lock()
	b.sweepLocked(now)
	gone := b.gone
	b.gone = nil
	b.mu.Unlock()
	for _, s := range gone {
		r, ok := s.report(b.master)
		known, _ := b.record(r.Name)
		if r.Silent = now.Sub(s.At); ok && known.Master == b.master && r.news(known) {
			b.again([]slaveReport{r}, now)
		}
	}
}

// lastHeard is when each slave of the fleet was last heard of that does not read from this master now. The fleet's records
// are hours old: this is what tells whether a slave has left a minute ago or a day.
func (b *slaveBook) lastHeard(now time.Time) map[string]time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sweepLocked(now)
	maps.DeleteFunc(b.left, func(_ string, at time.Time) bool { return now.Sub(at) > forgetAfter })
	out := maps.Clone(b.left)
	for name, s := range b.heard {
		if s.enrolled && !b.readsNow(s.whole(b.readsHere), now) {
			out[name] = s.At
		}
	}
	return out
}

// touch notes that a slave is there that tells nothing of itself, if it was heard of before.
func (b *slaveBook) touch(name string, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s, ok := b.heard[name]; ok {
		s.At = now
		b.heard[name] = s
	} else if len(b.left) < maxSlaves {
		b.left[name] = now
	}
}

// leaveLocked counts a slave out at its origin.
func (b *slaveBook) leaveLocked(s heardSlave) {
	from := origin(s.From.Addr())
	if b.origins[from]--; b.origins[from] <= 0 {
		delete(b.origins, from)
	}
	if s.Mode == string(fleet.ModeMount) {
		return
	}
	at := s.From.Addr().Unmap().WithZone("")
	if b.agents[at]--; b.agents[at] <= 0 {
		delete(b.agents, at)
	}
}

// all returns the slaves that were heard of lately, by name.
func (b *slaveBook) all(now time.Time) []slaveSighting {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sweepLocked(now)
	out := make([]slaveSighting, 0, len(b.heard))
	for _, name := range slices.Sorted(maps.Keys(b.heard)) {
		out = append(out, b.heard[name].whole(b.readsHere))
	}
	return out
}

// readers are the slaves that read from this master now.
func (b *slaveBook) readers(now time.Time) []slaveSighting {
	return slices.DeleteFunc(b.all(now), func(s slaveSighting) bool { return !b.readsNow(s, now) })
}

// readsNow reports whether a sighting says that its slave reads from this master.
func (b *slaveBook) readsNow(s slaveSighting, now time.Time) bool {
	return now.Sub(s.At) <= readingFor && !s.idle() && b.readsHere(s)
}

// take returns up to n reports that are to be told.
func (b *slaveBook) take(n int, now time.Time) []slaveReport {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []slaveReport
	for name, r := range b.news {
		if len(out) == n {
			signal(b.wake)
			break
		}
		if r.Silent > 0 {
			r.Silent = max(now.Sub(r.At), 1)
		}
		out = append(out, r)
		delete(b.news, name)
	}
	return out
}

// again puts reports back that could not be told, unless there are newer ones or what they say is out of date: that a slave is
// silent that was heard of since, say.
func (b *slaveBook) again(reports []slaveReport, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range reports {
		if _, back := b.heard[r.Name]; back && r.Silent > 0 {
			continue
		}
		if _, newer := b.news[r.Name]; !newer && len(b.news) < maxHeard && now.Sub(r.At) < seenEvery {
			b.news[r.Name] = r
		}
	}
	if len(b.news) > 0 {
		signal(b.wake)
	}
}

// readsHere reports whether a slave that greets this master also reads from it: an agent that reads from one master greets
// others too, to see whether it may go there.
func (b *slaveBook) readsHere(s slaveSighting) bool {
	host, _, _ := strings.Cut(s.Last.To, ".")
	return s.Last.To == "" || s.Last.To == b.master || host == b.master || s.Last.To == b.address
}

// signal wakes whoever waits for c, which has room for one, unless it is woken already.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

const (
	// reportBatch is how many slaves the coordinator is told of at once.
	reportBatch = 500
	// reportRest is the time between two reports, and between two attempts.
	reportRest, reportRetry = 100 * time.Millisecond, time.Second
	// reportLimit is how long the coordinator may take.
	reportLimit = 5 * time.Second
)

// run tells the coordinator what is new until ctx ends. tell returns an error when it does not know now.
func (b *slaveBook) run(ctx context.Context, tell func(context.Context, []slaveReport) error) error {
	rest := time.NewTimer(0)
	defer rest.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-rest.C:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-b.wake:
		}
		pause := reportRest
		if reports := b.take(reportBatch, time.Now()); len(reports) > 0 {
			bounded, cancel := context.WithTimeout(ctx, reportLimit)
			if tell(bounded, reports) != nil {
				b.again(reports, time.Now()) // they are heard of again, or etcd is away: there is nobody to tell
				pause = reportRetry
			}
			cancel()
		}
		rest.Reset(pause)
	}
}
