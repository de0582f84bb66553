package nfs3

import (
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// failureLog logs reads that failed, at most one a second: a rotten disk fails thousands.
type failureLog struct {
	log zerolog.Logger

	mu      sync.Mutex // guards what follows
	next    time.Time
	skipped int
}

// note logs err for a file of a shard, or counts it.
func (f *failureLog) note(shard string, ino uint64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if now.Before(f.next) {
		f.skipped++
		return
	}
	f.log.Error().Str("shard", shard).Uint64("ino", ino).Int("not_logged", f.skipped).Err(err).Msg("cannot read a file's content")
	f.next, f.skipped = now.Add(time.Second), 0
}
