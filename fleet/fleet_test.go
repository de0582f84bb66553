package fleet

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

func TestValidName(t *testing.T) {
	for name, ok := range map[string]bool{
		"www": true, "a": true, "web-1.example": true, "a_b": true, strings.Repeat("x", 63): true,
		"": false, "_fleet": false, "WWW": false, "a/b": false, "..": false, "-a": false, "a-": false, "a b": false,
		strings.Repeat("x", 64): false, "a\n": false, "é": false,
	} {
		if err := ValidName(name); (err == nil) != ok {
			t.Errorf("ValidName(%q) = %v, want ok %t", name, err, ok)
		}
	}
}

func TestKeysMatchTheDesign(t *testing.T) {
	k := KeysOf("prod")
	for got, want := range map[string]string{
		k.ID(): "/nfs-fleet/prod/id", k.Shard("www"): "/nfs-fleet/prod/shards/www", k.Head("www"): "/nfs-fleet/prod/heads/www",
		k.Staged("www"): "/nfs-fleet/prod/staged/www", k.Generation("www", 42): "/nfs-fleet/prod/generations/www/0000000042",
		k.Leader(CoordinatorSubject): "/nfs-fleet/prod/leaders/_fleet", k.Master("m1"): "/nfs-fleet/prod/masters/m1",
		k.Replica("m1"): "/nfs-fleet/prod/replicas/m1", k.Mount("www", "10.0.0.1"): "/nfs-fleet/prod/mounts/www/10.0.0.1",
		k.Roster("m1"): "/nfs-fleet/prod/roster/m1", k.Drained("m1"): "/nfs-fleet/prod/drained/m1",
		k.Removed("i1"): "/nfs-fleet/prod/removed/i1", k.Token("t1"): "/nfs-fleet/prod/tokens/t1", k.CA(): "/nfs-fleet/prod/ca",
	} {
		if got != want {
			t.Errorf("key %q, want %q", got, want)
		}
	}
	if kind, rest, ok := k.split("/nfs-fleet/prod/mounts/www/10.0.0.1"); kind != "mounts" || rest != "www/10.0.0.1" || !ok {
		t.Errorf("split = %q, %q, %t", kind, rest, ok)
	}
	if _, _, ok := k.split("/nfs-fleet/prod2/id"); ok {
		t.Error("split took a key of another fleet")
	}
}

func TestExpired(t *testing.T) {
	now := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	history := func(ages ...time.Duration) (out []tree.Generation) {
		for i, age := range ages {
			out = append(out, tree.Generation{Number: uint64(i + 1), PublishedAt: now.Add(-age)})
		}
		return out
	}
	many := make([]time.Duration, MaxKept+5)
	for _, tc := range []struct {
		name string
		keep Keep
		of   []tree.Generation
		want int
	}{
		{"nothing", Keep{1, 0}, nil, 0},
		{"the head alone stays however old", Keep{1, Duration(time.Hour)}, history(48 * time.Hour), 0},
		{"old ones beyond the count go", Keep{2, Duration(time.Hour)}, history(9*time.Hour, 8*time.Hour, 7*time.Hour, 0), 2},
		{"one that was the head until now is young", Keep{1, Duration(time.Hour)}, history(9*time.Hour, 8*time.Hour, 0), 1},
		{"young ones stay", Keep{1, Duration(10 * time.Hour)}, history(9*time.Hour, 8*time.Hour, 0), 0},
		{"never more than the most", Keep{10, Duration(time.Hour)}, history(many...), 5},
		{"a clock that jumped back keeps them", Keep{1, Duration(time.Hour)}, history(-3*time.Hour, -2*time.Hour, 0), 0},
	} {
		if got := tc.keep.Expired(tc.of, now); got != tc.want {
			t.Errorf("%s: %d expired, want %d", tc.name, got, tc.want)
		}
	}
}

func TestShardJSONIsReadableAndRoundTrips(t *testing.T) {
	s := NewShard("www", time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	s.FSID = 0xfedcba9876543210
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"fsid":"fedcba9876543210"`, `"for":"24h0m0s"`, `"networks":[]`, `"min_copies":2`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%s lacks %s", b, want)
		}
	}
	var back Shard
	if err := json.Unmarshal(b, &back); err != nil || back.FSID != s.FSID || back.Keep != s.Keep || !back.CreatedAt.Equal(s.CreatedAt) {
		t.Errorf("came back as %+v, %v", back, err)
	}
}

func TestShardValidate(t *testing.T) {
	good := NewShard("www", time.Now())
	if err := good.Validate(); err != nil {
		t.Fatalf("the defaults: %v", err)
	}
	for name, spoil := range map[string]func(*Shard){
		"name": func(s *Shard) { s.Name = "a/b" }, "squash": func(s *Shard) { s.Squash = "some" },
		"min_copies": func(s *Shard) { s.MinCopies = 0 }, "keep": func(s *Shard) { s.Keep.Generations = 0 },
		"keep for": func(s *Shard) { s.Keep.For = -1 },
	} {
		s := good
		spoil(&s)
		if s.Validate() == nil {
			t.Errorf("a bad %s was accepted", name)
		}
	}
}
