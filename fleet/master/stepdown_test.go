package master

import (
	"testing"
	"time"
)

func TestStandsDown(t *testing.T) {
	const ttl = 5 * time.Second
	for _, tc := range []struct {
		name           string
		was, confirmed bool
		silence        time.Duration
		want           bool
	}{
		{"nobody says so", false, false, time.Hour, false},
		{"another has a lease", false, true, 0, true},
		{"another still has one", true, true, 0, true},
		{"a moment of silence", true, false, 3 * time.Second, true},
		{"the others are gone, too", true, false, 10 * time.Second, false},
	} {
		if got := standsDown(tc.was, tc.confirmed, tc.silence, ttl); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}
