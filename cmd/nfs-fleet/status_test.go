package main

import (
	"testing"

	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

// Any master's status says where a shard's source is.
func TestWhereASourceIs(t *testing.T) {
	masters := []console.MasterStatus{
		{Name: "m1", State: console.MasterServing, Sources: []string{"www"}}, {Name: "m2", State: console.MasterServing},
		{Name: "m3", State: console.MasterLost, Sources: []string{"www", "docs"}},
	}
	for _, test := range []struct {
		shard, identity, state, want string
	}{
		{"www", "", "none", "on m1"}, {"docs", "", "none", "none"}, {"www", "m1:/srv/www", "watching", "watching"},
	} {
		s := console.ShardStatus{Name: test.shard, Source: console.SourceStatus{Identity: test.identity, State: test.state}}
		if got := sourceCell(s, masters); got != test.want {
			t.Errorf("%+v: %q", test, got)
		}
	}
}
