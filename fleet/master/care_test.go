package master

import (
	"errors"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/replicator"
	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

func TestCollectable(t *testing.T) {
	at := func(n uint64) replicator.Status { return replicator.Status{Head: tree.Generation{Number: n}} }
	with := func(st replicator.Status, problem error, undecided bool) replicator.Status {
		st.Problem, st.Undecided = problem, undecided
		return st
	}
	for _, tc := range []struct {
		name string
		st   replicator.Status
		head uint64
		want bool
	}{
		{"at its head", at(3), 3, true},
		{"empty", at(0), 0, true},
		{"behind", at(3), 4, true},
		{"behind, because the disk is full", with(at(3), store.ErrFull, false), 4, true},
		{"a move that may have happened", with(at(3), nil, true), 3, false},
		{"behind, and a move that may have happened", with(at(3), nil, true), 4, false},
		{"an etcd that has forgotten", with(at(3), replicator.ErrRegressed, false), 2, false},
		{"behind, and not read back", replicator.Status{Head: tree.Generation{Number: 3}, Unreadable: true}, 4, false},
		{"not read back", with(at(3), errors.New("rot"), false), 3, false},
	} {
		if got := collectable(tc.st, tc.head); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}
