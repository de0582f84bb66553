package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

func TestQuoted(t *testing.T) {
	for name, want := range map[string]string{
		"plain": "plain", "with space": "with space", "é漢": "é漢", "": `""`, "a\nb": `"a\nb"`, "a\x1b[31m": `"a\x1b[31m"`, "\xff": `"\xff"`,
		`say "hi"`: `"say \"hi\""`, `back\slash`: `"back\\slash"`, "\u202efdp.exe": `"\u202efdp.exe"`, " lead": `" lead"`, "trail ": `"trail "`, "a\tb": `"a\tb"`, "\u00a0": `"\u00a0"`,
	} {
		if got := quoted(name); got != want {
			t.Errorf("%q is shown as %s, want %s", name, got, want)
		}
	}
}

func FuzzOneLineAndQuoted(f *testing.F) {
	for _, seed := range []string{"plain", "a\nb\r\n", "\x1b]0;title\a", "\xff\xfe", "\u202e", "\"'\\"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, got := range []string{quoted(s), oneLine(s)} {
			if !printable(got) {
				t.Errorf("%q is shown as %q", s, got)
			}
		}
	})
}

func TestOneLine(t *testing.T) {
	for text, want := range map[string]string{"a": "a", "a\nb\n": "a; b", "a\x1b\n b \"c\"": `a\x1b; b "c"`, "\n": "", "x\x00\"": `x\x00"`} {
		if got := oneLine(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestHumanFigures(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for got, want := range map[string]string{
		size(0): "0 B", size(1 << 40): "1.0 TiB", count(1234567): "1,234,567", count(1<<64 - 1): "9,223,372,036,854,775,807",
		age(time.Time{}, now): "", age(now.Add(-3*time.Hour), now): "3 hours ago", age(now.Add(500*time.Millisecond), now): "just now",
		age(now.Add(time.Hour+time.Second), now): "1 hour from now", took(5): "5ms", took(1500): "1.5 s", took(90_000): "1m30s",
		plural(1, "file", "files"): "1 file", plural(1000, "file", "files"): "1,000 files",
		shortDuration(24 * time.Hour): "24h", shortDuration(90 * time.Minute): "1h30m", shortDuration(30 * time.Second): "30s", shortDuration(0): "0s", shortDuration(10 * time.Minute): "10m",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// A bar is drawn on a terminal only, and only for what takes longer than a second.
func TestMeter(t *testing.T) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var out bytes.Buffer
	tty := &app{err: &out, now: func() time.Time { return at }, terminal: func(any) bool { return true }}
	m := tty.meter()
	m.report(console.Progress{Step: "begin", Files: 1})
	if out.Len() > 0 {
		t.Errorf("drawn at once: %q", out.String())
	}
	at = at.Add(patience)
	m.report(console.Progress{Step: "scan", Files: 10, TotalFiles: 100})
	m.report(console.Progress{Step: "verify", Bytes: 1 << 20, TotalBytes: 4 << 20})
	m.report(console.Progress{Step: "verify", Bytes: 5 << 20, TotalBytes: 4 << 20}) // estimates are estimates
	m.report(console.Progress{Step: "wait"})
	m.done()
	m.done()
	for _, want := range []string{"scan", "10/100", "verify", "MiB"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q lacks %q", out.String(), want)
		}
	}
	if tail := out.String(); strings.TrimSpace(tail[strings.LastIndex(tail, "\r"):]) != "" {
		t.Errorf("the bar is left on the screen: %q", tail)
	}
	out.Reset()
	pipe := &app{err: &out, now: func() time.Time { return at }, terminal: func(any) bool { return false }}
	m = pipe.meter()
	at = at.Add(time.Hour)
	m.report(console.Progress{Step: "scan", Files: 1})
	m.done()
	if out.Len() > 0 {
		t.Errorf("drawn into a pipe: %q", out.String())
	}
}
