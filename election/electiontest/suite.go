// Package electiontest is the conformance suite of election.Election: what users of the interface may rely on, whatever
// keeps the leases and keys below it. The implementations on etcd and in memory both pass it.
package electiontest

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/election"
)

// Cluster is where the elections of one test meet. All methods fail the test by themselves when they cannot do it.
type Cluster interface {
	// Elect returns an election of this cluster, not yet running. The cluster fills in Client and TTL.
	Elect(t *testing.T, c election.Config) election.Election
	// Cut keeps a master from reaching the cluster, without an error that tells it so, or lets it through again.
	Cut(t *testing.T, master string, cut bool)
	// Get returns a key's value and CreateRevision, 0 if there is no such key.
	Get(t *testing.T, key string) (value []byte, created int64)
	// Delete and Put change a key past all leases, as an administrator may.
	Delete(t *testing.T, key string)
	Put(t *testing.T, key string, value []byte)
	// Revoke ends a lease behind its owner's back.
	Revoke(t *testing.T, lease int64)
	// Prefix is the fleet's, with nothing under it yet.
	Prefix() string
}

// Suite runs every test of the interface, each on a cluster of its own and all in parallel.
func Suite(t *testing.T, open func(t *testing.T) Cluster) {
	tests := map[string]func(*bench){
		"OneMasterLeadsWhatItStandsFor":  oneMaster,
		"AKeyStandsBehindEveryTerm":      keyBehindTerm,
		"OnlyOneLeads":                   onlyOneLeads,
		"TheEndOfRunHandsOver":           endOfRun,
		"WithdrawHandsOver":              withdraw,
		"ResignHandsOverToTheHeir":       resign,
		"ARetiredMasterLeadsNothing":     retire,
		"AWithdrawnMasterMayStandAgain":  standAgain,
		"ALostLeaseEndsEveryTerm":        lostLease,
		"ARevokedLeaseEndsEveryTerm":     revokedLease,
		"ADeletedKeyDeposes":             deletedKey,
		"AReplacedKeyDeposes":            replacedKey,
		"TheSourceDecidesWhoLeads":       preferred,
		"ShardsAreSpreadEvenly":          spread,
		"AnnouncementsLiveWithTheLease":  announcements,
		"AnOlderProcessIsReplaced":       replace,
		"TermsNeverOverlap":              contest,
		"RunEndsInTimeWhenNobodyAnswers": hangingEnd,
		"RunIsCalledOnce":                runTwice,
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(&bench{T: t, Cluster: open(t)})
		})
	}
}

// patience is far more than any step of a test takes.
const patience = 30 * time.Second

// prompt is far less than it takes when a lease has to run out first, and leaves room for a busy machine.
const prompt = 1500 * time.Millisecond

// bench is one test and its cluster.
type bench struct {
	*testing.T
	Cluster
}

// node is a running election.
type node struct {
	election.Election
	b    *bench
	name string
	stop context.CancelFunc
	done chan error
}

// start runs an election that stands for the shards; a star behind the name of one says that the master has its source.
func (b *bench) start(name string, stands ...string) *node {
	b.Helper()
	return b.startWith(election.Config{Master: name}, stands...)
}

func (b *bench) startWith(c election.Config, stands ...string) *node {
	b.Helper()
	c.Prefix = b.Prefix()
	e := b.Elect(b.T, c)
	for _, shard := range stands {
		name, source := strings.CutSuffix(shard, "*")
		e.Stand(name, source)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := &node{e, b, c.Master, cancel, make(chan error, 1)}
	go func() { n.done <- e.Run(ctx) }()
	b.Cleanup(func() { n.end() })
	return n
}

// end stops the election and returns what Run returned.
func (n *node) end() error {
	n.stop()
	err := <-n.done
	n.done <- err
	return err
}

// term waits for the next term.
func (n *node) term() *election.Term {
	n.b.Helper()
	select {
	case t, ok := <-n.Terms():
		if !ok {
			n.b.Fatalf("%s: Run ended while a term was awaited", n.name)
		}
		return t
	case <-time.After(patience):
		n.b.Fatalf("%s: no term came", n.name)
	}
	return nil
}

// ended waits for the end of a term and returns its cause.
func (b *bench) ended(t *election.Term) error {
	b.Helper()
	select {
	case <-t.Context().Done():
	case <-time.After(patience):
		b.Fatalf("the term for %s did not end", t.Shard())
	}
	if err := t.Check(); err == nil {
		b.Errorf("the term for %s has ended, and Check says that it goes on", t.Shard())
	}
	return context.Cause(t.Context())
}

// until waits for something that Changed tells of.
func (n *node) until(what string, is func() bool) {
	n.b.Helper()
	deadline := time.After(patience)
	for !is() {
		select {
		case <-n.Changed():
		case <-deadline:
			n.b.Fatalf("%s: %s: it never came to that", n.name, what)
		}
	}
}

// follows waits until n knows who leads shard.
func (n *node) follows(shard, leader string) {
	n.b.Helper()
	n.until(fmt.Sprintf("%s leads %s", leader, shard), func() bool {
		l, ok := n.Leader(shard)
		return ok && l.Master == leader
	})
}

// poll waits for something in the cluster that no election tells of.
func (b *bench) poll(what string, is func() bool) {
	b.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !is(); <-tick.C {
		if time.Now().After(deadline) {
			b.Fatalf("%s: it never came to that", what)
		}
	}
}

func (b *bench) leaderKey(shard string) string { return b.Prefix() + "leaders/" + shard }
