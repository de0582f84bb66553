package source

import (
	"sync"
	"time"
)

// Progress is how far a scan has come.
type Progress struct {
	Files, Bytes           int64  // names looked at that are no directories, and their sizes
	TotalFiles, TotalBytes int64  // estimates of the same at the end; 0: unknown
	Path                   string // what was looked at last
}

// progressEvery is the least time between two reports.
const progressEvery = 100 * time.Millisecond

// meter counts what a scan has looked at.
type meter struct {
	mu     sync.Mutex // guards what follows, and is held while report is called
	now    Progress
	told   time.Time
	report func(Progress) // may be nil
}

func (m *meter) add(path string, bytes uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now.Files++
	m.now.Bytes += int64(bytes)
	if m.report == nil {
		return
	}
	m.now.Path = path
	if t := time.Now(); t.Sub(m.told) >= progressEvery {
		m.told = t
		m.report(m.now)
	}
}

// end reports the last state and returns it.
func (m *meter) end() Progress {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.report != nil {
		m.report(m.now)
		m.report = nil
	}
	return m.now
}
