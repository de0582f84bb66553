package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// An etcd that has lost everything is rebuilt from the master's disk. Meanwhile it is served on, and afterwards no number
// is given out a second time.
func TestRecover(t *testing.T) {
	source := t.TempDir()
	writeFile(t, source+"/kept", "kept")
	m := StartMaster(t, MasterConfig{Sources: []string{"www=" + source + ",mode=manual"}, Flags: []string{"--insecure"}})
	m.WaitLeader("www")
	for i := range 4 {
		writeFile(t, fmt.Sprintf("%s/file-%d", source, i), "content")
		m.Publish("www")
	}
	before := m.Shard("www")
	m.Kill()
	if err := os.RemoveAll(filepath.Join(m.DataDir, "etcd")); err != nil {
		t.Fatal(err)
	}
	m.Start()
	eventually(t, 30*time.Second, "it serves what it has", func() bool {
		return m.On("nfs-cat", m.url("www/kept")).Stdout == "kept"
	})
	if r := m.CLI("publish", "www"); r.Code == 0 {
		t.Errorf("a publish into an etcd that has lost the fleet: %v", r)
	}
	m.MustCLI("recover")
	g := m.WaitLeader("www")
	if s := m.Shard("www"); s.FSID != before.FSID || g.Number < before.Generation || s.Root != before.Root {
		t.Errorf("recovered %+v; before: %+v", s, before)
	}
	writeFile(t, source+"/new", "new")
	if next := m.Publish("www"); next.Number != g.Number+1 || next.Files != before.Files+1 {
		t.Errorf("published %+v over %+v", next, g)
	}
	m.MustCLI("verify")
}

// A file that is written in place while it is published comes out as it was at some moment at which nobody was in the middle
// of writing it.
func TestNeverTorn(t *testing.T) {
	// Without a pause, and with pauses much longer than it takes to read the file, yet shorter than the quiet period.
	for _, pace := range []time.Duration{time.Millisecond, 50 * time.Millisecond} {
		t.Run(pace.String(), func(t *testing.T) { neverTorn(t, pace) })
	}
}

func neverTorn(t *testing.T, pace time.Duration) {
	source := t.TempDir()
	path := filepath.Join(source, "busy")
	const blocks, block = 64, 4096
	fill := func(f *os.File, version uint64, paused func() bool) bool {
		b := bytes.Repeat(binary.BigEndian.AppendUint64(nil, version), block/8)
		for i := range int64(blocks) {
			if paused() {
				return false
			}
			if _, err := f.WriteAt(b, i*block); err != nil {
				t.Error(err)
				return false
			}
		}
		return true
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fill(f, 1, func() bool { return false })
	m := StartMaster(t, MasterConfig{Sources: []string{"www=" + source + ",mode=manual"}, Flags: []string{"--insecure", "--scan-max-wait", "2s"}})
	m.WaitLeader("www")

	// A slow writer is never at rest for long, and nearly always in the middle.
	var stop atomic.Bool
	done := make(chan uint64)
	go func() {
		tick := time.NewTicker(pace)
		defer tick.Stop()
		version := uint64(1)
		for fill(f, version+1, func() bool { <-tick.C; return stop.Load() }) {
			version++
		}
		done <- version
	}()
	for i := range 6 {
		writeFile(t, fmt.Sprintf("%s/other-%d", source, i), "something to publish")
		g := m.Publish("www")
		got := m.On("nfs-cat", m.url("www/busy")).Stdout
		if len(got) != blocks*block || strings.Count(got, got[:8]) != blocks*block/8 {
			t.Errorf("generation %d holds a torn file of %d bytes: %x at its beginning, %x at its end", g.Number, len(got), got[:8], got[len(got)-8:])
		}
	}
	stop.Store(true)
	t.Logf("%d whole versions were written meanwhile", <-done)
	last := uint64(1 << 40)
	fill(f, last, func() bool { return false })
	m.Publish("www")
	if got := m.On("nfs-cat", m.url("www/busy")).Stdout; got != strings.Repeat(string(binary.BigEndian.AppendUint64(nil, last)), blocks*block/8) {
		t.Errorf("the last version is not published once the file is at rest: %d bytes", len(got))
	}
}

// A publish by hand takes what was written just before it, also when something else has been waiting for long.
func TestPublishWaitsForRest(t *testing.T) {
	source := t.TempDir()
	m := StartMaster(t, MasterConfig{Sources: []string{"www=" + source + ",mode=manual"}, Flags: []string{"--scan-max-wait", "1s"}})
	m.WaitLeader("www")
	writeFile(t, source+"/first", "waits")
	eventually(t, 10*time.Second, "the change is seen", func() bool { return m.Shard("www").Source.Dirty > 0 })
	time.Sleep(1500 * time.Millisecond) // longer than --scan-max-wait: that is what this test is about
	writeFile(t, source+"/second", "just written")
	if g := m.Publish("www"); g.Files != 2 || len(g.Warnings) > 0 {
		t.Errorf("published %+v", g)
	}
}
