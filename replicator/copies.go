package replicator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

const (
	// silentLimit is how long a living master may say nothing while it is asked to hold a generation.
	silentLimit = 20 * time.Second
	// graceLeast and graceMost bound how long a publish that has its copies waits for the masters that are still fetching,
	// so that all flip together: half the time that the copies took, within these bounds.
	graceLeast = 50 * time.Millisecond
	graceMost  = 10 * time.Second
	// recount is the time between two looks at who is alive.
	recount = 250 * time.Millisecond
)

// stage has the other masters fetch next, and returns how many masters hold it whole, this one included, once that is
// enough. Masters that are not alive, or decline, are not counted on; what that costs is said in warnings.
func (r *Replica) stage(ctx context.Context, head seenHead, next tree.Generation) (copies int, warnings []string, err error) {
	g := gathering{asked: map[string]*asked{}, least: r.settings.MinCopies, strict: r.settings.Strict, now: time.Now}
	g.count(r.cfg.Peers.Others())
	if err := g.possible(r.cfg.Shard); err != nil || len(g.asked) == 0 {
		return 1, nil, err
	}
	if err := r.cfg.Heads.Stage(ctx, r.term.Epoch(), head.revision, next); err != nil {
		return 0, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	answers, beats := make(chan answer), make(chan string)
	ask := func(master string) {
		asking.Go(func() { r.askToHold(ctx, master, next, answers, beats) })
	}
	for _, master := range g.masters() {
		ask(master)
	}
	if err := r.gather(ctx, &g, ask, answers, beats); err != nil {
		return 0, nil, err
	}
	return g.copies(), g.warnings(), nil
}

// gather waits until the generation has copies enough and those that are nearly there have had their time.
func (r *Replica) gather(ctx context.Context, g *gathering, ask func(string), answers <-chan answer, beats <-chan string) error {
	g.began = g.now()
	tick := time.NewTicker(recount)
	defer tick.Stop()
	grace := stoppedTimer()
	defer grace.Stop()
	waiting := false // for the rest, with copies enough
	for {
		if err := g.possible(r.cfg.Shard); err != nil {
			return err
		}
		if g.enough() && !waiting {
			waiting = true
			grace.Reset(min(max(graceLeast, g.now().Sub(g.began)/2), graceMost))
		}
		if waiting && g.pending() == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-grace.C:
			return nil
		case a := <-answers:
			g.answered(a)
		case master := <-beats:
			g.beat(master)
		case <-tick.C:
			for _, master := range g.count(r.cfg.Peers.Others()) {
				ask(master)
			}
			if err := g.silent(r.cfg.Shard); err != nil && !waiting {
				return err
			}
		}
	}
}

// askToHold asks one master until it holds the generation, declines, or ctx ends.
func (r *Replica) askToHold(ctx context.Context, master string, next tree.Generation, answers chan<- answer, beats chan<- string) {
	beat := func() {
		select {
		case beats <- master:
		case <-ctx.Done():
		}
	}
	pause := 50 * time.Millisecond
	for {
		err := r.cfg.Peers.Hold(ctx, master, r.cfg.Shard, next, beat)
		select {
		case answers <- answer{master, err}:
		case <-ctx.Done():
			return
		}
		if err == nil || final(err) {
			return
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		pause = min(2*pause, time.Second)
	}
}

// final reports whether asking again is of no use.
func final(err error) bool { return errors.Is(err, ErrDeclined) || errors.Is(err, ErrOlderEpoch) }

// gathering is the state of collecting copies: who was asked, and what came of it. It has no goroutine and does no I/O.
type gathering struct {
	asked  map[string]*asked
	least  int // copies wanted
	strict bool
	now    func() time.Time
	began  time.Time
}

type asked struct {
	alive bool
	held  bool
	no    error // it declined
	err   error // the last one that is not final
	heard time.Time
}

// answer is what one attempt to have a master hold the generation came to.
type answer struct {
	master string
	err    error
}

// count takes note of who is alive and returns those that are new.
func (g *gathering) count(alive []string) (fresh []string) {
	for _, a := range g.asked {
		a.alive = false
	}
	for _, master := range alive {
		a, known := g.asked[master]
		if !known {
			a = &asked{heard: g.now()}
			g.asked[master] = a
			fresh = append(fresh, master)
		} else if !a.alive && a.err != nil {
			a.heard = g.now() // it was lost and has come back
		}
		a.alive = true
	}
	return fresh
}

func (g *gathering) answered(a answer) {
	m := g.asked[a.master]
	switch {
	case a.err == nil:
		m.held, m.err = true, nil
	case final(a.err):
		m.no = a.err
	default:
		m.err = a.err
	}
}

func (g *gathering) beat(master string) { g.asked[master].heard = g.now() }

func (g *gathering) masters() []string {
	out := make([]string, 0, len(g.asked))
	for master := range g.asked {
		out = append(out, master)
	}
	slices.Sort(out)
	return out
}

// copies is how many masters hold it, this one included.
func (g *gathering) copies() int { return 1 + g.sum(func(a *asked) bool { return a.held }) }

// able is how many masters hold it or may come to.
func (g *gathering) able() int {
	return 1 + g.sum(func(a *asked) bool { return a.held || a.alive && a.no == nil })
}

// pending is how many masters may yet come to hold it and have been heard of lately.
func (g *gathering) pending() int {
	return g.sum(func(a *asked) bool {
		return a.alive && !a.held && a.no == nil && a.err == nil
	})
}

func (g *gathering) sum(which func(*asked) bool) int {
	n := 0
	for _, a := range g.asked {
		if which(a) {
			n++
		}
	}
	return n
}

func (g *gathering) enough() bool { return g.copies() >= min(g.least, g.able()) }

// possible says why the copies wanted cannot be had: a later leader has been seen, or the shard is strict and too few
// masters can hold it.
func (g *gathering) possible(shard string) error {
	for _, master := range g.masters() {
		if err := g.asked[master].no; errors.Is(err, ErrOlderEpoch) {
			return fmt.Errorf("shard %s: %w: master %s: %w", shard, ErrNoTerm, master, err)
		}
	}
	if g.strict && g.able() < g.least {
		return fmt.Errorf("shard %s is strict and wants %d copies, of which %d can be made now: %w%s", shard, g.least, g.able(), ErrTooFewCopies, g.reasons())
	}
	return nil
}

// silent says that none of the living masters whose copy is wanted has been heard of for too long. Silence is no refusal:
// the copies that such a master could make are not waived.
func (g *gathering) silent(shard string) error {
	waited := g.sum(func(a *asked) bool { return a.alive && !a.held && a.no == nil })
	heard := g.sum(func(a *asked) bool { return a.alive && !a.held && a.no == nil && g.now().Sub(a.heard) <= silentLimit })
	if g.enough() || waited == 0 || heard > 0 {
		return nil
	}
	return fmt.Errorf("shard %s wants %d copies and has %d: %w%s", shard, g.least, g.copies(), ErrTooFewCopies, g.reasons())
}

// reasons lists why masters do not hold the generation, for the end of a sentence.
func (g *gathering) reasons() string {
	var out strings.Builder
	for _, master := range g.masters() {
		a := g.asked[master]
		switch {
		case a.held:
		case a.no != nil:
			fmt.Fprintf(&out, "; master %s: %v", master, a.no)
		case !a.alive:
			fmt.Fprintf(&out, "; master %s was lost meanwhile", master)
		case a.err != nil:
			fmt.Fprintf(&out, "; master %s: %v", master, a.err)
		case g.now().Sub(a.heard) > silentLimit:
			fmt.Fprintf(&out, "; master %s has not been heard of for %s", master, g.now().Sub(a.heard).Round(time.Second))
		}
	}
	return out.String()
}

// warnings says which living masters are without a copy for a reason.
func (g *gathering) warnings() []string {
	var out []string
	for _, master := range g.masters() {
		if a := g.asked[master]; a.no != nil {
			out = append(out, fmt.Sprintf("master %s does not hold it: %v", master, a.no))
		}
	}
	return out
}
