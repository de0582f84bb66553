package etcd

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	slowFsync   = 100 * time.Millisecond
	fsyncMetric = "etcd_disk_wal_fsync_duration_seconds"
)

// fsyncMean follows the time that the log's fsyncs take, from the metrics that etcd keeps. It looks when asked, at most
// once a second.
type fsyncMean struct {
	mu     sync.Mutex // guards the rest
	looked time.Time
	sum    float64 // seconds
	count  uint64
	mean   time.Duration // between the last two looks
}

func (f *fsyncMean) look(now time.Time, read func() (sum float64, count uint64)) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Sub(f.looked) < time.Second {
		return f.mean
	}
	sum, count := read()
	f.mean = 0
	if n := count - f.count; count > f.count && !f.looked.IsZero() {
		f.mean = time.Duration((sum - f.sum) / float64(n) * float64(time.Second))
	}
	f.looked, f.sum, f.count = now, sum, count
	return f.mean
}

// readFsyncs returns the time that all fsyncs so far have taken, in seconds, and their number.
func readFsyncs() (sum float64, count uint64) {
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil && len(families) == 0 {
		return 0, 0
	}
	for _, f := range families {
		if f.GetName() != fsyncMetric {
			continue
		}
		for _, metric := range f.GetMetric() {
			sum += metric.GetHistogram().GetSampleSum()
			count += metric.GetHistogram().GetSampleCount()
		}
	}
	return sum, count
}

// Pressure reports whether the disk under the log is slow: an fsync took over 100 ms in the mean of the last second. It
// costs about a millisecond once a second, and only when asked.
func (m *Member) Pressure() bool {
	if m.present() == nil {
		return false
	}
	return m.fsync.look(time.Now(), readFsyncs) > slowFsync
}
