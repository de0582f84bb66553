package election

import (
	"fmt"
	"testing"
)

const p = fleetPrefix

func leaderKV(shard, master string, create, mod int64) kv {
	return kv{leaderKey(p, shard), fmt.Appendf(nil, `{"master":%q,"since":"2026-01-02T03:04:05Z"}`, master), create, mod, 1}
}

func gone(shard string, mod int64) kv { return kv{key: leaderKey(p, shard), mod: mod} }

func TestViewTakesNothingOld(t *testing.T) {
	v := newView(p)
	v.replace(snapshot{rev: 10, kvs: []kv{leaderKV("www", "m1", 5, 5)}}, 0)
	if v.apply(gone("www", 4)) || v.apply(leaderKV("www", "m0", 3, 3)) || v.seats["www"].Master != "m1" {
		t.Errorf("took in what the snapshot already covers: %+v", v.seats)
	}
	// A claim's answer overtakes the watch, which then tells of the time before.
	v.apply(leaderKV("docs", "m1", 14, 14))
	if v.apply(gone("docs", 13)) || v.seats["docs"].epoch != 14 {
		t.Errorf("an older change undid a newer one: %+v", v.seats)
	}
	if !v.apply(gone("docs", 15)) || len(v.seats) != 1 {
		t.Errorf("%+v", v.seats)
	}
}

func TestViewKeepsWhatIsNewerThanARead(t *testing.T) {
	v := newView(p)
	v.replace(snapshot{rev: 10}, 0)
	v.apply(leaderKV("www", "m1", 12, 12)) // our claim, while the read was under way
	if v.replace(snapshot{rev: 11}, 10); v.seats["www"].epoch != 12 {
		t.Errorf("the read from before the claim undid it: %+v", v.seats)
	}
	v.rev = 20
	if v.replace(snapshot{rev: 15}, 11) || v.seats["www"].epoch != 12 {
		t.Error("a read that the watch overtook was taken")
	}
	if !v.replace(snapshot{rev: 21}, 20) || len(v.seats) != 0 {
		t.Errorf("the key is gone: %+v", v.seats)
	}
}

// A linearizable read below what was known when it was sent: etcd was restored from a backup.
func TestViewGoesBackWithEtcd(t *testing.T) {
	v := newView(p)
	v.replace(snapshot{rev: 1000, kvs: []kv{leaderKV("www", "m1", 900, 900)}}, 0)
	if !v.replace(snapshot{rev: 50, kvs: []kv{leaderKV("www", "m2", 40, 40)}}, 1000) || v.rev != 50 || v.seats["www"].Master != "m2" {
		t.Errorf("%+v", v)
	}
	if !v.apply(gone("www", 51)) {
		t.Error("changes after the restore are passed over")
	}
}

func TestViewRemembersTheHeir(t *testing.T) {
	v := newView(p)
	mark := leaderKV("www", "m1", 5, 6)
	mark.value = []byte(`{"master":"m1","heir":"m2"}`)
	v.apply(leaderKV("www", "m1", 5, 5))
	v.apply(mark)
	v.apply(gone("www", 7))
	if v.heirs["www"] != "m2" {
		t.Errorf("%v", v.heirs)
	}
	v.replace(snapshot{rev: 8}, 7)
	if v.heirs["www"] != "m2" {
		t.Error("a read made it forget the heir")
	}
	if v.apply(leaderKV("www", "m3", 9, 9)); len(v.heirs) != 0 {
		t.Errorf("somebody leads: %v", v.heirs)
	}
}

func TestViewReadsPeople(t *testing.T) {
	v := newView(p)
	v.apply(kv{candidateKey(p, "m1"), []byte(`{"master":"liar","preferred":["b","a"]}`), 1, 1, 1})
	v.apply(kv{candidateKey(p, "m2"), []byte(`what`), 2, 2, 1})
	v.apply(kv{leaderKey(p, "www"), []byte(`broken`), 3, 3, 0})
	v.apply(kv{p + "leaderboard", []byte(`{}`), 4, 4, 0})
	m1, m2 := v.candidates["m1"], v.candidates["m2"]
	if m1.Master != "m1" || !m1.prefers("a") || !m1.prefers("b") || m2.Master != "m2" || !m2.stands("www") {
		t.Errorf("%+v", v.candidates)
	}
	if seat, led := v.seats["www"]; !led || seat.epoch != 3 || len(v.seats) != 1 {
		t.Errorf("a key that cannot be read is a key all the same: %+v", v.seats)
	}
}

// Anyone who may write to etcd may write anything under these keys.
func FuzzView(f *testing.F) {
	f.Add("leaders/www", []byte(`{"master":"m1","since":"2026-01-02T03:04:05Z","heir":"m2"}`), int64(5), int64(6))
	f.Add("leaders/", []byte(`{"master":5}`), int64(0), int64(1))
	f.Add("leader-candidates/m1", []byte(`{"master":"m1","preferred":["www"],"withdrawn":[]}`), int64(5), int64(5))
	f.Add("leader-candidates/", []byte(`[`), int64(-1), int64(1))
	f.Add("leader", []byte{}, int64(1), int64(1<<62))
	f.Fuzz(func(t *testing.T, key string, value []byte, create, mod int64) {
		s := newState(Config{Prefix: p, Master: "m1", TTL: DefaultTTL})
		s.step(1, standing{"www", false}, readReply{seen: 0, snap: snapshot{rev: 1}})
		s.step(2, leaseReply{sent: 2, id: 7, ttl: DefaultTTL})
		s.step(3, watched{n: 1, ch: changes{rev: mod, kvs: []kv{{p + key, value, create, mod, 7}}}})
		s.step(instant(turn)*3, withdrawal{"www"})
		if err := s.valid(); err != nil {
			t.Fatal(err)
		}
	})
}
