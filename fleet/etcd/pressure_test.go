package etcd

import (
	"testing"
	"time"
)

func TestFsyncMean(t *testing.T) {
	var f fsyncMean
	start := time.Now()
	for _, c := range []struct {
		after time.Duration
		sum   float64
		count uint64
		want  time.Duration
	}{
		{0, 5, 10, 0},                                  // what was before counts for nothing
		{500 * time.Millisecond, 50, 20, 0},            // no look yet
		{time.Second, 5.5, 15, 100 * time.Millisecond}, // 0.5 s in 5
		{1500 * time.Millisecond, 9, 16, 100 * time.Millisecond},
		{2 * time.Second, 6.5, 17, 500 * time.Millisecond},
		{3 * time.Second, 6.5, 17, 0}, // quiet
		{4 * time.Second, 0, 0, 0},    // begun anew
	} {
		got := f.look(start.Add(c.after), func() (float64, uint64) { return c.sum, c.count })
		if got.Round(time.Millisecond) != c.want {
			t.Errorf("after %v: %v, want %v", c.after, got, c.want)
		}
	}
}

// The metric is where this package looks for it.
func TestFsyncsAreCounted(t *testing.T) {
	f := newTestFleet(t)
	m := f.master("m1")
	m.start(true)
	m.works()
	if _, count := readFsyncs(); count == 0 {
		t.Errorf("etcd keeps no %s", fsyncMetric)
	}
	m.member.Pressure()
}
