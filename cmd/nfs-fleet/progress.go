package main

import (
	"io"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

// patience is how long an operation may take before a terminal is told how far it is.
const patience = time.Second

// meter draws a progress bar with rate and time left on a terminal. It is used by one goroutine at a time.
type meter struct {
	w     io.Writer // nil: no terminal, nothing is drawn
	now   func() time.Time
	began time.Time
	step  string
	bytes bool // the bar counts bytes, not files
	drawn bool
	bar   *progressbar.ProgressBar
}

func (a *app) meter() *meter {
	m := &meter{now: a.now, began: a.now()}
	if a.terminal(a.err) {
		m.w = a.err
	}
	return m
}

// wanted reports whether anybody sees what is reported, sooner or later.
func (m *meter) wanted() bool { return m.w != nil }

// Write draws on the terminal once the patience is over. Until then the bar counts unseen, so that its rate is right
// when it appears.
func (m *meter) Write(p []byte) (int, error) {
	if m.now().Sub(m.began) < patience {
		return len(p), nil
	}
	m.drawn = true
	return m.w.Write(p)
}

// report shows p.
func (m *meter) report(p console.Progress) {
	if m.w == nil {
		return
	}
	done, total, bytes := p.Files, p.TotalFiles, false
	if p.TotalBytes > 0 || p.TotalFiles == 0 && p.Bytes > 0 {
		done, total, bytes = p.Bytes, p.TotalBytes, true
	}
	if total <= 0 {
		total = -1
	}
	if m.bar == nil || m.step != p.Step || m.bytes != bytes {
		m.done()
		m.step, m.bytes, m.bar = p.Step, bytes, m.newBar(p.Step, total, bytes)
	}
	if total > 0 && m.bar.GetMax64() != total {
		m.bar.ChangeMax64(total)
	}
	if total > 0 {
		done = min(done, total) // totals are estimates
	}
	_ = m.bar.Set64(done)
}

func (m *meter) newBar(step string, total int64, bytes bool) *progressbar.ProgressBar {
	units := []progressbar.Option{progressbar.OptionSetItsString("files"), progressbar.OptionShowIts()}
	if bytes {
		units = []progressbar.Option{progressbar.OptionShowBytes(true)}
	}
	return progressbar.NewOptions64(total, append(units,
		progressbar.OptionSetWriter(m), progressbar.OptionSetDescription(step), progressbar.OptionShowCount(),
		progressbar.OptionSetPredictTime(true), progressbar.OptionUseIECUnits(true), progressbar.OptionSetWidth(24),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionSetSpinnerChangeInterval(0), progressbar.OptionClearOnFinish(), progressbar.OptionSetElapsedTime(true))...)
}

// done wipes the bar away.
func (m *meter) done() {
	if m.bar != nil {
		if m.drawn {
			_ = m.bar.Clear()
			_, _ = io.WriteString(m.w, "\r")
		}
		m.bar, m.drawn = nil, false
	}
}
