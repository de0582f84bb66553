package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/e2e/history"
)

// logLine is what tests look at of a line of a master's log.
type logLine struct {
	Message    string
	Shard      string
	Generation uint64
	Time       time.Time
}

// logged returns the lines of the master's log, of all its lives, that have this message.
func (m *Master) logged(message string) (found []logLine) {
	for line := range strings.Lines(m.log.String()) {
		var l logLine
		if strings.Contains(line, message) && json.Unmarshal([]byte(line), &l) == nil && l.Message == message {
			found = append(found, l)
		}
	}
	return found
}

// starvedLoad is the load, by processor, beyond which a process may get no turn for as long as a short lease lasts.
const starvedLoad = 4

// machineLoad returns this machine's load, and whether it is beyond starvedLoad.
func machineLoad(t testing.TB) (load float64, starved bool) {
	t.Helper()
	b, err := os.ReadFile("/proc/loadavg")
	if err == nil {
		_, err = fmt.Sscan(string(b), &load)
	}
	if err != nil {
		t.Fatalf("read this machine's load: %v", err)
	}
	return load, load >= starvedLoad*float64(runtime.NumCPU())
}

// starvation records as faults that masters stepped down on a machine that is too busy for their leases. On one that is not
// they must have a reason.
func (h *chaos) starvation() {
	h.t.Helper()
	load, starved := machineLoad(h.t)
	if !starved {
		return
	}
	for _, m := range h.Masters {
		all := m.logged("stepped down")
		for _, l := range all[min(h.stepDowns[m.Name], len(all)):] {
			h.t.Logf("%s stepped down at %v; the load of this machine is %.0f", m.Name, l.Time.Format(time.TimeOnly), load)
			span := history.Span{Began: l.Time.Add(-5 * chaosTTL), Ended: l.Time.Add(5 * chaosTTL)}
			h.record.Fault(history.Fault{Span: span, What: "starvation", Master: m.Name, Mute: true, Blind: true, Lame: true})
		}
		h.stepDowns[m.Name] = len(all)
	}
}
