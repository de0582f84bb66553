package history

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

// at is a moment so many seconds after noon.
func at(s float64) time.Time { return noon.Add(time.Duration(s * float64(time.Second))) }

func span(from, to float64) Span { return Span{at(from), at(to)} }

// state is what attempt n publishes: file a changes every time, file b every second time.
func state(n int) Manifest {
	return Manifest{"a": fmt.Sprintf("a%d", n), "b": fmt.Sprintf("b%d", n/2), "list/": fmt.Sprintf("l%d", n)}
}

// put is an event that puts v.
func put(revision int64, key string, created int64, v any) Event {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return Event{Revision: revision, Key: key, Created: created, Value: string(b)}
}

// headOf is the head that attempt n makes: m1 leads up to generation 5 under epoch 2, then m2 under epoch 56.
func headOf(n int) map[string]any {
	h := map[string]any{"generation": n, "root": fmt.Sprintf("r%d", n), "by": "m1", "epoch": 2, "next_ino": 10 * n, "copies": 2, "note": fmt.Sprintf("t%d", n)}
	if n > 5 {
		h["by"], h["epoch"] = "m2", 56
	}
	return h
}

// published are the two events of a head's transaction.
func published(revision int64, h map[string]any) []Event {
	return []Event{put(revision, "heads/www", 3, h), put(revision, fmt.Sprintf("generations/www/%010d", h["generation"]), revision, h)}
}

// good is a history in which nothing is wrong: eight generations, m1 is killed after the fifth and comes back; attempt t9 came
// to nothing. Attempt n lasts from second 10n to 10n+1.
func good() History {
	h := History{Masters: []string{"m1", "m2", "m3"}, MinCopies: 2, PauseBound: 5 * time.Second}
	h.Events = append(h.Events, put(2, "leaders/www", 2, map[string]any{"master": "m1"}))
	for n := 1; n <= 9; n++ {
		a := Attempt{Span: span(float64(10*n), float64(10*n+1)), ID: fmt.Sprintf("t%d", n), Shard: "www", Manifest: state(n)}
		if n <= 8 && n != 6 { // six became a generation without anybody being told
			a.Acked, a.Changed, a.Generation, a.Root, a.ServedBy = true, true, uint64(n), fmt.Sprintf("r%d", n), []string{"m1", "m2"}
		}
		h.Attempts = append(h.Attempts, a)
		if n == 6 {
			h.Events = append(h.Events, Event{Revision: 55, Key: "leaders/www", Deleted: true}, put(56, "leaders/www", 56, map[string]any{"master": "m2"}))
		}
		if n <= 8 {
			h.Events = append(h.Events, put(int64(10*n+1), "staged/www", 3, headOf(n)))
			h.Events = append(h.Events, published(int64(10*n+2), headOf(n))...)
		}
	}
	slices.SortStableFunc(h.Events, func(a, b Event) int { return int(a.Revision - b.Revision) })
	h.Faults = []Fault{{Span: span(52, 65), What: "SIGKILL", Master: "m1", Mute: true, Blind: true, Lame: true}}
	for n := 1; n <= 8; n++ {
		for _, m := range h.Masters {
			if n == 6 && m == "m1" {
				continue
			}
			for i, path := range []string{"a", "b", "list/"} {
				from := float64(10*n+2) + float64(i)
				h.Reads = append(h.Reads, Read{Span: span(from, from+0.5), Reader: "at-" + m, Master: m, Conn: at(5), Shard: "www", Path: path, Digest: state(n)[path]})
			}
		}
	}
	h.Reads = append(h.Reads,
		Read{Span: span(60, 61), Reader: "at-m1", Master: "m1", Conn: at(5), Shard: "www", Path: "a", Lost: "connection reset"},
		Read{Span: span(75, 76), Reader: "old", Master: "m2", Conn: at(5), Shard: "www", Path: "a", Digest: "a1", Held: "a1"},
		Read{Span: span(75, 76), Reader: "roams", Roams: true, Master: "m2", Conn: at(75), Shard: "www", Path: "a", Digest: "a7"},
		Read{Span: span(78, 79), Reader: "roams", Roams: true, Master: "m1", Conn: at(78), Shard: "www", Path: "a", Digest: "a7"},
	)
	return h
}

func TestCheckAcceptsWhatIsRight(t *testing.T) {
	if found := Check(good()); len(found) > 0 {
		t.Errorf("violations in a history that has none: %v", found)
	}
}

// replace changes the events of generation n's transaction.
func replace(h *History, n int, change func(head map[string]any)) {
	v := headOf(n)
	change(v)
	for i, e := range h.Events {
		if e.Revision == int64(10*n+2) {
			h.Events[i].Value = put(0, "", 0, v).Value
		}
	}
}

// read appends a read that lasts a tenth of a second.
func read(h *History, from float64, master, path, digest string) *Read {
	h.Reads = append(h.Reads, Read{Span: span(from, from+0.1), Reader: "planted", Master: master, Conn: at(5), Shard: "www", Path: path, Digest: digest})
	return &h.Reads[len(h.Reads)-1]
}

func TestCheckFindsWhatIsPlanted(t *testing.T) {
	for _, c := range []struct {
		rule, name string
		plant      func(h *History)
	}{
		{RuleForward, "a number is skipped", func(h *History) { replace(h, 8, func(v map[string]any) { v["generation"] = 9 }) }},
		{RuleForward, "a number is given twice", func(h *History) { replace(h, 4, func(v map[string]any) { v["generation"] = 3 }) }},
		{RuleForward, "a head is deleted", func(h *History) {
			h.Events = append(h.Events, Event{Revision: 99, Key: "heads/www", Deleted: true})
		}},
		{RuleForward, "a head cannot be read", func(h *History) {
			h.Events = append(h.Events, Event{Revision: 99, Key: "heads/www", Value: "{"})
		}},
		{RuleFence, "a former leader moves the head", func(h *History) {
			replace(h, 7, func(v map[string]any) { v["by"], v["epoch"] = "m1", 2 })
		}},
		{RuleFence, "nobody leads", func(h *History) {
			h.Events = slices.DeleteFunc(h.Events, func(e Event) bool { return e.Revision == 56 })
		}},
		{RuleFence, "a former leader stages", func(h *History) {
			h.Events = append(h.Events, put(99, "staged/www", 3, headOf(2)))
		}},
		{RuleEpochs, "two leaders take turns", func(h *History) {
			replace(h, 7, func(v map[string]any) { v["epoch"] = 2 })
		}},
		{RuleInos, "numbers of files go back", func(h *History) { replace(h, 5, func(v map[string]any) { v["next_ino"] = 1 }) }},
		{RuleRecord, "no record", func(h *History) {
			h.Events = slices.DeleteFunc(h.Events, func(e Event) bool { return strings.HasPrefix(e.Key, "generations/www/0000000004") })
		}},
		{RuleUnknown, "nobody asked for it", func(h *History) { replace(h, 4, func(v map[string]any) { v["note"] = "" }) }},
		{RuleAcked, "it never was the head", func(h *History) {
			h.Events = slices.DeleteFunc(h.Events, func(e Event) bool { return e.Revision == 82 })
		}},
		{RuleAcked, "with another root", func(h *History) { h.Attempts[3].Root = "other" }},
		{RuleAcked, "another one's generation", func(h *History) { h.Attempts[4].Generation, h.Attempts[4].Root = 4, "r4" }},
		{RuleAcked, "nothing to publish, but for something else", func(h *History) {
			h.Attempts = append(h.Attempts, Attempt{Span: span(90, 91), ID: "same", Shard: "www", Manifest: state(3), Acked: true, Generation: 8, Root: "r8"})
		}},
		{RuleOrder, "a publish overtakes", func(h *History) { h.Attempts[7].Span, h.Attempts[6].Span = h.Attempts[6].Span, h.Attempts[7].Span }},
		{RuleCopies, "one copy", func(h *History) { replace(h, 4, func(v map[string]any) { v["copies"] = 1 }) }},
		{RuleWhole, "bytes that were never published", func(h *History) { read(h, 85, "m2", "a", "rotten") }},
		{RuleWhole, "bytes of a publish that failed", func(h *History) { read(h, 95, "m2", "a", "a9") }},
		{RuleWhole, "a listing of two generations", func(h *History) { read(h, 85, "m2", "list/", "l4+l5") }},
		{RuleForMaster, "an older generation", func(h *History) { read(h, 85, "m3", "a", "a7") }},
		{RuleForMaster, "older than was acknowledged to be served", func(h *History) { read(h, 81.5, "m2", "a", "a7") }},
		{RuleForMaster, "an older listing", func(h *History) { read(h, 85, "m3", "list/", "l3") }},
		{RuleForSlave, "another master is behind", func(h *History) {
			r := read(h, 81.2, "m3", "a", "a7")
			r.Conn = at(81.1)
		}},
		{RuleHeld, "an open file changes", func(h *History) { read(h, 85, "m2", "a", "a8").Held = "a1" }},
		{RuleNoError, "ESTALE", func(h *History) { read(h, 85, "m2", "a", "").Status = "NFS3ERR_STALE" }},
		{RuleNoError, "EIO during a fault", func(h *History) { read(h, 55, "m1", "a", "").Status = "NFS3ERR_IO" }},
		{RuleNoLoss, "a connection ends", func(h *History) { read(h, 55, "m2", "a", "").Lost = "EOF" }},
		{RuleNoLoss, "a connection ends before the fault", func(h *History) { read(h, 45, "m1", "a", "").Lost = "EOF" }},
		{RuleNoLoss, "a full disk disturbs", func(h *History) {
			h.Faults = append(h.Faults, Fault{Span: span(40, 50), What: "disk full", Master: "m3", Lame: true})
			read(h, 45, "m3", "a", "").Lost = "EOF"
		}},
		{RulePause, "a long search", func(h *History) {
			r := read(h, 55, "m2", "a", "a5")
			r.Roams, r.Ended = true, at(62)
		}},
		{RuleTraffic, "no reads", func(h *History) { h.Reads = nil }},
		{RuleTraffic, "no generations", func(h *History) { h.Events, h.Reads, h.Attempts = nil, h.Reads[:0], nil }},
	} {
		t.Run(c.rule+"/"+c.name, func(t *testing.T) {
			h := good()
			c.plant(&h)
			found := Check(h)
			if !slices.ContainsFunc(found, func(v Violation) bool { return v.Rule == c.rule }) {
				t.Errorf("not found; only %v", found)
			}
		})
	}
}

// What faults excuse is no violation.
func TestCheckExcuses(t *testing.T) {
	for name, plant := range map[string]func(h *History){
		"one copy while the others cannot take any": func(h *History) {
			replace(h, 4, func(v map[string]any) { v["copies"] = 1 })
			h.Faults = append(h.Faults, Fault{Span: span(39, 45), Master: "m2", Lame: true}, Fault{Span: span(39, 45), Master: "m3", Mute: true})
		},
		"a blind master answers from what it knew": func(h *History) {
			h.Faults = append(h.Faults, Fault{Span: span(81, 85), Master: "m3", Blind: true})
			read(h, 81.2, "m3", "a", "a7").Conn = at(81.1)
		},
		"a long search when nobody was well": func(h *History) {
			r := read(h, 55, "m2", "a", "a5")
			r.Roams, r.Ended = true, at(62)
			h.Faults = append(h.Faults, Fault{Span: span(57, 60), Master: "m2", Mute: true}, Fault{Span: span(57, 60), Master: "m3", Mute: true})
		},
		"a connection begun before, which its master has not moved on yet": func(h *History) { read(h, 81.2, "m3", "a", "a7") },
	} {
		t.Run(name, func(t *testing.T) {
			h := good()
			plant(&h)
			if found := Check(h); len(found) > 0 {
				t.Errorf("violations: %v", found)
			}
		})
	}
}

// A long run is checked in little time.
func TestCheckIsFast(t *testing.T) {
	h := good()
	for i := range 30_000 {
		read(&h, 85+float64(i)/1e6, []string{"m1", "m2", "m3"}[i%3], "a", "a8")
	}
	began := time.Now()
	if found := Check(h); len(found) > 0 {
		t.Errorf("violations: %v", found[:1])
	}
	t.Logf("%d reads in %v", len(h.Reads), time.Since(began))
}

func TestRecorder(t *testing.T) {
	r := NewRecorder([]string{"m1"}, 1, time.Second)
	done := make(chan struct{})
	for range 4 {
		go func() {
			for range 100 {
				a := Attempt{Span: span(1, 2), Acked: true}
				r.End(r.Begin(a), a)
				a.Ended = at(4)
				r.End(r.Begin(Attempt{}), a)
				r.Read(Read{Span: span(1, 2)})
				r.Read(Read{Span: span(1, 4)})
				r.Fault(Fault{})
			}
			done <- struct{}{}
		}()
	}
	for range 4 {
		<-done
	}
	h := r.History(at(3), []Event{{}})
	acked := 0
	for _, a := range h.Attempts {
		if a.Acked {
			acked++
		}
	}
	if len(h.Attempts) != 800 || acked != 400 || len(h.Reads) != 400 || len(h.Faults) != 400 || len(h.Events) != 1 {
		t.Errorf("recorded %d (%d acknowledged), %d, %d, %d", len(h.Attempts), acked, len(h.Reads), len(h.Faults), len(h.Events))
	}
}
