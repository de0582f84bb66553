package master

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
)

func opened() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

func TestGateReadsOnceForManyConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var loads atomic.Int64
		g := newHeadGate(opened(), func(context.Context) (fleet.View, error) {
			n := loads.Add(1)
			time.Sleep(5 * time.Millisecond)
			return fleet.View{Revision: n}, nil
		}, func(context.Context, fleet.View) error { return nil })
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				if err := g.Await(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := loads.Load(); n == 0 || n > 2 {
			t.Errorf("%d reads of etcd for 1000 connections at once", n)
		}
		synctest.Wait()
	})
}

// Somebody who connects twice in a row does not wait; a storm does.
func TestGateBoundsItsReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		loads := 0
		g := newHeadGate(opened(), func(context.Context) (fleet.View, error) { loads++; return fleet.View{}, nil },
			func(context.Context, fleet.View) error { return nil })
		pass := func() {
			if err := g.Await(t.Context()); err != nil {
				t.Error(err)
			}
			synctest.Wait()
		}
		began := time.Now()
		for range 3 {
			pass()
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("three connections one after another waited for %s", took)
		}
		for time.Since(began) < 10*time.Second {
			pass()
		}
		if most := gateBurst + int(10*time.Second/gateRest) + 1; loads > most {
			t.Errorf("%d reads in 10 s, want %d at most", loads, most)
		}
	})
}

// A connection must not be let in by a read that began before it came: the head may have moved in between.
func TestGateNeverUsesAnOlderRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var head atomic.Int64
		head.Store(1)
		var mu sync.Mutex // guards seen
		var seen []int64
		g := newHeadGate(opened(), func(context.Context) (fleet.View, error) {
			v := fleet.View{Revision: head.Load()}
			time.Sleep(10 * time.Millisecond)
			return v, nil
		}, func(_ context.Context, v fleet.View) error {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, v.Revision)
			return nil
		})
		first := make(chan error)
		go func() { first <- g.Await(t.Context()) }()
		time.Sleep(5 * time.Millisecond)
		head.Store(2)
		if err := g.Await(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-first; err != nil {
			t.Error(err)
		}
		if len(seen) != 2 || seen[1] != 2 {
			t.Errorf("let in with revisions %v, want the second with 2", seen)
		}
		synctest.Wait()
	})
}

func TestGateWithoutEtcdLetsIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newHeadGate(opened(), func(context.Context) (fleet.View, error) { return fleet.View{}, errors.New("away") },
			func(context.Context, fleet.View) error { return errors.New("not to be asked") })
		if err := g.Await(t.Context()); err != nil {
			t.Errorf("with etcd away: %v", err)
		}
		synctest.Wait()
	})
}

func TestGateClosesAfterItsPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shut := newHeadGate(make(chan struct{}), nil, nil)
		began := time.Now()
		if err := shut.Await(t.Context()); err == nil || time.Since(began) != gatePatience {
			t.Errorf("a master that does not serve yet: %v after %s", err, time.Since(began))
		}
		behind := newHeadGate(opened(), func(context.Context) (fleet.View, error) { return fleet.View{}, nil },
			func(ctx context.Context, _ fleet.View) error { <-ctx.Done(); return context.Cause(ctx) })
		began = time.Now()
		if err := behind.Await(t.Context()); err == nil || time.Since(began) != gatePatience {
			t.Errorf("a master behind its head: %v after %s", err, time.Since(began))
		}
		synctest.Wait()
	})
}
