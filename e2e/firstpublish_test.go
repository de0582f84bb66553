package e2e

import (
	"cmp"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// publishRounds is how often a first publish is measured, with a fresh fleet each time, and rsync before each.
const publishRounds = 5

// A first publish of the Go source tree and 256 MB to three masters, against two copies by rsync one after the other: what
// somebody would do without the product. The two are measured in turn, and their medians compared.
func TestFirstPublishSpeed(t *testing.T) { measureFirstPublish(t, 3, 2) }

// The same of one master, against one copy.
func TestFirstPublishAloneSpeed(t *testing.T) { measureFirstPublish(t, 1, 1) }

func measureFirstPublish(t *testing.T, masters, copies int) {
	needCommands(t, "rsync")
	source, rounds := publishedTree(t), 1
	if *targets {
		rounds = publishRounds
	}
	var ours, theirs []time.Duration
	for i := range rounds {
		theirs = append(theirs, rsyncCopies(t, source, copies))
		t.Run(fmt.Sprint("round ", i+1), func(t *testing.T) {
			took, said := firstPublish(t, source, masters)
			t.Logf("rsync %v; %v: %s", theirs[i].Round(time.Millisecond), took.Round(time.Millisecond), said)
			ours = append(ours, took)
		})
		if len(ours) <= i {
			t.FailNow()
		}
	}
	got, limit := median(ours), median(theirs)
	t.Logf("%d masters: median %v, rsync %v: %.2f of its time", masters, got.Round(time.Millisecond), limit.Round(time.Millisecond), got.Seconds()/limit.Seconds())
	target(t, fmt.Sprintf("first publish → served by %d masters, against %d copies by rsync", masters, copies), got, limit)
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}

// publishedTree makes what is published: with -targets the Go source tree and a file of 256 MB, otherwise less.
func publishedTree(t *testing.T) string {
	t.Helper()
	source := t.TempDir()
	goroot := strings.TrimSpace(runOn(t, nil, time.Minute, nil, "go", "env", "GOROOT").Stdout)
	from, size := filepath.Join(goroot, "src", "encoding"), 16
	if *targets {
		from, size = filepath.Dir(from), 256
	}
	if r := runOn(t, nil, time.Minute, nil, "cp", "-a", from, source+"/src"); r.Code != 0 {
		t.Fatalf("copy a tree: %v", r)
	}
	f, err := os.Create(source + "/large")
	for i := 0; i < size/16 && err == nil; i++ {
		_, err = f.WriteString(noise(int64(i), 16<<20))
	}
	if err = cmp.Or(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return source
}

// settleDisk gives both sides the same start: the source in the page cache, and nothing waiting to be written.
func settleDisk(t *testing.T, source string) {
	t.Helper()
	err := filepath.WalkDir(source, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(struct{ io.Writer }{io.Discard}, f)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	unix.Sync()
}

// rsyncCopies returns how long so many copies take, one after the other. They stay until the test ends: for minutes ext4 steps
// over every inode that was deleted a moment ago, and that would be held against rsync in the next round.
func rsyncCopies(t *testing.T, source string, copies int) (took time.Duration) {
	t.Helper()
	to := t.TempDir()
	settleDisk(t, source)
	began := time.Now()
	for i := range copies {
		if r := runOn(t, nil, 5*time.Minute, nil, "rsync", "-a", source+"/", fmt.Sprintf("%s/%d/", to, i)); r.Code != 0 {
			t.Fatalf("rsync: %v", r)
		}
	}
	return time.Since(began)
}

// firstPublish returns how long it takes from the command until every master of a new fleet serves the source.
func firstPublish(t *testing.T, source string, masters int) (took time.Duration, said string) {
	t.Helper()
	f := StartFleet(t, FleetConfig{Masters: 1, Etcd: EtcdModule, Flags: []string{"--source", "www=" + source + ",mode=manual"}})
	f.Flags = nil
	for len(f.Masters) < masters {
		f.Add()
	}
	for _, m := range f.Masters {
		m.WaitReady()
	}
	f.WaitLeader("www")
	settleDisk(t, source)
	before := f.processorTimes()
	began := time.Now()
	g := f.Masters[0].Publish("www")
	_, last := f.waitFlips("www", g.Number)
	said = fmt.Sprintf("%d files, %d MB; processor seconds", g.Files, g.Bytes>>20)
	for i, now := range f.processorTimes() {
		said += fmt.Sprintf(" %s %.2f+%.2f", f.Masters[i].Name, (now.user - before[i].user).Seconds(), (now.system - before[i].system).Seconds())
	}
	for _, m := range f.Masters {
		m.MustCLI("verify")
	}
	return last.Sub(began), said
}

func (f *Fleet) processorTimes() []processorTime {
	f.t.Helper()
	out := make([]processorTime, len(f.Masters))
	for i, m := range f.Masters {
		var err error
		if out[i], err = processorTimeOf(m.proc.cmd.Process.Pid); err != nil {
			f.t.Fatal(err)
		}
	}
	return out
}
