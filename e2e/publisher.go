package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nfs-fleet/nfs-fleet/e2e/history"
)

// publisher publishes one shard again and again from a directory of this machine, now and then rolls back, and records every
// attempt. It asks any master; the fleet has to find the leader.
type publisher struct {
	fleet  *Fleet
	record *history.Recorder
	shard  string
	states *states
	random *rand.Rand
	tries  int

	mu       sync.Mutex     // guards what follows: a test reads it while the publisher works
	acked    []ackedAttempt // in order
	refusals map[string]int // what failed attempts were told, and how often
	problems []string       // what a publisher must never be told
}

// ackedAttempt is a generation that can be rolled back to.
type ackedAttempt struct {
	generation uint64
	at         time.Time
	manifest   history.Manifest
}

// attemptLimit is how long a publisher waits for an answer before it gives up and does not know.
const attemptLimit = 15 * time.Second

// newPublisher makes a shard's publisher, with its first state on disk.
func newPublisher(f *Fleet, record *history.Recorder, shard, dir string, seed int64) (*publisher, error) {
	s, err := newStates(dir, shard)
	return &publisher{
		fleet: f, record: record, shard: shard, states: s, random: rand.New(rand.NewSource(seed)), refusals: map[string]int{},
	}, err
}

// run publishes until ctx ends; the attempt under way is finished.
func (p *publisher) run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := p.once(); err != nil {
			return err
		}
		wait(ctx, time.Duration(p.random.Intn(150))*time.Millisecond)
	}
	return nil
}

// wait is the pace of traffic: it returns after d or when ctx ends.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// once makes one attempt through a random master. Its error is the test's own trouble.
func (p *publisher) once() error {
	m := p.fleet.Masters[p.random.Intn(len(p.fleet.Masters))]
	for range 3 { // mostly one that is there: a refused connection tests nothing
		if !m.Down() {
			break
		}
		m = p.fleet.Masters[p.random.Intn(len(p.fleet.Masters))]
	}
	if n := p.newest(); n != nil && p.random.Intn(5) == 0 {
		back := p.pick()
		_, err := p.attempt(m, back.manifest, "rollback", p.shard, fmt.Sprint(back.generation))
		return err
	}
	if err := p.states.advance(p.random, p.nextID()); err != nil {
		return fmt.Errorf("change the tree of %s: %w", p.shard, err)
	}
	args := []string{"publish", p.shard, p.states.dir}
	if p.random.Intn(4) == 0 {
		args = append(args, "--wait")
	}
	_, err := p.attempt(m, p.states.manifest(), args...)
	return err
}

func (p *publisher) nextID() string { return fmt.Sprintf("%s-%d", p.shard, p.tries+1) }

// attempt runs a command that makes a generation with this content, and records what came of it.
func (p *publisher) attempt(m *Master, manifest history.Manifest, args ...string) (history.Attempt, error) {
	a := history.Attempt{ID: p.nextID(), Shard: p.shard, Manifest: manifest}
	p.tries++
	args = append(append([]string{m.bin}, args...), "--note", a.ID, "-o", "json")
	a.Began = time.Now()
	at := p.record.Begin(a)
	r, err := run(m.Host, attemptLimit, m.env(), args...)
	a.Ended = time.Now()
	if err != nil && !errors.Is(err, errLimit) {
		return a, err
	}
	if err == nil && r.Code == 0 {
		var g struct {
			Generation
			ServedBy []string `json:"served_by"`
		}
		if err := json.Unmarshal([]byte(r.Stdout), &g); err != nil {
			return a, fmt.Errorf("%q: %w in %s", args, err, clip(r.Stdout))
		}
		a.Acked, a.Changed, a.Generation, a.Root = true, g.Changed, g.Number, g.Root
		if slices.Contains(args, "--wait") {
			a.ServedBy = g.ServedBy
		}
	}
	p.record.End(at, a)
	p.note(a, r, err)
	return a, nil
}

// note keeps what a test wants to know of an attempt.
func (p *publisher) note(a history.Attempt, r Result, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a.Acked {
		p.acked = append(p.acked, ackedAttempt{a.Generation, a.Ended, a.Manifest})
		return
	}
	if err != nil {
		p.refusals["no answer"]++
		return
	}
	said := strings.TrimSpace(r.Stderr)
	p.refusals[fmt.Sprintf("%d: %s", r.Code, said)]++
	for _, never := range []string{"panic", "goroutine ", "runtime error"} {
		if strings.Contains(said, never) {
			p.problems = append(p.problems, said)
		}
	}
	if said == "" || r.Code == 2 {
		p.problems = append(p.problems, fmt.Sprintf("exit code %d, %q", r.Code, said))
	}
}

// newest returns the last acknowledged attempt, nil when there is none.
func (p *publisher) newest() *ackedAttempt {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.acked) == 0 {
		return nil
	}
	a := p.acked[len(p.acked)-1]
	return &a
}

// pick returns any acknowledged attempt; there must be one.
func (p *publisher) pick() ackedAttempt {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.acked[p.random.Intn(len(p.acked))]
}

// refused returns what failed attempts were told, and how often.
func (p *publisher) refused() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.refusals)
}

// told returns what the publisher must never have been told.
func (p *publisher) told() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.problems)
}
