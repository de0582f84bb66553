package master

import (
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
)

// behindMoment is how long a master may be behind a head before slaves are sent elsewhere: what masters serve is announced
// once a second, and a flip takes its time.
const behindMoment = 5 * time.Second

// pace remembers since when each generation is history, so that it can be said for how long a master has been behind. With
// heads that move more often than masters announce what they serve, nobody is ever seen to serve the head; and a
// head that has not moved for long must not hide that somebody is stuck.
//
// Its time is that of etcd: while etcd is away nobody announces anything, and nobody is called slow for it. It is used by one
// goroutine.
type pace struct {
	now       time.Time
	confirmed time.Time             // when etcd was last known to answer
	moves     map[string][]headMove // by shard, the oldest first
}

// headMove is a generation becoming the head, as this master saw it.
type headMove struct {
	number uint64
	at     time.Time
	found  bool // it was the head already when this master began to look
}

// advance lets time go on to when etcd was last known to answer, but by no more than most at once: after an absence masters
// get that long to say what they serve.
func (p *pace) advance(confirmed time.Time, most time.Duration) {
	if p.now.IsZero() {
		p.now = confirmed
	} else {
		p.now = p.now.Add(min(max(confirmed.Sub(p.confirmed), 0), most))
	}
	p.confirmed = confirmed
}

// note takes the heads of a view into account. What is the head at first counts as just moved: of a master that does not serve
// it nobody knows for how long.
func (p *pace) note(v fleet.View) {
	first := p.moves == nil
	if first {
		p.moves = map[string][]headMove{}
	}
	for shard := range p.moves {
		if v.Heads[shard].Number == 0 {
			delete(p.moves, shard)
		}
	}
	for shard, head := range v.Heads {
		moves := p.moves[shard]
		if n := len(moves); n > 0 && head.Number < moves[n-1].number { // etcd was restored from a backup
			moves = nil
		}
		if n := len(moves); head.Number > 0 && (n == 0 || head.Number > moves[n-1].number) {
			moves = append(moves, headMove{head.Number, p.now, first})
		}
		for len(moves) > 1 && p.now.Sub(moves[1].at) > behindMoment { // the first then says no more than the second
			moves = moves[1:]
		}
		p.moves[shard] = moves
	}
}

// keeps reports whether a master that serves these generations has not been behind any head for longer than a moment. One
// that serves more than the head is as bad as one that is behind: etcd is not to be believed then.
func (p *pace) keeps(v fleet.View, serves map[string]uint64) bool {
	for shard, head := range v.Heads {
		n := serves[shard]
		if head.Number == 0 || n == head.Number {
			continue
		}
		if n > head.Number || p.now.Sub(p.overtaken(shard, n)) > behindMoment {
			return false
		}
	}
	return true
}

// overtaken is when a generation ceased to be the head, as far as that is remembered. 0 is what a shard has before the first
// one: a master that serves nothing of an old shard is a new one.
func (p *pace) overtaken(shard string, n uint64) time.Time {
	for _, m := range p.moves[shard] {
		if n == 0 && m.found {
			break
		}
		if m.number > n {
			return m.at
		}
	}
	return time.Time{}
}
