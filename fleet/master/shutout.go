package master

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

// maxNamed is how many slaves a warning names.
const maxNamed = 5

// shutOutWarnings says which slaves are outside networks: those that no shard lets in any more, and those that are heard to
// have a shard mounted that does not. Of the many slaves of a large fleet only those shown tell of their mounts.
func shutOutWarnings(v fleet.View, shown []console.SlaveStatus) []string {
	if len(v.Shards) == 0 {
		return nil
	}
	var nowhere []string
	for _, name := range slices.Sorted(maps.Keys(v.Slaves)) {
		if s := v.Slaves[name]; s.Address.IsValid() && !coveredByAny(v, s) {
			nowhere = append(nowhere, name)
		}
	}
	var out []string
	if len(nowhere) > 0 {
		out = append(out, fmt.Sprintf("no shard lets these slaves in: %s: `nfs-fleet shard list` shows the networks, `nfs-fleet slave forget` drops a slave that is gone", named(nowhere)))
	}
	for _, shard := range slices.Sorted(maps.Keys(v.Shards)) {
		var outside []string
		for _, s := range shown {
			mounted := slices.ContainsFunc(s.Mounts, func(m console.SlaveMount) bool { return m.Shard == shard })
			if mounted && s.Reads != "" && !v.Shards[shard].Covers(s.Address) && !slices.Contains(nowhere, s.Name) {
				outside = append(outside, s.Name)
			}
		}
		if len(outside) > 0 {
			out = append(out, fmt.Sprintf("shard %s: its networks shut out slaves that have it mounted: %s", shard, named(outside)))
		}
	}
	return out
}

func coveredByAny(v fleet.View, s fleet.Slave) bool {
	for _, shard := range v.Shards {
		if shard.Covers(s.Address) {
			return true
		}
	}
	return false
}

// named lists names, and counts those that are too many to list.
func named(names []string) string {
	text := strings.Join(names[:min(len(names), maxNamed)], ", ")
	if more := len(names) - maxNamed; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
