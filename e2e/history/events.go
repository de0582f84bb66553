package history

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// events goes through etcd's history and takes down the heads.
func (c *checker) events() {
	leaders := map[string]leader{}
	for at := 0; at < len(c.Events); {
		revision := c.Events[at].Revision
		end := at
		for end < len(c.Events) && c.Events[end].Revision == revision {
			end++
		}
		c.transaction(c.Events[at:end], leaders)
		at = end
	}
	if len(c.shards) == 0 {
		c.violation(RuleTraffic, "no generation was published")
	}
	for _, s := range c.shards {
		s.fill(c.attempts)
	}
}

// leader is what a leader key held.
type leader struct {
	epoch  int64
	master string
}

// transaction judges the changes of one revision. Leaders are those before it: a shard is not moved by the transaction that
// makes its leader.
func (c *checker) transaction(events []Event, leaders map[string]leader) {
	for _, e := range events {
		kind, shard, _ := strings.Cut(e.Key, "/")
		switch {
		case kind == "heads" && e.Deleted:
			c.violation(RuleForward, "the head of %s was deleted at revision %d", shard, e.Revision)
		case kind == "heads":
			c.moved(e, shard, leaders[shard], events)
		case kind == "staged" && !e.Deleted:
			c.staged(e, shard, leaders[shard])
		}
	}
	for _, e := range events {
		shard, isLeader := strings.CutPrefix(e.Key, "leaders/")
		if !isLeader {
			continue
		}
		delete(leaders, shard)
		if !e.Deleted {
			var v struct{ Master string }
			c.decode(e, &v)
			leaders[shard] = leader{epoch: e.Created, master: v.Master}
		}
	}
}

func (c *checker) decode(e Event, into any) {
	if err := json.Unmarshal([]byte(e.Value), into); err != nil {
		c.violation(RuleForward, "%s at revision %d: %v", e.Key, e.Revision, err)
	}
}

// moved judges one move of a head.
func (c *checker) moved(e Event, name string, lead leader, transaction []Event) {
	var h head
	c.decode(e, &h)
	s := c.shard(name)
	if h.Generation != uint64(len(s.heads))+1 {
		c.violation(RuleForward, "%s went from generation %d to %d at revision %d", name, len(s.heads), h.Generation, e.Revision)
	}
	if lead.epoch != h.Epoch || lead.master != h.By {
		c.violation(RuleFence, "%s generation %d was made by %s under epoch %d at revision %d; the leader was %s, epoch %d",
			name, h.Generation, h.By, h.Epoch, e.Revision, lead.master, lead.epoch)
	}
	if last := s.head(uint64(len(s.heads))); last != nil {
		if h.Epoch < last.Epoch {
			c.violation(RuleEpochs, "%s generation %d has epoch %d after %d", name, h.Generation, h.Epoch, last.Epoch)
		}
		if h.NextIno < last.NextIno {
			c.violation(RuleInos, "%s generation %d has next_ino %d after %d", name, h.Generation, h.NextIno, last.NextIno)
		}
	}
	key := fmt.Sprintf("generations/%s/%010d", name, h.Generation)
	if !slices.ContainsFunc(transaction, func(o Event) bool { return o.Key == key && !o.Deleted && o.Value == e.Value }) {
		c.violation(RuleRecord, "%s generation %d has no record of the same revision %d", name, h.Generation, e.Revision)
	}
	c.published(name, h)
	s.heads = append(s.heads, h)
}

// published looks for who asked for a generation, and whether enough masters had it.
func (c *checker) published(name string, h head) {
	a := c.attempts[h.Note]
	if a == nil || a.Shard != name {
		c.violation(RuleUnknown, "%s generation %d, note %q", name, h.Generation, h.Note)
		return
	}
	// A publish may go on after its publisher gave up, so only those count that were acknowledged: their time is known.
	if able := len(c.spared(a.Span, noCopies)); a.Acked && h.Copies < min(c.MinCopies, able) {
		c.violation(RuleCopies, "%s generation %d has %d copies; %d masters could have held it", name, h.Generation, h.Copies, able)
	}
}

// staged judges one announcement of a generation to come.
func (c *checker) staged(e Event, name string, lead leader) {
	var h head
	c.decode(e, &h)
	if lead.epoch != h.Epoch {
		c.violation(RuleFence, "%s generation %d was staged under epoch %d at revision %d; the leader was %s, epoch %d",
			name, h.Generation, h.Epoch, e.Revision, lead.master, lead.epoch)
	}
}

// fill notes what the generations hold.
func (s *shard) fill(attempts map[string]*Attempt) {
	for i, h := range s.heads {
		a := attempts[h.Note]
		if a == nil {
			continue
		}
		for path, digest := range a.Manifest {
			key := [2]string{path, digest}
			s.holds[key] = append(s.holds[key], uint64(i+1))
		}
	}
}
