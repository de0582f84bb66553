package election

import (
	"cmp"
	"slices"
	"strings"
)

// Candidate is a living master, as Assign sees it. Under leader-candidates/<master> it is also the JSON by which a
// master makes itself known to the others, under its lease.
type Candidate struct {
	Master    string   `json:"master"`
	Preferred []string `json:"preferred"`         // shards whose source it has, sorted
	Withdrawn []string `json:"withdrawn"`         // shards that it does not stand for, sorted; it stands for all others
	Retired   bool     `json:"retired,omitempty"` // it stands for none
}

func (c *Candidate) prefers(shard string) bool {
	_, ok := slices.BinarySearch(c.Preferred, shard)
	return ok
}

func (c *Candidate) stands(shard string) bool {
	if c.Retired {
		return false
	}
	_, ok := slices.BinarySearch(c.Withdrawn, shard)
	return !ok
}

// Assign names the master that is to lead each of the vacant shards; a shard that no candidate stands for gets none.
// leaders says who leads the others, and stays as it is: only what is vacant is assigned. A master that has a shard's
// source comes first, as long as every master can still end within one shard of the average; otherwise the master with
// the fewest shards does, and a rendezvous hash of shard and master decides between equals. What is no shard, such as
// "_fleet", which a name with an underscore in front says, weighs nothing. Whoever sees the same arguments, in whatever
// order, names the same masters.
func Assign(vacant []string, leaders map[string]string, candidates []Candidate) map[string]string {
	b := &ballot{vacant: slices.Clone(vacant)}
	slices.Sort(b.vacant)
	b.vacant = slices.Compact(b.vacant)
	load := make(map[string]int, len(candidates))
	for shard, master := range leaders {
		if _, again := slices.BinarySearch(b.vacant, shard); !again {
			load[master] += weight(shard)
		}
	}
	return b.assign(load, candidates)
}

// ballot is one run of Assign.
type ballot struct {
	vacant   []string // in the order of assignment
	masters  []nominee
	low      int // what each master is to have at the least, and
	high     int // at the most
	deficit  int // shards that masters lack to reach low
	reserved int // vacant shards not yet assigned
}

type nominee struct {
	*Candidate
	load int
}

// assign names the masters. b.vacant is sorted; load is what each master leads, living or not.
func (b *ballot) assign(load map[string]int, candidates []Candidate) map[string]string {
	b.prepare(load, candidates)
	named := make(map[string]string, len(b.vacant))
	for _, shard := range b.vacant {
		if m := b.elect(shard); m != nil {
			named[shard] = m.Master
		}
	}
	return named
}

func (b *ballot) prepare(load map[string]int, candidates []Candidate) {
	for _, shard := range b.vacant {
		b.reserved += weight(shard)
	}
	total := b.reserved
	for _, n := range load {
		total += n
	}
	b.masters = make([]nominee, 0, len(candidates))
	preferred := make(map[string]bool, len(b.vacant))
	for i := range candidates {
		c := &candidates[i]
		if c.Retired {
			continue
		}
		b.masters = append(b.masters, nominee{c, load[c.Master]})
		for _, shard := range c.Preferred {
			if _, vacant := slices.BinarySearch(b.vacant, shard); vacant {
				preferred[shard] = true
			}
		}
	}
	// Shards that somebody has the source of go first: the others fill the gaps that these leave.
	slices.SortStableFunc(b.vacant, func(x, y string) int { return -compareBool(preferred[x], preferred[y]) })
	if n := len(b.masters); n > 0 {
		b.low, b.high = (total+n-1)/n-1, total/n+1
	}
	for _, m := range b.masters {
		b.deficit += max(0, b.low-m.load)
	}
}

// elect assigns one shard.
func (b *ballot) elect(shard string) *nominee {
	if weight(shard) == 0 {
		return b.least(shard, func(*nominee) bool { return true })
	}
	b.reserved--
	best := b.least(shard, func(m *nominee) bool {
		needed := b.deficit
		if m.load < b.low {
			needed--
		}
		return m.prefers(shard) && m.load < b.high && needed <= b.reserved
	})
	if best == nil {
		best = b.least(shard, func(*nominee) bool { return true })
	}
	if best == nil {
		return nil
	}
	if best.load < b.low {
		b.deficit--
	}
	best.load++
	return best
}

// weight is what a leadership counts for when leaderships are spread.
func weight(shard string) int {
	if strings.HasPrefix(shard, "_") {
		return 0
	}
	return 1
}

// least returns the master with the fewest shards among those that stand for shard and are fit, nil if there is none.
func (b *ballot) least(shard string, fit func(*nominee) bool) *nominee {
	var best *nominee
	var weight uint64 // of best
	for i := range b.masters {
		m := &b.masters[i]
		if best != nil && m.load > best.load || !m.stands(shard) || !fit(m) {
			continue
		}
		w := rendezvous(shard, m.Master)
		if best == nil || m.load < best.load || cmp.Or(cmp.Compare(weight, w), cmp.Compare(m.Master, best.Master)) < 0 {
			best, weight = m, w
		}
	}
	return best
}

// rank says how many masters are to try for a vacant shard before me: those named first, and then those that have its
// source, in rendezvous order, before the rest. named are the heir of the leadership and the master that Assign names,
// either of which may be "". It is -1 if me does not stand.
func rank(shard, me string, candidates []Candidate, named ...string) int {
	find := func(name string) *Candidate {
		for i := range candidates {
			if candidates[i].Master == name && candidates[i].stands(shard) {
				return &candidates[i]
			}
		}
		return nil
	}
	self := find(me)
	if self == nil {
		return -1
	}
	var first []string
	for _, name := range named {
		if name == me {
			return len(first)
		}
		if find(name) != nil && !slices.Contains(first, name) {
			first = append(first, name)
		}
	}
	ahead := len(first)
	for i := range candidates {
		c := &candidates[i]
		if c.Master == me || !c.stands(shard) || slices.Contains(first, c.Master) {
			continue
		}
		order := cmp.Or(-compareBool(c.prefers(shard), self.prefers(shard)),
			-cmp.Compare(rendezvous(shard, c.Master), rendezvous(shard, me)), cmp.Compare(c.Master, me))
		if order < 0 {
			ahead++
		}
	}
	return ahead
}

// rendezvous is the weight of a master for a shard: 64-bit FNV-1a, mixed because FNV alone spreads short names that are
// alike badly.
func rendezvous(shard, master string) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	x := uint64(offset)
	for _, s := range [...]string{shard, "\x00", master} {
		for i := range len(s) {
			x = (x ^ uint64(s[i])) * prime
		}
	}
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

func compareBool(x, y bool) int {
	switch {
	case x == y:
		return 0
	case x:
		return 1
	}
	return -1
}
