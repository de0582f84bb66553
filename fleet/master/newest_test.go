package master

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// headAt is a view in which www has this head.
func headAt(generation uint64) fleet.View {
	return fleet.View{Revision: 1, Heads: map[string]fleet.Head{"www": {Generation: tree.Generation{Number: generation}}}}
}

func TestTheNewestHeads(t *testing.T) {
	const never = time.Hour
	away := errors.New("away")
	for _, c := range []struct {
		name      string
		etcdAfter time.Duration
		etcdErr   error
		heard     map[string]uint64 // what the others serve
		allAfter  time.Duration
		all       bool
		want      uint64 // 0: an error
		took      time.Duration
	}{
		{"etcd answers at once", time.Millisecond, nil, map[string]uint64{"www": 9}, 0, true, 7, time.Millisecond},
		{"etcd cannot be read", time.Millisecond, away, nil, 0, true, 0, time.Millisecond},
		{"etcd is slow, the others are not", never, nil, map[string]uint64{"www": 6}, time.Millisecond, true, 6, etcdHead + time.Millisecond},
		{"the others serve less than etcd said last", never, nil, map[string]uint64{"www": 4}, time.Millisecond, true, 5, etcdHead + time.Millisecond},
		{"what is no shard here is passed over", never, nil, map[string]uint64{"gone": 4}, time.Millisecond, true, 5, etcdHead + time.Millisecond},
		{"one of the others is silent, etcd answers", 100 * time.Millisecond, nil, map[string]uint64{"www": 6}, time.Millisecond, false, 7, 100 * time.Millisecond},
		{"etcd answers before the others", 100 * time.Millisecond, nil, nil, never, true, 7, 100 * time.Millisecond},
		{"one of the others is silent, and etcd too", never, nil, map[string]uint64{"www": 6}, time.Millisecond, false, 6, gateTimeout},
		{"everybody is silent", never, nil, map[string]uint64{"www": 6}, never, false, 6, gateTimeout},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newest{
					etcd: func(ctx context.Context) (fleet.View, error) {
						select {
						case <-time.After(c.etcdAfter):
							return headAt(7), c.etcdErr
						case <-ctx.Done():
							return fleet.View{}, context.Cause(ctx)
						}
					},
					others: func(ctx context.Context, heard func(map[string]uint64)) bool {
						heard(c.heard)
						select {
						case <-time.After(c.allAfter):
							return c.all
						case <-ctx.Done():
							return false
						}
					},
					last: func() fleet.View { return headAt(5) },
				}
				ctx, cancel := context.WithTimeout(t.Context(), gateTimeout)
				defer cancel()
				began := time.Now()
				v, err := n.load(ctx)
				if took := time.Since(began); took != c.took {
					t.Errorf("took %v, want %v", took, c.took)
				}
				if got := v.Heads["www"].Number; (err != nil) != (c.want == 0) || err == nil && got != c.want {
					t.Errorf("head %d, %v; want %d", got, err, c.want)
				}
			})
		})
	}
}

// What was passed in belongs to all who look at the fleet.
func TestTheNewestHeadsLeaveTheViewAlone(t *testing.T) {
	v := headAt(5)
	h := newHighest(v)
	h.heard(map[string]uint64{"www": 6})
	if got := h.view().Heads["www"].Number; got != 6 || v.Heads["www"].Number != 5 {
		t.Errorf("raised to %d, and the view to %d", got, v.Heads["www"].Number)
	}
}
