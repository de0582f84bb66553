package source

import "time"

// pending says since when something waits to be scanned. It is a pure value: Run holds the timer.
type pending struct {
	waiting   bool
	urgent    bool      // due at once
	fired     bool      // Due was sent for it
	first     time.Time // of the changes that wait
	last      time.Time
	notBefore time.Time // after a failure
}

// change notes a change at now.
func (p *pending) change(now time.Time) {
	if !p.waiting {
		p.first = now
	}
	p.waiting, p.fired, p.last = true, false, now
}

// due returns when a scan is due, if one is: after quiet without a change, but at most maxWait after the first one.
func (p pending) due(quiet, maxWait time.Duration) (time.Time, bool) {
	if !p.waiting || p.fired {
		return time.Time{}, false
	}
	at := p.last.Add(quiet)
	if limit := p.first.Add(maxWait); at.After(limit) {
		at = limit
	}
	if p.urgent {
		return p.first, true
	}
	if at.Before(p.notBefore) {
		at = p.notBefore
	}
	return at, true
}

// backoff returns how long to leave a source alone whose last scans, so many of them, were not committed.
func backoff(failures int, quiet, maxWait time.Duration) time.Duration {
	if failures <= 0 {
		return 0
	}
	return min(quiet<<min(failures, 16), maxWait)
}

// rescanAfter returns how long after a full scan the next one is due: rescan, or sooner when nothing else finds
// changes, as often as a twentieth of the time allows.
func rescanAfter(watching bool, took, rescan, maxWait time.Duration) time.Duration {
	if watching {
		return rescan
	}
	return min(max(maxWait, 20*took), rescan)
}
