package master

import (
	"context"
	"errors"
	"maps"
	"sync"
	"syscall"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
)

// etcdHead is how long etcd alone is asked for the heads. It elects a new leader for a second and more when its own was on
// the machine that a slave has just lost; the other masters know what they serve at once.
const etcdHead = 25 * time.Millisecond

// newest finds the newest heads that a slave can have seen: those in etcd, or, while etcd does not say, those that the
// other masters serve. A slave has seen nothing that no master served.
type newest struct {
	etcd func(ctx context.Context) (fleet.View, error)
	// others tells heard what each other living master serves, one at a time, and reports whether none is left that might
	// serve and has not answered.
	others func(ctx context.Context, heard func(serves map[string]uint64)) bool
	last   func() fleet.View // what etcd said last
}

// load returns the fleet as etcd says, or as it said last with what the others serve when all of them have answered before
// etcd has. When ctx ends first, it returns what was heard until then; an error only when etcd cannot be read.
func (n newest) load(ctx context.Context) (fleet.View, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type read struct {
		view fleet.View
		err  error
	}
	fromEtcd := make(chan read, 1)
	go func() {
		v, err := n.etcd(ctx)
		fromEtcd <- read{v, err}
	}()
	patience := time.NewTimer(etcdHead)
	defer patience.Stop()
	select {
	case r := <-fromEtcd:
		return r.view, r.err
	case <-patience.C:
	}
	heads := newHighest(n.last())
	fromOthers := make(chan bool, 1)
	go func() { fromOthers <- n.others(ctx, heads.heard) }()
	for {
		select {
		case r := <-fromEtcd:
			if ctx.Err() == nil {
				return r.view, r.err
			}
			return heads.view(), nil
		case all := <-fromOthers:
			if all {
				return heads.view(), nil
			}
			fromOthers = nil // somebody may serve more: etcd has until ctx ends
		case <-ctx.Done():
			return heads.view(), nil
		}
	}
}

// highest is a view whose heads are raised to what masters serve.
type highest struct {
	mu   sync.Mutex // guards what follows
	last fleet.View // its heads are its own
}

func newHighest(v fleet.View) *highest {
	v.Heads = maps.Clone(v.Heads)
	return &highest{last: v}
}

func (h *highest) heard(serves map[string]uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for shard, generation := range serves {
		if head, known := h.last.Heads[shard]; known && head.Number < generation {
			head.Number = generation
			h.last.Heads[shard] = head
		}
	}
}

func (h *highest) view() fleet.View {
	h.mu.Lock()
	defer h.mu.Unlock()
	v := h.last
	v.Heads = maps.Clone(v.Heads)
	return v
}

// askServed asks the other masters that had a lease when etcd last answered what they serve, and reports whether it knows of
// all of them. One whose process has ended serves nothing: its machine refuses the connection.
func (m *Master) askServed(ctx context.Context, heard func(map[string]uint64)) bool {
	var mu sync.Mutex // guards all, and is held while heard runs
	all := true
	var asking sync.WaitGroup
	for name := range m.lastView().Masters {
		if name == m.cfg.Name {
			continue
		}
		asking.Go(func() {
			serves, err := ask[map[string]uint64](ctx, m.links, name, pathServed, nothing{}, nil)
			if err != nil && !errors.Is(err, syscall.ECONNREFUSED) && ctx.Err() == nil { // the connection was an old one
				serves, err = ask[map[string]uint64](ctx, m.links, name, pathServed, nothing{}, nil)
			}
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				heard(serves)
			} else if !errors.Is(err, syscall.ECONNREFUSED) {
				all = false
			}
		})
	}
	asking.Wait()
	return all
}
