package master

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

// A network too narrow shuts readers out: the status says whom.
func TestSlavesThatAreShutOutAreNamed(t *testing.T) {
	narrow, open := fleet.NewShard("www", time.Time{}), fleet.NewShard("docs", time.Time{})
	narrow.Networks = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/32")}
	inside, outside := netip.MustParseAddr("10.0.0.0"), netip.MustParseAddr("10.0.0.7")
	slaves := map[string]fleet.Slave{"web1": {Name: "web1", Address: inside}, "web2": {Name: "web2", Address: outside}}
	reader := func(name string, at netip.Addr) console.SlaveStatus {
		return console.SlaveStatus{Name: name, Reads: "m1", Address: at, Mounts: []console.SlaveMount{{Shard: "www"}}}
	}
	shown := []console.SlaveStatus{reader("web1", inside), reader("web2", outside)}
	for name, test := range map[string]struct {
		shards map[string]fleet.Shard
		shown  []console.SlaveStatus
		want   []string
	}{
		"no shards":          {nil, shown, nil},
		"everybody may":      {map[string]fleet.Shard{"docs": open}, shown, nil},
		"nobody lets it in":  {map[string]fleet.Shard{"www": narrow}, shown, []string{"no shard lets these slaves in: web2: `nfs-fleet shard list` shows the networks, `nfs-fleet slave forget` drops a slave that is gone"}},
		"another shard does": {map[string]fleet.Shard{"www": narrow, "docs": open}, shown, []string{"shard www: its networks shut out slaves that have it mounted: web2"}},
		"it is not heard of": {map[string]fleet.Shard{"www": narrow, "docs": open}, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if got := shutOutWarnings(fleet.View{Shards: test.shards, Slaves: slaves}, test.shown); !slices.Equal(got, test.want) {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}
