package master

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
	"github.com/nfs-fleet/nfs-fleet/replicator"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// What a master remembers of many shards with long histories fits into the line in which it tells it.
func TestRecordsFitIntoALine(t *testing.T) {
	all := map[string]replicator.Record{}
	history := make([]tree.Generation, 1000)
	for i := range history {
		history[i] = tree.Generation{Number: uint64(i + 1), PublishedAt: time.Now().UTC(), By: "m1", Source: "m1:/srv/www", Note: strings.Repeat("n", 100)}
	}
	for i := range 500 {
		all["shard-"+strconv.Itoa(i)] = replicator.Record{Settings: json.RawMessage(`{}`), Maxima: replicator.Maxima{Generation: 1000}, Generations: history}
	}
	text, err := json.Marshal(recordsRequest{Shard: "shard-7"}.tell(all))
	if err != nil || len(text) > maxLine {
		t.Errorf("one shard: %d bytes, %v", len(text), err)
	}
	told := recordsRequest{}.tell(all)
	if text, err = json.Marshal(told); err != nil || len(text) > maxLine/4 {
		t.Errorf("all shards: %d bytes, %v", len(text), err)
	}
	if g := latest(told["shard-7"]); g.Number != 1000 {
		t.Errorf("the last generation told is %d", g.Number)
	}
}

// A record without settings is what a disk keeps of a shard that was deleted under a fetch.
func TestTestimonyHasTheSettingsThatSomebodyKnows(t *testing.T) {
	var one testimony
	one.hear("m1", replicator.Record{Maxima: replicator.Maxima{Generation: 9}, Generations: []tree.Generation{{Number: 9}}})
	if len(one.settings) > 0 {
		t.Errorf("settings %s", one.settings)
	}
	one.hear("m2", replicator.Record{Settings: json.RawMessage(`2`), Generations: []tree.Generation{{Number: 2}}})
	if one.from != "m1" || string(one.settings) != "2" {
		t.Errorf("from %s, settings %s", one.from, one.settings)
	}
	one.hear("m3", replicator.Record{Settings: json.RawMessage(`3`), Generations: []tree.Generation{{Number: 10}}})
	if one.from != "m3" || string(one.settings) != "3" || one.floor.Generation != 9 {
		t.Errorf("from %s, settings %s, floor %+v", one.from, one.settings, one.floor)
	}
}

// The master that an operator asks need not be the one that has the latest head.
func TestRecoverOnAMasterThatIsBehind(t *testing.T) {
	all, server := several(t, "m1", "m2")
	m1, m2 := all["m1"], all["m2"]
	before := m1.until("two masters serving the first generation", inStep(2, 1))
	m2.until("two masters serving the first generation", inStep(2, 1))
	m2.stop()
	for i := uint64(2); i < 4; i++ {
		write(t, m1.cfg.Sources["www"].Dir, "hello", strconv.FormatUint(i, 10))
		before = m1.until("the next generation", serves(i))
	}
	if _, err := server.Dial(t).Delete(t.Context(), fleet.KeysOf(m1.cfg.Fleet).Prefix(), clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	m2 = start(t, m2.cfg)
	m2.until("the loss noticed", func(s console.Status) bool { return len(s.Warnings) > 0 && strings.Contains(s.Warnings[0], "recover") })
	rep, err := m2.client.Recover(t.Context(), console.RecoverRequest{})
	if err != nil || len(rep.Shards) != 1 || rep.Shards[0].Generation != 4 {
		t.Fatalf("recover: %+v, %v", rep, err)
	}
	after := m1.until("two masters serving the fourth generation", inStep(2, 4))
	if after.Shards[0].Root != before.Shards[0].Root {
		t.Errorf("root %s became %s", before.Shards[0].Root, after.Shards[0].Root)
	}
}
