package master

import (
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// headsAt is a view in which the shard www has this head.
func headsAt(n uint64) fleet.View {
	return fleet.View{Heads: map[string]fleet.Head{"www": {Generation: tree.Generation{Number: n}}}}
}

func TestPace(t *testing.T) {
	began := time.Unix(1000, 0)
	type move struct {
		after time.Duration
		head  uint64
	}
	everySecond := func(n int) (out []move) {
		for i := range n {
			out = append(out, move{time.Duration(i) * time.Second, uint64(i + 1)})
		}
		return out
	}
	for _, tc := range []struct {
		name   string
		moves  []move
		at     time.Duration
		serves uint64
		want   bool
	}{
		{"nothing was published", []move{{0, 0}}, time.Hour, 0, true},
		{"it serves the head", []move{{0, 7}}, time.Hour, 7, true},
		{"it has nothing of an old shard", []move{{0, 7}}, time.Second, 0, false},
		{"it has nothing of an old shard, whose head moves", []move{{0, 7}, {time.Minute, 8}}, time.Minute + time.Second, 0, false},
		{"it has nothing yet of a new shard", []move{{0, 0}, {time.Minute, 1}, {time.Minute + time.Second, 2}}, time.Minute + 2*time.Second, 0, true},
		{"the head moved just now", []move{{0, 7}, {time.Minute, 8}}, time.Minute + time.Second, 7, true},
		{"the head moved a while ago", []move{{0, 7}, {time.Minute, 8}}, time.Minute + 6*time.Second, 7, false},
		{"behind when it was first seen: for how long is not known", []move{{0, 7}}, time.Second, 6, true},
		{"behind ever since", []move{{0, 7}}, 6 * time.Second, 6, false},
		{"two behind, for a moment", []move{{0, 7}, {time.Minute, 8}, {time.Minute + time.Second, 9}}, time.Minute + 3*time.Second, 7, true},
		{"a head each second, announced late", everySecond(100), 99 * time.Second, 97, true},
		{"a head each second, and it is stuck", everySecond(100), 99 * time.Second, 90, false},
		{"more than the head", []move{{0, 7}}, time.Second, 8, false},
		{"etcd is older than it was", []move{{0, 7}, {time.Minute, 3}}, time.Minute, 3, true},
	} {
		var p pace
		for _, m := range tc.moves {
			p.advance(began.Add(m.after), time.Hour)
			p.note(headsAt(m.head))
		}
		p.advance(began.Add(tc.at), time.Hour)
		last := tc.moves[len(tc.moves)-1].head
		if got := p.keeps(headsAt(last), map[string]uint64{"www": tc.serves}); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
		if n := len(p.moves["www"]); n > 8 {
			t.Errorf("%s: %d heads are remembered", tc.name, n)
		}
	}
}

func TestPaceForgetsDeletedShards(t *testing.T) {
	var p pace
	p.note(headsAt(7))
	p.note(fleet.View{})
	if len(p.moves) != 0 {
		t.Errorf("remembered: %v", p.moves)
	}
}

// While etcd is away nobody can say that it has caught up.
func TestPaceWithoutEtcd(t *testing.T) {
	var p pace
	began := time.Unix(1000, 0)
	late := map[string]uint64{"www": 6}
	for i := range 60 { // etcd answers for a second, and then no more
		p.advance(began.Add(time.Duration(min(i, 10))*100*time.Millisecond), 2*time.Second)
		p.note(headsAt(7))
	}
	if !p.keeps(headsAt(7), late) {
		t.Error("a master is called slow while etcd is away")
	}
	p.advance(began.Add(time.Hour), 2*time.Second)
	if !p.keeps(headsAt(7), late) {
		t.Error("a master is called slow at the moment that etcd is back")
	}
	for i := range 10 {
		p.advance(began.Add(time.Hour+time.Duration(i)*time.Second), 2*time.Second)
	}
	if p.keeps(headsAt(7), late) {
		t.Error("a master that stays behind is not called so")
	}
}
