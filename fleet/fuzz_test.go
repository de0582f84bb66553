package fleet

import (
	"encoding/json"
	"reflect"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// FuzzKeys puts any value under any key of a fleet: a View either holds what can be told in the same words again, or says
// what is wrong with the key, and forgets all of it when the key is deleted.
func FuzzKeys(f *testing.F) {
	for name, value := range map[string]string{
		"id":                       `{"cluster":"c","format":1}`,
		"shards/www":               `{"name":"www","fsid":"fedcba9876543210","networks":["10.0.0.0/8"],"squash":"root","keep":10,"keep_for":"24h"}`,
		"heads/www":                `{"generation":7,"root":"aa","files":3,"bytes":9,"published_at":"2026-01-02T03:04:05Z","by":"m1","epoch":4,"next_ino":99}`,
		"staged/www":               `{"generation":-1}`,
		"deleted/0000000000000007": ``, "deleted/x": ``,
		"masters/m1":  `{"name":"m1","nfs":"10.0.0.1:2049","slots":10,"state":"serving","started_at":"x"}`,
		"replicas/m1": `{"shards":{"www":{"generation":3}}}`,
		"roster/m1":   `{"instance":"i"}`, "drained/m1": `{}`, "removed/i": `null`,
		"slaves/web17": `{"master":"m1","fallbacks":["m2"],"since":"2026-01-02T03:04:05Z"}`,
		"leaders/www":  `[]`, "unknown": `1`,
	} {
		f.Add(name, []byte(value))
	}
	f.Fuzz(func(t *testing.T, name string, value []byte) {
		keys := KeysOf("f")
		kv := &mvccpb.KeyValue{Key: []byte(keys.Prefix() + name), Value: value, ModRevision: 5, CreateRevision: 3}
		v, empty := newView(1), newView(1)
		held := v.set(keys, kv, false)
		if len(v.Problems) > 0 && !held {
			t.Errorf("what is not held is a problem: %v", v.Problems)
		}
		again := newView(1)
		retell(t, v.Shards, again.Shards)
		retell(t, v.Heads, again.Heads)
		retell(t, v.Masters, again.Masters)
		retell(t, v.Replicas, again.Replicas)
		retell(t, v.Slaves, again.Slaves)
		v.set(keys, kv, true)
		for what, maps := range map[string][2]any{
			"shard": {v.Shards, empty.Shards}, "head": {v.Heads, empty.Heads}, "staged": {v.Staged, empty.Staged}, "master": {v.Masters, empty.Masters},
			"replica": {v.Replicas, empty.Replicas}, "roster": {v.Roster, empty.Roster}, "drained": {v.Drained, empty.Drained},
			"removed": {v.Removed, empty.Removed}, "slave": {v.Slaves, empty.Slaves},
		} {
			if !reflect.DeepEqual(maps[0], maps[1]) {
				t.Errorf("a deleted %s is still there: %v", what, maps[0])
			}
		}
	})
}

// retell writes what was read and reads it again: nothing may be lost.
func retell[T any](t *testing.T, read, again map[string]T) {
	t.Helper()
	for name, v := range read {
		text, err := json.Marshal(v)
		if err != nil {
			t.Errorf("%+v can be read, not written: %v", v, err)
			continue
		}
		var w T
		if err := json.Unmarshal(text, &w); err != nil {
			t.Errorf("%s was written, and cannot be read: %v", text, err)
		}
		twice, _ := json.Marshal(w) // compared
		if string(twice) != string(text) {
			t.Errorf("%s became %s", text, twice)
		}
		again[name] = w
	}
}
